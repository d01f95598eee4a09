"""Make the files that throughput.py and conversion.py read: the same pictures for every loader.

python -m support.inputs PHOTOS FILE.beton    # FFCV's own writer: long side 500, quality 90
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.data.beton.reader import IMAGE_MODES, BetonReader
from fastselfie.data.beton.writer import BetonWriter
from fastselfie.errors import UserError
from support.image_folder import files_of, shards_of

_SHARDS = 4
_NOISE, _SIDE, _CLASSES = 50_000, 32, 10


def make_folder(beton: str, folder: str) -> None:
    """Write the JPEGs of a .beton file as an image folder."""
    reader = BetonReader(beton)
    if (reader.mode != IMAGE_MODES["jpg"]).any():
        raise UserError(f"{beton}: holds raw images; an image folder is made of JPEGs")
    making = Path(f"{folder}.making")
    for k in range(len(reader)):
        path = making / f"{int(reader.label[k]):06}" / f"{k:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(reader.image(k).tobytes())
    os.rename(making, folder)


def make_shards(folder: str) -> None:
    """Write an image folder as WebDataset shards."""
    files, labels = files_of(folder)
    making = Path(f"{shards_of(folder)}.making")
    making.mkdir()
    for shard in range(_SHARDS):
        with tarfile.open(making / f"{shard}.tar", "w") as tar:
            for k in range(shard, len(files), _SHARDS):
                content = {"jpg": Path(files[k]).read_bytes(), "cls": str(labels[k]).encode()}
                for suffix, data in content.items():
                    info = tarfile.TarInfo(f"{k:08}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    os.rename(making, shards_of(folder))


def make_ffcv_file(
    folder: str, beton: str, max_side: int | None = 500, workers: int = os.cpu_count() or 1
) -> None:
    """Write photographs with FFCV's DatasetWriter at its default quality."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    options = {"write_mode": "jpg", "max_resolution": max_side, "jpeg_quality": 90}
    fields = {"image": RGBImageField(**options), "label": IntField()}
    writer = DatasetWriter(f"{beton}.making", fields, num_workers=workers)
    writer.from_indexed_dataset(_Pictures(folder), chunksize=20)
    os.rename(f"{beton}.making", beton)


class _Pictures:
    def __init__(self, folder: str) -> None:
        self.files, self.labels = files_of(folder)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.open(self.files[k]).convert("RGB"), self.labels[k]


def make_noise(beton: str) -> None:
    """Write random raw images, as many and as large as those of CIFAR-10."""
    pixels = np.random.default_rng(0).integers(0, 256, (_NOISE, _SIDE, _SIDE, 3), np.uint8)
    with BetonWriter(beton, _NOISE) as writer:
        for k, image in enumerate(pixels):
            writer.append(image.tobytes(), "raw", _SIDE, _SIDE, k % _CLASSES)
        writer.finish({"classes": [str(i) for i in range(_CLASSES)]})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        make_ffcv_file(sys.argv[1], sys.argv[2])
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
