"""JPEGs of every kind for the tests, photographs, and what Pillow makes of them."""

from __future__ import annotations

import io
import random
import tarfile
from functools import cache

import numpy as np
from conftest import REPOSITORY
from hypothesis import strategies as st
from PIL import Image

# 600 photographs of ImageNet; beside the checkout in CI, nowhere else.
SAMPLE = REPOSITORY.parent / "shared" / "data" / "imagenet-sample-600.tar"

# Sampling factors of the first component; chroma is 1x1.
SUBSAMPLINGS = {
    "4:1:1": (4, 1),
    "4:2:0": (2, 2),
    "4:2:2": (2, 1),
    "4:4:0": (1, 2),
    "4:4:4": (1, 1),
    "gray": (1, 1),
}
# Those that Pillow can encode. The others are made by relabel(): valid, but scrambled pictures.
ENCODABLE = ("4:2:0", "4:2:2", "4:4:4", "gray")


def texture(height, width, seed=0):
    """Waves with noise on top: coefficients of every size, and no two places alike.

    The colours are pale: where YCbCr leaves RGB's cube, Pillow clamps every pixel before it
    averages and we after it, so that no filter could make the two agree."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]

    def wave(amplitude):
        fx, fy, phase = rng.uniform(0.02, 0.4), rng.uniform(0.02, 0.4), rng.uniform(0, 6)
        return amplitude * np.sin(fx * x + fy * y + phase) + rng.normal(0, amplitude / 8, x.shape)

    brightness = 128 + wave(60)
    planes = [brightness + wave(25) for _ in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encode(pixels, subsampling="4:2:0", quality=90, **options):
    """Pillow's encoder; `subsampling` is one of ENCODABLE."""
    out = io.BytesIO()
    if subsampling == "gray":
        Image.fromarray(pixels[..., 0]).save(out, "JPEG", quality=quality, **options)
    else:
        image = Image.fromarray(pixels)
        image.save(out, "JPEG", quality=quality, subsampling=subsampling, **options)
    return out.getvalue()


def relabel(data, factors, width, height):
    """Patches luma's sampling factors and the size. The blocks come out in another order, so the
    picture is scrambled, but valid where the number of MCUs and of blocks in one stays the same."""
    at = next(data.find(bytes([0xFF, sof])) for sof in (0xC0, 0xC2) if bytes([0xFF, sof]) in data)
    patched = bytearray(data)
    patched[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    patched[at + 11] = factors
    return bytes(patched)


def make_jpeg(subsampling, width, height, seed=0, **options):
    """A JPEG of `width` x `height` in any subsampling. Relabelled ones are never progressive: scans
    of one component hold another number of blocks, which relabelling cannot keep."""
    if subsampling not in ENCODABLE:
        options.pop("progressive", None)
    if subsampling == "4:4:0":  # MCUs of 8x16 out of such of 16x8
        pixels = texture(-(-height // 16) * 8, -(-width // 8) * 16, seed)
        return relabel(encode(pixels, "4:2:2", **options), 0x12, width, height)
    if subsampling == "4:1:1":  # 32x8 out of 16x16
        pixels = texture(-(-height // 8) * 16, -(-width // 32) * 16, seed)
        return relabel(encode(pixels, "4:2:0", **options), 0x41, width, height)
    return encode(texture(height, width, seed), subsampling, **options)


@st.composite
def boxes(draw, width, height):
    """(left, top, width, height) inside an image."""
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top))


def random_box(rng, width, height):
    """Not smaller than a quarter of either side, as crops of photographs are."""
    w = rng.integers(max(1, width // 4), width + 1)
    h = rng.integers(max(1, height // 4), height + 1)
    return tuple(map(int, (rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h)))


def decode(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def reference(data, box, size):
    """What torchvision's resized_crop does with Pillow."""
    left, top, width, height = box
    crop = decode(data).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize(size[::-1], Image.Resampling.BILINEAR))


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _landscape(seed):
    """Like a photograph: smooth shades, hard edges at all angles, and fine grain on some of it."""
    rng = random.Random(seed)
    width, height = rng.choice([(500, 375), (375, 500), (640, 427), (500, 333), (321, 481)])
    pixels = np.zeros((height, width, 3))
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        angle, offset = rng.uniform(0, 6.3), rng.uniform(-0.4, 0.4)
        side = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5) > offset
        shade = texture(height, width, rng.randrange(2**32)) * rng.uniform(0.1, 0.5)
        pixels[side] = shade[side] + rng.uniform(30, 110)
    return encode(np.clip(pixels, 0, 255).astype(np.uint8), rng.choice(ENCODABLE[:3]), quality=92)


@cache
def photographs():
    """The sample where it is there, else pictures that are as hard to resize."""
    if not SAMPLE.exists():
        return [_landscape(seed) for seed in range(48)]
    with tarfile.open(SAMPLE) as tar:
        files = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
        return [tar.extractfile(member).read() for member in files]


def write_baseline(components):
    """A 4:4:4 or gray JPEG of these coefficients, which are as jpeg.coefficients() gives them: one
    scan a component, and Huffman codes that are as long for one symbol as for another. Holds, and
    then is no baseline JPEG, values of up to 15 bits."""
    rows, columns = components[0].shape[:2]
    ids = range(1, len(components) + 1)
    sizes = (8 * rows).to_bytes(2, "big") + (8 * columns).to_bytes(2, "big")
    frame = b"".join(bytes([i, 0x11, 0]) for i in ids)
    parts = [
        b"\xff\xd8\xff\xdb\0\x43\0" + bytes(range(1, 65)),
        segment(0xC0, b"\x08" + sizes + bytes([len(components)]) + frame),
        segment(0xC4, b"\0" + bytes([0] * 4 + [16] + [0] * 11) + bytes(range(16))),
        segment(0xC4, b"\x10" + bytes([0] * 7 + [255] + [0] * 8) + bytes(range(255))),
    ]
    for i, blocks in zip(ids, components, strict=True):
        parts.append(segment(0xDA, bytes([1, i, 0, 0, 63, 0])))
        parts.append(pack_bits(_scan_bits(blocks.reshape(-1, 64))))
    return b"".join(parts) + b"\xff\xd9"


def pack_bits(bits):
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _scan_bits(blocks):
    previous, bits = 0, []
    for block in blocks[:, ZIGZAG].tolist():
        bits.append(f"{bit_size(block[0] - previous):05b}" + value_bits(block[0] - previous))
        previous, zeros = block[0], 0
        for value in block[1:]:
            if value:
                bits.append("11110000" * (zeros // 16))
                bits.append(f"{zeros % 16 << 4 | bit_size(value):08b}" + value_bits(value))
            zeros = 0 if value else zeros + 1
        bits.append("00000000" if zeros else "")
    return "".join(bits)


def bit_size(value):
    return abs(value).bit_length()


def value_bits(value):
    size = bit_size(value)
    return f"{value + (value < 0) * ((1 << size) - 1):0{size}b}" if value else ""


# The k-th coefficient of a block as stored is this one of its rows laid end to end.
ZIGZAG = sorted(
    range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)
)
