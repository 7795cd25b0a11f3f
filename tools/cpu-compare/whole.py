#!/usr/bin/env python3
"""Speeds of whole models in kimi and in llama.cpp, asked in turn, as medians of ratios over rounds.

    whole.py KIMI LLAMA_BIN [--rounds 5] [--precision exact,close,fast] [--rows tiny,k2,server]

KIMI is the program, LLAMA_BIN the folder with llama-bench, llama-batched-bench and llama-server; tiny.gguf and k2.gguf of
random_gguf.py are looked for in the folder --models. Every round asks both programs for a row right after each other, in an
order that turns. Above 1 kimi is the faster one; for the first token the ratio is one of speeds too.
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import time

KIMI_TINY = pathlib.Path(__file__).parent / "../../kimi-core/assets/kimi-tiny"
# Context of kimi's decoded tokens; llama.cpp's begin below it and end above.
CONTEXT, DECODED = 384, 64
QUESTION = {
    "model": "kimi-tiny",
    "messages": [{"role": "user", "content": "Hello! What are you?"}],
    "temperature": 0,
    "max_tokens": 1,
    "cache_prompt": False,
}


def output(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


class Tiny:
    """kimi-tiny: decode of some sequences, and prefill."""

    def __init__(self, args):
        self.args, self.gguf = args, args.models / "tiny.gguf"

    def kimi(self, precision):
        rates = {}
        for sequences in (1, 2, 8):
            report = bench(self.args, precision, "kimi-tiny", sequences=sequences, context=CONTEXT)
            step = report["decode" if sequences == 1 else "sequences"]
            rates[f"kimi-tiny, decode of {sequences}"] = step["tokens_per_second"]
        rates["kimi-tiny, prefill of 512"] = report["prefill"]["tokens_per_second"]
        return rates

    def llama(self):
        size = ["-npp", CONTEXT - DECODED // 2, "-ntg", DECODED, "-npl", "1,2,8", "-c", 8192]
        table = output(self.args.llama / "llama-batched-bench", "-m", self.gguf, "-t", self.args.threads, *size)
        rates = {}
        # PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG
        for line in re.findall(r"^\|([ \d.|]+)\|$", table, re.M):
            cells = [float(cell) for cell in line.split("|")]
            rates[f"kimi-tiny, decode of {cells[2]:.0f}"] = cells[7]
        rates["kimi-tiny, prefill of 512"] = llama_bench(self.args, self.gguf, "-p", 512, "-n", 0, "-r", 3)
        return rates


class K2:
    """Two layers of Kimi-K2 with 64 experts."""

    def __init__(self, args):
        self.args, self.gguf = args, args.models / "k2.gguf"

    def kimi(self, precision):
        shape = ["--synthetic", "kimi-k2", "--layers", 2, "--experts", 64]
        report = bench(self.args, precision, *shape, sequences=1, context=64)
        return {
            "K2's shape, 2 layers, decode": report["decode"]["tokens_per_second"],
            "K2's shape, 2 layers, prefill of 512": report["prefill"]["tokens_per_second"],
        }

    def llama(self):
        ask = lambda *size: llama_bench(self.args, self.gguf, *size)
        return {
            "K2's shape, 2 layers, decode": ask("-p", 0, "-n", 32, "-d", 48, "-r", 1),
            "K2's shape, 2 layers, prefill of 512": ask("-p", 512, "-n", 0, "-r", 1),
        }


def bench(args, precision, *model, sequences, context):
    size = ["--sequences", sequences, "--context", context, "--prompt", 512]
    how = ["--backend", "cpu", "--threads", args.threads, *args.flags(precision), "--json"]
    return json.loads(output(args.kimi, "bench", *model, *size, *how))


def llama_bench(args, model, *size):
    report = output(args.llama / "llama-bench", "-m", model, "-t", args.threads, *size, "-o", "json")
    return statistics.median(json.loads(report)[0]["samples_ts"])


class Server:
    """Completions of one token over HTTP."""

    def __init__(self, args):
        self.args = args
        self.servers = {}

    def port(self, name, command):
        """Of a running server; `command` takes its port."""
        if name not in self.servers:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([str(part) for part in command(port)], **quiet)
            self.servers[name] = (process, port)
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    asyncio.run(clients(port, 1, 0.01))
                    break
                except OSError:
                    time.sleep(0.1)
        return self.servers[name][1]

    def kimi(self, precision):
        how = ["--backend", "cpu", "--threads", self.args.threads, *self.args.flags(precision)]
        size = ["--prefix-cache", "off", "--no-mdns", "--context", 4096, "--cache-tokens", 65536]
        return self.rates(f"kimi {precision}", lambda port: [
            self.args.kimi, "serve", "kimi-tiny", "--port", port, *size, *how,
        ])  # fmt: skip

    def llama(self):
        size = ["-c", 65536, "--parallel", 64, "-t", self.args.threads, "--jinja"]
        return self.rates("llama", lambda port: [
            self.args.llama / "llama-server", "-m", self.args.models / "tiny.gguf", "--port", port, *size,
        ])  # fmt: skip

    def rates(self, name, command):
        port = self.port(name, command)
        rates = {}
        for count in (1, 8, 64):
            times = asyncio.run(clients(port, count, self.args.seconds))
            rates[f"1-token completions a second, {count} clients"] = len(times) / self.args.seconds
            if count == 1:
                rates["first tokens a second, one by one"] = 1 / statistics.median(times)
        return rates

    def end(self):
        for process, _ in self.servers.values():
            process.terminate()
            process.wait()


async def clients(port, count, seconds):
    """How long each completion took that some clients got one after the other."""
    times, end = [], time.monotonic() + seconds
    body = json.dumps(QUESTION).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def client():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            begun = time.monotonic()
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if not answer.startswith("http/1.1 200"):
                raise OSError(answer)
            await reader.readexactly(int(re.search(r"content-length: (\d+)", answer)[1]))
            times.append(time.monotonic() - begun)
            over = time.monotonic() >= end
            if over or "connection: close" in answer:  # llama-server ends one after 100 requests
                writer.close()
                if over:
                    return
                reader, writer = await asyncio.open_connection("127.0.0.1", port)

    await asyncio.gather(*(client() for _ in range(count)))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kimi", type=pathlib.Path)
    parser.add_argument("llama", type=pathlib.Path)
    parser.add_argument("--models", type=pathlib.Path, default=".", help="folder of tiny.gguf and k2.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="exact,close,fast", help="of kimi; empty if it has no such flag")
    parser.add_argument("--rows", default="tiny,k2,server")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=2, help="for each number of clients")
    args = parser.parse_args()
    args.flags = lambda precision: ["--precision", precision] if precision else []
    version = subprocess.run([args.llama / "llama-bench", "--version"], capture_output=True, text=True)
    print("llama.cpp", " ".join((version.stderr + version.stdout).split("\n")[:2]), flush=True)
    print(f"{'':<44} {'kimi':>9} {'llama.cpp':>9} {'ratio':>6}   least and largest")
    for row in args.rows.split(","):
        measured = {"tiny": Tiny, "k2": K2, "server": Server}[row](args)
        precisions, theirs, ours = args.precision.split(","), [], {}
        for turn in range(args.rounds):
            order = [*precisions, None]
            for who in order if turn % 2 == 0 else order[::-1]:
                if who is None:
                    theirs.append(measured.llama())
                else:
                    ours.setdefault(who, []).append(measured.kimi(who))
        for precision, rounds in ours.items():
            for name in rounds[0]:
                a, b = [kimi[name] for kimi in rounds], [llama[name] for llama in theirs]
                ratios = [x / y for x, y in zip(a, b)]
                print(
                    f"{name + ', ' * bool(precision) + precision:<44} {statistics.median(a):>9.1f} {statistics.median(b):>9.1f}"
                    f" {statistics.median(ratios):>6.2f}   {min(ratios):.2f} {max(ratios):.2f}",
                    flush=True,
                )
        if row == "server":
            measured.end()


if __name__ == "__main__":
    main()
