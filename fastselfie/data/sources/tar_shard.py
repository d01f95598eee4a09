"""Reads the headers and labels of one WebDataset tar file."""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from fastselfie.data.sources.decode import EXTENSIONS
from fastselfie.data.sources.ignored_files import is_expected
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

LABEL = ".cls"  # the suffix of the member that holds the label
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


class Member(NamedTuple):
    """An image in a tar file: its name, where its bytes begin, and their number."""

    name: str
    offset: int
    size: int


@dataclass
class Shard:
    """Members of one tar file.

    Attributes:
        images: By key, in the order of the file.
        labels: By key.
        others: Names of members that are neither images nor labels nor expected.
        companions: Suffixes of expected members, which are not read.
    """

    images: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    companions: set[str] = field(default_factory=set)


def scan_shard(file: BinaryIO, path: str) -> Shard:
    """Read the headers of a tar file, and its labels.

    Args:
        file: The open file. It is read forwards, but for some hundred bytes.
        path: What messages call it.

    Raises:
        UserError: It is damaged or compressed, a member is a link or outside of the folder, or a
            key has two images or labels.
    """
    shard = Shard()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if _is_file(path, member):
                    _add(shard, tar, path, member)
            _check_end(file, path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        reason = f"not an uncompressed tar file, or a damaged one ({error})"
        raise UserError(f"{path}: {reason}: download it again, or decompress it") from error
    known = {key for key, _ in map(_split_name, shard.others)}
    shard.others += [
        f"{key}{LABEL}" for key in shard.labels if key not in shard.images and key not in known
    ]
    return shard


def _add(shard: Shard, tar: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
    key, suffix = _split_name(member.name)
    name = member.name.rpartition("/")[2]
    if key and suffix in EXTENSIONS:
        if key in shard.images:
            raise UserError(f"{path}: {key} has two images: remove one")
        shard.images[key] = Member(member.name, member.offset_data, member.size)
    elif key and suffix == LABEL:
        if key in shard.labels:
            raise UserError(f"{path}: {key} has two labels ({LABEL}): remove one")
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


def _check_end(file: BinaryIO, path: str, end: int) -> None:
    """Check that the members end where the file does: tarfile takes a damaged header for the end.

    Args:
        file: The open tar file.
        path: What messages call it.
        end: Offset behind the last member, where the end marker should be.

    Raises:
        ReadError: There is something else.
        UserError: The file goes on after the end marker.
    """
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


def _is_file(path: str, member: tarfile.TarInfo) -> bool:
    """Return whether the member is a file. Raise UserError for links and unsafe names."""
    if member.issym() or member.islnk() or member.issparse():
        raise UserError(f"{path}: {member.name} is a link or a sparse file: pack the shard again")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(f"{path}: {member.name} is outside of the folder: do not trust this file")
    return member.isfile()


def _read_label(tar: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(_LABEL_BYTES + 1) if file is not None else b""
    if len(text) > _LABEL_BYTES or not re.fullmatch(rb"\s*(-1|\d{1,18})\s*", text):
        raise UserError(f"{path}: {member.name} is not a class number from 0 up: fix it")
    return int(text)
