"""Inputs for the int8 TFLite files of `check_tflite.py`: pictures and sounds where there are some, and made ones."""

import io
import struct
import tarfile
import wave

import numpy

U32 = numpy.uint64(0xFFFFFFFF)


def mixed(x):
    """The mixing function of the tests in Rust, on whole numbers below 2^32."""
    x = numpy.asarray(x, numpy.uint64) & U32
    x = ((x ^ (x >> numpy.uint64(16))) * numpy.uint64(0x7FEB352D)) & U32
    x = ((x ^ (x >> numpy.uint64(15))) * numpy.uint64(0x846CA68B)) & U32
    return x ^ (x >> numpy.uint64(16))


def walks(elems, count, seed=0):
    """Walks of steps -12..12 inside int8, each from a place of its own: smooth, and the same in Rust, bit for bit."""
    out = numpy.empty((count, elems), numpy.int8)
    for row in range(count):
        draws = mixed((seed + row) * 1_000_003 + numpy.arange(elems + 1)).tolist()
        at = draws[0] % 256 - 128
        for i, draw in enumerate(draws[1:]):
            at = min(max(at + draw % 25 - 12, -128), 127)
            out[row, i] = at
    return out


def made(elems, count, seed):
    """Half uniform noise, half walks: noise alone averages out and says little about the last layers."""
    noise = numpy.random.default_rng(seed).integers(-128, 128, (count - count // 2, elems)).astype(numpy.int8)
    return numpy.concatenate([noise, walks(elems, count // 2, seed)])


def keywords(assets):
    features = numpy.fromfile(assets / "kws01-mfcc" / "kws01_mfcc_int8_1000x49x10.bin", numpy.int8).reshape(1000, -1)
    return features, numpy.fromfile(assets / "kws01-mfcc" / "kws01_labels_u8.bin", numpy.uint8)


def flowers(assets, count):
    """Test pictures of the flowers, 128 x 128 x 3, spread over the classes."""
    from PIL import Image

    pictures = []
    with tarfile.open(assets / "flowers128" / "flowers5_128px_train1500_test500.tar.gz") as archive:
        names = sorted(m.name for m in archive.getmembers() if m.name.startswith("test/") and m.isfile())
        for name in names[:: max(1, len(names) // count)][:count]:
            picture = Image.open(io.BytesIO(archive.extractfile(name).read())).convert("RGB")
            pictures.append(numpy.asarray(picture, numpy.float64))
    return numpy.stack(pictures)


def small_pictures(assets, count):
    """The flowers at 32 x 32, pixel - 128."""
    pictures = flowers(assets, count)
    shrunk = pictures.reshape(len(pictures), 32, 4, 32, 4, 3).mean((2, 4))
    return (numpy.round(shrunk) - 128).astype(numpy.int8).reshape(len(pictures), -1)


def grey_pictures(assets, count):
    """The two sample bitmaps, and the middle of flowers at 96 x 96, pixel - 128."""
    grey = flowers(assets, max(1, count - 2))[:, 16:112, 16:112].mean(3)
    samples = [bitmap(assets / "tflite" / f"{name}.bmp") for name in ["person", "no_person"]]
    return numpy.concatenate([*samples, (numpy.round(grey) - 128).astype(numpy.int8).reshape(len(grey), -1)])


def bitmap(path):
    """A 96 x 96 bitmap whose bytes are int8 numbers, top row first."""
    data = path.read_bytes()
    start = struct.unpack_from("<I", data, 10)[0]
    width, height = struct.unpack_from("<ii", data, 18)
    rows = numpy.frombuffer(data, numpy.uint8, width * abs(height), start).reshape(abs(height), width)
    rows = rows[::-1] if height > 0 else rows
    return numpy.ascontiguousarray(rows).view(numpy.int8).reshape(1, -1)


def sound(assets, word):
    with wave.open(str(assets / "tflite" / f"{word}.wav")) as file:
        return numpy.frombuffer(file.readframes(file.getnframes()), numpy.int16).astype(float)


# The sound front end of the speech model: frames of 30 ms every 20 ms, 40 mel channels of 125 to 7500 Hz, noise
# subtraction, automatic gain (PCAN), logarithm. In floats: the model's own runs in fixed point.
FRAME, HOP, FFT, CHANNELS = 480, 320, 512, 40


def mel(hertz):
    return 1127.0 * numpy.log1p(hertz / 700.0)


def channel_weights(channels, low, high, fft):
    edges = numpy.linspace(mel(low), mel(high), channels + 2)
    bins = mel(numpy.arange(fft // 2 + 1) * 16000.0 / fft)
    up = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return numpy.clip(numpy.minimum(up, down), 0, None)


def spectrogram(samples):
    window = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * (numpy.arange(FRAME) + 0.5) / FRAME)
    weights, noise, rows = channel_weights(CHANNELS, 125.0, 7500.0, FFT), numpy.zeros(CHANNELS), []
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


def words(assets, count):
    """The two sample sounds, each shifted in time."""
    rows = []
    for i in range(count):
        samples = sound(assets, ["yes", "no"][i % 2])
        rows.append(spectrogram(numpy.roll(samples, 400 * (i // 2))))
    return numpy.concatenate(rows)


def mel_frames(assets, count, scale, zero):
    """Five frames of 128 mel channels in dB, as the anomaly detector takes them, of the two sample sounds."""
    weights, rows = channel_weights(128, 0.0, 8000.0, 1024), []
    for word in ["yes", "no"]:
        samples = sound(assets, word)
        frames = [samples[s : s + 1024] * numpy.hanning(1024) for s in range(0, len(samples) - 1023, 512)]
        power = numpy.abs(numpy.fft.rfft(numpy.stack(frames) / 32768.0)) ** 2 @ weights.T
        decibel = 10.0 * numpy.log10(numpy.maximum(power, 1e-10))
        rows += [decibel[i : i + 5].ravel() for i in range(len(decibel) - 4)]
    picked = numpy.stack(rows)[:: max(1, len(rows) // count)][:count]
    return numpy.clip(numpy.round(picked / scale) + zero, -128, 127).astype(numpy.int8)


def real(name, assets, count, quant):
    """Inputs of the kind that the model was made for; none for a model that is not known."""
    if name == "kws_ref_model":
        return keywords(assets)[0][:: 1000 // count][:count]
    if name == "pretrainedResnet_quant":
        return small_pictures(assets, count)
    if name == "person_detect":
        return grey_pictures(assets, count)
    if name == "speech":
        return words(assets, count)
    if name == "ad01_int8":
        return mel_frames(assets, count, *quant)
    if name == "sine":
        return numpy.arange(-128, 128).reshape(-1, 1).astype(numpy.int8)
    return None
