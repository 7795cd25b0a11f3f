#!/usr/bin/env python3
"""From a bf16 checkpoint in HF layout to the embedded one, through mlx-lm 0.29.1 (kv_b_proj unsplit).

    PYTHONPATH=<dir with mlx_lm 0.29.1> python convert.py HF_DIR
    PYTHONPATH=<dir with mlx_lm 0.29.1> python convert.py --random SEED     # untrained weights

Writes model.safetensors, its index, config.json, generation_config.json and the chat template.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm import utils

from common import ASSETS, CONFIG, GROUP, HERE, IM_END, bits_of


def shapes():
    """Name -> (out, in) or (n,) of every tensor of the HF layout."""
    c = CONFIG
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    q_rank, kv_rank = c["q_lora_rank"], c["kv_lora_rank"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}"
        out |= {
            f"{p}.input_layernorm.weight": (hidden,),
            f"{p}.post_attention_layernorm.weight": (hidden,),
            f"{p}.self_attn.q_a_proj.weight": (q_rank, hidden),
            f"{p}.self_attn.q_a_layernorm.weight": (q_rank,),
            f"{p}.self_attn.q_b_proj.weight": (heads * (nope + rope), q_rank),
            f"{p}.self_attn.kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
            f"{p}.self_attn.kv_a_layernorm.weight": (kv_rank,),
            f"{p}.self_attn.kv_b_proj.weight": (heads * (nope + v), kv_rank),
            f"{p}.self_attn.o_proj.weight": (hidden, heads * v),
        }
        if layer < c["first_k_dense_replace"]:
            blocks = {f"{p}.mlp": c["intermediate_size"]}
        else:
            experts = c["n_routed_experts"]
            out[f"{p}.mlp.gate.weight"] = (experts, hidden)
            out[f"{p}.mlp.gate.e_score_correction_bias"] = (experts,)
            blocks = {f"{p}.mlp.experts.{e}": c["moe_intermediate_size"] for e in range(experts)}
            blocks[f"{p}.mlp.shared_experts"] = c["moe_intermediate_size"] * c["n_shared_experts"]
        for block, width in blocks.items():
            out[f"{block}.gate_proj.weight"] = (width, hidden)
            out[f"{block}.up_proj.weight"] = (width, hidden)
            out[f"{block}.down_proj.weight"] = (hidden, width)
    out["model.norm.weight"] = (hidden,)
    out["lm_head.weight"] = (c["vocab_size"], hidden)
    return out


def random_weights(seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = {}
    for name, shape in shapes().items():
        if name.endswith("e_score_correction_bias"):
            weights[name] = mx.array((0.1 * rng.standard_normal(shape)).astype(np.float32))
            continue
        if len(shape) == 1:
            w = 1 + 0.1 * rng.standard_normal(shape)
        else:
            gain = {"embed": math.sqrt(shape[1]), "lm_he": 2.0}.get(name.replace("model.", "")[:5], 1.0)
            w = rng.standard_normal(shape) * gain / math.sqrt(shape[1])
        weights[name] = mx.array(w.astype(np.float32)).astype(mx.bfloat16)
    return weights


def predicate(path, module):
    bits = bits_of(path)
    return {"group_size": GROUP, "bits": bits} if bits and hasattr(module, "to_quantized") else False


def quantize(hf_dir, out):
    """Quantizes and writes; everything but the choice of bits is mlx-lm's."""
    model, config = utils.load_model(Path(hf_dir), lazy=True)
    model, config = utils.quantize_model(model, dict(config), GROUP, 4, quant_predicate=predicate)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("model*.safetensors*"):
        old.unlink()
    utils.save_model(out, model)
    utils.save_config(config, config_path=out / "config.json")
    generation = {"eos_token_id": IM_END, "max_length": CONFIG["max_position_embeddings"]}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shutil.copy(HERE / "chat_template.jinja", out / "chat_template.jinja")


def main(args):
    if mlx_lm.__version__ >= "0.30":
        sys.exit(f"mlx-lm {mlx_lm.__version__} splits kv_b_proj; put 0.29.1 on PYTHONPATH")
    if args[0] == "--random":
        with tempfile.TemporaryDirectory() as tmp:
            weights = random_weights(int(args[1]))
            mx.save_safetensors(f"{tmp}/model.safetensors", weights, metadata={"format": "pt"})
            Path(tmp, "config.json").write_text(json.dumps(CONFIG))
            quantize(tmp, ASSETS)
    else:
        Path(args[0], "config.json").write_text(json.dumps(CONFIG))
        quantize(args[0], ASSETS)
    total = sum(f.stat().st_size for f in ASSETS.iterdir())
    print(f"mlx-lm {mlx_lm.__version__}, mlx {mx.__version__}: {total / 1e6:.2f} MB in {ASSETS.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
