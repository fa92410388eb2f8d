#!/usr/bin/env python3
"""Tinyforge beside PyTorch on this machine: SmolLM2-135M's shape with random weights, one row a step.

    cargo build --release --bin tinyforge
    python tests/peers/side_by_side.py [CASE ...]        CASE is METHOD:DTYPE:SEQ[:MEMORY], such as full:f32:256:1775MiB

Runs the two one after the other for every case and prints tokens/s (median step), peak RSS, and the working memory:
peak RSS less weights and optimizer states, and for PyTorch less gradients too. *Bound* is what the step's arithmetic
without recomputation would allow at the speed of PyTorch's best 1024-cubed product in the same dtype, *eff* our share
of it, and *others* how busy other processes kept the machine beside PyTorch: above a few percent a line says nothing.
The bars: ahead in tokens/s, and at most a quarter of PyTorch's working memory. Needs the packages of
requirements.txt; TINYFORGE_MKL_SHIM, where set, is preloaded for PyTorch's f32.
"""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = ["lora:f32:256", "full:f32:256:1775MiB", "last:2:f32:256",
         "lora:bf16:256:480MiB", "full:bf16:256:1471MiB", "last:2:bf16:256",
         "lora:f32:512:900MiB", "full:f32:512:1840MiB", "last:2:f32:512",
         "lora:bf16:512:580MiB", "full:bf16:512:1520MiB", "last:2:bf16:512"]
CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=49152, hidden_size=576,
              intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
              max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
              tie_word_embeddings=True, eos_token_id=0)
STEPS, WARM_UP = 10, 2
MIB = 1 << 20


def split(case):
    """`last:2:f32:256:1GiB` to (`last:2`, `f32`, 256, `1GiB`)."""
    parts = case.split(":")
    at = 2 if parts[0] == "last" else 1
    return ":".join(parts[:at]), parts[at], int(parts[at + 1]), ":".join(parts[at + 2:]) or None


def ours(case, folder):
    method, dtype, seq, memory = split(case)
    out = folder / "out"
    command = [str(ROOT / "target/release/tinyforge"), "train", str(folder / "model"), "--from-scratch", "--data",
               str(ROOT / "examples/quickstart/stories.txt"), "--out", str(out), "--overwrite", "--scheme", method,
               "--dtype", dtype, "--seq", str(seq), "--batch", "1", "--steps", str(STEPS), "--checkpoint-every", "0",
               "--json"] + (["--memory", memory] if memory else [])
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    times = [line["seconds"] for line in map(json.loads, open(out / "metrics.jsonl")) if "loss" in line]
    steps = [b - a for a, b in zip(times, times[1:])][WARM_UP - 1:]
    plan = describe(folder, method, dtype, seq, memory)
    held = sum(int(line.split()[1]) for line in plan.splitlines() if line.split()[:1] in (["weights"], ["states"]))
    peak = result["peak_rss_bytes"]
    return seq / statistics.median(steps), peak / MIB, (peak - held) / MIB


def describe(folder, method, dtype, seq, memory):
    """What `plan` prints."""
    command = [str(ROOT / "target/release/tinyforge"), "plan", str(folder / "model"), "--from-scratch", "--scheme", method,
               "--dtype", dtype, "--seq", str(seq), "--batch", "1"] + (["--memory", memory] if memory else [])
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def gflop(case, folder):
    """Arithmetic of one training step in which nothing is computed twice."""
    method, dtype, seq, _ = split(case)
    return float(re.search(r"([0-9.]+) GFLOP", describe(folder, method, dtype, seq, None)).group(1))


def torch(case):
    """PyTorch on a case; one that ends with `:ckpt` instead of a budget recomputes every block."""
    method, dtype, seq, more = split(case)
    env = dict(os.environ)
    if "TINYFORGE_MKL_SHIM" in env and dtype == "f32":
        env["LD_PRELOAD"] = env["TINYFORGE_MKL_SHIM"]
    case = f"{method}:{dtype}:{seq}" + (":ckpt" if more == "ckpt" else "")
    command = [sys.executable, str(ROOT / "tests/peers/bench_torch.py"), "--case", case, "--steps", "5"]
    line = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.splitlines()[-1]
    found = json.loads(line)
    held = sum(found[key] for key in ("weights_mib", "grads_mib", "optimizer_mib"))
    return found["tokens_per_s"], found["peak_rss_mib"], found["peak_rss_mib"] - held, found


HEADINGS = "tokens/s torch ratio bound eff RSS,MiB torch working torch share others".split()


def make_model(folder):
    """The shape with a tokenizer, to be trained from random weights."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples/quickstart/model" / file, folder / "model")


def main():
    print(f"{'case':<24}" + "".join(f"{heading:>9}" for heading in HEADINGS))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_model(folder)
        for case in sys.argv[1:] or CASES:
            (speed, rss, working), (speed2, rss2, working2, found) = ours(case, folder), torch(case)
            bound = split(case)[2] * found["gemm_gflops"] / gflop(case, folder)
            cells = [f"{speed:.0f}", f"{speed2:.0f}", f"{speed / speed2:.2f}", f"{bound:.0f}", f"{speed / bound:.2f}",
                     f"{rss:.0f}", f"{rss2:.0f}", f"{working:.0f}", f"{working2:.0f}", f"{working / working2:.2f}",
                     f"{found['others_busy']:.2f}"]
            print(f"{case:<24}" + "".join(f"{cell:>9}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
