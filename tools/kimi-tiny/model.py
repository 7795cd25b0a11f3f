"""The Kimi-K2 (DeepSeek-V3) architecture in PyTorch, for training, with MLX's quantizer in the loop.

Names follow config.json. Experts are kept stacked, and every expert is computed for every token
with the weights of the unchosen ones zero: at 16 small experts one dense product is faster on a
GPU than gathering, and gives the same numbers.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from common import CONFIG, GROUP, bits_of


def fake_quant(w, bits):
    """MLX's affine quantizer, there and back (f32 in and out), on groups of the last axis.

    s = range / (2^b - 1), negative unless the low end is the larger one; the larger end is met
    exactly and so is zero. Scales and offsets are stored in bf16.
    """
    top = 2**bits - 1
    g = w.bfloat16().float().unflatten(-1, (-1, GROUP))
    low, high = g.amin(-1, keepdim=True), g.amax(-1, keepdim=True)
    s = ((high - low) / top).clamp_min(1e-7)
    low_end = low.abs() > high.abs()
    s = torch.where(low_end, s, -s)
    edge = torch.where(low_end, low, high)
    q0 = torch.round(edge / s)
    at_zero = q0 == 0
    s = torch.where(at_zero, s, edge / torch.where(at_zero, torch.ones_like(q0), q0))
    b = torch.where(at_zero, torch.zeros_like(edge), edge)
    q = torch.round((g - b) / s).clamp(0, top)
    return (q * s.bfloat16().float() + b.bfloat16().float()).flatten(-2)


class Weight(nn.Module):
    """A matrix, or a stack of them."""

    def __init__(self, path, *shape, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) * gain / math.sqrt(shape[-1]))
        self.bits = bits_of(path)

    def forward(self):
        return self.weight


class Quantized:
    """While this is open, every weight is what MLX's quantizer makes of it. Gradients that are taken
    meanwhile belong to the exact weights (straight through), which come back at the end."""

    def __init__(self, model):
        self.groups = {}
        for module in model.modules():
            if isinstance(module, Weight) and module.bits:
                self.groups.setdefault(module.bits, []).append(module.weight)

    @torch.no_grad()
    def __enter__(self):
        self.exact = {bits: [p.data for p in params] for bits, params in self.groups.items()}
        for bits, params in self.groups.items():
            seen = fake_quant(torch.cat([p.data.reshape(-1, GROUP) for p in params]), bits)
            for p, part in zip(params, seen.split([p.numel() // GROUP for p in params])):
                p.data = part.reshape(p.shape).contiguous()

    def __exit__(self, *_):
        for bits, params in self.groups.items():
            for p, exact in zip(params, self.exact[bits]):
                p.data = exact


def attend(q, k, v, scale, among):
    """Causal attention; q, k and v are [B, heads, T, size]. `among` says who may look at whom: None for all of a row,
    a list of lengths for texts one after the other in a single row, or [rows, 1, T, T], true where a token of one of
    so many rows, which lie one after the other, may look."""
    fused = lambda *x, **more: F.scaled_dot_product_attention(*x, scale=scale, **more)
    if among is None:
        return fused(q, k, v, is_causal=True)
    if isinstance(among, list):
        return torch.cat([fused(*x, is_causal=True) for x in zip(*(t.split(among, 2) for t in (q, k, v)))], 2)
    rows = [t.unflatten(2, (len(among), -1))[0].transpose(0, 1) for t in (q, k, v)]
    return fused(*rows, attn_mask=among).transpose(0, 1).flatten(1, 2)[None]


class Norm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rope_tables(length):
    """cos and sin [T, rope/2] of YaRN's frequencies."""
    c, y = CONFIG, CONFIG["rope_scaling"]
    dim, base, factor = c["qk_rope_head_dim"], c["rope_theta"], y["factor"]
    turn = lambda n: dim * math.log(y["original_max_position_embeddings"] / (n * 2 * math.pi)) / (2 * math.log(base))
    low, high = max(math.floor(turn(y["beta_fast"])), 0), min(math.ceil(turn(y["beta_slow"])), dim - 1)
    i = torch.arange(dim // 2, dtype=torch.float64)
    keep = 1 - ((i - low) / max(high - low, 1e-3)).clamp(0, 1)
    freq = base ** (-2 * i / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * (freq * keep + freq / factor * (1 - keep))
    return angle.cos().float(), angle.sin().float()


def rope(x, cos, sin):
    """Rotates neighbouring pairs; x is [B, heads, T, rope]."""
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, p):
        super().__init__()
        c = CONFIG
        self.heads, self.nope, self.rope, self.v = (c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        hidden, q_rank, self.kv_rank = c["hidden_size"], c["q_lora_rank"], c["kv_lora_rank"]
        self.q_a_proj = Weight(f"{p}.q_a_proj", q_rank, hidden)
        self.q_a_layernorm = Norm(q_rank)
        self.q_b_proj = Weight(f"{p}.q_b_proj", self.heads * (self.nope + self.rope), q_rank)
        self.kv_a_proj_with_mqa = Weight(f"{p}.kv_a_proj_with_mqa", self.kv_rank + self.rope, hidden)
        self.kv_a_layernorm = Norm(self.kv_rank)
        self.kv_b_proj = Weight(f"{p}.kv_b_proj", self.heads * (self.nope + self.v), self.kv_rank)
        self.o_proj = Weight(f"{p}.o_proj", hidden, self.heads * self.v, gain=0.5)
        y = c["rope_scaling"]
        stretch = 0.1 * y["mscale_all_dim"] * math.log(y["factor"]) + 1
        self.scale = (self.nope + self.rope) ** -0.5 * stretch**2

    def project(self, x, cos, sin):
        """Queries, keys and values, all of one head size, which the fused kernel wants."""
        split = lambda t, *sizes: t.unflatten(-1, (self.heads, -1)).transpose(1, 2).split(sizes, -1)
        q_nope, q_pe = split(F.linear(self.q_a_layernorm(F.linear(x, self.q_a_proj())), self.q_b_proj()), self.nope, self.rope)
        latent, k_pe = F.linear(x, self.kv_a_proj_with_mqa()).split([self.kv_rank, self.rope], -1)
        k_nope, v = split(F.linear(self.kv_a_layernorm(latent), self.kv_b_proj()), self.nope, self.v)
        k_pe = rope(k_pe[:, None], cos, sin).expand(-1, self.heads, -1, -1)
        q, k = torch.cat([q_nope, rope(q_pe, cos, sin)], -1), torch.cat([k_nope, k_pe], -1)
        return q, k, F.pad(v, (0, q.shape[-1] - self.v))

    def output(self, out):
        return F.linear(out[..., : self.v].transpose(1, 2).flatten(-2), self.o_proj())


class Mlp(nn.Module):
    def __init__(self, p, width):
        super().__init__()
        hidden = CONFIG["hidden_size"]
        self.gate_proj = Weight(f"{p}.gate_proj", width, hidden)
        self.up_proj = Weight(f"{p}.up_proj", width, hidden)
        self.down_proj = Weight(f"{p}.down_proj", hidden, width, gain=0.5)

    def forward(self, x):
        return F.linear(F.silu(F.linear(x, self.gate_proj())) * F.linear(x, self.up_proj()), self.down_proj())


class Experts(nn.Module):
    """Router, routed experts (stacked) and the shared expert."""

    def __init__(self, p):
        super().__init__()
        c = CONFIG
        count, width, hidden = c["n_routed_experts"], c["moe_intermediate_size"], c["hidden_size"]
        self.gate = Weight(f"{p}.gate", count, hidden)
        self.register_buffer("e_score_correction_bias", torch.zeros(count))
        self.gate_proj = Weight(f"{p}.experts.gate_proj", count, width, hidden)
        self.up_proj = Weight(f"{p}.experts.up_proj", count, width, hidden)
        self.down_proj = Weight(f"{p}.experts.down_proj", count, hidden, width, gain=0.25)
        self.shared_experts = Mlp(f"{p}.shared_experts", width * c["n_shared_experts"])

    def route(self, x):
        """Weights [.., E], zero where not chosen, and the choice as 0/1."""
        with torch.autocast(x.device.type, enabled=False):
            score = torch.sigmoid(F.linear(x.float(), self.gate()))
            chosen = torch.zeros_like(score).scatter(-1, (score + self.e_score_correction_bias).topk(CONFIG["num_experts_per_tok"]).indices, 1.0)
            weight = score * chosen
            return weight / weight.sum(-1, keepdim=True) * CONFIG["routed_scaling_factor"], chosen

    def forward(self, x):
        weight, chosen = self.route(x)
        h = F.silu(F.linear(x, self.gate_proj().flatten(0, 1))) * F.linear(x, self.up_proj().flatten(0, 1))
        h = (h.unflatten(-1, (weight.shape[-1], -1)) * weight.to(h.dtype)[..., None]).flatten(-2)
        down = self.down_proj().transpose(0, 1).flatten(1)  # [hidden, E * width]
        return F.linear(h, down) + self.shared_experts(x), chosen


class Layer(nn.Module):
    def __init__(self, index):
        super().__init__()
        c, p = CONFIG, f"model.layers.{index}"
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(f"{p}.self_attn")
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.dense = index < c["first_k_dense_replace"]
        self.mlp = Mlp(f"{p}.mlp", c["intermediate_size"]) if self.dense else Experts(f"{p}.mlp")

    def before(self, x, cos, sin):
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def after(self, x, out):
        x = x + self.self_attn.output(out)
        y = self.mlp(self.post_attention_layernorm(x))
        y, chosen = (y, None) if self.dense else y
        return x + y, None if self.dense else chosen.flatten(0, -2).sum(0)

    def forward(self, x, cos, sin, among):
        q, k, v = self.before(x, cos, sin)
        return self.after(x, attend(q, k, v, self.self_attn.scale, among))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        c = CONFIG
        cos, sin = rope_tables(c["max_position_embeddings"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.embed_tokens = Weight("model.embed_tokens", c["vocab_size"], c["hidden_size"], gain=math.sqrt(c["hidden_size"]) * 0.5)
        self.layers = nn.ModuleList(Layer(n) for n in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = Weight("lm_head", c["vocab_size"], c["hidden_size"], gain=0.3)

    def forward(self, ids, among=None, places=None):
        """ids [B, T] -> hidden [B, T, H] after the last norm, and tokens per expert [MoE layers, E].

        `among` is as of `attend`; `places` [T] are the tokens' positions."""
        places = torch.arange(ids.shape[1], device=ids.device) if places is None else places
        cos, sin = self.cos[places], self.sin[places]
        x, loads = F.embedding(ids, self.embed_tokens()), []
        for layer in self.layers:
            x, load = layer(x, cos, sin, among)
            if load is not None:
                loads.append(load)
        return self.norm(x), torch.stack(loads)

    def compile(self):
        """Compiles all but the attention, in parts that the layers share."""
        for layer in self.layers:
            layer.before, layer.after = torch.compile(layer.before), torch.compile(layer.after)

    def logits(self, hidden):
        return F.linear(hidden, self.lm_head())

    def moe(self):
        return [layer.mlp for layer in self.layers if not layer.dense]

    def to_hf(self):
        """Tensors in HF's layout: experts one by one, bf16, the correction bias f32."""
        out = {}
        for name, tensor in self.state_dict().items():
            name = name if name.startswith("lm_head") else f"model.{name}"
            name = name.replace("mlp.e_score", "mlp.gate.e_score")
            if tensor.dim() == 3:
                block, proj, _ = name.rsplit(".", 2)
                for e, matrix in enumerate(tensor):
                    out[f"{block}.experts.{e}.{proj}.weight"] = matrix.bfloat16().contiguous()
            else:
                out[name] = tensor.float() if "e_score" in name else tensor.bfloat16()
        return out

    def load_hf(self, tensors):
        """The reverse of `to_hf`."""
        state = {}
        for name, tensor in self.state_dict().items():
            hf = (name if name.startswith("lm_head") else f"model.{name}").replace("mlp.e_score", "mlp.gate.e_score")
            if tensor.dim() == 3:
                block, proj, _ = hf.rsplit(".", 2)
                state[name] = torch.stack([tensors[f"{block}.experts.{e}.{proj}.weight"].float() for e in range(len(tensor))])
            else:
                state[name] = tensors[hf].float()
        self.load_state_dict(state)
