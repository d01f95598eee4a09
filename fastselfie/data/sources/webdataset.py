"""Opens WebDataset tar files: members KEY.jpg and KEY.cls. They are read in place."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import UNLABELLED, Source, changed
from fastselfie.data.sources.decode import EXTENSIONS
from fastselfie.data.sources.ignored_files import describe_ignored, is_expected
from fastselfie.data.sources.shard_checks import labels_and_classes, require_whole, unread_shards
from fastselfie.data.sources.shards import files_of, files_of_part
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_LABEL = ".cls"
_LABEL_BYTES = 32  # enough for a decimal number and a line break

# As base_plus_ext and tar_file_iterator in webdataset.tariterators, except that a name that begins
# with a dot belongs to no sample here: macOS's ._NAME.jpg is not an image.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
# Other members of a sample that the webdataset package decodes.
_COMPANIONS = frozenset({
    ".cbor", ".cls2", ".id", ".index", ".inx", ".jsn", ".mp", ".msg", ".npy", ".npz", ".pickle",
    ".pkl", ".pt", ".pth", ".pyd", ".tb", ".ten", ".text", ".transcript",
})  # fmt: skip


@dataclass(frozen=True)
class TarSource(Source):
    """Images in uncompressed tar files, found by one scan of the headers.

    Attributes:
        shards: Paths of the tar files.
        shard: (n,) int64, the shard of each image, an index into `shards`.
        offset: (n,) int64, where its bytes begin in the shard.
        size: (n,) int64, in bytes.
        keys: Names of the members.
        labels: (n,) int64.
        classes: Names of the classes.
    """

    shards: Sequence[str]
    shard: IntArray
    offset: IntArray
    size: IntArray
    keys: Sequence[str]
    labels: IntArray
    classes: Sequence[str]
    _per_image = ("labels", "shard", "offset", "size", "keys")

    def name(self, index: int) -> str:
        return f"{self.shards[self.shard[index]]}: {self.keys[index]}"

    def encoded(self, index: int) -> bytes:
        size = int(self.size[index])
        try:
            # Opened for each read, because an open file cannot be sent to another process.
            with open(self.shards[self.shard[index]], "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(self.offset[index]))
        except OSError as error:
            raise UserError(f"{self.name(index)}: cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise UserError(f"{self.name(index)}: the tar file is cut short: download it again")
        return data

    def select(self, indices: IntArray) -> Source:
        # Only the shards in use, because `prepare` sends each chunk of images to a process.
        used, shard = np.unique(self.shard[indices], return_inverse=True)
        names = [self.shards[i] for i in used]
        return changed(super().select(indices), shards=names, shard=shard)


def is_webdataset(path: Path) -> bool:
    """Return whether `path` is a tar file or a folder of tar files.

    Compressed tar files count, so that they are refused by name. In a folder they count only if it
    holds neither folders nor images.
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
    """Open the shards of one part. Without any KEY.cls the images have no labels.

    Ignored members are reported.

    Args:
        path: A tar file, or a folder of them.
        part: train, or one of TEST_NAMES.
        beside_train: Whether a dataset without parts is already in use as the training part.

    Returns:
        The images; None if there is no such part.

    Raises:
        UserError: A tar file is damaged or compressed, a member is a link or outside of the folder,
            some images have a label and others do not, or a key has two images or labels.
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
                first = f"{shards[rows[0][0]]}: {keys[0]}" if label is not None else None
                raise UserError(f"{first or f'{file}: {key}'} has no {_LABEL} beside it, others "
                                "have: fix or remove it")  # fmt: skip
        others += shard.others
        companions |= shard.companions
    ignored = describe_ignored(others)
    if others and os.path.splitext(others[0])[1].lower() in EXTENSIONS:
        ignored += " (an image is KEY.jpg or the like, and KEY ends at the first dot of its name)"
    if not rows:
        tars = ": unpack the tar files in it" if others and others[0].endswith(".tar") else ""
        reason = f": {ignored}{tars}" if ignored else ""
        raise UserError(f"{path}: no images (KEY.jpg, KEY.png, ...) in its tar files{reason}")
    if ignored:
        say_once(f"{path}: {ignored}")
    table = np.asarray(rows, dtype=np.int64)
    names = [str(shard) for shard in shards]
    zeros = np.zeros(len(rows), dtype=np.int64)
    source = TarSource(names, table[:, 0], table[:, 1], table[:, 2], keys, zeros, UNLABELLED)
    if found[0] is None:
        _report_possible_labels(path, keys, companions)
        return source
    labels, classes = labels_and_classes(np.asarray(found, np.int64), (), path, part, source.name)
    return replace(source, labels=labels, classes=classes)


@dataclass
class _Shard:
    """Members of one tar file.

    Attributes:
        images: The members by key, in the order of the file.
        labels: By key.
        others: Names of members that are neither images nor labels nor expected.
        companions: Suffixes of expected members, which are not read.
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
                    _add(shard, tar, path, member)
            _check_end(path, tar.offset)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}): fix or remove it") from error
    except (tarfile.TarError, EOFError) as error:
        reason = f"not an uncompressed tar file, or a damaged one ({error})"
        raise UserError(f"{path}: {reason}: download it again, or decompress it") from error
    known = {key for key, _ in map(_split_name, shard.others)}
    shard.others += [
        f"{key}{_LABEL}" for key in shard.labels if key not in shard.images and key not in known
    ]
    return shard


