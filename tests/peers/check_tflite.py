"""Compares Tinyforge's reading of int8 TFLite files with LiteRT's, layer by layer and at the result.

The reference is LiteRT's interpreter as it comes (`default`: XNNPACK's kernels where it has them, else the built-in
ones): like Tinyforge it multiplies sums by an f32 number and rounds ties to even. Its `reference` kernels multiply by
fixed-point numbers and round ties away from zero. Each operator of a file also runs by itself, cut out into a model of
its own, so that every image inside the network is known for both sets of kernels. Asked for:

- results and logits differ from the default kernels' by at most one step, and most not at all;
- every layer, given LiteRT's images, differs from the default set by at most one step;
- the keyword model's accuracy, and sensible answers on the sample pictures and sounds.

    cargo build --release -p tinyforge-compiler --examples
    target/release/examples/int8_seeds DIR
    python tests/peers/check_tflite.py --assets ASSETS \
        --more DIR/residual.tflite DIR/everything.tflite DIR/ties.tflite [--fixtures tests/fixtures/litert]

With `--fixtures` it only writes what the tests compare with, `litert.safetensors`. Scales of `everything` and `ties`
are round numbers, so that their layers meet ties.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ai_edge_litert
import flatbuffers
import numpy
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import tflite_inputs

MODELS = ["kws_ref_model", "pretrainedResnet_quant", "person_detect", "ad01_int8", "sine", "speech"]
KERNELS = {"default": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}
KEYWORDS_ACCURACY = 0.902
# Operators that give no layer of ours, or one that keeps the numbers.
SILENT = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PAD", "DEQUANTIZE"}
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def parsed(data):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def packed(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def repaired(data):
    """The file with quantized_dimension 0 where the file names a dimension that the tensor lacks: LiteRT refuses it."""
    model = parsed(data)
    changed = 0
    for tensor in model.subgraphs[0].tensors:
        q = tensor.quantization
        if q is not None and q.quantizedDimension >= len(tensor.shape):
            q.quantizedDimension = 0
            changed += 1
    return (packed(model), changed) if changed else (data, 0)


class Peer:
    """A LiteRT interpreter of one input or more, and one result."""

    def __init__(self, data, kernels):
        self.interpreter = Interpreter(
            model_content=data, experimental_op_resolver_type=KERNELS[kernels], num_threads=1
        )
        self.interpreter.allocate_tensors()
        self.inputs = self.interpreter.get_input_details()
        self.output = self.interpreter.get_output_details()[0]

    def run(self, *images):
        for given, image in zip(self.inputs, images, strict=True):
            self.interpreter.set_tensor(given["index"], image.reshape(given["shape"]))
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"]).copy()

    def results(self, images):
        return numpy.stack([self.run(image).ravel() for image in images])


class Chain:
    """A file's operators one after another, each an interpreter of its own."""

    def __init__(self, data, kernels):
        whole = parsed(data)
        graph = whole.subgraphs[0]
        self.input, self.steps = graph.inputs[0], []
        for at, operator in enumerate(graph.operators):
            kind = whole.operatorCodes[operator.opcodeIndex]
            name = NAMES[max(kind.builtinCode, kind.deprecatedBuiltinCode)]
            model = parsed(data)
            part = model.subgraphs[0]
            is_image = lambda t: model.buffers[part.tensors[t].buffer].data is None
            given = list(dict.fromkeys(t for t in operator.inputs if t >= 0 and is_image(t)))
            part.operators = [part.operators[at]]
            part.inputs, part.outputs = numpy.array(given, numpy.int32), operator.outputs
            model.signatureDefs = None
            self.steps.append((name, given, operator.outputs[0], Peer(packed(model), kernels)))

    def run(self, image):
        """The results of the operators that give a layer, in order."""
        values, layers = {self.input: image}, []
        for name, given, wanted, peer in self.steps:
            values[wanted] = peer.run(*[values[t] for t in given])
            if name not in SILENT and values[wanted].dtype == numpy.int8:
                layers.append((name, values[wanted].ravel()))
        return layers

    def images(self, about, inputs):
        """All images of the network as Tinyforge counts them, of every input, and the operators' names by image."""
        layers, samples, names = [l for l in about["layers"] if l["kind"] != "reshape"], [], {}
        for image in inputs:
            given = self.run(image)
            assert len(given) == len(layers), (len(given), len(layers))
            values, rest = {0: image.ravel()}, iter(given)
            for layer in about["layers"]:
                if layer["kind"] == "reshape":
                    values[layer["output"]] = values[layer["inputs"][0]]
                else:
                    names[layer["output"]], values[layer["output"]] = next(rest)
            samples.append(numpy.concatenate([values[i] for i in range(len(about["images"]))]))
        return numpy.stack(samples), names


