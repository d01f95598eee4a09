"""CIFAR-10 and CIFAR-100, binary and Python batches (cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastselfie.data.restricted_pickle import load_arrays
from fastselfie.errors import UserError

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

_PIXELS = 3 * 32 * 32
# part -> the file names of each layout, and the bytes of labels before a binary record's pixels
# (CIFAR-100 stores the coarse label before the fine one).
_BINARY = {
    "train": ([*(f"data_batch_{i}.bin" for i in range(1, 6))], ["train.bin"]),
    "test": (["test_batch.bin"], ["test.bin"]),
}
_PYTHON = {
    "train": ([*(f"data_batch_{i}" for i in range(1, 6))], ["train"]),
    "test": (["test_batch"], ["test"]),
}


def is_cifar_folder(folder: Path) -> bool:
    """Whether `folder` holds batches of CIFAR-10 or CIFAR-100."""
    return any((folder / names[0]).is_file() for names in (*_BINARY["train"], *_PYTHON["train"]))


def read_cifar_folder(folder: Path, part: str) -> Arrays | None:
    """Images (n, 32, 32, 3) uint8 and labels (n,) of `part`, train or test; None if it is absent.

    Raises:
        UserError: a batch is missing, truncated, or not what it should be.
    """
    for label_bytes, names in enumerate(_BINARY[part], start=1):
        if (folder / names[0]).is_file():
            return _join([_read_binary(_existing(folder / n), label_bytes) for n in names])
    for names in _PYTHON[part]:
        if (folder / names[0]).is_file():
            return _join([_read_python(_existing(folder / n)) for n in names])
    return None


def class_names(folder: Path, labels: npt.NDArray[np.int64]) -> list[str]:
    """From batches.meta.txt or fine_label_names.txt where they are, else the numbers."""
    count = int(labels.max()) + 1
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (folder / name).is_file():
            names = (folder / name).read_text(encoding="utf-8").split()
            if len(names) >= count:
                return names
    return [str(i) for i in range(count)]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: missing, though its neighbours are there: unpack CIFAR again")
    return path


def _join(parts: list[Arrays]) -> Arrays:
    planes = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, np.concatenate([labels for _, labels in parts])


def _read_binary(path: Path, label_bytes: int) -> Arrays:
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    record = label_bytes + _PIXELS
    if len(data) == 0 or len(data) % record:
        raise UserError(f"{path}: {len(data)} bytes are not whole records of {record}: truncated?")
    records = data.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_python(path: Path) -> Arrays:
    try:
        batch = load_arrays(path)
        images = batch["data"]
        labels = batch["fine_labels"] if "fine_labels" in batch else batch["labels"]
        labels = np.asarray(labels, dtype=np.int64)
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"{path}: not a CIFAR batch ({error}): unpack CIFAR again") from error
    good = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not good or images.shape != (len(labels), _PIXELS):
        raise UserError(f"{path}: its 'data' is not ({len(labels)}, {_PIXELS}) bytes")
    return images, labels
