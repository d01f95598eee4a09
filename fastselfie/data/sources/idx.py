"""IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST and QMNIST (yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastselfie.data.random import IntArray
from fastselfie.data.sources.base import ArraySource
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.errors import UserError

# train-images-idx3-ubyte, t10k-images.idx3-ubyte.gz, emnist-letters-test-images-idx3-ubyte, ...
_IMAGES = re.compile(
    r"(?P<set>.*?)(?P<part>train|t10k|test)(?P<what>-images)(?P<sep>[-.])idx3-ubyte(?P<gz>\.gz)?"
)
_PARTS = {"train": ("train",), "test": ("t10k", "test")}
# The third byte of a file. QMNIST's labels are numbers of 32 bits.
_KINDS: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}


def is_idx_folder(folder: Path) -> bool:
    """Whether `folder` holds images in IDX files, plain or gzipped."""
    return bool(_image_files(folder))


def open_idx(folder: Path, part: str, beside_train: bool = False) -> ArraySource | None:
    """The images of `part`, train or test, 32x32 and RGB; None if it is absent.

    28x28 gray images are padded with zeros to 32x32 and repeated on three channels. EMNIST's, which
    lie on their side in its files, are set upright.

    Raises:
        UserError: files of several sets, labels that are missing, a damaged file.
    """
    files = _image_files(folder)
    names = sorted({match["set"] for match in files})
    if len(names) > 1:
        held = ", ".join(name.rstrip("-._") or "MNIST" for name in names)
        raise UserError(
            f"{folder}: holds {len(names)} sets ({held}): move the files of one to a folder of "
            "their own"
        )
    found = [match for match in files if match["part"] in _PARTS.get(part, ())]
    if not found:
        return None
    found.sort(key=lambda match: match["gz"] is not None)  # plain before gzipped
    image_file, emnist = _file(folder / found[0].string), names[0].startswith("emnist")
    assert image_file is not None
    label_file = _label_file(folder, found[0])
    images, labels = _read_both(image_file, label_file)
    classes: Sequence[str] = numbered_classes(labels, label_file)
    if emnist:
        images = images.transpose(0, 2, 1)
        labels, classes = _named(folder, names[0], labels)
    pad = max(0, 32 - images.shape[1])
    widths = ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2))
    gray = np.pad(images, widths)
    return ArraySource(np.repeat(gray[..., None], 3, axis=3), labels, classes, str(folder))


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array of an IDX file of unsigned bytes or of integers of 32 bits.

    Raises:
        UserError: another file, or one that is shorter or longer than its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read it ({error}): fetch it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _KINDS:
        raise UserError(f"{path}: not an IDX file of bytes: fetch it again")
    header, kind = 4 + 4 * data[3], _KINDS[data[2]]
    if len(data) < header:
        raise UserError(f"{path}: holds {len(data)} bytes, less than its header: fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    expected = int(np.prod(shape, dtype=object)) * kind.itemsize if shape else 0
    if len(data) - header != expected:
        raise UserError(
            f"{path}: holds {len(data) - header} bytes after its header, which says {expected}: "
            "fetch it again"
        )
    return np.frombuffer(data, dtype=kind, offset=header).reshape(shape)


def _image_files(folder: Path) -> list[re.Match[str]]:
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.glob("*idx3-ubyte*") if _file(path) is not None)
    return [match for match in map(_IMAGES.fullmatch, names) if match]


def _file(path: Path) -> Path | None:
    """The file, also in a folder of its own name: so some programs unpack it."""
    return next((found for found in (path, path / path.name) if found.is_file()), None)


def _label_file(folder: Path, images: re.Match[str]) -> Path:
    begin = images.string[: images.start("what")]
    stems = [f"{begin}-labels{sep}idx1-ubyte" for sep in (images["sep"], "-", ".")]
    stems.append(f"{begin}-labels-idx2-int")  # QMNIST's: the class is the first of eight columns
    paths = [folder / f"{stem}{end}" for stem in stems for end in ("", ".gz")]
    found = next((file for path in paths if (file := _file(path)) is not None), None)
    if found is None:
        raise UserError(f"{folder / stems[0]}: missing beside {images.string}")
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
        raise UserError(f"{image_file}: holds no images: fetch it again")
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)


def _named(folder: Path, name: str, labels: IntArray) -> tuple[IntArray, Sequence[str]]:
    """Labels from 0 and the characters of EMNIST's classes; without its mapping, their numbers."""
    path = folder / f"{name}mapping.txt"
    if path.is_file():
        try:
            rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line]
            known = {int(row[0]): chr(int(row[1])) for row in rows}
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}: not a line of LABEL CODE a class: fetch it again") from error
    else:
        first = 1 if "letters" in name else 0
        known = {i: str(i) for i in range(first, int(labels.max()) + 1)}
    order = sorted(known)
    places = np.searchsorted(order, labels)
    if not np.isin(labels, order).all():
        odd = int(labels[~np.isin(labels, order)][0])
        raise UserError(f"{folder}: {name}mapping.txt names no class of the label {odd}: fetch it")
    return places.astype(np.int64), [known[number] for number in order]