def ours(runner, path, images, *flags):
    with tempfile.TemporaryDirectory() as folder:
        given, wanted = Path(folder, "in"), Path(folder, "out")
        images.astype(numpy.int8).tofile(given)
        done = subprocess.run([runner, *flags, path, given, wanted], check=True, capture_output=True, text=True)
        about = json.loads(done.stdout.splitlines()[-1])
        return numpy.fromfile(wanted, numpy.int8).reshape(len(images), -1), about


def image_of(samples, about, i):
    start = sum(about["images"][:i])
    return samples[:, start : start + about["images"][i]]


def difference(a, b):
    steps = numpy.abs(a.astype(int) - b.astype(int))
    return {"max": int(steps.max()), "mean": float(steps.mean()), "exact": float((steps == 0).mean())}


def compare(runner, path, assets, count):
    """One line for every kind of inputs."""
    data, changed = repaired(path.read_bytes())
    peers = {kernels: (Peer(data, kernels), Chain(data, kernels)) for kernels in KERNELS}
    given = peers["default"][0].inputs[0]
    elems = int(numpy.prod(given["shape"]))
    sets = {"real": tflite_inputs.real(path.stem, assets, count, given["quantization"])}
    sets["made"] = tflite_inputs.made(elems, count, 7) if elems > 1 else None
    for kind, inputs in sets.items():
        if inputs is None:
            continue
        line = {"model": path.name, "inputs": kind, "count": len(inputs), "repaired_tensors": changed}
        got, about = ours(runner, path, inputs, "--all")
        logits = {"ours": image_of(got, about, about["logits"])}
        results = {"ours": image_of(got, about, about["result"])}
        for kernels, (whole, chain) in peers.items():
            images, names = chain.images(about, inputs)
            results[kernels] = whole.results(inputs)
            assert (image_of(images, about, about["result"]) == results[kernels]).all(), "the parts give another result"
            logits[kernels] = image_of(images, about, about["logits"])
            line["result_" + kernels] = difference(results["ours"], results[kernels])
            line["logits_" + kernels] = difference(logits["ours"], logits[kernels])
            line["layers_" + kernels] = layers(runner, path, images, about, names)
            line["top1_" + kernels] = float((results["ours"].argmax(1) == results[kernels].argmax(1)).mean())
        line["result_between"] = difference(results["reference"], results["default"])
        line["logits_between"] = difference(logits["reference"], logits["default"])
        layer = max(line[f"layers_{kernels}"]["max"] for kernels in KERNELS)
        line["ok"] = max(layer, line["result_default"]["max"], line["logits_default"]["max"]) <= 1
        yield line


def layers(runner, path, images, about, names):
    """Every layer by itself, given LiteRT's images; by operator, how many numbers of how many differ."""
    got, _ = ours(runner, path, images, "--layers")
    kinds = {}
    for i, name in names.items():
        unequal = int((image_of(got, about, i) != image_of(images, about, i)).sum())
        before = kinds.get(name, (0, 0))
        kinds[name] = (before[0] + unequal, before[1] + about["images"][i] * len(images))
    computed = slice(about["images"][0], None)
    return {**difference(got[:, computed], images[:, computed]), "unequal": kinds}


def keywords(runner, assets):
    features, labels = tflite_inputs.keywords(assets)
    path = assets / "tflite" / "kws_ref_model.tflite"
    got, _ = ours(runner, path, features)
    line = {"check": "keywords", "accuracy": float((got.argmax(1) == labels).mean())}
    for kernels in KERNELS:
        want = Peer(path.read_bytes(), kernels).results(features)
        line["accuracy_" + kernels] = float((want.argmax(1) == labels).mean())
        line["result_" + kernels] = difference(got, want)
    line["ok"] = abs(line["accuracy"] - KEYWORDS_ACCURACY) < 0.002 and line["result_default"]["max"] <= 1
    return line


