"""Writes tests/fixtures: tiny random models with what PyTorch computes from them.

Each model is a Hugging Face directory (config.json, model.safetensors in f32, no tokenizer) with a
`reference.safetensors` in it; tests/fixtures/README.md names every tensor. The same
versions on the same kind of CPU write the same bytes; `--check` compares instead of writing.
"""

import argparse
import filecmp
import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

STEPS = 20
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
CLIP = 1.0
# name -> part of a parameter's name: which gradients the packed reference keeps.
PACKED_TOO = {"llama": "", "gpt2": "wpe"}

# The shapes avoid powers of two where the architecture allows it, so that loop tails are met.
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def rope(theta, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def configs():
    """name -> (config, seq, LoRA targets or None)."""
    t = transformers
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    qkvo = ["q_proj", "k_proj", "v_proj", "o_proj"]
    gpt2 = t.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=97, n_positions=40,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return {
        "llama": (t.LlamaConfig(**LLAMA_LIKE, rms_norm_eps=1e-5, rope_parameters=rope(10000.0)), 20, qkvo),
        "llama-rope3-tied": (
            t.LlamaConfig(
                **LLAMA_LIKE | {
                    "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 120,
                    "intermediate_size": 60, "tie_word_embeddings": True, "max_position_embeddings": 512,
                },
                rms_norm_eps=1e-6, rope_parameters=rope(500000.0, **llama3) | {"rope_type": "llama3"},
            ), 24, None,
        ),
        "mistral": (
            t.MistralConfig(
                **LLAMA_LIKE | {"num_hidden_layers": 3, "num_key_value_heads": 1, "vocab_size": 96},
                rms_norm_eps=1e-5, sliding_window=None, rope_parameters=rope(1000000.0),
            ), 17, None,
        ),
        "qwen2": (t.Qwen2Config(**LLAMA_LIKE, rms_norm_eps=1e-6, rope_parameters=rope(1000000.0)), 20, qkvo),
        "qwen3": (
            t.Qwen3Config(**LLAMA_LIKE | {"vocab_size": 110}, head_dim=16, rms_norm_eps=1e-6,
                          rope_parameters=rope(1000000.0)), 19, None,
        ),
        "gpt2": (gpt2, 20, ["c_attn"]),
    }  # fmt: skip


def generator(name, purpose):
    seed = int.from_bytes(f"{name}/{purpose}".encode(), "little") % (2**61 - 1)
    return torch.Generator().manual_seed(seed)


def randomize(model, name):
    """Matrices ~ N(0, 1/fan_in), biases ~ N(0, 0.1^2), norm weights ~ N(1, 0.1^2)."""
    gen = generator(name, "weights")
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if p.ndim == 1:
                p.copy_(0.1 * noise + (1.0 if "norm" in key or ".ln_" in key and key.endswith("weight") else 0.0))
            else:
                # Embeddings look rows up; Conv1D keeps its inputs in rows, Linear in columns.
                fan_in = p.shape[0] if "c_" in key else p.shape[1]
                p.copy_(noise * (0.5 if "emb" in key or "wte" in key or "wpe" in key else fan_in**-0.5))


def batch_of(name, vocab, seq, packed):
    """Two rows. Labels are already shifted (`labels[b,t]` is what `logits[b,t]` should name); weights of
    0, 0.5, 1 and 2 occur. Packed: several documents in a row, positions restart, a tail of padding."""
    gen = generator(name, "packed" if packed else "batch")
    ids = torch.randint(0, vocab, (2, seq + 1), generator=gen)
    kinds = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0]).repeat(seq)[: 2 * seq]
    weights = kinds[torch.randperm(2 * seq, generator=gen)].reshape(2, seq)
    segments = torch.zeros(2, seq, dtype=torch.int64)
    if packed:
        cuts = [[9], [3, seq - 3]]
        for row, ends in enumerate(cuts):
            for end in ends:
                segments[row, end:] += 1
                weights[row, end - 1] = 0.0
        weights[1, seq - 3 :] = 0.0
    weights[:, -1] = 0.0
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    index = torch.arange(seq).expand(2, seq)
    positions = index - torch.where(first, index, 0).cummax(1).values
    return {
        "input_ids": ids[:, :-1].contiguous(),
        "position_ids": positions,
        "segment_ids": segments,
        "labels": ids[:, 1:].contiguous(),
        "loss_weights": weights,
    }


def forward(model, batch):
    """Logits with the block-diagonal causal mask given explicitly, and sum(w * nll) / sum(w)."""
    seg = batch["segment_ids"]
    seq = seg.shape[1]
    allowed = (seg[:, :, None] == seg[:, None, :]) & torch.ones(seq, seq, dtype=torch.bool).tril()
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask, use_cache=False
    ).logits
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    w = batch["loss_weights"].to(logits.dtype).flatten()
    return logits, (nll * w).sum() / w.sum()


def trained(model):
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


def train(model, batch, clip):
    """The losses before each of STEPS updates, and the gradients' global norm before clipping."""
    params = list(trained(model).values())
    groups = [
        {"params": [p for p in params if p.ndim >= 2]},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], **ADAMW)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = forward(model, batch)[1]
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, clip if clip else float("inf")))
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


def restore(model, saved):
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(saved[k])


