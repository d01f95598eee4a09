"""Opens downsampled ImageNet, npz or Python batches (image-net.org, arXiv 1707.08819).

The 16x16 and 64x64 versions have the same files. Labels in the files are 1 to 1000.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastselfie.data.sources.base import ArraySource
from fastselfie.data.sources.restricted_pickle import load_arrays
from fastselfie.errors import UserError

_CLASSES, _TRAIN_BATCHES = 1000, 10


def is_imagenet32_folder(folder: Path) -> bool:
    """Return whether `folder` holds the batches, or the folders that the archives unpack to."""
    return any(_first(folder, part) is not None for part in ("train", "test"))


def open_imagenet32(folder: Path, part: str, beside_train: bool = False) -> ArraySource | None:
    """Open the images of one part. The class names are numbers, because the files have no names.

    Args:
        folder: Holds the batches.
        part: train or test; there are no others.
        beside_train: Ignored: the files always name a part.

    Returns:
        The images, RGB; None if there is no such part.

    Raises:
        UserError: A batch is missing, truncated or damaged.
    """
    first = _first(folder, part) if part in ("train", "test") else None
    if first is None:
        return None
    count = _TRAIN_BATCHES if part == "train" else 1
    names = [first.name.replace("_1", f"_{i}") for i in range(1, count + 1)]
    paths = [first.with_name(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: missing, but other batches are there: unpack it again")
    # The array (3.9 GB for ImageNet 32x32) is filled batch by batch: to concatenate batches would
    # double the memory. The size of a pickle, whose pixels are not compressed, bounds its images.
    labels = [_read(path, "labels") if path.suffix else None for path in paths]
    images: npt.NDArray[np.uint8] | None = None
    found, count = [], 0
    for path, known in zip(paths, labels, strict=True):
        batch = {"data": _read(path, "data"), "labels": known} if path.suffix else _load(path)
        pixels, own = _checked(path, batch)
        if images is None:
            bounds = [
                path.stat().st_size // pixels.shape[1] if known is None else np.size(known)
                for path, known in zip(paths, labels, strict=True)
            ]
            side = round((pixels.shape[1] / 3) ** 0.5)
            images = np.empty((int(sum(bounds)), side, side, 3), dtype=np.uint8)
        if pixels.shape[1] != images[0].size:
            raise UserError(f"{path}: its images have another size than those of {paths[0].name}")
        planes = pixels.reshape(-1, 3, *images.shape[1:3])
        images[count : count + len(own)] = planes.transpose(0, 2, 3, 1)
        count += len(own)
        found.append(own)
    assert images is not None
    classes = [str(i) for i in range(_CLASSES)]
    return ArraySource(images[:count], np.concatenate(found), classes, str(folder))


def _first(folder: Path, part: str) -> Path | None:
    if not folder.is_dir():
        return None
    name, inner = ("train_data_batch_1", "train") if part == "train" else ("val_data", "val")
    inside = [p for p in sorted(folder.glob(f"Imagenet*_{inner}*")) if p.is_dir()]
    for place in (folder, *inside):
        for suffix in (".npz", ""):
            if (place / f"{name}{suffix}").is_file():
                return place / f"{name}{suffix}"
    return None


def _read(path: Path, key: str) -> Any:
    try:
        with np.load(path, allow_pickle=False) as batch:
            return batch[key]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not an ImageNet batch ({reason}): unpack it again") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_arrays(path)
    except Exception as error:  # a damaged pickle raises nearly any type
        raise UserError(f"{path}: not an ImageNet batch ({error}): unpack it again") from error


def _checked(
    path: Path, batch: dict[str, Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    pixels: Any = batch.get("data")
    try:
        labels = np.asarray(batch.get("labels")).astype(np.int64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its 'labels' are not numbers: unpack it again") from error
    good = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not good or pixels.shape not in [(len(labels), 3 * side * side) for side in (16, 32, 64)]:
        raise UserError(f"{path}: its 'data' is not ({len(labels)}, 3072) bytes: unpack it again")
    if len(labels) == 0 or labels.min() < 1 or labels.max() > _CLASSES:
        raise UserError(f"{path}: its labels are not 1 to {_CLASSES}: unpack it again")
    return pixels, labels - 1
