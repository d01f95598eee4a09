"""Opens WebDataset tar files: members KEY.jpg and KEY.cls. They are read in place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import UNLABELLED, Source, changed
from fastselfie.data.sources.decode import EXTENSIONS
from fastselfie.data.sources.ignored_files import describe_ignored
from fastselfie.data.sources.shard_checks import labels_and_classes, require_whole, unread_shards
from fastselfie.data.sources.shards import files_of, files_of_part
from fastselfie.data.sources.tar_shard import LABEL, Shard, scan_shard
from fastselfie.errors import UserError
from fastselfie.system.console import say_once


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
    return source_of_shards(path, part, [str(shard) for shard in shards], map(_scan_file, shards))


def source_of_shards(
    dataset: object, part: str, names: Sequence[str], scanned: Iterable[Shard]
) -> TarSource:
    """Put together the images of all shards, and report ignored members.

    Args:
        dataset: What messages call the dataset.
        part: train, or one of TEST_NAMES.
        names: Paths of the tar files.
        scanned: The members of each, in that order; see `scan_shard`.

    Raises:
        UserError: There are no images, or some have a label and others do not.
    """
    rows: list[tuple[int, int, int]] = []
    keys: list[str] = []
    found: list[int | None] = []
    others: list[str] = []
    companions: set[str] = set()
    for number, (file, shard) in enumerate(zip(names, scanned, strict=True)):
        for key, image in shard.images.items():
            label = shard.labels.get(key)
            rows.append((number, image.offset, image.size))
            keys.append(image.name)
            found.append(label)
            if (label is None) != (found[0] is None):
                first = f"{names[rows[0][0]]}: {keys[0]}" if label is not None else None
                raise UserError(f"{first or f'{file}: {key}'} has no {LABEL} beside it, others "
                                "have: fix or remove it")  # fmt: skip
        others += shard.others
        companions |= shard.companions
    ignored = describe_ignored(others)
    if others and os.path.splitext(others[0])[1].lower() in EXTENSIONS:
        ignored += " (an image is KEY.jpg or the like, and KEY ends at the first dot of its name)"
    if not rows:
        tars = ": unpack the tar files in it" if others and others[0].endswith(".tar") else ""
        reason = f": {ignored}{tars}" if ignored else ""
        raise UserError(f"{dataset}: no images (KEY.jpg, KEY.png, ...) in its tar files{reason}")
    if ignored:
        say_once(f"{dataset}: {ignored}")
    table = np.asarray(rows, dtype=np.int64)
    zeros = np.zeros(len(rows), dtype=np.int64)
    source = TarSource(names, table[:, 0], table[:, 1], table[:, 2], keys, zeros, UNLABELLED)
    if found[0] is None:
        _report_possible_labels(dataset, keys, companions)
        return source
    numbers = np.asarray(found, np.int64)
    labels, classes = labels_and_classes(numbers, (), dataset, part, source.name)
    return replace(source, labels=labels, classes=classes)


def _scan_file(path: Path) -> Shard:
    try:
        with open(path, "rb") as file:
            return scan_shard(file, str(path))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}): fix or remove it") from error


def _report_possible_labels(dataset: object, members: Sequence[str], companions: set[str]) -> None:
    """Print what may have been meant as labels in a dataset without labels, if anything."""
    hints = []
    if companions:
        names = ", ".join(f"KEY{suffix}" for suffix in sorted(companions)[:5])
        hints.append(f"{names} are not read")
    folders = {name.rpartition("/")[0] for name in members} - {""}
    if len(folders) > 1:
        hints.append(f"its {len(folders):,} folders are not classes: unpack it if they should be")
    if hints:
        say_once(f"{dataset}: no label (KEY.cls) beside any image: {'; '.join(hints)}")
