"""What check_model.py and check_adapter.py share: run a reference's batch, compare logits, print one JSON object."""

import json
import warnings

import torch
import transformers
from safetensors.torch import load_file


def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)


def load_base(folder):
    """The model in f32, whatever the file holds, from local files only."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def logits_of(model, batch):
    """Logits for `input_ids`; attention stays inside `segment_ids` where the reference has them."""
    ids = batch["input_ids"].long()
    rows, seq = ids.shape
    segments = batch.get("segment_ids", torch.zeros_like(ids))
    positions = batch.get("position_ids", torch.arange(seq).expand(rows, seq)).long()
    allowed = (segments[:, :, None] == segments[:, None, :]) & torch.ones(seq, seq, dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits


def report(model, reference, atol, rtol, **more):
    """Prints the comparison; 0 when |got - want| <= atol + rtol * max|want| for every logit, else 1."""
    batch = load_file(reference)
    want, vocab = batch["logits"].float(), model.config.vocab_size
    if want.shape != (*batch["input_ids"].shape, vocab):
        print(json.dumps({"ok": False, "reason": f"vocabulary {vocab}, reference {list(want.shape)}"} | more))
        return 1
    got = logits_of(model, batch).float()
    difference, scale = (got - want).abs(), want.abs().max().item()
    finite = bool(torch.isfinite(want).all() and torch.isfinite(got).all())
    ok = finite and difference.max().item() <= atol + rtol * scale
    facts = {
        "ok": ok, "max_abs": difference.max().item(), "mean_abs": difference.mean().item(), "scale": scale,
        "finite": finite, "argmax_agree": (got.argmax(-1) == want.argmax(-1)).float().mean().item(),
        "atol": atol, "rtol": rtol,
    }  # fmt: skip
    print(json.dumps(facts | more))
    return 0 if ok else 1


def add_tolerances(parser):
    parser.add_argument("--reference", required=True, help="safetensors with input_ids and logits")
    parser.add_argument("--atol", type=float, default=1e-5)
    parser.add_argument("--rtol", type=float, default=1e-5, help="relative to the largest logit")
