"""Checks for datasets in shards: which shards are there, and whether the labels are valid."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from os.path import join
from pathlib import Path

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import UNLABELLED
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_COMPRESSED = r"\.(gz|bz2|xz|zstd?|lz4|lzma|lz|br|z|zip)"
_COMPRESSED_TAR = r"\.t(gz|bz2?|xz|zst|lz)"
_UNFINISHED = r"\.(part|partial|incomplete|crdownload|download|tmp)"
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)-of-(?P<total>\d+)")


def unread_shards(path: Path, suffix: str) -> list[str]:
    """Return a message for each shard that cannot be read, in order of name.

    Args:
        path: One file, or a folder of files.
        suffix: The suffix of readable shards: ".tar", ".parquet" or ".beton".
    """
    if path.is_dir():
        return unread_names(os.listdir(path), suffix, path)
    if path.name.lower().endswith(suffix):  # the case matters in a folder only
        return []
    return unread_names([path.name], suffix, path.parent)


def unread_names(names: Iterable[str], suffix: str, folder: object) -> list[str]:
    """Return a message for each name in a folder that is a shard that cannot be read."""
    whole = f".*{re.escape(suffix)}"
    ways_out = {
        rf"{whole}{_COMPRESSED}": "is compressed: decompress it",
        rf"{whole}{_UNFINISHED}": "is an unfinished download: download it completely",
    }
    if suffix == ".beton":
        ways_out[rf"{whole}{_UNFINISHED}"] = (
            "is incomplete: run the same `fastselfie prepare` again"
        )
    if suffix == ".tar":
        ways_out[f".*{_COMPRESSED_TAR}"] = "is compressed: decompress it"
    ways_out[whole] = f"its suffix is not in lower case: rename it to end in {suffix}"
    return [
        f"{join(str(folder), name)}: {way_out}, or move it away"
        for name in sorted(names)
        for pattern, way_out in ways_out.items()
        if re.fullmatch(pattern, name, re.IGNORECASE) and not name.endswith(suffix)
        and not name.startswith(".")
    ]  # fmt: skip


def require_whole(path: Path, files: Sequence[Path], suffix: str) -> None:
    """Check that no shard is silently skipped, and report missing ones.

    Args:
        path: The dataset.
        files: The shards that are read. Names such as train-00000-of-00014 give the total.
        suffix: As in `unread_shards`.

    Raises:
        UserError: A shard is compressed, half downloaded, or not a regular file.
    """
    refuse_unread(unread_shards(path, suffix))
    for file in files:
        if file.exists() and not file.is_file():  # reading a pipe would block for ever
            raise UserError(f"{file}: not a regular file (a pipe or a folder): move it away")
    if path.is_dir():
        report_missing(path, [file.name for file in files])


def refuse_unread(unread: Sequence[str]) -> None:
    """Raise UserError with the first message of `unread_names`, if there is any."""
    if unread:
        more = f" ({len(unread) - 1} more like it)" if len(unread) > 1 else ""
        raise UserError(unread[0] + more)


def report_missing(dataset: object, names: Iterable[str]) -> None:
    """Print how many files are missing among names such as train-00000-of-00014."""
    found: dict[tuple[str, int], set[int]] = {}
    for match in (_NUMBERED.match(name) for name in names):
        if match:
            key = (match["stem"], int(match["total"]))
            found.setdefault(key, set()).add(int(match["number"]))
    for (stem, total), numbers in found.items():
        if len(numbers) < total:
            say_once(f"{dataset}: {total - len(numbers)} of the {total} files {stem}* are missing")


def labels_and_classes(
    labels: IntArray, names: Sequence[str], path: object, part: str, name_of: Callable[[int], str]
) -> tuple[IntArray, Sequence[str]]:
    """Check a column of labels.

    A held-out part whose labels are all negative has no labels: Hugging Face's datasets write test
    parts like that.

    Args:
        labels: (n,) int64, n > 0. A negative label is missing.
        names: Names of the classes; if empty, the classes are named by their numbers.
        path: What messages call the dataset.
        part: train, or a held-out part.
        name_of: Returns what a message calls the image of an index.

    Returns:
        The labels, and the names of the classes; zeros and UNLABELLED without labels.

    Raises:
        UserError: A label is missing, has no class, or is too large.
    """
    missing = np.flatnonzero(labels < 0)
    if len(missing) == len(labels) and part != "train":
        return np.zeros_like(labels), UNLABELLED
    if len(missing) == len(labels):
        raise UserError(
            f"{path}: all its labels are missing (-1 or null): use it as the test part, or write "
            "it without labels to train without them"
        )
    if len(missing):
        raise UserError(
            f"{name_of(int(missing[0]))}: its label is missing (-1 or null), the first of "
            f"{len(missing):,} among {len(labels):,}: fix or remove it"
        )
    largest = int(labels.argmax())
    most = int(labels[largest]) + 1
    if names and most > len(names):
        raise UserError(
            f"{name_of(largest)}: its label is {most - 1}, but only {len(names)} classes are "
            "named, from 0 up: fix it"
        )
    return labels, names or numbered_classes(labels, name_of(largest))
