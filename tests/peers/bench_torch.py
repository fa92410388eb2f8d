"""PyTorch at its best on the CPU, on the shape of SmolLM2-135M with random weights: speed and memory of a step.

A case is METHOD:DTYPE:SEQ[:ckpt][:compile]. Methods: `lora` (rank 8 on q, k, v, o), `full`, `last:N` (N blocks,
nothing else).
Dtypes: `f32`, `bf16` (everything stored in bf16, LoRA factors in f32 as PEFT does), `amp` (f32 storage, bf16 products).
`ckpt` recomputes every block in the backward pass; `compile` is torch.compile, which needs a C++ compiler. Each case
runs in its own process and prints one JSON line. `others_busy` in it is the share of the machine that other processes
took during the timed steps: above a few percent the speed says nothing, for PyTorch's threads wait by spinning.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

MIB = 1 << 20
WARM_UPS = 2
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def parse_case(text):
    """`last:2:f32:256:ckpt` -> (method, blocks, dtype, seq, options)."""
    method, *rest = text.split(":")
    blocks = int(rest.pop(0)) if method == "last" and rest else None
    known = method in ("lora", "full", "last") and len(rest) >= 2 and rest[0] in ("f32", "bf16", "amp")
    if not known or not set(rest[2:]) <= {"ckpt", "compile"}:
        raise ValueError(f"not a case: {text} (METHOD:DTYPE:SEQ[:ckpt][:compile])")
    return method, blocks, rest[0], int(rest[1]), set(rest[2:])


def memory_mib(field):
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None


def forget_peak():
    """From here on VmHWM is the peak of training alone; also gives freed pages back to the system."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def build(method, blocks, dtype, options, config_dir):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(config_dir) if config_dir else transformers.LlamaConfig(**SHAPE)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    if "ckpt" in options:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method == "last":
        model.requires_grad_(False)
        model.model.layers[-blocks:].requires_grad_(True)
    if method == "lora":
        import peft

        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    if "compile" in options:
        model.compile()
    return model.train()


def time_steps(model, optimizer, dtype, batch, seq, steps):
    """Seconds of each timed step, the last loss, MiB of gradients, and how busy other processes kept the machine."""
    import torch

    gen = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (batch, seq), generator=gen)
    seconds = []
    for step in range(WARM_UPS + steps):
        if step == WARM_UPS:
            before = cpu_seconds()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "amp"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        last = loss.item()
        del loss
        grads = size_mib(p.grad for p in model.parameters() if p.grad is not None)
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    machine, own, wall = (b - a for a, b in zip(before, cpu_seconds()))
    return seconds[WARM_UPS:], last, grads, max(0.0, machine - own) / (wall * os.cpu_count())


def cpu_seconds():
    """Busy seconds of the whole machine and of this process, and the clock."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), time.process_time(), time.perf_counter()


def size_mib(tensors):
    return sum(t.numel() * t.element_size() for t in tensors) / MIB


def product_gflops(dtype, n=1024):
    """Best speed of a plain matrix product in the dtype the products of the case have."""
    import torch

    a = torch.randn(n, n, dtype=torch.float32 if dtype == "f32" else torch.bfloat16)
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def gemm_path(dtype):
    """Which library the matrix products of this process come from."""
    import torch

    if dtype != "f32":
        return "oneDNN"
    if not torch.backends.mkl.is_available():
        return "no MKL"
    return "MKL, fast path preloaded" if os.environ.get("LD_PRELOAD") else "MKL"


def run_case(args):
    method, blocks, dtype, seq, options = parse_case(args.one)
    import torch

    torch.set_num_threads(args.threads)
    imported = memory_mib("VmRSS")
    model = build(method, blocks, dtype, options, args.config)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    peak_before = memory_mib("VmHWM")
    forget_peak()
    seconds, loss, grads, others = time_steps(model, optimizer, dtype, args.batch, seq, args.steps)
    train_peak = memory_mib("VmHWM")
    state = (t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
    line = {
        "case": args.one, "peer": "torch", "batch": args.batch, "seq": seq, "threads": args.threads,
        "steps": args.steps, "tokens_per_s": args.batch * seq / median(seconds), "step_s_median": median(seconds),
        "step_s_min": min(seconds), "others_busy": others,
        "peak_rss_mib": max(peak_before, train_peak), "train_peak_rss_mib": train_peak,
        "import_rss_mib": imported, "weights_mib": size_mib(model.parameters()), "grads_mib": grads,
        "optimizer_mib": size_mib(state), "trained_params": sum(p.numel() for p in params), "loss": loss,
        "gemm": gemm_path(dtype), "gemm_gflops": product_gflops(dtype), "cpu": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}), flush=True)


def start_case(case, args):
    """Runs one case in a fresh process, with the fast path preloaded into f32 ones where one is named."""
    dtype = parse_case(case)[2]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    shim = os.environ.get("TINYFORGE_MKL_SHIM")
    if shim and dtype == "f32":
        env["LD_PRELOAD"] = os.path.abspath(shim)
    command = [sys.executable, os.path.abspath(__file__), "--one", case, "--steps", str(args.steps)]
    command += ["--batch", str(args.batch), "--threads", str(args.threads)]
    command += ["--config", args.config] if args.config else []
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        print(done.stdout.strip().splitlines()[-1], flush=True)
        return True
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    print(json.dumps({"case": case, "peer": "torch", "error": reason}), flush=True)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", default=[], help="may be given several times")
    parser.add_argument("--steps", type=int, default=5, help=f"timed steps, after {WARM_UPS} warm-ups")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", help="a model directory whose shape to take instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_case(args)
        return 0
    try:
        for case in args.case:
            parse_case(case)
    except ValueError as e:
        parser.error(str(e))
    shim = os.environ.get("TINYFORGE_MKL_SHIM")
    if shim and not os.path.isfile(shim):
        parser.error(f"TINYFORGE_MKL_SHIM names no file: {shim}")
    return 0 if all([start_case(c, args) for c in args.case]) else 1


if __name__ == "__main__":
    sys.exit(main())
