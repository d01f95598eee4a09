"""WebDataset tar files: members KEY.jpg and KEY.cls side by side. Nothing is ever unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastselfie.data.images import EXTENSIONS, UNLABELLED, decode_image
from fastselfie.data.shards import files_of_part
from fastselfie.errors import UserError
from fastselfie.rng import IntArray

_LABEL = ".cls"
_LABEL_BYTES = 32  # a decimal number and a line's end; more is no label


@dataclass(frozen=True)
class TarSource:
    """Images in uncompressed tar files, found by one scan of the headers.

    shard, offset, size: (n,) int64: image i is size[i] bytes at offset[i] of shards[shard[i]]
    """

    shards: Sequence[str]
    shard: IntArray
    offset: IntArray
    size: IntArray
    keys: Sequence[str]
    labels: IntArray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        return f"{self.shards[self.shard[index]]}: {self.keys[index]}"

    def image(self, index: int) -> Image.Image:
        return decode_image(io.BytesIO(self.encoded(index)), self.name(index))

    def encoded(self, index: int) -> bytes:
        size = int(self.size[index])
        try:
            # Opened anew each time: an open file would not survive the way to another process.
            with open(self.shards[self.shard[index]], "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(self.offset[index]))
        except OSError as error:
            raise UserError(f"{self.name(index)}: cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise UserError(f"{self.name(index)}: the tar file is cut short: fetch it again")
        return data

    def select(self, indices: IntArray) -> TarSource:
        used, shard = np.unique(self.shard[indices], return_inverse=True)
        return TarSource(
            [self.shards[i] for i in used],
            shard.astype(np.int64),
            self.offset[indices],
            self.size[indices],
            [self.keys[i] for i in indices],
            self.labels[indices],
            self.classes,
        )


def is_webdataset(path: Path) -> bool:
    """Whether `path` is a .tar file or a folder of them."""
    if path.is_dir():
        return any(path.glob("*.tar"))
    return path.suffix == ".tar"


def open_webdataset(path: Path, part: str, beside_train: bool = False) -> TarSource | None:
    """The shards of `part`; None if there is no such part. Without any KEY.cls: one class.

    Raises:
        UserError: a damaged or compressed tar file, a member outside the folder or a link, an image
            without a label beside images with one, or two images of one key.
    """
    shards = files_of_part(path, ".tar", part, beside_train)
    if shards is None:
        return None
    rows: list[tuple[int, int, int]] = []
    keys: list[str] = []
    found: list[int | None] = []
    for number, shard in enumerate(shards):
        for key, image, label in _scan(shard):
            rows.append((number, image.offset_data, image.size))
            keys.append(image.name)
            found.append(label)
            if (label is None) != (found[0] is None):
                lacking = f"{shards[rows[0][0]]}: {keys[0]}" if label is not None else None
                raise UserError(f"{lacking or f'{shard}: {key}'} has no {_LABEL} beside it, others "
                                "have: mend or remove it")  # fmt: skip
    if not rows:
        raise UserError(f"{path}: no images (KEY.jpg, KEY.png, ...) in its tar files")
    labels = np.asarray([label or 0 for label in found], dtype=np.int64)
    classes = [str(i) for i in range(labels.max() + 1)] if found[0] is not None else UNLABELLED
    table = np.asarray(rows, dtype=np.int64)
    shard_names = [str(shard) for shard in shards]
    return TarSource(shard_names, table[:, 0], table[:, 1], table[:, 2], keys, labels, classes)


def _scan(path: Path) -> list[tuple[str, tarfile.TarInfo, int | None]]:
    """(key, image, label) of each image of a shard, in the order of the file."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not _is_safe(path, member):
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                key, kind = f"{folder}/{stem}".lstrip("/"), f".{kind.lower()}"
                if kind in EXTENSIONS:
                    if key in images:
                        raise UserError(f"{path}: {key} has two images: remove one")
                    images[key] = member
                elif kind == _LABEL:
                    labels[key] = _label(tar, path, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"not an uncompressed tar file, or a damaged one ({error})"
        raise UserError(f"{path}: {reason}: fetch it again, or decompress it") from error
    return [(key, image, labels.get(key)) for key, image in images.items()]


def _is_safe(path: Path, member: tarfile.TarInfo) -> bool:
    """Whether the member is a file; a UserError where an honest shard would not hold it."""
    if member.issym() or member.islnk() or member.issparse():
        raise UserError(f"{path}: {member.name} is a link or a sparse file: pack the shard again")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(f"{path}: {member.name} leaves the folder: do not trust this file")
    return member.isfile()


def _label(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(_LABEL_BYTES + 1) if file is not None else b""
    if len(text) > _LABEL_BYTES or not text.strip().isdigit():
        raise UserError(f"{path}: {member.name} is not a class number from 0 up: mend it")
    return int(text)
