"""Opens IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST, QMNIST (yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import ArraySource
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.errors import UserError

# train-images-idx3-ubyte, t10k-images.idx3-ubyte.gz, emnist-letters-test-images-idx3-ubyte, ...
_IMAGES = re.compile(
    r"(?P<set>.*?)(?P<part>train|t10k|test)(?P<what>-images)(?P<sep>[-.])idx3-ubyte(?P<gz>\.gz)?"
)
_PARTS = {"train": ("train",), "test": ("t10k", "test")}
# The third byte of a file -> the type of its items. QMNIST's labels are 32-bit integers.
_DTYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}


def is_idx_folder(folder: Path) -> bool:
    """Return whether `folder` holds images in IDX files, plain or gzipped."""
    return bool(_image_files(folder))


def open_idx(folder: Path, part: str, beside_train: bool = False) -> ArraySource | None:
    """Open the images of one part, 32x32 RGB.

    28x28 grayscale images are padded with zeros to 32x32 and repeated on three channels. EMNIST
    stores its images transposed; they are transposed back.

    Args:
        folder: Holds the files.
        part: train or test; there are no others.
        beside_train: Ignored: the files always name a part.

    Returns:
        The images; None if there is no such part.

    Raises:
        UserError: There are files of several datasets, labels are missing, or a file is damaged.
    """
    files = _image_files(folder)
    names = sorted({match["set"] for match in files})
    if len(names) > 1:
        held = ", ".join(name.rstrip("-._") or "MNIST" for name in names)
        raise UserError(
            f"{folder}: holds {len(names)} datasets ({held}): move the files of one to a folder of "
            "their own"
        )
    found = [match for match in files if match["part"] in _PARTS.get(part, ())]
    if not found:
        return None
    found.sort(key=lambda match: match["gz"] is not None)  # plain before gzipped
    image_file = _find_file(folder / found[0].string)
    assert image_file is not None
    label_file = _find_label_file(folder, found[0])
    images, labels = _read_both(image_file, label_file)
    classes: Sequence[str] = numbered_classes(labels, label_file)
    if names[0].startswith("emnist"):
        images = images.transpose(0, 2, 1)
        labels, classes = _map_emnist_labels(folder, names[0], labels)
    pad = max(0, 32 - images.shape[1])
    widths = ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2))
    gray = np.pad(images, widths)
    return ArraySource(np.repeat(gray[..., None], 3, axis=3), labels, classes, str(folder))


def read_idx(path: Path) -> npt.NDArray[Any]:
    """Read the array in an IDX file of unsigned bytes or 32-bit integers.

    Args:
        path: The file, gzipped if its suffix is .gz.

    Raises:
        UserError: It is another file, or its size does not match its header.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}): download it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _DTYPES:
        raise UserError(f"{path}: not an IDX file of bytes: download it again")
    header, dtype = 4 + 4 * data[3], _DTYPES[data[2]]
    if len(data) < header:
        raise UserError(f"{path}: holds {len(data)} bytes, less than its header: download it again")
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize if shape else 0
    if len(data) - header != expected:
        raise UserError(
            f"{path}: holds {len(data) - header} bytes after its header, which says {expected}: "
            "download it again"
        )
    return np.frombuffer(data, dtype=dtype, offset=header).reshape(shape)


def _image_files(folder: Path) -> list[re.Match[str]]:
    if not folder.is_dir():
        return []
    paths = folder.glob("*idx3-ubyte*")
    names = sorted(path.name for path in paths if _find_file(path) is not None)
    return [match for match in map(_IMAGES.fullmatch, names) if match]


def _find_file(path: Path) -> Path | None:
    """Return the file, which some programs unpack to a folder of the same name, or None."""
    return next((found for found in (path, path / path.name) if found.is_file()), None)


def _find_label_file(folder: Path, images: re.Match[str]) -> Path:
    begin = images.string[: images.start("what")]
    stems = [f"{begin}-labels{sep}idx1-ubyte" for sep in (images["sep"], "-", ".")]
    stems.append(f"{begin}-labels-idx2-int")  # QMNIST: the class is the first of eight columns
    paths = [folder / f"{stem}{end}" for stem in stems for end in ("", ".gz")]
    found = next((file for path in paths if (file := _find_file(path)) is not None), None)
    if found is None:
        raise UserError(f"{folder / stems[0]}: missing beside {images.string}: download it")
    return found


def _read_both(image_file: Path, label_file: Path) -> tuple[npt.NDArray[np.uint8], IntArray]:
    images, labels = read_idx(image_file), read_idx(label_file)
    if labels.ndim == 2 and labels.shape[1] == 8:
        labels = labels[:, 0]
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"{image_file}: shapes {images.shape} and {labels.shape} are not images and labels"
        )
    if len(images) == 0:
        raise UserError(f"{image_file}: holds no images: download it again")
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)


def _map_emnist_labels(folder: Path, name: str, labels: IntArray) -> tuple[IntArray, Sequence[str]]:
    """Return EMNIST's labels from 0 up, and the characters of its classes.

    Without its mapping file, the class names are the numbers in the label file.
    """
    path = folder / f"{name}mapping.txt"
    if path.is_file():
        try:
            rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line]
            known = {int(row[0]): chr(int(row[1])) for row in rows}
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}: its lines are not LABEL CODE: download it again") from error
    else:
        first = 1 if "letters" in name else 0
        known = {i: str(i) for i in range(first, int(labels.max()) + 1)}
    order = sorted(known)
    places = np.searchsorted(order, labels)
    if not np.isin(labels, order).all():
        odd = int(labels[~np.isin(labels, order)][0])
        raise UserError(
            f"{folder}: {name}mapping.txt names no class of the label {odd}: download it again"
        )
    return places.astype(np.int64), [known[number] for number in order]
