"""Compares Tinyforge's reading of int8 TFLite files with LiteRT's, output by output.

Random inputs go through LiteRT (its reference kernels, and its default ones) and through `int8_run`, the reference
interpreter over the imported program. The reference kernels multiply by a fixed-point number and round ties away from
zero; LiteRT's default kernels and Tinyforge multiply in f32 and round ties to even. So each layer may differ by one
step from the reference kernels, and steps add up over layers: a softmax makes ten of one step of its logits. Asked for:

- every layer, given LiteRT's own inputs of it, differs by at most one step from LiteRT's reference kernels;
- the results differ by at most one step from LiteRT's default kernels, or by less than twice what those two do;
- the keyword model's accuracy, and sensible answers on the sample pictures and sounds.

    cargo build --release -p tinyforge-compiler --examples
    target/release/examples/int8_seeds DIR
    python tests/peers/check_tflite.py --assets DIR [--more DIR/everything.tflite]
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
    def __init__(self, data, resolver, keep_all=False):
        self.interpreter = Interpreter(
            model_content=data,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep_all,
            num_threads=1,
        )
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


def ours(runner, path, images, *flags):
    with tempfile.TemporaryDirectory() as folder:
        given, wanted = Path(folder, "in"), Path(folder, "out")
        images.astype(numpy.int8).tofile(given)
        done = subprocess.run([runner, *flags, path, given, wanted], check=True, capture_output=True, text=True)
        about = json.loads(done.stdout.splitlines()[-1])
        return numpy.fromfile(wanted, numpy.int8).reshape(len(images), -1), about


# Operators that give no layer of ours, or one that keeps the numbers.
SILENT = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "DEQUANTIZE", "DELEGATE"}


def layerwise(runner, path, data, images, about):
    """Largest difference of any layer from LiteRT's reference kernels, and the share of equal numbers."""
    peer = Peer(data, OpResolverType.BUILTIN_REF, keep_all=True)
    operators = [op for op in peer.interpreter._get_ops_details() if op["op_name"] not in SILENT]
    kinds = {t["index"]: t["dtype"] for t in peer.interpreter.get_tensor_details()}
    operators = [op for op in operators if kinds[op["inputs"][0]] == numpy.int8]
    layers = [layer for layer in about["layers"] if layer["kind"] != "reshape"]
    assert len(operators) == len(layers), (operators, layers)
    samples = []
    for image in images:
        peer.run([image])
        values = {0: image}
        given = iter(operators)
        for layer in about["layers"]:
            if layer["kind"] == "reshape":
                values[layer["output"]] = values[layer["inputs"][0]]
            else:
                tensor = peer.interpreter.get_tensor(next(given)["outputs"][0])
                values[layer["output"]] = tensor.ravel()
        samples.append(numpy.concatenate([values[i] for i in range(len(about["images"]))]))
    samples = numpy.stack(samples)
    got, _ = ours(runner, path, samples, "--layers")
    difference = numpy.abs(got.astype(int) - samples.astype(int))
    start = about["images"][0]
    return int(difference.max()), float((difference[:, start:] == 0).mean())


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
    line["max_lsb_layer"], exact = layerwise(runner, path, data, images[:: max(1, len(images) // 8)], about)
    line["exact_layer"] = round(exact, 7)
    near = line["max_lsb_default"] <= max(1, 2 * line["max_lsb_between_peers"])
    line["ok"] = line["max_lsb_layer"] <= 1 and near
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
    """A 96 x 96 bitmap whose bytes are int8 numbers, top row first."""
    data = path.read_bytes()
    start = struct.unpack_from("<I", data, 10)[0]
    width, height = struct.unpack_from("<ii", data, 18)
    rows = numpy.frombuffer(data, numpy.uint8, width * abs(height), start).reshape(abs(height), width)
    rows = rows[::-1] if height > 0 else rows
    return numpy.ascontiguousarray(rows).view(numpy.int8).reshape(1, -1)


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


# The sound front end of the speech model: frames of 30 ms every 20 ms, 40 mel channels of 125 to 7500 Hz, noise
# subtraction, automatic gain (PCAN), logarithm. In floats: the model's own runs in fixed point.
FRAME, HOP, FFT, CHANNELS = 480, 320, 512, 40


def mel(hertz):
    return 1127.0 * numpy.log1p(hertz / 700.0)


def channel_weights():
    edges = numpy.linspace(mel(125.0), mel(7500.0), CHANNELS + 2)
    bins = mel(numpy.arange(FFT // 2 + 1) * 16000.0 / FFT)
    up = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return numpy.clip(numpy.minimum(up, down), 0, None)


def spectrogram(samples):
    window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * (numpy.arange(FRAME) + 0.5) / FRAME)
    weights, noise, rows = channel_weights(), numpy.zeros(CHANNELS), []
    smoothing = numpy.where(numpy.arange(CHANNELS) % 2 == 0, 0.025, 0.06)
    for start in range(0, len(samples) - FRAME + 1, HOP):
        spectrum = numpy.fft.rfft(samples[start : start + FRAME] * window, FFT) / FFT
        signal = 64.0 * numpy.sqrt(weights @ numpy.abs(spectrum) ** 2)
        noise = noise * (1 - smoothing) + signal * smoothing
        signal = numpy.maximum(signal - noise, 0.05 * signal)
        loud = signal * 2.0**15 * (8.0 * noise + 80.0) ** -0.95
        gained = numpy.where(loud < 8192, loud**2 / 2.0**20, loud / 64.0 - 64.0)
        features = 64.0 * numpy.log(numpy.maximum(8.0 * gained, 1.0))
        rows.append(numpy.clip(numpy.floor((features * 256 + 333) / 666) - 128, -128, 127))
    return numpy.stack(rows[:49]).astype(numpy.int8).reshape(1, -1)


def speech(runner, assets):
    folder, names, line = assets / "tflite", ["silence", "unknown", "yes", "no"], {"check": "speech"}
    heard = {}
    for word in ["yes", "no"]:
        with wave.open(str(folder / f"{word}.wav")) as sound:
            samples = numpy.frombuffer(sound.readframes(sound.getnframes()), numpy.int16).astype(float)
        got, _ = ours(runner, folder / "speech.tflite", spectrogram(samples))
        line[word] = got[0].tolist()
        heard[word] = names[int(got[0].argmax())]
    line["heard"], line["ok"] = heard, all(word == name for word, name in heard.items())
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", required=True, type=Path, help="folder of the models")
    parser.add_argument("--runner", default="target/release/examples/int8_run", help="the built example")
    parser.add_argument("--images", default=24, type=int, help="random inputs a model")
    parser.add_argument("--only", help="one model by name")
    parser.add_argument("--more", nargs="*", default=[], type=Path, help="further models")
    args = parser.parse_args()
    lines = []
    for name in MODELS:
        if args.only in (None, name):
            lines.append(compare(args.runner, args.assets / "tflite" / name, args.images))
            print(json.dumps(lines[-1]), flush=True)
    for path in args.more:
        lines.append(compare(args.runner, path, args.images))
        print(json.dumps(lines[-1]), flush=True)
    if args.only in (None, "samples"):
        for check in [keywords, person, speech]:
            lines.append(check(args.runner, args.assets))
            print(json.dumps(lines[-1]), flush=True)
    return 0 if all(line["ok"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