def _add(shard: _Shard, tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> None:
    key, suffix = _split_name(member.name)
    name = member.name.rpartition("/")[2]
    if key and suffix in EXTENSIONS:
        if key in shard.images:
            raise UserError(f"{path}: {key} has two images: remove one")
        shard.images[key] = member
    elif key and suffix == _LABEL:
        if key in shard.labels:
            raise UserError(f"{path}: {key} has two labels ({_LABEL}): remove one")
        shard.labels[key] = _read_label(tar, path, member)
    elif not is_expected(name) and os.path.splitext(name)[1].lower() not in _COMPANIONS:
        shard.others.append(member.name)
    elif key:
        shard.companions.add(suffix)


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and suffix, as the webdataset package does.

    The key ends at the first dot after the folders: v1.0_3.jpg has the key v1 and the suffix
    .0_3.jpg. Both are empty for a member that belongs to no sample.
    """
    match = _MEMBER.fullmatch(name)
    if match is None or _META.match(name):
        return "", ""
    return match[1], f".{match[2].lower()}"


def _check_end(path: Path, end: int) -> None:
    """Check that the members end where the file does: tarfile takes a damaged header for the end.

    Args:
        path: The tar file.
        end: Offset behind the last member, where the end marker should be.

    Raises:
        ReadError: There is something else.
        UserError: The file goes on after the end marker.
    """
    with open(path, "rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if not mark:
            say_once(f"{path}: the tar file has no end marker: it may be truncated")
        if any(mark):
            raise tarfile.ReadError(f"damaged at byte {end:,}")
        while block := file.read(1 << 20):
            if any(block):
                raise UserError(
                    f"{path}: goes on after its end at byte {end:,}, as concatenated tar files do: "
                    "keep them apart, or pack them again"
                )


def _report_possible_labels(path: Path, members: Sequence[str], companions: set[str]) -> None:
    """Print what may have been meant as labels in a dataset without labels, if anything."""
    hints = []
    if companions:
        names = ", ".join(f"KEY{suffix}" for suffix in sorted(companions)[:5])
        hints.append(f"{names} are not read")
    folders = {name.rpartition("/")[0] for name in members} - {""}
    if len(folders) > 1:
        hints.append(f"its {len(folders):,} folders are not classes: unpack it if they should be")
    if hints:
        say_once(f"{path}: no label (KEY.cls) beside any image: {'; '.join(hints)}")


def _is_file(path: Path, member: tarfile.TarInfo) -> bool:
    """Return whether the member is a file. Raise UserError for links and unsafe names."""
    if member.issym() or member.islnk() or member.issparse():
        raise UserError(f"{path}: {member.name} is a link or a sparse file: pack the shard again")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(f"{path}: {member.name} is outside of the folder: do not trust this file")
    return member.isfile()


def _read_label(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(_LABEL_BYTES + 1) if file is not None else b""
    if len(text) > _LABEL_BYTES or not re.fullmatch(rb"\s*(-1|\d{1,18})\s*", text):
        raise UserError(f"{path}: {member.name} is not a class number from 0 up: fix it")
    return int(text)
