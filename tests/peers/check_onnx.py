"""Compares Tinyforge's reading of float ONNX files with onnxruntime's, and its int8 with onnxruntime's.

    cargo build --release -p tinyforge-compiler --examples
    python tests/peers/check_onnx.py floats [--save DIR] [MODEL.onnx ...]
    python tests/peers/check_onnx.py mnist --assets DIR --out DIR

`floats` makes convolutional networks with the onnx package (strides, paddings of every kind, depthwise convolutions,
sums, batch norms, pools, heads of several forms, constants in every place, several operator sets), runs random images
through onnxruntime and through `onnx_run`, the reference interpreter over the imported program, and asks for equal
results to 1e-4 of the largest.

`mnist` trains a small network with batch norms in PyTorch on MNIST, exports it, and prints its float accuracy and that
of onnxruntime's own static quantisation (int8, per channel) with as many calibration samples as `--samples`: the
figures that `tinyforge simulate OUT/mnist.onnx --epochs 0` stands beside.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

TOLERANCE = 1e-4


class Net:
    """A graph being written; every constant goes where `place` says."""

    def __init__(self, shape, opset=13, place="initializer", seed=0):
        self.random = numpy.random.default_rng(seed)
        self.nodes, self.constants, self.opset, self.place = [], [], opset, place
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
        self.at, self.count = "x", 0

    def name(self):
        self.count += 1
        return f"v{self.count}"

    def constant(self, value):
        value, name = numpy.asarray(value), self.name()
        if self.place == "typed":
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = helper.make_tensor(name, kind, value.shape, value.ravel().tolist())
        else:
            tensor = numpy_helper.from_array(value, name)
        if self.place == "node":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def real(self, *shape, scale=1.0, shift=0.0):
        return self.constant((self.random.standard_normal(shape) * scale + shift).astype("f4"))

    def op(self, op, *more, outs=1, x=None, **attrs):
        names = [self.name() for _ in range(outs)]
        self.nodes.append(helper.make_node(op, [x or self.at, *more], names, name=f"{op}_{self.count}", **attrs))
        self.at = names[0]
        return self.at

    def conv(self, ins, outs, kernel, groups=1, bias=True, **attrs):
        r, s = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        w = self.real(outs, ins // groups, r, s, scale=(2.0 / (ins // groups * r * s)) ** 0.5)
        more = [self.real(outs)] if bias else []
        return self.op("Conv", w, *more, group=groups, kernel_shape=[r, s], **attrs)

    def norm(self, channels):
        parts = [self.real(channels, scale=0.2, shift=1.0), self.real(channels), self.real(channels)]
        var = self.constant(self.random.uniform(0.5, 2.0, channels).astype("f4"))
        return self.op("BatchNormalization", *parts, var, epsilon=1e-3)

    def relu6(self):
        if self.opset < 11:
            return self.op("Clip", min=0.0, max=6.0)
        return self.op("Clip", self.constant(numpy.float32(0)), self.constant(numpy.float32(6)))

    def linear(self, ins, outs, rows=True):
        w = self.real(*((outs, ins) if rows else (ins, outs)), scale=ins**-0.5)
        return self.op("Gemm", w, self.real(outs), transB=int(rows))

    def model(self):
        y = helper.make_tensor_value_info(self.at, TensorProto.FLOAT, ["N", "K"])
        graph = helper.make_graph(self.nodes, "net", [self.input], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        return model


def mobile(opset, place):
    """An inverted bottleneck with a sum, as MobileNet has it."""
    net = Net((3, 24, 20), opset, place, seed=opset)
    net.conv(3, 8, 3, strides=[2, 2], pads=[1, 1, 1, 1], bias=False)
    net.norm(8)
    first = net.relu6()
    net.conv(8, 16, 1, bias=False)
    net.norm(16)
    net.relu6()
    net.conv(16, 16, 3, groups=16, pads=[1, 1, 1, 1], bias=False)
    net.norm(16)
    net.relu6()
    net.conv(16, 8, 1, bias=False)
    second = net.norm(8)
    net.op("Add", second, x=first)
    net.conv(8, 24, 5, groups=8, strides=[2, 2], pads=[2, 2, 2, 2])
    net.op("Relu")
    net.op("GlobalAveragePool")
    net.op("Flatten")
    net.linear(24, 5)
    net.op("Softmax", axis=1)
    return net.model()


def windows():
    """Strides, paddings and kernels that differ down and across, ceil mode, padding by name."""
    net = Net((2, 25, 19), seed=7)
    net.conv(2, 6, (5, 3), strides=[2, 1], pads=[2, 0, 1, 2])
    net.op("Relu")
    net.op("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1], ceil_mode=1)
    net.conv(6, 6, (3, 5), groups=6, auto_pad="SAME_UPPER", strides=[1, 2])
    net.op("AveragePool", kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 0, 0])
    net.conv(6, 4, 4, auto_pad="SAME_LOWER", strides=[2, 2])
    net.op("Pad", net.constant(numpy.array([0, 0, 1, 2, 0, 0, 0, 1])))
    net.conv(4, 4, 3, auto_pad="VALID")
    net.op("Reshape", net.constant(numpy.array([0, -1])))
    w = net.model()
    peer = onnxruntime.InferenceSession(w.SerializeToString())
    width = peer.run(None, {"x": numpy.zeros((1, 2, 25, 19), "f4")})[0].shape[1]
    net.op("MatMul", net.real(width, 3, scale=width**-0.5))
    net.op("Add", net.real(3))
    return net.model()


def norms():
    """Batch norms with nothing before them, factors by channel, dropout, casts, a vector's batch norm."""
    net = Net((3, 9, 9), 12, seed=3)
    net.op("Sub", net.constant(numpy.array([0.5, 0.4, 0.3], "f4").reshape(3, 1, 1)))
    net.op("Div", net.constant(numpy.array([0.2, 0.3, 0.25], "f4").reshape(1, 3, 1, 1)))
    net.conv(3, 6, 3, bias=False)
    kept = net.op("Identity")
    net.conv(6, 6, 1)
    net.op("Add", kept)
    net.norm(6)
    net.op("Relu")
    net.op("ReduceMean", axes=[-2, -1], keepdims=0)
    net.op("Dropout")
    net.linear(6, 7, rows=False)
    net.op("Unsqueeze", axes=[2])
    net.op("Squeeze", axes=[2])
    net.op("Mul", net.constant(numpy.float32(0.5)))
    net.linear(7, 4)
    return net.model()


