#!/usr/bin/env python3
"""Speeds of kimi's CPU kernels beside llama.cpp's, asked in turn, as medians of ratios over rounds.

    compare.py KIMI GGML [--formats 4,5] [--operations up:1,output:64] [--rounds 5] [--precision exact,close,fast]

KIMI and GGML are the programs that README.md says how to build. A machine that others use too changes by the second, so
every round asks each program for a fraction of a second right after the other, in an order that turns, and only ratios of
one round are compared. The read bandwidth is measured in the same rounds.
"""

import argparse
import os
import statistics
import subprocess
import time

# What llama.cpp stores closest to a format of kimi's.
PEERS = {
    "2": ["q2_K"],
    "3": ["q3_K"],
    "4": ["q4_0", "q4_K"],
    "5": ["q5_K"],
    "6": ["q6_K"],
    "8": ["q8_0"],
    "mxfp4": ["mxfp4"],
    "bf16": ["bf16"],
}
BITS = {"2": 2.5, "3": 3.5, "4": 4.5, "5": 5.5, "6": 6.5, "8": 8.5, "mxfp4": 4.25, "bf16": 16}
# Weights that an operation reads for one token.
WEIGHTS = {"up": 2 * 8 * 2048 * 7168, "down": 8 * 7168 * 2048, "output": 7168 * 8192, "head": 16384 * 7168}


class Program:
    """One that answers operations with rates; `name` is None if it can't."""

    def __init__(self, command):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline().strip()
        self.name = line.removeprefix("ready ") if line.startswith("ready ") else None

    def ask(self, operation, tokens, seconds):
        print(operation, tokens, seconds, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def cpu_time(self):
        with open(f"/proc/{self.process.pid}/schedstat") as file:
            return int(file.read().split()[0]) / 1e9

    def ask_by_cpu_time(self, operation, tokens, seconds):
        used, start = self.cpu_time(), time.monotonic()
        rate = self.ask(operation, tokens, seconds)
        return rate * (time.monotonic() - start) / (self.cpu_time() - used)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def compare(args, form):
    threads = str(args.threads)
    ours = [Program([args.kimi, form, threads, precision]) for precision in args.precision.split(",")]
    peers = [Program([args.ggml, peer, repack, threads]) for peer in PEERS[form] for repack in "01"]
    peers = [peer for peer in peers if peer.name]
    for operation in args.operations.split(","):
        what, tokens = operation.split(":")
        seconds = 0.2 if tokens == "1" else 0.5
        rates, bandwidths = {}, []
        for turn in range(args.rounds):
            bandwidths.append(ours[0].ask("bandwidth", 1, 0.1))
            order = ours + peers
            for program in order if turn % 2 == 0 else order[::-1]:
                ask = program.ask_by_cpu_time if args.cpu_time else program.ask
                rates.setdefault(program, []).append(ask(what, tokens, seconds))
        for kimi, precision in zip(ours, args.precision.split(",")):
            ratios = {peer.name: statistics.median(a / b for a, b in zip(rates[kimi], rates[peer])) for peer in peers}
            read = WEIGHTS[what] * BITS[form] / 8
            share = statistics.median(rate * read / bandwidth for rate, bandwidth in zip(rates[kimi], bandwidths))
            own = f"{share:6.0%} of reading" if tokens == "1" else " " * 17
            own += f" {statistics.median(rates[kimi]) * 2 * WEIGHTS[what] * int(tokens) / 1e9:8.0f} GFLOP/s"
            names = "  ".join(f"{ratio:5.2f} of {name.split(', ')[1]}" for name, ratio in ratios.items())
            print(f"{form:>5} {precision:<5} {what:>6} x{tokens:<4}{own}  {names}", flush=True)
    for program in ours + peers:
        program.end()
    return peers[0].name.split(",")[0] if peers else "nothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kimi")
    parser.add_argument("ggml")
    parser.add_argument("--formats", default=",".join(PEERS))
    parser.add_argument("--operations", default="up:1,down:1,output:1,head:1,output:64,output:512,up:512")
    parser.add_argument("--precision", default="exact,close,fast")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu-time", action="store_true", help="one thread, by the time that it ran (Linux)")
    args = parser.parse_args()
    args.threads = 1 if args.cpu_time else args.threads
    for form in args.formats.split(","):
        other = compare(args, form)
    print(f"kimi's speed as a multiple of {other}'s")


if __name__ == "__main__":
    main()
