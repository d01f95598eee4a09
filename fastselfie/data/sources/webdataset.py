"""WebDataset tar files: members KEY.jpg and KEY.cls side by side. Nothing is ever unpacked."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fastselfie.data.random import IntArray
from fastselfie.data.sources.base import EXTENSIONS, UNLABELLED, decode_image
from fastselfie.data.sources.left_out import is_expected, left_out
from fastselfie.data.sources.shard_checks import labels_and_classes, require_whole, unread_shards
from fastselfie.data.sources.shards import files_of, files_of_part
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_LABEL = ".cls"
_LABEL_BYTES = 32  # a decimal number and a line's end; more is no label

# As in webdataset.tariterators: base_plus_ext, and what tar_file_iterator passes over. A name that
# begins with a dot is of no sample here: macOS's ._NAME.jpg is no picture.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
# Of members that people keep beside images, those that the webdataset package decodes.
_COMPANIONS = frozenset({
    ".cbor", ".cls2", ".id", ".index", ".inx", ".jsn", ".mp", ".msg", ".npy", ".npz", ".pickle",
    ".pkl", ".pt", ".pth", ".pyd", ".tb", ".ten", ".text", ".transcript",
})  # fmt: skip


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
    """Whether `path` is a tar file or a folder of them.

    Compressed ones count, to be refused by name; in a folder only where it holds nothing else.
    """
    if not path.is_dir():
        return path.suffix.lower() == ".tar" or bool(unread_shards(path, ".tar"))
    if files_of(path, ".tar"):
        return True
    with os.scandir(path) as entries:
        other = any(
            entry.is_dir() or os.path.splitext(entry.name)[1].lower() in EXTENSIONS
            for entry in entries
        )
    return not other and bool(unread_shards(path, ".tar"))


def open_webdataset(path: Path, part: str, beside_train: bool = False) -> TarSource | None:
    """The shards of `part`; None if there is no such part. Without any KEY.cls: one class.

    What is left out is said.

    Raises:
        UserError: a damaged or compressed tar file, a member outside the folder or a link, an image
            without a label beside images with one, or two images or labels of one key.
    """
    shards = files_of_part(path, ".tar", part, beside_train)
    if shards is None:
        return None
    require_whole(path, shards, ".tar")
    rows: list[tuple[int, int, int]] = []
    keys: list[str] = []
    found: list[int | None] = []
    others: list[str] = []
    companions: set[str] = set()
    for number, file in enumerate(shards):
        shard = _scan(file)
        for key, image in shard.images.items():
            label = shard.labels.get(key)
            rows.append((number, image.offset_data, image.size))
            keys.append(image.name)
            found.append(label)
            if (label is None) != (found[0] is None):
                lacking = f"{shards[rows[0][0]]}: {keys[0]}" if label is not None else None
                raise UserError(f"{lacking or f'{file}: {key}'} has no {_LABEL} beside it, others "
                                "have: mend or remove it")  # fmt: skip
        others += shard.others
        companions |= shard.companions
    said = left_out(others)
    if others and os.path.splitext(others[0])[1].lower() in EXTENSIONS:
        said += " (an image is KEY.jpg and so on, and KEY ends at the first dot of its name)"
    if not rows:
        tars = ": unpack the tar files in it" if others and others[0].endswith(".tar") else ""
        nothing = f": {said}{tars}" if said else ""
        raise UserError(f"{path}: no images (KEY.jpg, KEY.png, ...) in its tar files{nothing}")
    if said:
        say_once(f"{path}: {said}")
    table = np.asarray(rows, dtype=np.int64)
    names = [str(shard) for shard in shards]
    none = np.zeros(len(rows), dtype=np.int64)
    source = TarSource(names, table[:, 0], table[:, 1], table[:, 2], keys, none, UNLABELLED)
    if found[0] is None:
        _say_unlabelled(path, keys, companions)
        return source
    labels, classes = labels_and_classes(np.asarray(found, np.int64), (), path, part, source.name)
    return replace(source, labels=labels, classes=classes)


@dataclass
class _Shard:
    """Members of one tar file.

    images, labels: by key, in the order of the file
    others: names of members that are neither images nor labels, and that nobody expects
    companions: kinds of expected members, which are not read
    """

    images: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    companions: set[str] = field(default_factory=set)


def _scan(path: Path) -> _Shard:
    shard = _Shard()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if _is_file(path, member):
                    _sort_in(shard, tar, path, member)
            _check_end(path, tar.offset)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}): mend or remove it") from error
    except (tarfile.TarError, EOFError) as error:
        reason = f"not an uncompressed tar file, or a damaged one ({error})"
        raise UserError(f"{path}: {reason}: fetch it again, or decompress it") from error
    known = {key for key, _ in map(_key_and_kind, shard.others)}
    shard.others += [
        f"{key}{_LABEL}" for key in shard.labels if key not in shard.images and key not in known
    ]
    return shard


def _sort_in(shard: _Shard, tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> None:
    key, kind = _key_and_kind(member.name)
    name = member.name.rpartition("/")[2]
    if key and kind in EXTENSIONS:
        if key in shard.images:
            raise UserError(f"{path}: {key} has two images: remove one")
        shard.images[key] = member
    elif key and kind == _LABEL:
        if key in shard.labels:
            raise UserError(f"{path}: {key} has two labels ({_LABEL}): remove one")
        shard.labels[key] = _label(tar, path, member)
    elif not is_expected(name) and os.path.splitext(name)[1].lower() not in _COMPANIONS:
        shard.others.append(member.name)
    elif key:
        shard.companions.add(kind)


def _key_and_kind(name: str) -> tuple[str, str]:
    """The sample that a member belongs to, and its suffix, as the webdataset package has them.

    The key ends at the first dot of the name's last part: v1.0_3.jpg is the "0_3.jpg" of v1. Both
    are empty for a member of no sample.
    """
    match = _MEMBER.fullmatch(name)
    if match is None or _META.match(name):
        return "", ""
    return match[1], f".{match[2].lower()}"


def _check_end(path: Path, end: int) -> None:
    """Make sure that the members end where the file does: tarfile takes damage for the end.

    end: where the header after the last member would be, or the mark of the end.
    """
    with open(path, "rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if not mark:
            say_once(f"{path}: a tar file without the mark of its end: it may be cut short")
        if any(mark):
            raise tarfile.ReadError(f"damaged at byte {end:,}")
        while block := file.read(1 << 20):
            if any(block):
                raise UserError(
                    f"{path}: goes on after its end at byte {end:,}, as where tar files were "
                    "joined: keep them apart, or pack them again"
                )


def _say_unlabelled(path: Path, members: Sequence[str], companions: set[str]) -> None:
    """Say what might have been meant for labels, where there is such a thing."""
    hints = []
    if companions:
        hints.append(f"{', '.join('KEY' + kind for kind in sorted(companions)[:5])} are not read")
    folders = {name.rpartition("/")[0] for name in members} - {""}
    if len(folders) > 1:
        hints.append(f"its {len(folders):,} folders are no classes: unpack it if they should be")
    if hints:
        say_once(f"{path}: no label (KEY.cls) beside any image: {'; '.join(hints)}")


def _is_file(path: Path, member: tarfile.TarInfo) -> bool:
    """Whether the member is a file; a UserError where an honest shard would not hold it."""
    if member.issym() or member.islnk() or member.issparse():
        raise UserError(f"{path}: {member.name} is a link or a sparse file: pack the shard again")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(f"{path}: {member.name} leaves the folder: do not trust this file")
    return member.isfile()


def _label(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(_LABEL_BYTES + 1) if file is not None else b""
    if len(text) > _LABEL_BYTES or not re.fullmatch(rb"\s*(-1|\d{1,18})\s*", text):
        raise UserError(f"{path}: {member.name} is not a class number from 0 up: mend it")
    return int(text)
