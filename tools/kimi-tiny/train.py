#!/usr/bin/env python3
"""Trains kimi-tiny on one GPU and writes the bf16 weights in HF layout.

    python train.py --out OUT                  # the run of the README
    python train.py --out OUT --smoke          # a minute on a CPU: does everything hang together?

WSD schedule; Muon for the matrices, AdamW for embedding, head, norms and routers. In the second part of
the run every weight is seen through MLX's quantizer (straight-through gradients), so that the
quantized model is the one that is trained. Experts are balanced by the correction bias alone
(DeepSeek-V3's auxiliary-loss-free rule).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import evaluate
from common import CONFIG, SEED
from model import Model, Weight
from packing import make_rows


def batch_of(rows, device):
    rows = torch.from_numpy(rows.astype(np.int64)).to(device)
    ids, graded, doc = rows.unbind(1)
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = (doc[:, :, None] == doc[:, None, :]) & causal
    # A token predicts the next one of its own conversation; what the user says counts a little.
    same = (doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] > 0)
    weight = same * torch.where(graded[:, 1:] > 0, 1.0, 0.1)
    return ids, mask[:, None], weight


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps; stacks of matrices at once."""

    def __init__(self, params, lr, momentum=0.95, decay=0.01):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buf = self.state[p].setdefault("momentum", torch.zeros_like(p.grad))
                buf.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(buf, group["momentum"]))
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


def orthogonal(g):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


def optimizers(model, lr_matrix, lr_other):
    matrices, other = [], []
    for name, p in model.named_parameters():
        plain = p.dim() < 2 or "embed" in name or "lm_head" in name or "mlp.gate." in name
        (other if plain else matrices).append(p)
    adam = torch.optim.AdamW(other, lr=lr_other, betas=(0.9, 0.95), weight_decay=0.0, fused=other[0].is_cuda)
    return [Muon(matrices, lr_matrix), adam]


def rate(step, steps, warm=100, hold=0.4):
    """Warm-up, constant, then linear to nothing."""
    return min(1.0, (step + 1) / warm, max(0.02, (steps - step) / (steps * (1 - hold))))


def train(args, device):
    rows = make_rows(SEED, args.conversations, args.length)
    print(f"{len(rows)} rows of {args.length}, {int((rows[:, 2] > 0).sum()) / 1e6:.1f} M tokens, {time.time() - args.start:.0f} s", flush=True)
    torch.manual_seed(SEED)
    model = Model().to(device)
    opts = optimizers(model, args.lr_matrix, args.lr_other)
    base = [g["lr"] for o in opts for g in o.param_groups]

    def loss_of(ids, mask, weight):
        hidden, loads = model(ids, mask)
        logits = model.logits(hidden[:, :-1]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (loss * weight.flatten()).sum() / weight.sum(), loads.detach()

    compiled = torch.compile(loss_of) if args.compile else loss_of
    order, rng = [], np.random.Generator(np.random.PCG64(SEED))
    began, curve = time.time(), []
    for step in range(args.steps):
        if len(order) < args.batch:
            order = list(rng.permutation(len(rows)))
        ids, mask, weight = batch_of(rows[[order.pop() for _ in range(args.batch)]], device)
        Weight.quantized = step >= args.quantize_from * args.steps
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, loads = compiled(ids, mask, weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = rate(step, args.steps)
        for group, lr in zip((g for o in opts for g in o.param_groups), base):
            group["lr"] = lr * scale
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        balance(model, loads, 0.002 * scale)
        if step % 100 == 0 or step == args.steps - 1:
            least = (loads / loads.sum(1, keepdim=True) * CONFIG["num_experts_per_tok"]).min().item()
            curve.append((step, round(loss.item(), 4)))
            print(f"step {step} loss {loss.item():.4f} least used expert {least:.1%} of tokens, {time.time() - began:.0f} s", flush=True)
        if time.time() - args.start > args.seconds:
            print(f"out of time at step {step}", flush=True)
            break
    return model, curve


@torch.no_grad()
def balance(model, loads, speed):
    """Experts with less than their share become easier to choose, the others harder."""
    for moe, load in zip(model.moe(), loads):
        moe.e_score_correction_bias += speed * torch.sign(load.mean() - load)


def save(model, out, parts=4):
    """HF layout in files small enough to move about."""
    tensors = {k: v.cpu().contiguous() for k, v in model.to_hf().items()}
    names = sorted(tensors)
    for n in range(parts):
        some = names[n * len(names) // parts : (n + 1) * len(names) // parts]
        save_file({k: tensors[k] for k in some}, out / f"model-{n + 1:05d}-of-{parts:05d}.safetensors", metadata={"format": "pt"})


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--smoke", action="store_true")
    p.add_argument("--steps", type=int, default=3900)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--conversations", type=int, default=160_000)
    p.add_argument("--seconds", type=float, default=480, help="stop training after this long, whatever the step")
    p.add_argument("--quantize-from", type=float, default=0.4)
    p.add_argument("--lr-matrix", type=float, default=0.02)
    p.add_argument("--lr-other", type=float, default=2e-3)
    p.add_argument("--prompts", type=int, default=600)
    args = p.parse_args()
    args.start, args.compile = time.time(), not args.smoke
    if args.smoke:
        args.steps, args.batch, args.length, args.conversations, args.prompts = 6, 2, 256, 200, 20
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    model, curve = train(args, device)
    save(model, args.out)
    report = evaluate.torch_report(model, device, args.prompts, make_rows(SEED + 1, 400, args.length, held=True))
    report |= {"curve": curve, "seconds": round(time.time() - args.start), "torch": torch.__version__}
    (args.out / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
