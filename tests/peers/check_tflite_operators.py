"""Compares Tinyforge's reading of single TFLite operators with LiteRT's default kernels, on drawn shapes and scales.

Half of the scales are round numbers, so that results meet ties. Every number that Tinyforge gives must be LiteRT's;
what it refuses is counted and its reason printed.

    cargo build --release -p tinyforge-compiler --examples
    python tests/peers/check_tflite_operators.py [--count 700] [--seed 0]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import flatbuffers
import numpy
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

ROUND = [0.1, 0.05, 0.04, 0.02, 0.06, 0.12, 0.16, 0.25, 0.5, 1.0]
INT8, INT32 = schema.TensorType.INT8, schema.TensorType.INT32


class Writer:
    """A file of one operator."""

    def __init__(self):
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers, self.graph.tensors = 3, [schema.BufferT()], []

    def tensor(self, shape, scales=None, zero=0, data=None):
        tensor = schema.TensorT()
        tensor.shape, tensor.name = numpy.array(shape, numpy.int32), b"t"
        tensor.type, tensor.buffer = INT32 if data is not None and data.dtype == numpy.int32 else INT8, 0
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = numpy.array(scales, numpy.float32)
            tensor.quantization.zeroPoint = numpy.full(len(scales), zero, numpy.int64)
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = numpy.frombuffer(data.tobytes(), numpy.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def bytes(self, name, inputs, output, options=None):
        operator, code = schema.OperatorT(), schema.OperatorCodeT()
        operator.inputs, operator.outputs = numpy.array(inputs, numpy.int32), numpy.array([output], numpy.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 3
        self.graph.inputs, self.graph.outputs = numpy.array(inputs[:1], numpy.int32), operator.outputs
        self.graph.operators, self.model.operatorCodes, self.model.subgraphs = [operator], [code], [self.graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class Draw:
    def __init__(self, seed):
        self.rng = numpy.random.default_rng(seed)

    def whole(self, least, most):
        return int(self.rng.integers(least, most + 1))

    def scale(self, is_round):
        return float(self.rng.choice(ROUND)) if is_round else float(numpy.exp(self.rng.uniform(-5, 0)))

    def image(self, elems):
        """Noise of a drawn spread around a drawn number."""
        spread, middle = self.rng.uniform(0.1, 1), self.whole(-60, 60)
        return numpy.clip(self.rng.integers(-128, 128, elems) * spread + middle, -128, 127).astype(numpy.int8)

    def window(self, options, shape):
        """Strides and padding of a window of this size, and the result's height and width."""
        (h, w), (kh, kw) = shape
        stride, options.padding = self.whole(1, 3), self.whole(0, 1)
        options.strideH = options.strideW = stride
        if options.padding == schema.Padding.SAME:
            return -(-h // stride), -(-w // stride)
        return (h - kh) // stride + 1, (w - kw) // stride + 1


def elementwise(draw, name, scales, zeros):
    x, writer = numpy.arange(-128, 128).astype(numpy.int8), Writer()
    given, wanted = [writer.tensor([1, 16, 4, 4], [s], z) for s, z in zip(scales, zeros)]
    return writer.bytes(name, [given], wanted), x


def add(draw, name, scales, zeros):
    """The image to itself."""
    writer, options = Writer(), schema.AddOptionsT()
    given, wanted = [writer.tensor([1, 8, 8, 4], [s], z) for s, z in zip(scales, zeros)]
    options.fusedActivationFunction = draw.whole(0, 3)
    return writer.bytes(name, [given, given], wanted, options), draw.image(256)


def pool(draw, name, scales, zeros):
    h, w, c = draw.whole(1, 24), draw.whole(1, 24), draw.whole(1, 8)
    writer, options = Writer(), schema.Pool2DOptionsT()
    options.filterHeight, options.filterWidth = draw.whole(1, h), draw.whole(1, w)
    options.fusedActivationFunction = [0, 1, 3][draw.whole(0, 2)]
    out = draw.window(options, ((h, w), (options.filterHeight, options.filterWidth)))
    given = writer.tensor([1, h, w, c], scales[:1], zeros[0])
    wanted = writer.tensor([1, *out, c], scales[:1], zeros[0])
    return writer.bytes(name, [given], wanted, options), draw.image(h * w * c)


def mean(draw, name, scales, zeros):
    h, w, c = draw.whole(1, 24), draw.whole(1, 24), draw.whole(1, 8)
    if draw.whole(0, 2) == 0:
        scales, zeros = scales[:1] * 2, zeros[:1] * 2
    writer, options = Writer(), schema.ReducerOptionsT()
    given, axes = writer.tensor([1, h, w, c], scales[:1], zeros[0]), writer.tensor([2], data=numpy.array([1, 2], "<i4"))
    wanted = writer.tensor([1, c], scales[1:], zeros[1])
    return writer.bytes(name, [given, axes], wanted, options), draw.image(h * w * c)


def convolution(draw, name, scales, zeros):
    h, w, c, kernel = draw.whole(3, 9), draw.whole(3, 9), draw.whole(1, 6), draw.whole(1, 3)
    is_depthwise, out = name != "CONV_2D", draw.whole(1, 6)
    writer = Writer()
    options = schema.DepthwiseConv2DOptionsT() if is_depthwise else schema.Conv2DOptionsT()
    options.depthMultiplier, options.fusedActivationFunction = 1, draw.whole(0, 3)
    options.dilationHFactor = options.dilationWFactor = 1
    side = draw.window(options, ((h, w), (kernel, kernel)))
    shape, out = ([1, kernel, kernel, c], c) if is_depthwise else ([out, kernel, kernel, c], out)
    w_scales = [draw.scale(draw.whole(0, 1)) / 50 for _ in range(out)]
    weights = draw.rng.integers(-127, 128, shape).astype(numpy.int8)
    given, filters = writer.tensor([1, h, w, c], scales[:1], zeros[0]), writer.tensor(shape, w_scales, 0, weights)
    writer.graph.tensors[filters].quantization.quantizedDimension = 3 if is_depthwise else 0
    biases = draw.rng.integers(-3000, 3000, out).astype("<i4")
    bias = writer.tensor([out], [scales[0] * s for s in w_scales], 0, biases)
    wanted = writer.tensor([1, *side, out], scales[1:], zeros[1])
    return writer.bytes(name, [given, filters, bias], wanted, options), draw.image(h * w * c)


OPERATORS = {
    "ADD": add,
    "AVERAGE_POOL_2D": pool,
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": convolution,
    "MAX_POOL_2D": pool,
    "MEAN": mean,
    "QUANTIZE": elementwise,
    "RELU": elementwise,
    "RELU6": elementwise,
}


def litert(data, image):
    peer = Interpreter(model_content=data, num_threads=1)
    peer.allocate_tensors()
    given = peer.get_input_details()[0]
    peer.set_tensor(given["index"], image.reshape(given["shape"]))
    peer.invoke()
    return peer.get_tensor(peer.get_output_details()[0]["index"]).ravel()


def ours(runner, folder, data, image):
    """The result, or why it is refused."""
    paths = [Path(folder, name) for name in ["m.tflite", "in", "out"]]
    paths[0].write_bytes(data)
    image.tofile(paths[1])
    done = subprocess.run([runner, *paths], capture_output=True, text=True)
    return (done.stderr.strip(), None) if done.returncode else (None, numpy.fromfile(paths[2], numpy.int8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", default="target/release/examples/int8_run", help="the built example")
    parser.add_argument("--count", default=700, type=int, help="operators in all")
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    draw, found = Draw(args.seed), {name: [0, 0, 0, 0, 0] for name in OPERATORS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.count):
            name, write = list(OPERATORS.items())[i % len(OPERATORS)]
            is_round = draw.whole(0, 1) == 0
            scales, zeros = [draw.scale(is_round) for _ in range(2)], [draw.whole(-128, 127) for _ in range(2)]
            data, image = write(draw, name, scales, zeros)
            wanted = litert(data, image)
            why, got = ours(args.runner, folder, data, image)
            row = found[name]
            if why:
                print(f"{name} refused: {why}")
                row[1] += 1
                continue
            steps = numpy.abs(got.astype(int) - wanted)
            row[:] = row[0] + 1, row[1], row[2] + steps.size, row[3] + int((steps > 0).sum()), max(row[4], steps.max())
    print("| operator | drawn | refused | numbers | other than LiteRT's | by at most |\n|---|---|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(f'{n:,}' for n in row)} |")
    return 0 if all(row[3] == 0 for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
