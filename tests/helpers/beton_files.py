""".beton files for tests: samples, what is written of them, and how stock FFCV sees it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastselfie.data.beton import reader as beton
from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.beton.writer import BetonWriter

Sample = tuple[bytes, str, int, int, int]  # image bytes, mode, width, height, label

METADATA = 24 + 2 * 1041  # the table's place: behind the header and two fields' descriptors


def pixels(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth colours and a little noise: JPEG sizes like a photograph's."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 30) + y / rng.uniform(3, 30)) for _ in range(3)]
    image = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=85)
    return out.getvalue()


def make_samples(n: int, seed: int = 0, raw_every: int = 3) -> list[Sample]:
    """n images of sides 1 to 60, each `raw_every`-th raw (0: none), labels over all of int64."""
    rng = np.random.default_rng(seed)
    samples = []
    for k in range(n):
        width, height = (int(v) for v in rng.integers(1, 61, 2))
        image = pixels(rng, width, height)
        raw = bool(raw_every) and k % raw_every == 0
        label = int(rng.integers(-(2**63), 2**63 - 1)) if k % 5 else k
        data = image.tobytes() if raw else jpeg(image)
        samples.append((data, "raw" if raw else "jpg", width, height, label))
    return samples


def write(
    path: Path, samples: list[Sample], page_size: int = 1 << 21, classes: Sequence[str] = ("a", "b")
) -> Path:
    with BetonWriter(path, len(samples), page_size) as writer:
        for sample in samples:
            writer.append(*sample)
        writer.finish({"classes": classes})
    return path


def check_equal(reader: BetonReader, samples: list[Sample]) -> None:
    assert len(reader) == len(samples)
    for k, (data, mode, width, height, label) in enumerate(samples):
        assert reader.image(k).tobytes() == data
        assert reader.mode[k] == beton.IMAGE_MODES[mode]
        assert (reader.width[k], reader.height[k], reader.label[k]) == (width, height, label)


def strip_trailer(path: Path) -> Path:
    """The same file as stock FFCV would have it: no magic, so no checksums."""
    content = path.read_bytes()
    at = content.rindex(b"FSELFIE1")
    path.write_bytes(content[:at] + b"\0" * 8 + content[at + 8 :])
    return path


# numba's finalizer fails on functions that the garbage collector found in a circle.
COMPILED: list[object] = []


def stock_reader_check(reader: BetonReader) -> None:
    """Stock FFCV's Reader and memory manager see the same images under the same indices."""
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    stock = Reader(str(reader.path))
    names = [f"f{k}" for k in range(len(stock.field_names))]
    image = stock.metadata[names[stock.field_names.index("image")]]
    assert np.array_equal(image["data_ptr"], reader.offset)
    assert np.array_equal(image["mode"], reader.mode)
    assert np.array_equal(image["width"], reader.width)
    assert np.array_equal(image["height"], reader.height)
    label = stock.metadata[names[stock.field_names.index("label")]]
    assert np.array_equal(label, reader.label)
    manager = OSCacheManager(stock)
    read = manager.compile_reader()
    COMPILED.append(read)
    with manager.schedule_epoch([]) as context:
        for k in range(len(reader)):
            data = read(np.uint64(image["data_ptr"][k]), context.state)
            assert data.tobytes() == reader.image(k).tobytes()
