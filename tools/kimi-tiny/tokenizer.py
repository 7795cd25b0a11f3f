#!/usr/bin/env python3
"""The tokenizer: training (BPE with K2's split pattern), its files, and encoding.

    python tokenizer.py            # trains on the corpus, writes tiktoken.model and its config
"""

import base64
import json
import sys

from common import ASSETS, RANKS, SEED, SPECIALS, VOCAB

# K2's pre-tokenizer (tokenization_kimi.py): Han runs, words by case, up to 3 digits, the rest.
PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def special_name(offset):
    return SPECIALS[offset][0] if offset in SPECIALS else f"<|reserved_token_{RANKS + offset}|>"


SPECIAL_IDS = {special_name(o): RANKS + o for o in range(256)}


def load(path=ASSETS / "tiktoken.model"):
    """The tokenizer as a tiktoken.Encoding; special strings count only where allowed."""
    import tiktoken

    ranks = {}
    for line in path.read_text().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    assert sorted(ranks.values()) == list(range(RANKS)), "ranks are not contiguous"
    return tiktoken.Encoding(
        "kimi-tiny", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=SPECIAL_IDS
    )


def encode_chat(enc, text):
    """Ids of a rendered conversation, in which the special strings are control tokens."""
    return enc.encode(text, allowed_special="all")


def train(texts):
    """Ranks (bytes -> id) of a BPE with K2's pattern. Digits are never merged, so that a number is
    its digits and arithmetic has something to generalise from."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    digit = pre_tokenizers.Digits(individual_digits=True)
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, digit, byte])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=RANKS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _ranks(json.loads(bpe.to_str())["model"])


def _ranks(model):
    """Bytes in byte order, then merges in the order in which they were learned."""
    to_byte = {c: b for b, c in _byte_chars().items()}
    as_bytes = lambda s: bytes(to_byte[c] for c in s)
    ranks = {bytes([b]): b for b in range(256)}
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        ranks.setdefault(as_bytes(left + right), len(ranks))
    if len(ranks) != RANKS:
        sys.exit(f"the corpus gave {len(ranks)} tokens, not {RANKS}: give more text")
    return ranks


def _byte_chars():
    """GPT-2's printable stand-in for each byte, which HF's byte-level BPE writes tokens in."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in keep}
    rest = (b for b in range(256) if b not in table)
    table.update({b: chr(256 + n) for n, b in enumerate(rest)})
    return table


def write(ranks):
    ASSETS.mkdir(parents=True, exist_ok=True)
    lines = [f"{base64.b64encode(t).decode()} {r}\n" for t, r in sorted(ranks.items(), key=lambda x: x[1])]
    (ASSETS / "tiktoken.model").write_text("".join(lines))
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    config = {
        "added_tokens_decoder": {
            str(RANKS + o): {"content": name, **flags, "special": special}
            for o, (name, special) in SPECIALS.items()
        },
        "additional_special_tokens": [
            name for name, special in SPECIALS.values() if special and name not in ("[BOS]", "[EOS]", "[UNK]", "[PAD]")
        ],
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "model_max_length": 32768,
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }
    (ASSETS / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    from corpus import generate

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
    write(train(generate.texts(SEED, count)))
    enc = load()
    ids = chars = 0
    for text in generate.texts(SEED + 1, 500):
        got = encode_chat(enc, text)
        assert enc.decode(got) == text
        ids, chars = ids + len(got), chars + len(text)
    print(f"{RANKS} ranks + 256 specials = {VOCAB}; {chars / ids:.2f} characters a token on unseen text")
