#!/usr/bin/env python3
"""Tinyforge in half of the memory that PyTorch takes at its best with gradient checkpointing, on equal work.

    cargo build --release --bin tinyforge
    peers/bin/python tests/peers/half_memory.py [CASE ...]      CASE is METHOD:DTYPE:SEQ, such as lora:f32:512

SmolLM2-135M's shape with random weights, one row a step. For every case PyTorch runs first; `--memory` is then half of
its peak RSS, and Tinyforge recomputes and streams as it must. Prints tokens/s (median step) and peak RSS of both, what
the plan streams, and how busy other processes kept the machine beside PyTorch: above a few percent a line says nothing.
"""

import pathlib
import sys
import tempfile

from side_by_side import describe, make_model, ours, split, torch

CASES = ["lora:f32:512", "full:f32:512", "last:2:f32:512", "lora:bf16:512"]


def main():
    print(f"{'case':<18}{'tokens/s':>9}{'torch':>8}{'ratio':>7}{'RSS,MiB':>9}{'torch':>8}{'others':>8}  schedule")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_model(folder)
        for case in sys.argv[1:] or CASES:
            speed2, rss2, _, found = torch(f"{case}:ckpt")
            memory = f"{int(rss2 / 2)}MiB"
            speed, rss, _ = ours(f"{case}:{memory}", folder)
            method, dtype, seq, _ = split(case)
            plan = describe(folder, method, dtype, seq, memory).splitlines()
            said = "; ".join(line.strip() for line in plan if line.startswith(("  schedule", "  recomputation")))
            print(
                f"{case:<18}{speed:>9.0f}{speed2:>8.0f}{speed / speed2:>7.2f}{rss:>9.0f}{rss2:>8.0f}"
                f"{found['others_busy']:>8.2f}  {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
