#!/usr/bin/env python3
"""Writes docs/metal-instructions.md: what the kernels of a decode step and a prefill step become on an Apple GPU, by Mesa's compiler.

    tools/metal/build_agx.sh FOLDER             # once: builds FOLDER/agx
    tools/metal/instructions.py FOLDER/agx      # writes the table; --print only prints it
"""

import argparse
import datetime
import os
import pathlib
import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COLUMNS = ["file", "bits", "tokens", "sums", "name", "values", "threads", "shared"]
STATISTICS = re.compile(
    r"(?P<instructions>\d+) inst, \d+ alu, (?P<main>\d+) fscib, (?P<shift>\d+) ic, (?P<bytes>\d+) bytes, (?P<registers>\d+) regs"
    r".*? (?P<scratch>\d+) scratch, (?P<resident>\d+) threads, \d+ loops, (?P<spills>\d+):(?P<fills>\d+)"
)
# Weights that a thread multiplies for one sum of a step.
UNIT = 32
# Bytes of shared memory of a core, by metal-benchmarks.
CORE_SHARED = 60 << 10

TEXT = """# Instructions on an Apple GPU

Written by `tools/metal/instructions.py` on {date}; not measured on a Mac. Each kernel that a simulated Apple GPU runs of Kimi-K2 is
compiled by Mesa's compiler for the M1's GPU (G13), which is not Apple's: it unrolls every loop that it can count, which Apple's may
not. `tools/metal/build_agx.sh` builds that compiler.

## A weight of one token's products

What one more weight costs: the difference of two kernels that multiply another number of rows at once. **Main** is slots of the pipe
that a core issues 128 a cycle to (multiply-adds, masks), **shift** cycles of the pipe beside it (shifts, conversions), in the same
unit: the larger of the two is what a weight takes. Only kernels with one binding of weights are here: with several, the loop is there
for each, and a thread runs one. At full bandwidth of an M2 Ultra there is time for 5.3 (2 bits), 7.4 (3), 9.6 (4),
13.8 (6) and 18.1 (8).

{marginal}

## Kernels

One token's, then those of 8 and of 512. **Resident** are simdgroups of a core, by registers and by shared memory (60 KB a core); all
of a core's pipes are busy from 24 on. Spills are stores and loads of registers that did not fit.

{kernels}
"""


@dataclass
class Kernel:
    """One specialisation and what it became."""

    bits: int
    tokens: int
    given: bool
    name: str
    values: int
    threads: int
    shared: int
    code: dict

    @property
    def resident(self):
        """Simdgroups of a core."""
        groups = self.code["resident"] // self.threads
        if self.shared:
            groups = min(groups, CORE_SHARED // self.shared)
        return groups * self.threads // 32


def kernels(agx):
    """Every kernel of the program, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        test = ["cargo", "test", "-q", "-p", "kimi-quant", "--features", "gpu", "--lib", "--", "--ignored", "write_kernels"]
        subprocess.run(test, cwd=REPOSITORY, env=dict(os.environ, KIMI_KERNELS=folder), check=True, stdout=subprocess.DEVNULL)
        yield from compiled(agx, pathlib.Path(folder))


def compiled(agx, folder):
    for line in (folder / "kernels.tsv").read_text().splitlines():
        row = dict(zip(COLUMNS, line.split("\t"), strict=True))
        environment = dict(os.environ, AGX_MESA_DEBUG="shaderdb")
        run = subprocess.run([agx, folder / row["file"]], env=environment, capture_output=True, text=True, check=True)
        found = STATISTICS.search(run.stdout + run.stderr)
        if not found:
            raise SystemExit(f"{agx} says nothing of {row['name']}: {run.stderr[-300:]}")
        shared = re.search(r"(\d+) bytes of shared", run.stdout)
        code = {name: int(value) for name, value in found.groupdict().items()}
        numbers = [int(row[name]) for name in ("bits", "tokens")]
        yield Kernel(*numbers, row["sums"] == "given", row["name"], int(row["values"]), int(row["threads"]), int(shared[1]), code)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def marginal(all_kernels):
    """Differences of kernels that differ in their sums alone."""
    alike = defaultdict(dict)
    for kernel in all_kernels:
        # With several bindings the loop is there several times, of which a thread runs one.
        if kernel.name.endswith(", 1 bindings"):
            alike[kernel.bits, kernel.name][kernel.values] = kernel.code
    for (bits, name), by_values in sorted(alike.items()):
        if len(by_values) < 2:
            continue
        few, many = sorted(by_values)[-2:]
        weights = (many - few) * UNIT
        cost = [(by_values[many][what] - by_values[few][what]) / weights for what in ("instructions", "main", "shift", "bytes")]
        yield [bits, name, f"{few} to {many}", *(f"{value:.2f}" for value in cost[:3]), f"{cost[3]:.0f}"]


def kernel_rows(all_kernels):
    for k in all_kernels:
        if not k.given:
            spills = f"{k.code['spills']}:{k.code['fills']}"
            sizes = [k.values or "", k.threads, k.code["registers"], spills, k.code["bytes"], k.shared, k.resident]
            yield [k.bits, k.tokens, k.name, *sizes]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agx", type=pathlib.Path, help="what tools/metal/build_agx.sh built")
    parser.add_argument("--print", action="store_true", help="print the tables and write nothing")
    parser.add_argument("--kernels", type=pathlib.Path, help="a folder that KIMI_KERNELS was, instead of a new one")
    arguments = parser.parse_args()
    agx = arguments.agx.resolve()
    all_kernels = list(compiled(agx, arguments.kernels) if arguments.kernels else kernels(agx))
    weight = table(["bits", "kernel", "sums", "instructions", "main", "shift", "bytes of code"], marginal(all_kernels))
    head = ["bits", "tokens", "kernel", "sums", "threads", "registers of 16 bits", "spills", "bytes of code", "bytes shared", "resident"]
    text = TEXT.format(date=datetime.date.today(), marginal=weight, kernels=table(head, kernel_rows(all_kernels)))
    if getattr(arguments, "print"):
        print(text)
    else:
        (REPOSITORY / "docs" / "metal-instructions.md").write_text(text)


if __name__ == "__main__":
    main()
