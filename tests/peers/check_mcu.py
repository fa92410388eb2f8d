"""Shows ImageNet backbones of the published int8 form pictures of daisies and counts how many they name.

    cargo build --release -p tinyforge-compiler --example int8_run
    python tests/peers/check_mcu.py --net NET.json --weights NET.safetensors --pictures ARCHIVE.tar.gz
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy
from PIL import Image

DAISY = 985


def pictures(archive, part, count):
    """The first pictures of a folder of the archive, as int8 pixels less 128."""
    with tarfile.open(archive) as files:
        names = sorted(n for n in files.getnames() if n.startswith(part) and n.endswith(".jpg"))
        for name in names[:count]:
            picture = Image.open(io.BytesIO(files.extractfile(name).read())).convert("RGB").resize((128, 128))
            yield (numpy.asarray(picture).astype(int) - 128).astype(numpy.int8).ravel()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--part", default="test/daisy/")
    parser.add_argument("--count", default=96, type=int)
    parser.add_argument("--least", default=0.5, type=float, help="share of daisies to be named first")
    parser.add_argument("--runner", default="target/release/examples/int8_run")
    args = parser.parse_args()
    images = numpy.stack(list(pictures(args.pictures, args.part, args.count)))
    with tempfile.TemporaryDirectory() as folder:
        given, wanted = Path(folder, "in"), Path(folder, "out")
        images.tofile(given)
        subprocess.run([args.runner, args.net, args.weights, given, wanted], check=True, stdout=subprocess.DEVNULL)
        logits = numpy.fromfile(wanted, numpy.int8).reshape(len(images), -1).astype(int)
    rank = (logits > logits[:, DAISY : DAISY + 1]).sum(1)
    line = {"net": Path(args.net).name, "pictures": len(images)}
    line |= {"first": float((rank < 1).mean()), "first_five": float((rank < 5).mean())}
    line["ok"] = line["first"] >= args.least
    print(json.dumps(line))
    return 0 if line["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
