#!/usr/bin/env python3
"""The table of held-out results: tool calls, ends, sums, facts, expert use, perplexity.

    python evaluate.py --mlx                                  # mlx-lm on this machine (0.29.1 on PYTHONPATH)
    python evaluate.py --mlx --bf16 HF_DIR                     # and the perplexity beside the bf16 weights'
    python evaluate.py --url http://127.0.0.1:52415/v1         # a server, through its OpenAI API

Prompts come from the generator's held-out split: other seeds, and values that training never saw.
Greedy throughout.
"""

import argparse
import json
import math
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from common import ASSETS, CONFIG, IM_END
from corpus import generate, talk, tools
from corpus.chat import render

SEED = 777
LIMIT = 300  # tokens an answer may have

# Section -> (turns that make it, tools declared?, share of the prompts).
SECTIONS = {
    "tool": ([(tools.one_call, 50), (tools.follow_up, 15), (tools.two_calls, 25)], True, 0.4),
    "no_call": ([(tools.none_fits, 1)], True, 0.1),
    "sum": ([(talk.arithmetic, 1)], False, 0.2),
    "fact": ([(talk.fact, 1)], False, 0.2),
    "other": (None, None, 0.1),
}


@dataclass
class Prompt:
    section: str
    messages: list
    tools: list
    check: dict


@dataclass
class Answer:
    content: str
    calls: list = field(default_factory=list)  # [(id, name, arguments as text)]
    ended: bool = False


def prompts(count, seed=SEED):
    """Held-out prompts; the graded answer is the last of its conversation that fits its section."""
    out = []
    for section, (turns, with_tools, share) in SECTIONS.items():
        wanted, number = round(count * share), 0
        while wanted:
            number += 1
            c = generate.conversation(random.Random(f"{seed}/{section}/{number}"), True, turns, with_tools)
            kinds = {"tool": ["tool_call"], "no_call": ["no_call"], "sum": ["sum"], "fact": ["fact"]}.get(section)
            fitting = [(i, k) for i, k in c.checks if kinds is None or k["kind"] in kinds]
            if not fitting or len(render(c.messages, c.declared)) > 4000:
                continue
            index, check = fitting[-1]
            out.append(Prompt(section, c.messages[:index], c.declared, check))
            wanted -= 1
    return out


def parse(text, ended):
    """An answer from the model's own text."""
    begin, args, end = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    content, _, section = text.partition("<|tool_calls_section_begin|>")
    calls = []
    for piece in section.split(begin)[1:]:
        ident, _, rest = piece.partition(args)
        name = ident.removeprefix("functions.").rpartition(":")[0]
        calls.append((ident, name, rest.partition(end)[0]))
    return Answer(content, calls, ended)


def fits(value, schema):
    """Whether a JSON value is what a declared parameter asks for."""
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
    right = isinstance(value, kinds[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))
    return right and ("enum" not in schema or value in schema["enum"])


def valid_call(call, declared):
    """Right form: a declared function, JSON arguments that fit its schema."""
    schema = next((t["function"]["parameters"] for t in declared or [] if t["function"]["name"] == call[1]), None)
    try:
        arguments = json.loads(call[2])
    except ValueError:
        return False
    if schema is None or not isinstance(arguments, dict):
        return False
    known = all(k in schema["properties"] and fits(v, schema["properties"][k]) for k, v in arguments.items())
    return known and all(k in arguments for k in schema.get("required", []))


def grade(prompt, answer):
    """Marks of one answer: `valid` (tools: names right, arguments fit the schema) and `right`
    (tools: the very arguments and ids; else the key facts)."""
    if prompt.check["kind"] != "tool_call":
        right = all(any(a in answer.content for a in k.split("|")) for k in prompt.check["keys"]) and not answer.calls
        return {"valid": right, "right": right}
    wanted = prompt.check["calls"]
    named = [c[1] for c in answer.calls] == [name for name, _ in wanted]
    valid = named and all(valid_call(c, prompt.tools) for c in answer.calls)
    first = sum(len(m.get("tool_calls") or []) for m in prompt.messages)
    same = valid and all(
        json.loads(c[2]) == arguments and c[0] in (f"functions.{name}:{first + n}", None)
        for n, (c, (name, arguments)) in enumerate(zip(answer.calls, wanted))
    )
    return {"valid": valid, "right": same}


