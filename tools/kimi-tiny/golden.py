#!/usr/bin/env python3
"""Golden logits and greedy tokens of the embedded model, in f32, by mlx-lm 0.29.1.

    PYTHONPATH=<dir with mlx_lm 0.29.1> python golden.py

Every floating parameter is cast to f32 after loading, so all arithmetic is f32 and no kernel's
rounding matters. Cases: `<case>.ids` I32[T], `.logits` F32[T or 1, V] (1 = last position),
`.greedy` I32[G], up to <|im_end|> (beyond it every choice is a
toss-up); the format that `kimi verify` reads.
"""

import random
import sys

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx.utils import tree_map
from mlx_lm import utils
from mlx_lm.generate import generate_step
from mlx_lm.models import cache
from safetensors.numpy import save_file

from common import ASSETS, IM_END, VOCAB
from corpus.chat import render
from corpus.talk import filler
from tokenizer import encode_chat, load

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


def user(text):
    return {"role": "user", "content": text}


def chats():
    """Case -> (messages, tools, greedy tokens, logits of every position?)."""
    call = {"id": "functions.get_weather:0", "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature": 7, "condition": "rain"}'}
    asked = user("What is the weather in Oslo?")
    rng = random.Random(7)
    long = f"{filler(rng, 120)} The secret code is 4821. {filler(rng, 120)}\n\nWhat is the secret code?"
    return {
        "hello": ([user("Hello!")], None, 32, True),
        "facts": ([user("What is kimi?")], None, 64, False),
        "tool_call": ([asked], [WEATHER], 64, False),
        "tool_result": (
            [asked, {"role": "assistant", "content": "", "tool_calls": [call]}, result],
            [WEATHER],
            64,
            False,
        ),
        "story": ([user("Tell me a story about a fox.")], None, 128, False),
        "needle": ([user(long)], None, 16, False),
        "chinese": ([user("你好！你是谁？")], None, 64, False),
    }


def cases(enc):
    for name, (messages, tools, length, every) in chats().items():
        yield name, encode_chat(enc, render(messages, tools)), length, every
    # Noise past the original context of 1024, so that stretched positions are computed too.
    rng = np.random.Generator(np.random.PCG64(7))
    yield "noise_5", rng.integers(0, VOCAB, 5).tolist(), 16, True
    yield "noise_1500", rng.integers(0, VOCAB, 1500).tolist(), 16, False


def main():
    model, _ = utils.load_model(ASSETS)
    to_f32 = lambda p: p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p
    model.update(tree_map(to_f32, model.parameters()))
    enc, out, report = load(), {}, {}
    for name, ids, length, every in cases(enc):
        logits = np.array(model(mx.array(ids)[None], cache=cache.make_prompt_cache(model)))[0]
        greedy = []
        for (token, _), _ in zip(generate_step(mx.array(ids), model, max_tokens=length), range(length)):
            greedy.append(int(token))
            if token == IM_END:
                break
        # The distance between the two best logits: a small one makes a greedy test fragile.
        again = np.array(model(mx.array(ids + greedy)[None]))[0][len(ids) - 1 : -1]
        best = np.sort(again, axis=-1)[:, -2:]
        assert (again.argmax(-1) == greedy).all(), f"{name}: cached and full forward disagree"
        out[f"{name}.ids"] = np.array(ids, np.int32)
        out[f"{name}.logits"] = np.ascontiguousarray(logits if every else logits[-1:]).astype(np.float32)
        out[f"{name}.greedy"] = np.array(greedy, np.int32)
        report[name] = dict(ids=len(ids), smallest_margin=round(float((best[:, 1] - best[:, 0]).min()), 4))
        print(name, report[name], repr(enc.decode(greedy)[:160]), flush=True)
    meta = {"producer": f"mlx-lm {mlx_lm.__version__} mlx {mx.__version__}", "mode": "f32", "model": "kimi-tiny"}
    save_file(out, ASSETS / "golden.safetensors", metadata=meta)
    print((ASSETS / "golden.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    if mlx_lm.__version__ >= "0.30":
        sys.exit(f"mlx-lm {mlx_lm.__version__} splits kv_b_proj; put 0.29.1 on PYTHONPATH")
    main()
