"""Loads a model directory written by Tinyforge in transformers and compares its logits with a reference.

Fails also when the file lacks a parameter that transformers expects, or has one that it does not know.
"""

import argparse
import json
import sys

import torch
import transformers

import compare


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    compare.add_tolerances(parser)
    args = parser.parse_args()
    compare.quiet()
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    wrong = {k: sorted(map(str, v)) for k, v in loading.items() if k.endswith("_keys") and v}
    if wrong:
        print(json.dumps({"ok": False, "reason": "parameters do not match", **wrong}))
        return 1
    return compare.report(model.eval(), args.reference, args.atol, args.rtol, checked=args.model)


if __name__ == "__main__":
    sys.exit(main())