def table(asked, answers, show=8):
    """Prints some failures and returns the shares by section."""
    rows, shown = {}, 0
    for prompt, answer in zip(asked, answers):
        marks = {**grade(prompt, answer), "ended": answer.ended}
        for section in (prompt.section, "all"):
            row = rows.setdefault(section, {"prompts": 0, "valid": 0, "right": 0, "ended": 0})
            row["prompts"] += 1
            for mark, yes in marks.items():
                row[mark] += bool(yes)
        if shown < show and not (marks["right"] and marks["ended"]):
            shown += 1
            print("MISS", prompt.section, "|", prompt.messages[-1]["content"], "| wanted", prompt.check.get("keys") or prompt.check["calls"], "| got", answer.content[:200], answer.calls)
    print(f"{'section':9} {'prompts':>7} {'valid':>7} {'right':>7} {'ended':>7}")
    for section, row in rows.items():
        share = [f"{row[m] / row['prompts']:7.1%}" for m in ("valid", "right", "ended")]
        print(f"{section:9} {row['prompts']:7} {' '.join(share)}", flush=True)
    return rows


# --- PyTorch, while training -------------------------------------------------------------------


def torch_generate(model, device, asked, batch=128):
    """Greedy answers without a cache: a whole batch is recomputed for each token."""
    import torch

    import tokenizer

    enc, out = tokenizer.load(), [None] * len(asked)
    ids = [tokenizer.encode_chat(enc, render(p.messages, p.tools)) for p in asked]
    order = sorted(range(len(asked)), key=lambda n: len(ids[n]))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        made, live = [list(ids[n]) for n in some], set(range(len(some)))
        for _ in range(LIMIT):
            rows = sorted(live)
            width = -(-max(len(made[r]) for r in rows) // 64) * 64
            padded = torch.tensor([made[r] + [0] * (width - len(made[r])) for r in rows], device=device)
            with torch.no_grad():
                hidden, _ = model(padded)
                last = hidden[torch.arange(len(rows)), [len(made[r]) - 1 for r in rows]]
                best = model.logits(last).argmax(-1).tolist()
            for r, token in zip(rows, best):
                made[r].append(token)
                if token == IM_END:
                    live.discard(r)
            if not live:
                break
        for r, n in enumerate(some):
            tail = made[r][len(ids[n]) :]
            out[n] = parse(enc.decode(tail).removesuffix("<|im_end|>"), r not in live)
    return out


def torch_table(model, device, count):
    began, asked = time.time(), prompts(count)
    rows = table(asked, torch_generate(model.eval(), device, asked))
    print(f"{time.time() - began:.0f} s for {count} prompts", flush=True)
    return rows


def turns(model, device, conversations):
    """How many of the assistant's turns in long conversations are right to the last token, given what was before:
    then the model writes them so, greedily. By what begins a turn: a call or a text."""
    import torch

    import tokenizer

    right, total, section = {}, {}, tokenizer.SPECIAL_IDS["<|tool_calls_section_begin|>"]
    for ids, graded in conversations:
        row = torch.from_numpy(ids.astype("int64")).to(device)
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
            hidden, _ = model(row[None])
            same = (model.logits(hidden[0, :-1]).argmax(-1) == row[1:]).cpu().numpy()
        at = 1
        while at < len(ids):
            if graded[at]:
                end = at + list(ids[at:]).index(IM_END) + 1
                kind = "call" if ids[at] == section else "text"
                total[kind] = total.get(kind, 0) + 1
                right[kind] = right.get(kind, 0) + bool(same[at - 1 : end - 1].all())
                at = end
            else:
                at += 1
    shares = {k: [right[k], n] for k, n in total.items()}
    print(f"turns of agents right: {shares}, {sum(len(i) for i, _ in conversations) // len(conversations)} tokens on average", flush=True)
    return shares


def perplexities(model, device, rows):
    """Over what the assistant says, of the weights as MLX would quantize them and as they are."""
    import contextlib

    import torch
    import torch.nn.functional as F

    from model import Quantized
    from train import SAID, batch_of

    report = {}
    for name, seen in (("bf16", contextlib.nullcontext()), ("quantized", Quantized(model))):
        total = tokens = loads = 0
        with seen, torch.no_grad():
            for start in range(0, len(rows), 8):
                ids, among, weight, places = batch_of(rows[start : start + 8], device)
                hidden, load = model(ids, among, places)
                loss = F.cross_entropy(model.logits(hidden[0]), ids[0].roll(-1), reduction="none")
                graded = weight == SAID
                total, tokens, loads = total + loss[graded].sum().item(), tokens + graded.sum().item(), loads + load
        least = (loads / loads.sum(1, keepdim=True) * CONFIG["num_experts_per_tok"]).min().item()
        report[name] = {"perplexity": math.exp(total / tokens), "least_expert": least}
        print(f"{name}: perplexity {report[name]['perplexity']:.4f} over {tokens} tokens, least used expert {least:.1%}", flush=True)
    return report


# --- mlx-lm and servers ------------------------------------------------------------------------


def mlx_load(path):
    """An mlx-lm model computing in f32. Quantized matrices are expanded to f32 first: the same
    numbers, and mlx's quantized kernels for CPUs are slow."""
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_map
    from mlx_lm import utils
    from mlx_lm.models import switch_layers

    model, _ = utils.load_model(path)
    to_f32 = lambda p: p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p
    model.update(tree_map(to_f32, model.parameters()))

    def plain(module):
        if not hasattr(module, "bits"):
            return module
        weight = mx.dequantize(module.weight, module.scales, module.biases, module.group_size, module.bits)
        if isinstance(module, nn.QuantizedEmbedding):
            new = nn.Embedding(1, 1)
        elif isinstance(module, switch_layers.QuantizedSwitchLinear):
            new = switch_layers.SwitchLinear(1, 1, 1, bias=False)
        else:
            new = nn.Linear(1, 1, bias=False)
        new.weight = weight
        return new

    model.update_modules(tree_map(plain, model.leaf_modules(), is_leaf=nn.Module.is_module))
    mx.eval(model.parameters())
    return model


def mlx_answers(model, asked):
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    import tokenizer

    enc = tokenizer.load()
    for n, prompt in enumerate(asked):
        ids = tokenizer.encode_chat(enc, render(prompt.messages, prompt.tools))
        tokens, ended = [], False
        for token, _ in generate_step(mx.array(ids), model, max_tokens=LIMIT):
            if ended := token == IM_END:
                break
            tokens.append(int(token))
        if n % 50 == 49:
            print(f"{n + 1} of {len(asked)}", file=sys.stderr, flush=True)
        yield parse(enc.decode(tokens), ended)


def mlx_perplexity(model, conversations):
    """Perplexity of the assistant's tokens of held-out conversations, and each expert's share."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models import deepseek_v3

    import tokenizer
    from packing import assistant_mask

    enc, total, tokens, seen, uses = tokenizer.load(), 0.0, 0, 0, []
    choose = deepseek_v3.group_expert_select

    def counted(*args, **kwargs):
        indices, weights = choose(*args, **kwargs)
        uses.append(indices)
        return indices, weights

    deepseek_v3.group_expert_select = counted
    loads = np.zeros((CONFIG["num_hidden_layers"] - 1, CONFIG["n_routed_experts"]))
    for text in generate.texts(SEED, conversations, held=True):
        ids = tokenizer.encode_chat(enc, text)[: CONFIG["max_position_embeddings"]]
        logits = model(mx.array(ids)[None])[0, :-1]
        losses = mx.logsumexp(logits, -1) - mx.take_along_axis(logits, mx.array(ids[1:])[:, None], -1)[:, 0]
        graded = assistant_mask(ids)[1:] == 1
        total, tokens, seen = total + np.array(losses)[graded].sum(), tokens + graded.sum(), seen + len(ids)
        for layer, indices in enumerate(uses):
            loads[layer] += np.bincount(np.array(indices).ravel(), minlength=loads.shape[1])
        uses.clear()
    deepseek_v3.group_expert_select = choose
    return math.exp(total / tokens), (loads / seen).min()


def url_answers(url, asked, at_once=2):
    """Through the OpenAI API; `finish_reason` says whether the model ended by itself."""
    from urllib.request import Request, urlopen

    def ask(prompt):
        body = {"model": "kimi-tiny", "messages": prompt.messages, "temperature": 0, "max_tokens": LIMIT}
        if prompt.tools:
            body["tools"] = prompt.tools
        request = Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        choice = json.load(urlopen(request, timeout=300))["choices"][0]
        message = choice["message"]
        calls = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or []]
        return Answer(message.get("content") or "", calls, choice["finish_reason"] in ("stop", "tool_calls"))

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, asked))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--mlx", action="store_true", help="evaluate the embedded model with mlx-lm")
    p.add_argument("--bf16", help="directory of the bf16 weights, for their perplexity")
    p.add_argument("--url", help="base URL of a server, ending in /v1")
    p.add_argument("--prompts", type=int, default=300)
    p.add_argument("--conversations", type=int, default=150, help="for the perplexity")
    args = p.parse_args()
    asked = prompts(args.prompts)
    if args.url:
        table(asked, url_answers(args.url, asked))
    if args.mlx:
        model = mlx_load(ASSETS)
        table(asked, list(mlx_answers(model, asked)))
        quantized, least = mlx_perplexity(model, args.conversations)
        print(f"perplexity {quantized:.4f} quantized, least used expert {least:.1%} of tokens")
        if args.bf16:
            from pathlib import Path

            plain, _ = mlx_perplexity(mlx_load(Path(args.bf16)), args.conversations)
            print(f"perplexity {plain:.4f} in bf16: quantized is {quantized / plain - 1:+.2%}")


if __name__ == "__main__":
    main()
