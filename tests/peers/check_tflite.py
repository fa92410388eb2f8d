"""Compares Tinyforge's reading of int8 TFLite files with LiteRT's, output by output.

Random inputs go through LiteRT's reference kernels (and its default ones) and through `int8_run`, the reference
interpreter over the imported program. The two round differently: LiteRT multiplies by a fixed-point number and rounds
ties away from zero, Tinyforge multiplies in f32 and rounds ties to even. Each layer may thus differ by one step; the
check asks for one step at the outputs.

    cargo build --release -p tinyforge-compiler --example int8_run
    python tests/peers/check_tflite.py --assets DIR
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
import flatbuffers

MODELS = [
    "kws_ref_model.tflite",
    "pretrainedResnet_quant.tflite",
    "person_detect.tflite",
    "ad01_int8.tflite",
    "sine.tflite",
    "speech.tflite",
]
KEYWORDS_ACCURACY = 0.902


def repaired(data):
    """The file with quantized_dimension 0 where the file names a dimension that the tensor lacks: LiteRT refuses it."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    changed = 0
    for tensor in model.subgraphs[0].tensors:
        q = tensor.quantization
        if q is not None and q.quantizedDimension >= len(tensor.shape):
            q.quantizedDimension = 0
            changed += 1
    if not changed:
        return data, 0
    builder = flatbuffers.Builder(len(data) + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), changed


class Peer:
    def __init__(self, data, resolver):
        self.interpreter = Interpreter(model_content=data, experimental_op_resolver_type=resolver, num_threads=1)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]

    def run(self, images):
        out = []
        for image in images:
            self.interpreter.set_tensor(self.input["index"], image.reshape(self.input["shape"]))
            self.interpreter.invoke()
            out.append(self.interpreter.get_tensor(self.output["index"]).copy().ravel())
        return numpy.stack(out)


def ours(runner, path, images):
    with tempfile.TemporaryDirectory() as folder:
        given, wanted = Path(folder, "in"), Path(folder, "out")
        images.astype(numpy.int8).tofile(given)
        paths = [path] if isinstance(path, Path) else path
        done = subprocess.run([runner, *paths, given, wanted], check=True, capture_output=True, text=True)
        about = json.loads(done.stdout.splitlines()[-1])
        return numpy.fromfile(wanted, numpy.int8).reshape(len(images), -1), about


def inputs(elems, count, seed):
    """Half uniform noise, half smooth images: noise alone averages out and says little about the last layers."""
    rng = numpy.random.default_rng(seed)
    noise = rng.integers(-128, 128, (count - count // 2, elems))
    smooth = numpy.cumsum(rng.normal(0, 6, (count // 2, elems)), axis=1)
    smooth = numpy.clip(smooth + rng.integers(-80, 80, (count // 2, 1)), -128, 127)
    return numpy.concatenate([noise, smooth]).astype(numpy.int8)


def compare(runner, path, count):
    data, changed = repaired(path.read_bytes())
    peers = {"reference": Peer(data, OpResolverType.BUILTIN_REF)}
    peers["default"] = Peer(data, OpResolverType.AUTO)
    elems = int(numpy.prod(peers["reference"].input["shape"]))
    if elems == 1:
        images = numpy.arange(-128, 128).reshape(-1, 1).astype(numpy.int8)
    else:
        images = inputs(elems, count, 7)
    got, about = ours(runner, path, images)
    line = {"model": path.name, "images": len(images), "repaired_tensors": changed}
    line["dead_channels"] = about["dead_channels"]
    wanted = {name: peer.run(images) for name, peer in peers.items()}
    for name, want in wanted.items():
        difference = numpy.abs(got.astype(int) - want.astype(int))
        line[f"max_lsb_{name}"] = int(difference.max())
        line[f"exact_{name}"] = round(float((difference == 0).mean()), 5)
        line[f"within_1_{name}"] = round(float((difference <= 1).mean()), 5)
        line[f"same_top1_{name}"] = round(float((got.argmax(1) == want.argmax(1)).mean()), 4)
    between = numpy.abs(wanted["reference"].astype(int) - wanted["default"].astype(int))
    line["max_lsb_between_peers"] = int(between.max())
    line["exact_between_peers"] = round(float((between == 0).mean()), 5)
    line["ok"] = line["max_lsb_reference"] <= 1
    return line


def keywords(runner, assets):
    features = numpy.fromfile(assets / "kws01-mfcc" / "kws01_mfcc_int8_1000x49x10.bin", numpy.int8).reshape(1000, -1)
    labels = numpy.fromfile(assets / "kws01-mfcc" / "kws01_labels_u8.bin", numpy.uint8)
    path = assets / "tflite" / "kws_ref_model.tflite"
    got, _ = ours(runner, path, features)
    want = Peer(path.read_bytes(), OpResolverType.AUTO).run(features)
    share = float((got.argmax(1) == labels).mean())
    line = {"check": "keywords", "accuracy": share, "peer": float((want.argmax(1) == labels).mean())}
    line["max_lsb"] = int(numpy.abs(got.astype(int) - want.astype(int)).max())
    line["ok"] = abs(share - KEYWORDS_ACCURACY) < 0.002
    return line


def grey(path):
    """A 96 x 96 8-bit bitmap, top row first, as int8."""
    data = path.read_bytes()
    start = struct.unpack_from("<I", data, 10)[0]
    width, height = struct.unpack_from("<ii", data, 18)
    rows = numpy.frombuffer(data, numpy.uint8, width * abs(height), start).reshape(abs(height), width)
    rows = rows[::-1] if height > 0 else rows
    return (rows.astype(int) - 128).astype(numpy.int8).reshape(1, -1)


def person(runner, assets):
    folder = assets / "tflite"
    line = {"check": "person"}
    scores = {}
    for name in ["person", "no_person"]:
        got, _ = ours(runner, folder / "person_detect.tflite", grey(folder / f"{name}.bmp"))
        scores[name] = got[0].tolist()
    line["scores"] = scores
    line["ok"] = scores["person"][1] > scores["person"][0] and scores["no_person"][0] > scores["no_person"][1]
    return line


def sections(path):
    with wave.open(str(path)) as sound:
        samples = numpy.frombuffer(sound.readframes(sound.getnframes()), numpy.int16)
    return samples, sound.getframerate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", required=True, type=Path, help="folder of the models")
    parser.add_argument("--runner", default="target/release/examples/int8_run", help="the built example")
    parser.add_argument("--images", default=24, type=int, help="random inputs a model")
    parser.add_argument("--only", help="one model by name")
    args = parser.parse_args()
    lines = []
    for name in MODELS:
        if args.only in (None, name):
            lines.append(compare(args.runner, args.assets / "tflite" / name, args.images))
            print(json.dumps(lines[-1]), flush=True)
    if args.only is None:
        for check in [keywords, person]:
            lines.append(check(args.runner, args.assets))
            print(json.dumps(lines[-1]), flush=True)
    return 0 if all(line["ok"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