def last():
    """Channels last at the edge, as exporters from TensorFlow write it."""
    net = Net((10, 12, 3), 11, seed=5)
    net.op("Transpose", perm=[0, 3, 1, 2])
    net.conv(3, 5, 3, auto_pad="SAME_UPPER", strides=[2, 2])
    net.op("Relu")
    net.op("GlobalAveragePool")
    net.op("Transpose", perm=[0, 2, 3, 1])
    net.op("Reshape", net.constant(numpy.array([-1, 5])))
    net.linear(5, 3)
    return net.model()


def ours(runner, path, images):
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder, "in"), Path(folder, "out")
        given.write_bytes(images.astype("<f4").tobytes())
        subprocess.run([str(runner), str(path), str(given), str(results)], check=True)
        return numpy.frombuffer(results.read_bytes(), "<f4")


def floats(args):
    made = {f"mobile_{place}_{opset}": mobile(opset, place) for opset, place in
            [(9, "initializer"), (13, "typed"), (18, "node")]}
    made |= {"windows": windows(), "norms": norms(), "last": last()}
    is_right = True
    with tempfile.TemporaryDirectory() as folder:
        folder = args.save or Path(folder)
        folder.mkdir(exist_ok=True, parents=True)
        paths = []
        for name, model in made.items():
            paths.append(folder / f"{name}.onnx")
            onnx.save(model, paths[-1])
        paths.append(folder / "external.onnx")
        model = mobile(13, "initializer")
        onnx.save(model, paths[-1], save_as_external_data=True, location="external.bin", size_threshold=64)
        for path in [*paths, *args.models]:
            peer = onnxruntime.InferenceSession(str(path))
            shape = [1, *peer.get_inputs()[0].shape[1:]]
            images = numpy.random.default_rng(1).standard_normal((4, *shape)).astype("f4")
            theirs = numpy.stack([peer.run(None, {peer.get_inputs()[0].name: x})[0] for x in images])
            # Images are handed over with channels first.
            turned = images.transpose(0, 1, 4, 2, 3) if path.name == "last.onnx" else images
            found = ours(args.runner, path, turned).reshape(theirs.shape)
            worst = float(abs(found - theirs).max() / abs(theirs).max())
            is_right &= worst < TOLERANCE
            print(json.dumps({"model": path.name, "results": theirs.size, "largest_difference": worst}))
    return is_right


