"""The `Source` protocol, and sources for images in memory, in files, and for none at all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastselfie.data.draws import IntArray
from fastselfie.data.sources.decode import decode_image
from fastselfie.errors import UserError

RUN = 8  # images: enough to hide their transfer to a process, few enough for large photographs
UNLABELLED = ("images",)  # the one class of a source without labels


class Source:
    """A sequence of labelled images. Every source is a frozen dataclass.

    Attributes:
        labels: (n,) int64, indices into `classes`. All zeros where there are no labels.
        classes: Names of the classes; UNLABELLED where there are no labels.
    """

    labels: IntArray
    classes: Sequence[str]
    _per_image: ClassVar[tuple[str, ...]] = ("labels",)  # the fields that have an item an image
    is_remote: ClassVar[bool] = False  # whether the images come over a network

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return what a message calls image `index`, for example its path."""
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        """Decode image `index` to mode RGB.

        Raises:
            UserError: It is unreadable.
        """
        return decode_image(io.BytesIO(self.encoded(index) or b""), self.name(index))

    def encoded(self, index: int) -> bytes | None:
        """Return the encoded file (JPEG, PNG, ...) of image `index`; None if stored as pixels.

        Raises:
            UserError: It is unreadable.
        """
        return None

    @property
    def version(self) -> str:
        """What the bytes of the images depend on beside their names; "" for local files."""
        return ""

    def runs(self, start: int) -> Iterator[IntArray]:
        """Yield the indices from `start` on in runs, each to be converted by one process."""
        for first in range(start, len(self), RUN):
            yield np.arange(first, min(first + RUN, len(self)), dtype=np.int64)

    def fetched(self) -> Source:
        """Return this run of images in memory, if it is not at hand; see `is_remote`."""
        return self

    def select(self, indices: IntArray) -> Source:
        """Return the images at `indices`, in that order."""
        chosen = {}
        for name in self._per_image:
            items = getattr(self, name)
            is_array = isinstance(items, np.ndarray)
            chosen[name] = items[indices] if is_array else [items[i] for i in indices]
        return changed(self, **chosen)


def changed(source: Source, **fields: Any) -> Source:
    """Return a copy of `source` with other values of `fields`."""
    copy: Source = replace(source, **fields)  # type: ignore[type-var]
    return copy


def is_labelled(source: Source) -> bool:
    """Return whether any image of `source` has a label."""
    return list(source.classes) != list(UNLABELLED) and bool((source.labels >= 0).any())


def relabelled(source: Source, labels: IntArray, classes: Sequence[str]) -> Source:
    """Return a copy of `source` with other labels.

    Args:
        source: The images.
        labels: (n,) int64, indices into `classes`.
        classes: Names of the classes.
    """
    return changed(source, labels=labels, classes=classes)


@dataclass(frozen=True)
class ArraySource(Source):
    """Images in memory.

    Attributes:
        images: (n, H, W, 3) uint8.
        labels: (n,) int64.
        classes: Names of the classes.
        origin: The path that the images were read from, for messages.
    """

    images: npt.NDArray[np.uint8]
    labels: IntArray
    classes: Sequence[str]
    origin: str
    _per_image = ("labels", "images")

    def name(self, index: int) -> str:
        return f"{self.origin}, image {index}"

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


@dataclass(frozen=True)
class FolderSource(Source):
    """Image files on disk: `paths`, their labels (n,) int64, and the names of the classes."""

    paths: Sequence[str]
    labels: IntArray
    classes: Sequence[str]
    _per_image = ("labels", "paths")

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image.Image:
        return decode_image(self.paths[index], self.paths[index])

    def encoded(self, index: int) -> bytes | None:
        try:
            with open(self.paths[index], "rb") as file:
                return file.read()
        except OSError as error:
            reason = f"cannot be read ({error.strerror}): fix or remove it"
            raise UserError(f"{self.paths[index]}: {reason}") from error


@dataclass(frozen=True)
class NoSource(Source):
    """A source without images. The synthetic loader needs only its length and labels."""

    labels: IntArray
    classes: Sequence[str]

    def name(self, index: int) -> str:
        return f"synthetic image {index}"

    def encoded(self, index: int) -> bytes | None:
        raise UserError(f"{self.name(index)} has no file: it is noise")
