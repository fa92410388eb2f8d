"""Writes the fixtures of ../quant.rs: needs the PyPI packages `gguf` and `numpy`.

<type>.bin: four blocks of random bits (the first with a subnormal f16 scale), then their elements in f32, as gguf decodes
them. <type>.encode.bin: two rows of 128 random f32 (one of zeros among the blocks), then gguf's encoding of them.
"""

import gguf
import numpy as np

SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
rng = np.random.default_rng(7)

for name, scales in SCALES.items():
    kind = gguf.GGMLQuantizationType[name]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (4, size), dtype=np.uint8)
    for at in scales:
        values = rng.normal(0, 0.01, 4).astype(np.float16)
        values[0] = 3.1e-6
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(4, 2)
    elements = gguf.quants.dequantize(blocks, kind).astype("<f4")
    with open(name.lower() + ".bin", "wb") as file:
        file.write(blocks.tobytes() + elements.tobytes())

for name in ["Q8_0", "Q4_0", "Q4_1"]:
    values = rng.normal(0, 0.5, (2, 128)).astype("<f4")
    values[1, 32:64] = 0
    with open(name.lower() + ".encode.bin", "wb") as file:
        file.write(values.tobytes() + gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).tobytes())