def read_idx(path):
    data = gzip.open(path).read()
    dims = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return numpy.frombuffer(data, "u1", offset=4 + 4 * len(dims)).reshape(dims)


def mnist(args):
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from torch import nn

    torch.manual_seed(0)
    kinds = (("images", 3), ("labels", 1))
    names = [f"{part}-{kind}-idx{rank}-ubyte.gz" for part in ("train", "t10k") for kind, rank in kinds]
    train_x, train_y, test_x, test_y = (read_idx(args.assets / name) for name in names)
    mean, std = 0.1307, 0.3081
    turn = lambda x: ((x.astype("f4") / 255 - mean) / std)[:, None]

    def block(ins, outs, stride):
        return nn.Sequential(
            nn.Conv2d(ins, ins, 3, stride, 1, groups=ins, bias=False), nn.BatchNorm2d(ins), nn.ReLU6(),
            nn.Conv2d(ins, outs, 1, bias=False), nn.BatchNorm2d(outs))

    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            wide = 2 * width
            expand = nn.Conv2d(width, wide, 1, bias=False)
            self.body = nn.Sequential(expand, nn.BatchNorm2d(wide), nn.ReLU6(), block(wide, width, 1))

        def forward(self, x):
            return x + self.body(x)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), block(16, 24, 1), nn.ReLU6(),
        block(24, 32, 2), Residual(32), block(32, 48, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    steps, batch = args.epochs * len(train_x) // 128, 128
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps)
    x, y = torch.tensor(turn(train_x)), torch.tensor(train_y.astype("i8"))
    for _ in range(steps):
        picked = torch.randint(len(x), (batch,))
        loss = nn.functional.cross_entropy(net(x[picked]), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    args.out.mkdir(exist_ok=True, parents=True)
    path = args.out / "mnist.onnx"
    torch.onnx.export(net, torch.zeros(1, 1, 28, 28), str(path), dynamo=False, do_constant_folding=False,
                      input_names=["x"], training=torch.onnx.TrainingMode.PRESERVE)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.at = iter(turn(train_x[:: len(train_x) // args.samples][: args.samples]))

        def get_next(self):
            image = next(self.at, None)
            return None if image is None else {"x": image[None]}

    quant_pre_process(str(path), str(args.out / "prepared.onnx"))
    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    prepared, quantised = str(args.out / "prepared.onnx"), str(args.out / "int8.onnx")
    quantize_static(prepared, quantised, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)

    def accuracy(path):
        peer = onnxruntime.InferenceSession(str(path))
        images = turn(test_x)[:, None]
        found = numpy.concatenate([peer.run(None, {"x": image})[0].argmax(1) for image in images])
        return float((found == test_y).mean())

    print(json.dumps({"float": accuracy(path), "onnxruntime_int8": accuracy(args.out / "int8.onnx")}))
    return True


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("floats")
    one.add_argument("--runner", type=Path, default="target/release/examples/onnx_run")
    one.add_argument("--save", type=Path)
    one.add_argument("models", type=Path, nargs="*")
    two = commands.add_parser("mnist")
    two.add_argument("--assets", type=Path, required=True)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--epochs", type=int, default=3)
    two.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    sys.exit(0 if {"floats": floats, "mnist": mnist}[args.command](args) else 1)


if __name__ == "__main__":
    main()
