"""Opens .beton files as sources: one file, or several that are read as one dataset."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastselfie.data.beton.file_set import (
    BetonFileSet,
    in_shard_order,
    open_beton_files,
    open_readers,
)
from fastselfie.data.beton.reader import IMAGE_MODES, BetonReader
from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import UNLABELLED, Source
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.data.sources.shard_checks import require_whole
from fastselfie.data.sources.shards import files_of, files_of_part
from fastselfie.errors import UserError
from fastselfie.system.console import say_once


@dataclass(frozen=True)
class BetonSource(Source):
    """Samples of a .beton file, or of several that are read as one.

    Attributes:
        reader: The open file or files.
        indices: (n,) int64, the samples of `reader` that this source contains.
        labels: (n,) int64.
        classes: Names of the classes.
    """

    reader: BetonReader | BetonFileSet
    indices: IntArray
    labels: IntArray
    classes: Sequence[str]
    _per_image = ("labels", "indices")

    def name(self, index: int) -> str:
        return self.reader.sample_name(int(self.indices[index]))

    def image(self, index: int) -> Image.Image:
        sample = int(self.indices[index])
        if self.reader.mode[sample] != IMAGE_MODES["raw"]:
            return super().image(index)
        shape = (int(self.reader.height[sample]), int(self.reader.width[sample]), 3)
        return Image.fromarray(self.reader.image(sample).reshape(shape))

    def encoded(self, index: int) -> bytes | None:
        sample = int(self.indices[index])
        raw = self.reader.mode[sample] == IMAGE_MODES["raw"]
        return None if raw else self.reader.image(sample).tobytes()

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (self.reader.paths, self.indices, self.labels, self.classes)


def _unpickle(
    paths: tuple[Path, ...], indices: IntArray, labels: IntArray, classes: Sequence[str]
) -> BetonSource:
    return BetonSource(_reader(paths), indices, labels, classes)


@functools.lru_cache(maxsize=2)
def _reader(paths: tuple[Path, ...]) -> BetonReader | BetonFileSet:
    """Open files once per process: checking the tables of large files takes seconds."""
    return open_beton_files(paths)


def holds_beton_files(path: Path) -> bool:
    """Return whether `path` is a folder with .beton files directly in it."""
    return path.is_dir() and bool(files_of(path, ".beton"))


def open_beton(path: Path, part: str, beside_train: bool = False) -> BetonSource | None:
    """Open a .beton file, or the files of one part in a folder of them.

    Args:
        path: A file, which has no parts, or a folder of files; see `files_of_part`.
        part: train, or one of TEST_NAMES.
        beside_train: Whether a dataset without parts is already in use as the training part.

    Returns:
        The samples; None if there is no such part.

    Raises:
        UserError: As `open_as_one`, or a file in the folder is incomplete.
    """
    files = files_of_part(path, ".beton", part, beside_train)
    if files is None:
        return None
    if path.is_dir():
        require_whole(path, files, ".beton")
    return open_as_one(files)


def open_as_one(files: Sequence[Path]) -> BetonSource:
    """Open the samples of .beton files as one source.

    Args:
        files: In the order of the samples. Shards of one `prepare --shard K/N` are sorted by K.

    Raises:
        UserError: A file is damaged, several fields may be the label, a label is missing, or the
            files differ in their classes.
    """
    readers = in_shard_order(open_readers(files))
    for each in readers:
        _check_fields(each)
    labelled = [bool(each.label.max() >= 0) for each in readers]
    if any(labelled) and not all(labelled):
        bare, other = readers[labelled.index(False)], readers[labelled.index(True)]
        raise UserError(
            f"{bare.path}: has no labels, but {other.path} has: pass files of one dataset"
        )
    classes = _common_classes(readers) if any(labelled) else UNLABELLED
    reader = readers[0] if len(readers) == 1 else BetonFileSet(readers)
    indices = np.arange(len(reader), dtype=np.int64)
    if not any(labelled):
        return BetonSource(reader, indices, np.zeros(len(reader), dtype=np.int64), classes)
    return BetonSource(reader, indices, reader.label, classes)


def _check_fields(reader: BetonReader) -> None:
    """Check that one field holds the labels and none is missing; report ignored image fields."""
    path, fields = reader.path, reader.label_fields
    if len(reader.image_fields) > 1:
        others = ", ".join(name for name in reader.image_fields if name != reader.image_field)
        say_once(
            f"{path}: field {reader.image_field} is read, other image fields ignored: {others}"
        )
    if len(fields) > 1:
        raise UserError(
            f"{path}: any of its int fields may be the label ({', '.join(fields)}): write it with "
            "one called label"
        )
    lowest = int(reader.label.min())
    if lowest < 0 <= int(reader.label.max()):
        raise UserError(f"{path}: a label is {lowest}: prepare it from a source with labels")


def _common_classes(readers: Sequence[BetonReader]) -> Sequence[str]:
    """Return the names of the classes, which all files that name any must agree on."""
    highest = [int(reader.label.max()) for reader in readers]
    named = [reader for reader in readers if reader.info.get("classes")]
    if not named:
        return numbered_classes(np.asarray(highest), readers[highest.index(max(highest))].path)
    classes: list[str] = named[0].info["classes"]
    for reader in named:
        if reader.info["classes"] != classes:
            raise UserError(
                f"{reader.path}: has other classes than {named[0].path}: prepare the files from "
                "parts with the same classes"
            )
    for reader, label in zip(readers, highest, strict=True):
        if label >= len(classes):
            raise UserError(
                f"{reader.path}: a label is {label}, but it names {len(classes)} classes"
            )
    return classes
