#!/usr/bin/env python3
"""Trains kimi-tiny on one GPU and writes the bf16 weights in HF layout.

    python train.py --out OUT                  # goes on from the embedded weights: the run of the README
    python train.py --out OUT --from HF_DIR    # goes on from an earlier run's weights
    python train.py --out OUT --from nothing   # from random weights
    python train.py --out OUT --smoke          # a minute on a CPU: does everything hang together?

How far the run is, is the share of its time, so that it ends in time on any machine: first short conversations alone, then
by turns short ones and long ones of agents. Muon for the matrices, AdamW for embedding, head, norms and routers; warm-up,
constant, then linear to nothing. In the second part of the run every weight is seen through MLX's quantizer
(straight-through gradients), so that the quantized model is the one that is trained. Experts are balanced by the correction
bias alone (DeepSeek-V3's auxiliary-loss-free rule).
"""

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import evaluate
import restore
from common import CONFIG, SEED
from model import Model, Quantized
from packing import Feed, make_long, make_recorded, make_rows

SAID, ASKED, READ = 1.0, 0.1, 0.003  # weights of what the model writes, of short contexts and of long ones


def batch_of(rows, device):
    """Rows in one line: ids, who may look at whom, weights, places."""
    rows = torch.from_numpy(rows.astype(np.int64)).to(device)
    ids, graded, doc = rows.unbind(1)
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = (doc[:, :, None] == doc[:, None, :]) & causal
    # A token predicts the next one of its own conversation; what the user says counts a little.
    weight = torch.zeros(ids.shape, device=device)
    weight[:, :-1] = ((doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] > 0)) * torch.where(graded[:, 1:] > 0, SAID, ASKED)
    places = torch.arange(length, device=device).repeat(len(ids))
    return ids.flatten()[None], mask[:, None], weight.flatten(), places


def batch_of_long(ids, graded, lengths, device):
    ids, graded = torch.from_numpy(ids).to(device), torch.from_numpy(graded).to(device)
    weight = torch.zeros(ids.shape, device=device)
    weight[:-1] = torch.where(graded[1:] > 0, SAID, READ)
    ends = torch.tensor(lengths, device=device).cumsum(0)
    weight[ends - 1] = 0
    if not bool(ids[-1]):  # padding
        weight[-lengths[-1] :] = 0
    return ids[None], lengths, weight, torch.cat([torch.arange(n, device=device) for n in lengths])


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


def rate(step, done, hold):
    """Warm-up, constant, then linear to nothing."""
    return min(1.0, (step + 1) / 100, max(0.02, (1 - done) / (1 - hold)))


def start(source):
    torch.manual_seed(SEED)
    model = Model()
    if source == "embedded":
        model.load_hf(restore.embedded())
    elif source != "nothing":
        model.load_hf({k: v for part in sorted(Path(source).glob("model-*.safetensors")) for k, v in load_file(part).items()})
    return model


def train(args, device):
    feed = Feed(args.seed, args.shards, args.long_shards, args.length, args.tokens, max(1, (os.cpu_count() or 2) - 2))
    model = start(args.source).to(device)
    quantized = Quantized(model)
    opts = optimizers(model, args.lr_matrix, args.lr_other)
    base = [g["lr"] for o in opts for g in o.param_groups]

    def head(hidden, targets, weight):
        loss = F.cross_entropy(model.logits(hidden).float(), targets, reduction="none")
        return (loss * weight).sum() / weight.sum()

    if args.compile:
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.recompile_limit = 64
        model.compile()
        head = torch.compile(head)

    def loss_of(ids, among, weight, places):
        hidden, loads = model(ids, among, places)
        return head(hidden[0], ids[0].roll(-1), weight), loads.detach()

    curve, step, saved, began, taken = [], 0, 0, time.time(), {"short": [], "long": []}
    # Compiling takes its time before the clock that counts.
    while (done := (time.time() - began) / (args.seconds - (began - args.start))) < 1 and step < args.steps:
        at = time.time()
        long = done >= args.long_from and step % 2 == 1
        batch = batch_of_long(*feed.long(), device) if long else batch_of(feed.short(), device)
        with quantized if done >= args.quantize_from else contextlib.nullcontext():
            with torch.autocast(device, dtype=torch.bfloat16):
                loss, loads = loss_of(*batch)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = rate(step, done, args.hold)
        for group, lr in zip((g for o in opts for g in o.param_groups), base):
            group["lr"] = lr * scale
        for opt in opts:
            if torch.isfinite(norm):
                opt.step()
            opt.zero_grad(set_to_none=True)
        balance(model, loads, 0.002 * scale)
        value = loss.item()
        taken["long" if long else "short"].append(time.time() - at)
        if step < 4 or step % 50 < 2:
            least = (loads / loads.sum(1, keepdim=True) * CONFIG["num_experts_per_tok"]).min().item()
            each = {k: round(float(np.median(v[-20:])), 3) for k, v in taken.items() if v}
            curve.append((step, "long" if long else "short", round(value, 4)))
            print(f"step {step} {'long' if long else 'short'} loss {value:.4f} least used expert {least:.1%}, {done:.0%} done, {time.time() - args.start:.0f} s, s a step {each}", flush=True)
        step += 1
        if time.time() - saved > 120 and step > 20:
            save(model, args.out)
            saved = time.time()
    feed.stop()
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
    p.add_argument("--from", dest="source", default="embedded", help="embedded, nothing, or a folder of an earlier run")
    p.add_argument("--smoke", action="store_true")
    p.add_argument("--steps", type=int, default=1_000_000)
    p.add_argument("--tokens", type=int, default=65536, help="of a batch")
    p.add_argument("--length", type=int, default=2048, help="of a row of short conversations")
    p.add_argument("--shards", type=int, default=140)
    p.add_argument("--long-shards", type=int, default=140)
    p.add_argument("--seed", type=int, default=SEED)
    p.add_argument("--seconds", type=float, default=500, help="of training, all before it counted as well")
    p.add_argument("--long-from", type=float, default=0.2)
    p.add_argument("--quantize-from", type=float, default=0.35)
    p.add_argument("--hold", type=float, default=0.35)
    p.add_argument("--lr-matrix", type=float, default=0.012)
    p.add_argument("--lr-other", type=float, default=1.2e-3)
    p.add_argument("--prompts", type=int, default=240)
    p.add_argument("--eager", action="store_true", help="compile nothing")
    args = p.parse_args()
    args.start, args.compile = time.time(), not args.smoke and not args.eager
    if args.smoke:
        args.steps, args.tokens, args.length, args.shards, args.long_shards, args.prompts, args.seconds = 6, 16384, 2048, 1, 1, 10, 3600
        args.long_from = args.quantize_from = 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    model, curve = train(args, device)
    save(model, args.out)
    report = {"curve": curve, "seconds": round(time.time() - args.start), "torch": torch.__version__}
    (args.out / "report.json").write_text(json.dumps(report, indent=1))
    torch.compiler.set_stance("force_eager")  # each length would be compiled anew
    with Quantized(model):
        report["agents"] = evaluate.turns(model, device, make_long((SEED + 1, 0, True, 2 if args.smoke else 40)))
        report["recorded"] = evaluate.turns(model, device, make_recorded(SEED + 1, 1 if args.smoke else 12))
        report["table"] = evaluate.torch_table(model, device, args.prompts)
    report["perplexity"] = evaluate.perplexities(model, device, make_rows(SEED + 1, 400 if not args.smoke else 20, args.length, held=True))
    (args.out / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
