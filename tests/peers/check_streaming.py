#!/usr/bin/env python3
"""Streaming changes no bit, and the plan's total is enough: trains real models in many ways and compares.

    python3 tests/peers/check_streaming.py --tinyforge target/release/tinyforge --data TEXT MODEL [MODEL ...]

For every model and scheme one run keeps everything in memory; others stream with some window, prefetch, recomputation,
micro-batches or budget. All end with the same losses and the same bytes of weights. Every run is held by the system to
the total that its plan printed (a memory cgroup, version 1 or 2; needs root): what needs more is killed.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

SCHEMES = ["full", "lora", "last:4", "sparse", "cycle:2"]
VARIANTS = [
    ["--window", "1"],
    ["--window", "2", "--prefetch", "2", "--recompute", "all"],
    ["--window", "7", "--micro-batch", "1"],
    ["--window", "3", "--micro-batch", "1", "--recompute", "all", "--threads", "1"],
    ["--window", "12", "--prefetch", "3"],
    ["--memory", "least"],
    ["--window", "3", "--block-parts", "4"],
    ["--window", "2", "--block-parts", "3", "--embeddings", "parts", "--gradients", "panels"],
]


class Group:
    """A memory cgroup of our own."""

    def __init__(self):
        v1 = pathlib.Path("/sys/fs/cgroup/memory")
        root = v1 if (v1 / "memory.limit_in_bytes").exists() else pathlib.Path("/sys/fs/cgroup")
        self.limit = "memory.limit_in_bytes" if root == v1 else "memory.max"
        self.peak = "memory.max_usage_in_bytes" if root == v1 else "memory.peak"
        self.path = root / f"tinyforge-{os.getpid()}"
        self.path.mkdir()

    def run(self, command, limit):
        (self.path / self.limit).write_text(str(limit))
        join = lambda: (self.path / "cgroup.procs").write_text(str(os.getpid()))
        started = time.monotonic()
        ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=join)
        return ran, time.monotonic() - started

    def close(self):
        self.path.rmdir()


def digest(folder):
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".gguf")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def total(tinyforge, model, flags):
    ran = subprocess.run([tinyforge, "plan", model, "--json", *flags], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"plan {flags}: {ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])["total_bytes"]


def least(tinyforge, model, flags):
    ran = subprocess.run([tinyforge, "plan", model, *flags, "--memory", "1MiB"], capture_output=True, text=True)
    return [line for line in ran.stderr.splitlines() if "--memory" in line][-1].split("`")[1].split()[1]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--tinyforge", default="target/release/tinyforge")
    args.add_argument("--data", required=True)
    args.add_argument("--scratch", default="/tmp/tinyforge-streaming")
    args.add_argument("--seq", default="128")
    args.add_argument("--steps", default="3")
    args.add_argument("--schemes", default=",".join(SCHEMES))
    args.add_argument("models", nargs="+")
    args = args.parse_args()
    group, bad, count = Group(), [], 0
    scratch = pathlib.Path(args.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for m, model in enumerate(args.models):
        dtype = ["--dtype", "bf16"] if "bf16" in model else []
        for s, scheme in [(s, scheme) for s, scheme in enumerate(SCHEMES) if scheme in args.schemes.split(",")]:
            base = ["--scheme", scheme, "--seq", args.seq, "--batch", "2", *dtype]
            base += ["--cycle-steps", "1"] if scheme.startswith("cycle") else []
            first = None
            for variant in [["--window", "all"]] + [VARIANTS[(m + 2 * s + i) % len(VARIANTS)] for i in range(4)]:
                if "least" in variant:
                    variant = ["--memory", least(args.tinyforge, model, base)]
                flags = base + variant
                limit = total(args.tinyforge, model, flags)
                out = scratch / "out"
                shutil.rmtree(out, ignore_errors=True)
                train = [args.tinyforge, "train", model, "--data", args.data, "--out", out, "--seed", "1", "--json"]
                train += ["--steps", args.steps, "--eval-every", "0", *flags]
                ran, seconds = group.run(list(map(str, train)), (limit + 4095) // 4096 * 4096)
                name = f"{pathlib.Path(model).name} {scheme} {' '.join(variant)}"
                if ran.returncode:
                    bad.append(f"{name}: exit {ran.returncode}, limit {limit}: {ran.stderr[-300:]}")
                    print("FAIL", bad[-1], flush=True)
                    continue
                found = (losses(out), digest(out))
                first = first or found
                report = json.loads(ran.stdout.splitlines()[-1])
                same = found == first
                count += 1
                print(
                    f"{'ok  ' if same else 'FAIL'} {name}: total {limit / 2**20:.1f} MiB, "
                    f"peak {report['peak_rss_bytes'] / 2**20:.1f} MiB, {report['tokens_per_second']:.0f} tokens/s, "
                    f"{seconds:.1f} s, weights {found[1]}",
                    flush=True,
                )
                if not same:
                    bad.append(f"{name}: {found} is not {first}")
    group.close()
    print(f"{count} runs, {len(bad)} faults")
    sys.exit("\n".join(map(str, bad)) if bad else 0)


if __name__ == "__main__":
    main()
