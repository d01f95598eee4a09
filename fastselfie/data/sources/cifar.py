"""Opens CIFAR-10 and CIFAR-100, binary and Python batches (cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import ArraySource
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.data.sources.restricted_pickle import load_arrays
from fastselfie.errors import UserError

Arrays = tuple[npt.NDArray[np.uint8], IntArray]

_PIXELS = 3 * 32 * 32
# Part -> file names of CIFAR-10 and of CIFAR-100. In a binary record one label byte precedes the
# pixels in CIFAR-10; in CIFAR-100 two: the coarse label, then the fine one.
_BINARY = {
    "train": ([*(f"data_batch_{i}.bin" for i in range(1, 6))], ["train.bin"]),
    "test": (["test_batch.bin"], ["test.bin"]),
}
_PYTHON = {
    "train": ([*(f"data_batch_{i}" for i in range(1, 6))], ["train"]),
    "test": (["test_batch"], ["test"]),
}
# The class names are the lines of a text file, or a list in a pickled dictionary.
_TEXT_NAMES = ("batches.meta.txt", "fine_label_names.txt")
_PICKLED_NAMES = {"batches.meta": "label_names", "meta": "fine_label_names"}


def is_cifar_folder(folder: Path) -> bool:
    """Return whether `folder` holds batches of CIFAR-10 or CIFAR-100."""
    return any(
        (folder / names[0]).is_file() for names in (*_BINARY["train"], _PYTHON["train"][0])
    ) or _is_pickle(folder / "train")


def open_cifar(folder: Path, part: str, beside_train: bool = False) -> ArraySource | None:
    """Open the images of one part, 32x32 RGB, with the fine labels of CIFAR-100.

    Args:
        folder: Holds the batches.
        part: train or test; CIFAR has no others.
        beside_train: Ignored: CIFAR always has parts.

    Returns:
        The images; None if there is no such part.

    Raises:
        UserError: A batch is missing, truncated or damaged.
    """
    arrays = _read(folder, part)
    if arrays is None:
        return None
    images, labels = arrays
    numbers = numbered_classes(labels, folder)
    text = next((folder / name for name in _TEXT_NAMES if (folder / name).is_file()), None)
    names = _pickled_names(folder) if text is None else _text_names(text)
    classes = names if len(names) >= len(numbers) else numbers
    return ArraySource(images, labels, classes, str(folder))


def _read(folder: Path, part: str) -> Arrays | None:
    for number, names in enumerate([*_BINARY.get(part, ()), *_PYTHON.get(part, ())]):
        paths = [folder / name for name in names]
        if not paths[0].is_file():
            continue
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path}: missing, but other batches are there: unpack CIFAR again")
        binary = number < len(_BINARY[part])
        batches = [_read_binary(p, number + 1) if binary else _read_python(p) for p in paths]
        planes = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
        images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        return images, np.concatenate([labels for _, labels in batches])
    return None


def _text_names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: unpack CIFAR again") from error


def _pickled_names(folder: Path) -> list[str]:
    """Read the class names from batches.meta or meta; [] without these files."""
    for file, key in _PICKLED_NAMES.items():
        path = folder / file
        if path.is_file():
            try:
                found = load_arrays(path)[key]
                return [n.decode() if isinstance(n, bytes) else str(n) for n in found]
            except Exception as error:  # a damaged pickle raises nearly any type
                raise UserError(
                    f"{path}: has no class names ({error}): unpack CIFAR again"
                ) from error
    return []


def _is_pickle(path: Path) -> bool:
    """Return whether a file begins as a pickle of protocol 2 or above, or of protocol 0 (text)."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(1) in (b"\x80", b"(")


def _read_binary(path: Path, label_bytes: int) -> Arrays:
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    record = label_bytes + _PIXELS
    if len(data) == 0 or len(data) % record:
        raise UserError(
            f"{path}: its {len(data)} bytes are no multiple of {record}, the size of a record: "
            "unpack CIFAR again"
        )
    records = data.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_python(path: Path) -> Arrays:
    try:
        batch = load_arrays(path)
        images = batch["data"]
        labels = batch["fine_labels"] if "fine_labels" in batch else batch["labels"]
        labels = np.asarray(labels, dtype=np.int64)
    except Exception as error:  # a damaged pickle raises nearly any type
        raise UserError(f"{path}: not a CIFAR batch ({error}): unpack CIFAR again") from error
    good = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not good or images.shape != (len(labels), _PIXELS):
        raise UserError(
            f"{path}: its 'data' is not ({len(labels)}, {_PIXELS}) bytes: unpack CIFAR again"
        )
    return images, labels
