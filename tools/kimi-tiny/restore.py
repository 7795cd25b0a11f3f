"""The embedded checkpoint as exact numbers: where a training goes on from."""

import torch
from safetensors.torch import load_file

from common import ASSETS, CONFIG, GROUP, bits_of


def unpacked(words, bits):
    """The values that lie one after the other in the bits of 32-bit words, lowest bit first."""
    words = words.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    each = (words[..., None] >> torch.arange(32)) & 1
    stream = each.flatten(-2).unflatten(-1, (-1, bits))
    return (stream << torch.arange(bits)).sum(-1)


def embedded(path=ASSETS / "model.safetensors"):
    """Tensors by their HF names, in f32, as the quantizer left them."""
    stored, out = load_file(path), {}
    for name, tensor in stored.items():
        module, _, kind = name.rpartition(".")
        if kind in ("scales", "biases"):
            continue
        if f"{module}.scales" in stored:
            value = unpacked(tensor, bits_of(module)).unflatten(-1, (-1, GROUP)).float()
            scale, bias = (stored[f"{module}.{k}"].float()[..., None] for k in ("scales", "biases"))
            tensor = (value * scale + bias).flatten(-2)
        if "switch_mlp" in module:
            for e in range(CONFIG["n_routed_experts"]):
                out[name.replace("switch_mlp", f"experts.{e}")] = tensor[e].float()
        else:
            out[name] = tensor.float()
    return out
