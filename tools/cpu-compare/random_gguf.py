#!/usr/bin/env python3
"""Writes a model of random weights as GGUF, for speeds only: `random_gguf.py tiny|k2 FOLDER_OF_KIMI_TINY OUT`.

tiny has the shapes, tokens and chat template of kimi-tiny, k2 two layers of Kimi-K2 with 64 experts and no tokenizer.
Weights are q4_0, and tiny's head q6_K, since kimi-tiny's has 6 bits. Needs the packages gguf and numpy.
"""

import argparse
import base64
import json
import pathlib

import gguf
import numpy as np

K2 = {
    "hidden_size": 7168, "num_hidden_layers": 2, "num_attention_heads": 64, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_routed_experts": 64, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 163840, "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
Q4, Q6 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q6_K
# Weights and bytes of a block, and where its scale is, a half.
BLOCK = {Q4: (32, 18, 0), Q6: (256, 210, 208)}
random = np.random.default_rng(0)


def blocks(form, shape):
    """Random blocks; large tensors repeat a megabyte of them, which no cache knows."""
    weights, size, scale = BLOCK[form]
    count = int(np.prod(shape)) // weights
    drawn = random.integers(0, 256, (min(count, 1 << 16), size), dtype=np.uint8)
    drawn[:, scale : scale + 2] = np.frombuffer(np.float16(0.003).tobytes(), np.uint8)
    return np.resize(drawn, (*shape[:-1], shape[-1] // weights * size))


class Model:
    def __init__(self, config, out):
        self.config, self.writer = config, gguf.GGUFWriter(out, "deepseek2")

    def quantized(self, name, *shape, form=Q4):
        self.writer.add_tensor(name + ".weight", blocks(form, shape), raw_dtype=form)

    def ones(self, name, *shape):
        self.writer.add_tensor(name + ".weight", np.ones(shape, np.float32))

    def small(self, name, *shape):
        self.writer.add_tensor(name, random.normal(0, 0.02, shape).astype(np.float32))

    def header(self):
        c, w = self.config, self.writer
        latent, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
        w.add_name("random")
        w.add_context_length(c["max_position_embeddings"])
        w.add_embedding_length(c["hidden_size"])
        w.add_block_count(c["num_hidden_layers"])
        w.add_feed_forward_length(c["intermediate_size"])
        w.add_expert_feed_forward_length(c["moe_intermediate_size"])
        w.add_head_count(c["num_attention_heads"])
        w.add_head_count_kv(1)  # the latent
        w.add_layer_norm_rms_eps(c["rms_norm_eps"])
        w.add_leading_dense_block_count(c["first_k_dense_replace"])
        w.add_vocab_size(c["vocab_size"])
        w.add_q_lora_rank(c["q_lora_rank"])
        w.add_kv_lora_rank(latent)
        w.add_key_length(latent + rope)
        w.add_value_length(latent)
        w.add_key_length_mla(c["qk_nope_head_dim"] + rope)
        w.add_value_length_mla(c["v_head_dim"])
        w.add_rope_dimension_count(rope)
        w.add_rope_freq_base(c["rope_theta"])
        w.add_expert_count(c["n_routed_experts"])
        w.add_expert_used_count(c["num_experts_per_tok"])
        w.add_expert_shared_count(c["n_shared_experts"])
        w.add_expert_weights_scale(c["routed_scaling_factor"])
        w.add_expert_weights_norm(True)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)

    def tokenizer(self, folder):
        if folder is None:
            return self.writer.add_tokenizer_model("none")
        ranks = {}
        for line in (folder / "tiktoken.model").read_text().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
        special = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        special = {int(rank): token["content"] for rank, token in special.items()}
        # GPT-2's letters for bytes.
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        letters = {byte: chr(byte) for byte in plain}
        letters.update({byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in letters)})
        text = lambda token: "".join(letters[byte] for byte in token)
        # A token of two others of lower rank is one merge; which of several halves it is changes no speed.
        merges = []
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            halves = ((token[:i], token[i:]) for i in range(1, len(token)))
            known = [pair for pair in halves if all(ranks.get(half, rank) < rank for half in pair)]
            merges += [f"{text(left)} {text(right)}" for left, right in known[:1]]
        tokens = [f"[unused {i}]" for i in range(self.config["vocab_size"])]
        kinds = [gguf.TokenType.UNUSED] * len(tokens)
        for token, rank in ranks.items():
            tokens[rank], kinds[rank] = text(token), gguf.TokenType.NORMAL
        for rank, token in special.items():
            tokens[rank], kinds[rank] = token, gguf.TokenType.CONTROL
        w = self.writer
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("kimi-k2")
        w.add_token_list(tokens)
        w.add_token_types(kinds)
        w.add_token_merges(merges)
        w.add_bos_token_id(self.config["bos_token_id"])
        w.add_eos_token_id(self.config["eos_token_id"])
        w.add_add_bos_token(False)
        w.add_chat_template((folder / "chat_template.jinja").read_text())

    def layer(self, i):
        c, at = self.config, f"blk.{i}."
        hidden, heads, latent = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        self.ones(at + "attn_norm", hidden)
        self.ones(at + "ffn_norm", hidden)
        self.quantized(at + "attn_q_a", c["q_lora_rank"], hidden)
        self.ones(at + "attn_q_a_norm", c["q_lora_rank"])
        self.quantized(at + "attn_q_b", heads * (nope + rope), c["q_lora_rank"])
        self.quantized(at + "attn_kv_a_mqa", latent + rope, hidden)
        self.ones(at + "attn_kv_a_norm", latent)
        self.quantized(at + "attn_k_b", heads, latent, nope)
        self.quantized(at + "attn_v_b", heads, value, latent)
        self.quantized(at + "attn_output", hidden, heads * value)
        if i < c["first_k_dense_replace"]:
            return self.mlp(at, "", (), c["intermediate_size"])
        experts = c["n_routed_experts"]
        self.small(at + "ffn_gate_inp.weight", experts, hidden)
        self.small(at + "exp_probs_b.bias", experts)
        self.mlp(at, "_exps", (experts,), c["moe_intermediate_size"])
        self.mlp(at, "_shexp", (), c["moe_intermediate_size"] * c["n_shared_experts"])

    def mlp(self, at, suffix, experts, width):
        hidden = self.config["hidden_size"]
        for part in ("gate", "up"):
            self.quantized(f"{at}ffn_{part}{suffix}", *experts, width, hidden)
        self.quantized(f"{at}ffn_down{suffix}", *experts, hidden, width)

    def write(self, folder):
        c = self.config
        self.header()
        self.tokenizer(folder)
        self.quantized("token_embd", c["vocab_size"], c["hidden_size"])
        self.quantized("output", c["vocab_size"], c["hidden_size"], form=Q4 if folder is None else Q6)
        self.ones("output_norm", c["hidden_size"])
        for i in range(c["num_hidden_layers"]):
            self.layer(i)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["tiny", "k2"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out")
    args = parser.parse_args()
    tiny = args.shape == "tiny"
    config = json.loads((args.folder / "config.json").read_text()) if tiny else K2
    Model(config, args.out).write(args.folder if tiny else None)


if __name__ == "__main__":
    main()
