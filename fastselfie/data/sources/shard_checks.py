"""Checks that sets in many files share: of what shards there are, and of the labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fastselfie.data.random import IntArray
from fastselfie.data.sources.base import UNLABELLED
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

# The list of classes is as long as the largest label says, so no ID may pass for a label.

_COMPRESSED = r"\.(gz|bz2|xz|zstd?|lz4|lzma|lz|br|z|zip)"
_COMPRESSED_TAR = r"\.t(gz|bz2?|xz|zst|lz)"
_UNFINISHED = r"\.(part|partial|incomplete|crdownload|download|tmp)"
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)-of-(?P<total>\d+)")


def unread_shards(path: Path, suffix: str) -> list[str]:
    """List shards that cannot be read as they are: a line each, with the file and the way out.

    Args:
        path: one file, or a folder of them.
        suffix: what the names of readable shards end in, ".tar" or ".parquet".
    """
    names = os.listdir(path) if path.is_dir() else [path.name]
    folder = path if path.is_dir() else path.parent
    whole = f".*{re.escape(suffix)}"
    ways_out = {
        rf"{whole}{_COMPRESSED}": "is compressed: decompress it",
        rf"{whole}{_UNFINISHED}": "is an unfinished download: fetch it whole",
    }
    if suffix == ".tar":
        ways_out[f".*{_COMPRESSED_TAR}"] = "is compressed: decompress it"
    if path.is_dir():
        ways_out[whole] = f"has its suffix in capitals: rename it to end in {suffix}"
    return [
        f"{folder / name}: {way_out}, or move it away"
        for name in sorted(names)
        for pattern, way_out in ways_out.items()
        if re.fullmatch(pattern, name, re.IGNORECASE) and not name.endswith(suffix)
        and not name.startswith(".")
    ]  # fmt: skip


def require_whole(path: Path, files: Sequence[Path], suffix: str) -> None:
    """Make sure that no shard of `path` is passed over; say where some are not there.

    Args:
        path: the set.
        files: the shards that are read. Names such as train-00000-of-00014 tell how many belong
            together.
        suffix: as in `unread_shards`.

    Raises:
        UserError: a shard is compressed or only half there.
    """
    unread = unread_shards(path, suffix)
    if unread:
        more = f" ({len(unread) - 1} more like it)" if len(unread) > 1 else ""
        raise UserError(unread[0] + more)
    if not path.is_dir():
        return
    found: dict[tuple[str, int], set[int]] = {}
    for match in (_NUMBERED.match(file.name) for file in files):
        if match:
            key = (match["stem"], int(match["total"]))
            found.setdefault(key, set()).add(int(match["number"]))
    for (stem, total), numbers in found.items():
        if len(numbers) < total:
            say_once(f"{path}: {total - len(numbers)} of the {total} files {stem}* are not there")


def labels_and_classes(
    labels: IntArray,
    names: Sequence[str],
    path: Path,
    part: str,
    name_of: Callable[[int], str],
) -> tuple[IntArray, Sequence[str]]:
    """Check a column of labels; return them with the names of the classes.

    A held-out part whose labels are all -1 has none, as Hugging Face's datasets write test parts:
    its classes are UNLABELLED.

    Args:
        labels: (n,) int64, n > 0; below 0 stands for none.
        names: of the classes; empty: a class is called by its number.
        path: the set.
        part: train, or a held-out part.
        name_of: what to call an image in a message.

    Raises:
        UserError: a label is missing, of no class, or too large.
    """
    missing = np.flatnonzero(labels < 0)
    if len(missing) == len(labels) and part != "train":
        return np.zeros_like(labels), UNLABELLED
    if len(missing) == len(labels):
        raise UserError(
            f"{path}: all its labels are missing (-1 or null): take it as the test part, or write "
            "it without them to train without labels"
        )
    if len(missing):
        raise UserError(
            f"{name_of(int(missing[0]))}: its label is missing (-1 or null), the first of "
            f"{len(missing):,} among {len(labels):,}: mend or remove it"
        )
    largest = int(labels.argmax())
    most = int(labels[largest]) + 1
    if names and most > len(names):
        raise UserError(
            f"{name_of(largest)}: its label is {most - 1}, but only {len(names)} classes are "
            "named, from 0 up: mend it"
        )
    return labels, names or numbered_classes(labels, name_of(largest))
