"""Opens .beton files as sources."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastselfie.data.beton.reader import IMAGE_MODES, BetonReader
from fastselfie.data.draws import IntArray
from fastselfie.data.sources.base import UNLABELLED, Source
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.errors import UserError
from fastselfie.system.console import say_once


@dataclass(frozen=True)
class BetonSource(Source):
    """Samples of a .beton file.

    Attributes:
        reader: The open file.
        indices: (n,) int64, the samples of the file that this source contains.
        labels: (n,) int64.
        classes: Names of the classes.
    """

    reader: BetonReader
    indices: IntArray
    labels: IntArray
    classes: Sequence[str]
    _per_image = ("labels", "indices")

    def name(self, index: int) -> str:
        return f"{self.reader.path}: sample {self.indices[index]}"

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
        return _unpickle, (self.reader.path, self.indices, self.labels, self.classes)


def _unpickle(
    path: Path, indices: IntArray, labels: IntArray, classes: Sequence[str]
) -> BetonSource:
    return BetonSource(_reader(path), indices, labels, classes)


@functools.lru_cache(maxsize=2)
def _reader(path: Path) -> BetonReader:
    """Open a file once per process: checking the tables of a large file takes seconds."""
    return BetonReader(path)


def open_beton(path: Path, part: str, beside_train: bool = False) -> BetonSource | None:
    """Open all samples of a .beton file, whichever part is asked for.

    Args:
        path: The file.
        part: Ignored: a .beton file has no parts.
        beside_train: Whether the file is already in use as the training part.

    Returns:
        The samples; None if `beside_train`.

    Raises:
        UserError: The file is damaged, several fields may be the label, or a label is missing.
    """
    if beside_train:
        return None
    reader = BetonReader(path)
    if len(reader.image_fields) > 1:
        others = ", ".join(name for name in reader.image_fields if name != reader.image_field)
        say_once(
            f"{path}: field {reader.image_field} is read, other image fields ignored: {others}"
        )
    indices, fields = np.arange(len(reader), dtype=np.int64), reader.label_fields
    if len(fields) > 1:
        raise UserError(
            f"{path}: any of its int fields may be the label ({', '.join(fields)}): write it with "
            "one called label"
        )
    lowest, highest = int(reader.label.min()), int(reader.label.max())
    if highest < 0:
        return BetonSource(reader, indices, np.zeros(len(reader), dtype=np.int64), UNLABELLED)
    if lowest < 0:
        raise UserError(f"{path}: a label is {lowest}: prepare it from a source with labels")
    classes = reader.info.get("classes") or numbered_classes(reader.label, path)
    if highest >= len(classes):
        raise UserError(f"{path}: a label is {highest}, but it names {len(classes)} classes")
    return BetonSource(reader, indices, reader.label, classes)
