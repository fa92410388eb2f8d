"""Loads an adapter directory written by Tinyforge in PEFT, on its base model, and compares the logits with a reference.

With --like, the tensors of another adapter directory must be there too: same names, same shapes, same values up to
--weight-tol times the largest magnitude of the tensor.
"""

import argparse
import json
import sys
from pathlib import Path

import peft
from safetensors.torch import load_file

import compare

WEIGHTS = "adapter_model.safetensors"


def missing_or_unknown(model, adapter):
    """Names that PEFT would store for this model and that the file lacks, and the other way round."""
    stored = set(load_file(Path(adapter) / WEIGHTS))
    expected = set(peft.get_peft_model_state_dict(model))
    return {"missing": sorted(expected - stored), "unknown": sorted(stored - expected)}


def differences(adapter, like, tolerance):
    """Names of tensors that are not as in `like`."""
    got, want = load_file(Path(adapter) / WEIGHTS), load_file(Path(like) / WEIGHTS)
    wrong = sorted(set(got) ^ set(want))
    for name in sorted(set(got) & set(want)):
        a, b = got[name].float(), want[name].float()
        # `not <=` rather than `>`: a NaN is a difference.
        if a.shape != b.shape or not (a - b).abs().max() <= tolerance * b.abs().max():
            wrong.append(name)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="Hugging Face directory of the base model")
    parser.add_argument("--adapter", required=True, help="PEFT directory")
    parser.add_argument("--like", help="PEFT directory whose tensors the adapter's should equal")
    parser.add_argument("--weight-tol", type=float, default=1e-4)
    compare.add_tolerances(parser)
    args = parser.parse_args()
    compare.quiet()
    model = peft.PeftModel.from_pretrained(compare.load_base(args.base), args.adapter).eval()
    names = missing_or_unknown(model, args.adapter)
    if names["missing"] or names["unknown"]:
        print(json.dumps({"ok": False, "reason": "tensors do not match", **names}))
        return 1
    wrong = differences(args.adapter, args.like, args.weight_tol) if args.like else []
    if wrong:
        print(json.dumps({"ok": False, "reason": f"tensors differ from {args.like}", "tensors": wrong}))
        return 1
    return compare.report(model, args.reference, args.atol, args.rtol, checked=args.adapter)


if __name__ == "__main__":
    sys.exit(main())