def person(runner, assets):
    folder, line, scores = assets / "tflite", {"check": "person"}, {}
    for name in ["person", "no_person"]:
        got, _ = ours(runner, folder / "person_detect.tflite", tflite_inputs.bitmap(folder / f"{name}.bmp"))
        scores[name] = got[0].tolist()
    line["scores"] = scores
    line["ok"] = scores["person"][1] > scores["person"][0] and scores["no_person"][0] > scores["no_person"][1]
    return line


def speech(runner, assets):
    names, line, heard = ["silence", "unknown", "yes", "no"], {"check": "speech"}, {}
    for word in ["yes", "no"]:
        spectrogram = tflite_inputs.spectrogram(tflite_inputs.sound(assets, word))
        got, _ = ours(runner, assets / "tflite" / "speech.tflite", spectrogram)
        line[word] = got[0].tolist()
        heard[word] = names[int(got[0].argmax())]
    line["heard"], line["ok"] = heard, all(word == name for word, name in heard.items())
    return line


def table(lines):
    """Whole models as a table of Markdown: greatest and mean difference in steps, and the share of equal numbers."""
    cell = lambda d: f"{d['max']} / {d['mean']:.4f} / {100 * d['exact']:.2f} %"
    print("| model, inputs | image | to default | to reference | reference to default |\n|---|---|---|---|---|")
    for line in lines:
        for what in ["logits", "result"]:
            parts = [cell(line[f"{what}_{other}"]) for other in ["default", "reference", "between"]]
            print(f"| {line['model']}, {line['count']} {line['inputs']} | {what} | {' | '.join(parts)} |")


def write_tensors(path, tensors):
    """A safetensors file of int8 tensors."""
    header, start = {"__metadata__": {"litert": ai_edge_litert.__version__}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "I8", "shape": list(tensor.shape), "data_offsets": [start, start + tensor.size]}
        start += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.tobytes() for t in tensors.values()))


def fixtures(runner, assets, more, folder):
    """What LiteRT's default kernels give: every image of the tests' own models, logits of the published ones."""
    tensors = {}
    for path in more:
        data = path.read_bytes()
        chain = Chain(data, "default")
        elems = int(numpy.prod(Peer(data, "default").inputs[0]["shape"]))
        inputs = tflite_inputs.walks(elems, 6)
        _, about = ours(runner, path, inputs[:1])
        tensors[path.stem] = chain.images(about, inputs)[0]
    for name in MODELS:
        path = assets / "tflite" / f"{name}.tflite"
        data = repaired(path.read_bytes())[0]
        elems = int(numpy.prod(Peer(data, "default").inputs[0]["shape"]))
        inputs = tflite_inputs.walks(elems, 2 if name == "ad01_int8" else 8)
        _, about = ours(runner, path, inputs[:1])
        tensors[name] = image_of(Chain(data, "default").images(about, inputs)[0], about, about["logits"])
    features, _ = tflite_inputs.keywords(assets)
    tensors["keywords"] = Peer((assets / "tflite" / "kws_ref_model.tflite").read_bytes(), "default").results(features)
    write_tensors(folder / "litert.safetensors", tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", required=True, type=Path, help="folder of the models, pictures and sounds")
    parser.add_argument("--runner", default="target/release/examples/int8_run", help="the built example")
    parser.add_argument("--count", default=24, type=int, help="inputs of a kind for a model")
    parser.add_argument("--only", help="one model by name, `samples` for the last three checks")
    parser.add_argument("--more", nargs="*", default=[], type=Path, help="further models")
    parser.add_argument("--fixtures", type=Path, help="folder to write the tests' numbers to")
    args = parser.parse_args()
    if args.fixtures:
        return fixtures(args.runner, args.assets, args.more, args.fixtures)
    paths = [args.assets / "tflite" / f"{name}.tflite" for name in MODELS if args.only in (None, name)]
    lines, checks = [], []
    for path in paths + args.more:
        for line in compare(args.runner, path, args.assets, args.count):
            lines.append(line)
            print(json.dumps(line), flush=True)
    if args.only in (None, "samples"):
        for check in [keywords, person, speech]:
            checks.append(check(args.runner, args.assets))
            print(json.dumps(checks[-1]), flush=True)
    table(lines)
    return 0 if all(line["ok"] for line in lines + checks) else 1


if __name__ == "__main__":
    sys.exit(main())
