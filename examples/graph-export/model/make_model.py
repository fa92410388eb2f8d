"""Writes striped.json and striped.safetensors: an int8 network for images of 16 x 16 in four classes, untrained.

A first convolution, one inverted bottleneck with a residual sum, and a classifier. Weights are uniform with the
variance of one over the fan-in; scales follow from the range of an activation with unit variance.

    python3 make_model.py
"""

import json
import math
import struct

STATE = 1


def below(n):
    global STATE
    STATE = (STATE * 6364136223846793005 + 1442695040888963407) % 2**64
    return (STATE >> 33) % n


TENSORS = {}


def add(name, dtype, shape, data):
    TENSORS[name] = (dtype, shape, data)
    return {"tensor": name, "dtype": {"I8": "int8", "I32": "int32", "F32": "float32"}[dtype], "shape": shape}


def conv(name, channels, sides, kernel, stride, groups, quants):
    """quants: scale and zero of what is read and of what is made."""
    reads, makes = channels
    shape = [makes, reads // groups, kernel, kernel]
    fan_in = shape[1] * kernel * kernel
    count = math.prod(shape)
    scale = math.sqrt(3 / fan_in) / 127
    (x_scale, x_zero), (y_scale, y_zero) = quants
    weights = bytes((below(255) - 127) & 255 for _ in range(count))
    params = {
        "weight": add(f"{name}.weight", "I8", shape, weights),
        "bias": add(f"{name}.bias", "I32", [makes], bytes(4 * makes)),
        "w_scales": add(f"{name}.w_scales", "F32", [makes], struct.pack(f"<{makes}f", *[scale] * makes)),
        "x_scale": x_scale, "x_zero": x_zero, "y_scale": y_scale, "y_zero": y_zero,
    }
    out = {"in_channel": reads, "out_channel": makes, "kernel_size": [kernel, kernel], "stride": stride,
           "groups": groups, "params": params}
    if sides:
        out |= {"in_shape": sides[0], "out_shape": sides[1]}
    return out


IMAGE = (2 / 255, 0)
RELU = (3 / 255, -128)
LINEAR = (4 / 127, 0)
SUM = (5 / 127, 0)

structure = {
    "first_conv": conv("first", (3, 8), (16, 8), 3, 2, 1, (IMAGE, LINEAR)),
    "blocks": [{
        "pointwise1": conv("block.expand", (8, 24), (8, 8), 1, 1, 1, (LINEAR, RELU)),
        "depthwise": conv("block.depthwise", (24, 24), (8, 8), 3, 1, 24, (RELU, RELU)),
        "pointwise2": conv("block.project", (24, 8), (8, 8), 1, 1, 1, (RELU, LINEAR)),
        "residual": {"in_channel": 8, "in_shape": 8,
                     "params": {"x_scale": LINEAR[0], "x_zero": LINEAR[1], "y_scale": SUM[0], "y_zero": SUM[1]}},
    }],
    "feature_mix": conv("mix", (8, 32), (8, 8), 1, 1, 1, (SUM, RELU)),
    "classifier": conv("head", (32, 4), None, 1, 1, 1, (RELU, LINEAR)),
}

with open("striped.json", "w") as file:
    json.dump(structure, file, indent=1)
    file.write("\n")

header, offset = {}, 0
for name, (dtype, shape, data) in sorted(TENSORS.items()):
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
    offset += len(data)
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open("striped.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + b"".join(d for _, (_, _, d) in sorted(TENSORS.items())))