def reference(model, batch, key=lambda k: k, final=True):
    """Everything a test compares; the model is left as it was."""
    saved = {k: p.detach().clone() for k, p in model.named_parameters()}
    model.zero_grad()
    logits, loss = forward(model, batch)
    loss.backward()
    out = {k: v.to(torch.int32) if v.dtype == torch.int64 else v for k, v in batch.items()}
    out |= {"logits": logits.detach(), "loss": loss.detach()[None]}
    out |= {f"grad.{key(k)}": p.grad.clone() for k, p in trained(model).items()}
    out["adamw.losses"], norms = train(model, batch, clip=None)
    if final:
        out |= {f"adamw.final.{key(k)}": p.detach().clone() for k, p in trained(model).items()}
    restore(model, saved)
    if final:
        assert norms[0] > CLIP, f"clipping would do nothing: norm {norms[0]}"
        out["adamw_clip.losses"], out["adamw_clip.grad_norms"] = train(model, batch, clip=CLIP)
        restore(model, saved)
    assert out["adamw.losses"][-1] < out["adamw.losses"][0]
    return out


def info(**more):
    # One key only: the container does not promise an order for several.
    facts = {
        "adamw": ADAMW, "clip_norm": CLIP, "steps": STEPS,
        "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
        "safetensors": safetensors.__version__, "python": platform.python_version(),
    } | more  # fmt: skip
    return {"tinyforge": json.dumps(facts, sort_keys=True)}


def save(tensors, path, **more):
    save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, path, metadata=info(**more))


def check_packing(model, batch, logits):
    """Each document alone gives the logits it has inside the packed row."""
    for row in range(2):
        for s in batch["segment_ids"][row].unique():
            at = batch["segment_ids"][row] == s
            alone = model(input_ids=batch["input_ids"][row][at][None], use_cache=False).logits[0]
            torch.testing.assert_close(alone, logits[row][at], rtol=1e-4, atol=1e-5)


def old_style_config(path):
    """Rewrites config.json in the form that most published checkpoints have: `rope_theta` and `rope_scaling`
    at the top level, `torch_dtype`, and no `head_dim`."""
    c = json.loads(path.read_text())
    c.pop("head_dim", None)
    scaling = c.pop("rope_parameters", None)
    if scaling:
        c["rope_theta"] = scaling.pop("rope_theta")
        c["rope_scaling"] = scaling if scaling["rope_type"] != "default" else None
    c["torch_dtype"] = c.pop("dtype", "float32")
    path.write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")


def check_reload(folder, batch, logits):
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert torch.equal(forward(again, batch)[0], logits), f"{folder}: reload differs"


def base_model(name, config, seq, out):
    config.architectures = None
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomize(model, name)
    folder = out / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in ("llama-rope3-tied", "qwen2"):
        old_style_config(folder / "config.json")
    batch = batch_of(name, config.vocab_size, seq, packed=False)
    ref = reference(model, batch)
    check_reload(folder, batch, ref["logits"])
    save(ref, folder / "reference.safetensors")
    if name in PACKED_TOO:
        batch = batch_of(name, config.vocab_size, seq, packed=True)
        ref = reference(model, batch, final=False)
        check_packing(model, batch, ref["logits"])
        ref = {k: v for k, v in ref.items() if not k.startswith("grad.") or PACKED_TOO[name] in k}
        save(ref, folder / "packed.safetensors")
    return model


def save_adapter(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": "", "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def lora(name, base, seq, targets, out):
    """`lora/`: an adapter with both factors non-zero and its reference; `lora-trained/`: the same after training."""
    conv1d = name == "gpt2"
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM",
                             fan_in_fan_out=conv1d)  # fmt: skip
    model = peft.get_peft_model(base, config).eval()
    gen = generator(name, "lora")
    with torch.no_grad():
        for p in trained(model).values():
            p.copy_(0.2 * torch.randn(p.shape, generator=gen))
    batch = batch_of(name, base.config.vocab_size, seq, packed=False)
    ref = reference(model, batch, key=lambda k: k.replace(".default.", "."))
    folder = out / name
    save_adapter(model, folder / "lora")
    save(ref, folder / "lora" / "reference.safetensors", rank=4, alpha=8, targets=targets)
    check_adapter_reload(folder, batch, ref["logits"])

    train(model, batch, clip=None)
    save_adapter(model, folder / "lora-trained")
    stored = load_file(folder / "lora-trained" / "adapter_model.safetensors")
    assert all(torch.equal(v, ref[f"adamw.final.{k}"]) for k, v in stored.items())
    logits, loss = (x.detach() for x in forward(model, batch))
    ids = {k: v.to(torch.int32) if v.dtype == torch.int64 else v for k, v in batch.items()}
    save(ids | {"logits": logits, "loss": loss[None]}, folder / "lora-trained" / "reference.safetensors")


def check_adapter_reload(folder, batch, logits):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(base, folder / "lora").eval()
    assert torch.equal(forward(again, batch)[0], logits), f"{folder}/lora: reload differs"


def make(out):
    for name, (config, seq, targets) in configs().items():
        model = base_model(name, config, seq, out)
        if targets:
            lora(name, model, seq, targets, out)


def differences(a, b):
    """Files that are not the same in both folders; what lies beside the models is written by hand."""
    names = {p.relative_to(r) for r in (a, b) for p in r.rglob("*") if p.is_file() and p.parent != r}
    same = lambda n: (a / n).is_file() and (b / n).is_file() and filecmp.cmp(a / n, b / n, shallow=False)
    return sorted(str(n) for n in names if not same(n))


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=here.parent / "fixtures")
    parser.add_argument("--check", action="store_true", help="write to a temporary folder and compare with --out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    if not args.check:
        make(args.out)
        size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
        print(f"{args.out}: {size / 1024:.0f} KiB")
        return 0
    with tempfile.TemporaryDirectory() as tmp:
        make(Path(tmp))
        different = differences(Path(tmp), args.out)
    print("\n".join(f"differs: {n}" for n in different) or "all the same")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
