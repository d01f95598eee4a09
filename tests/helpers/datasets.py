"""Datasets of numbered pictures in several formats, for the tests of data loading."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import jpeg_bytes, picture, png_bytes, tiny_config
from PIL import Image

from fastselfie.data.dataset import Dataset, Source, open_dataset, open_part


def dataset(path: Path, labels_needed: bool = True, **data: Any) -> Dataset:
    """Open the dataset at `path`; `data` has keys of the config section."""
    config = tiny_config(data={"train": str(path), **data})
    return open_dataset(config.data, labels_needed=labels_needed)


def read(path: Path, part: str = "train") -> Source:
    return open_part(path, part).source


def png(seed: int) -> bytes:
    return png_bytes(picture(seed))


def same(image: Image.Image, seed: int) -> bool:
    """Return whether `image` equals picture `seed` bit for bit."""
    return np.array_equal(np.asarray(image), np.asarray(picture(seed)))


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def tree(root: Path, part: str, classes: Iterable[str], count: int = 2) -> None:
    """Write `count` images into each class folder, or into `path` without classes."""
    for place in [root / part / name for name in classes] or [root / part]:
        for i in range(count):
            save(place / f"{i}.png", i)


def names(source: Source) -> list[str]:
    return [source.classes[label] for label in source.labels]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar file of (name, content)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, labels: Sequence[int | None]) -> Path:
    """Write a WebDataset shard. An image with label None has no .cls member."""
    members = []
    for i, label in enumerate(labels):
        members.append((f"{i:03}.jpg", jpeg_bytes(picture(i))))
        if label is not None:
            members.append((f"{i:03}.cls", str(label).encode()))
    return write_tar(path, members)


def write_parquet(path: Path, labels: Sequence[int], classes: Sequence[str]) -> Path:
    """Write Parquet as Hugging Face does; without classes there is no label column."""
    columns: dict[str, Any] = {
        "image": [{"bytes": jpeg_bytes(picture(i))} for i in range(len(labels))]
    }
    table = pa.table({**columns, "label": labels} if classes else columns)
    note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": classes}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), path)
    return path


def names_beside(out: Path) -> list[str]:
    """What a conversion to `out` left in its folder: the names that begin with that of `out`."""
    return sorted(path.name for path in out.parent.glob(f"{out.stem}*"))
