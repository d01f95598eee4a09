"""IDX files, the format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastselfie.errors import UserError

_IMAGES, _LABELS = "{part}-images-idx3-ubyte", "{part}-labels-idx1-ubyte"
PARTS = {"train": "train", "test": "t10k"}


def is_idx_folder(folder: Path) -> bool:
    """Whether `folder` holds the training images, plain or gzipped."""
    return _find(folder, _IMAGES.format(part="train")) is not None


def read_idx_folder(
    folder: Path, part: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
    """Images (n, 32, 32, 3) uint8 and labels (n,) of `part`, train or test; None if it is absent.

    28x28 gray images are padded with zeros to 32x32 and repeated on three channels.
    """
    stem = PARTS[part]
    image_file = _find(folder, _IMAGES.format(part=stem))
    if image_file is None:
        return None
    label_file = _find(folder, _LABELS.format(part=stem))
    if label_file is None:
        raise UserError(f"{folder / _LABELS.format(part=stem)}: missing beside {image_file.name}")
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"{image_file}: shapes {images.shape} and {labels.shape} are not images and labels"
        )
    if len(images) == 0:
        raise UserError(f"{image_file}: holds no images: fetch it again")
    pad = max(0, 32 - images.shape[1])
    widths = ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2))
    gray = np.pad(images, widths)
    return np.repeat(gray[..., None], 3, axis=3), labels.astype(np.int64)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes.

    Raises:
        UserError: not an IDX file of bytes, or shorter or longer than its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read it ({error}): fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path}: not an IDX file of bytes: fetch it again")
    header = 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    expected = int(np.prod(shape, dtype=object)) if shape else 0
    if len(shape) != data[3] or len(data) - header != expected:
        raise UserError(
            f"{path}: holds {len(data) - header} bytes after its header, which says {expected}: "
            "fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
