""".beton files against stock FFCV, both ways."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.beton_files import (
    COMPILED,
    Sample,
    jpeg,
    make_samples,
    pixels,
    stock_reader_check,
    write,
)
from PIL import Image

from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.beton.verify import verify

pytestmark = [pytest.mark.extra, pytest.mark.slow]


class Arrays:
    """An indexable dataset of (pixels, label) for FFCV's DatasetWriter."""

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = [pixels(rng, *(int(v) for v in rng.integers(8, 90, 2))) for _ in range(n)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[np.ndarray, int]:
        return self.images[k], 3 * k - 7


@pytest.mark.parametrize("page_size", [4096, 1 << 14, 1 << 21])
def test_stock_ffcv_reads_ours(tmp_path: Path, page_size: int) -> None:
    samples = [s for s in make_samples(300, raw_every=4) if len(s[0]) <= page_size]
    stock_reader_check(BetonReader(write(tmp_path / "a.beton", samples, page_size)))


@pytest.mark.parametrize(("os_cache", "order"), [(True, "RANDOM"), (False, "QUASI_RANDOM"),
                                                 (False, "SEQUENTIAL")])  # fmt: skip
@pytest.mark.parametrize("mode", ["jpg", "raw", "mixed"])
def test_stock_loader_decodes_ours(tmp_path: Path, os_cache: bool, order: str, mode: str) -> None:
    """The whole stock Loader, both memory managers: pixels equal to each image's own decode."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    rng = np.random.default_rng(1)
    images = [pixels(rng, 40, 24) for _ in range(64)]
    raw = [mode == "raw" or (mode == "mixed" and k % 2 == 0) for k in range(64)]
    samples: list[Sample] = [
        (i.tobytes() if r else jpeg(i), "raw" if r else "jpg", 40, 24, k)
        for k, (i, r) in enumerate(zip(images, raw, strict=True))
    ]
    path = write(tmp_path / "a.beton", samples, 1 << 13)
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    loader = Loader(str(path), batch_size=10, num_workers=2, os_cache=os_cache, drop_last=False,
                    order=OrderOption[order], pipelines=pipelines)  # fmt: skip
    COMPILED.append(loader.code)
    seen = []
    for batch, labels in loader:
        for got, label in zip(batch, labels[:, 0], strict=True):
            seen.append(int(label))
            want = images[label] if raw[label] else None
            if want is None:
                want = np.array(Image.open(io.BytesIO(samples[label][0])))
                # Pillow's islow DCT against FFCV's FASTDCT: a few levels apart, no more.
                assert np.abs(got.astype(int) - want).mean() < 2
            else:
                assert np.array_equal(got, want)
    assert sorted(seen) == list(range(64))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("mode", ["jpg", "raw", "smart", "proportion"])
def test_ours_reads_stock(tmp_path: Path, mode: str, workers: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import encode_jpeg
    from ffcv.writer import DatasetWriter

    data = Arrays(230)
    path = tmp_path / "stock.beton"
    field = RGBImageField(write_mode=mode, smart_threshold=8000, jpeg_quality=80)
    fields = {"image": field, "label": IntField()}
    DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=workers).from_indexed_dataset(
        data, chunksize=7
    )
    reader = BetonReader(path)
    assert reader.crc32 is None
    assert reader.info == {}
    assert reader.label.tolist() == [3 * k - 7 for k in range(230)]
    for k, image in enumerate(data.images):
        assert (reader.height[k], reader.width[k]) == image.shape[:2]
        want = image.tobytes() if reader.mode[k] else encode_jpeg(image, 80).tobytes()
        assert reader.image(k).tobytes() == want
    modes = {"jpg": {0}, "raw": {1}}.get(mode, {0, 1})
    assert set(reader.mode.tolist()) == modes
    stock_reader_check(reader)
    assert list(verify(path)) == []


def test_other_fields_of_stock(tmp_path: Path) -> None:
    """Fields of every built-in type around ours, the label before the image, two int fields."""
    import torch
    from ffcv import fields as f
    from ffcv.writer import DatasetWriter

    images = Arrays(20).images

    class Rows:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, k: int) -> tuple[object, ...]:
            return (k * 0.5, k + 100, images[k], {"k": int(k)}, np.arange(k + 1, dtype=np.uint8),
                    np.full(3, k, np.float32), k, torch.zeros(2))  # fmt: skip

    path = tmp_path / "stock.beton"
    kinds = {"score": f.FloatField(), "other": f.IntField(),
             "image": f.RGBImageField(write_mode="jpg"), "note": f.JSONField(),
             "bytes": f.BytesField(), "array": f.NDArrayField(np.dtype("f4"), (3,)),
             "label": f.IntField(), "t": f.TorchTensorField(torch.float32, (2,))}  # fmt: skip
    DatasetWriter(str(path), kinds, 1 << 21, num_workers=1).from_indexed_dataset(Rows())
    reader = BetonReader(path)
    assert reader.field_names == list(kinds)
    assert reader.label.tolist() == list(range(20))
    assert reader.height.tolist() == [i.shape[0] for i in images]
    assert list(verify(path)) == []
