"""What a set of images is (`Source`), and those over memory, image files and .beton files."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fastselfie.data.beton.reader import IMAGE_MODES, BetonReader
from fastselfie.data.random import IntArray
from fastselfie.data.sources.labels import numbered_classes
from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import JpegError, check, transcode

# What Pillow opens, less vector graphics, films and scientific formats that need a program of their
# own. It names no format for .mpo, which it opens as JPEG.
_NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
EXTENSIONS = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if (kind in Image.OPEN and kind not in _NO_PICTURES) or kind == "MPO"
)
UNLABELLED = ("images",)  # the classes of a set without labels: one

# Pillow refuses to open an image of more as a possible decompression bomb.
MAX_PIXELS = 178_956_970
# Of an image that is shrunk at once: a few GB of memory at the most while that is done.
MAX_SHRUNK_PIXELS = 2 * MAX_PIXELS
JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Exceptions whose text explains itself. Of others the name is a part of the reason.
_EXPLAINED = (OSError, SyntaxError, RuntimeError, ValueError)


@runtime_checkable
class Source(Protocol):
    """Labelled images, by number. Each is a frozen dataclass with fields `labels` and `classes`.

    labels: (n,) int64, numbers of `classes`. Without labels: zeros, and UNLABELLED.
    """

    @property
    def labels(self) -> IntArray: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image in a message: its path where it has one."""

    def image(self, index: int) -> Image.Image:
        """The decoded image, mode RGB. Raises `UserError` where it cannot be read."""

    def encoded(self, index: int) -> bytes | None:
        """The image's file as it is, JPEG or PNG and so on; None where it is stored as pixels.

        Raises `UserError` where it cannot be read.
        """

    def select(self, indices: IntArray) -> Source:
        """The images at `indices`, in that order."""


def is_labelled(source: Source) -> bool:
    """Whether the images of `source` have labels."""
    return list(source.classes) != list(UNLABELLED) and bool((source.labels >= 0).any())


def relabelled(source: Source, labels: IntArray, classes: Sequence[str]) -> Source:
    """The images of `source` with other labels, numbers of `classes`."""
    copy: Source = replace(source, labels=labels, classes=classes)  # type: ignore[type-var]
    return copy


def decode_image(file: str | io.BytesIO, name: str) -> Image.Image:
    """Decode with Pillow to RGB; `name` is what a `UserError` calls the image."""
    image = open_image(file, name)
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(
    file: str | io.BytesIO, name: str, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode with Pillow to RGB, or to L where the file is gray; alpha is dropped.

    16-bit samples are scaled to 8 bits: Pillow's own conversion clips them at 255. An image that is
    shrunk afterwards, to no less than `at_least`, (width, height), may have MAX_SHRUNK_PIXELS, and
    a JPEG is decoded at a fraction of its size. `name` is what a `UserError` calls the image.

    Raises:
        UserError: the image cannot be read, whatever the decoder raised, or pixels of it are lost.
    """
    try:
        if isinstance(file, str):
            with open(file, "rb") as opened:
                data = opened.read()
        else:
            data = file.getvalue()
        return _decoded(data, at_least)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name}: {str(error).rstrip('.')}: remove it, or shrink it by `prepare --max-side`"
        ) from error
    except Exception as error:  # of Pillow, its plug-ins and the libraries below: of any kind
        raise UserError(
            f"{name}: unreadable image ({_reason(error)}): mend or remove it"
        ) from error


def _decoded(data: bytes, at_least: tuple[int, int] | None) -> Image.Image:
    try:
        return _read(data, at_least)
    except (JpegError, Image.DecompressionBombError):
        raise
    except Exception:
        if not data.startswith(JPEG_START):
            raise
    # Pillow insists on more than libjpeg does, an end marker for instance. What the transcode makes
    # of the file is what `prepare` stores.
    try:
        data = transcode(data)
    except JpegError as error:
        if not is_unsupported(error):
            raise
        data += _JPEG_END
    return _read(data, at_least)


def _read(data: bytes, at_least: tuple[int, int] | None) -> Image.Image:
    with open_lazily(data, MAX_PIXELS if at_least is None else MAX_SHRUNK_PIXELS) as image:
        if data.startswith(JPEG_START):
            check(data)  # Pillow is silent about lost pixels, and makes them gray or noise
        if at_least is not None:
            image.draft(None, at_least)
        return eight_bits(image)


def open_lazily(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image without decoding it. Not for use by several threads above MAX_PIXELS.

    Raises:
        DecompressionBombError: it has more than `max_pixels`.
        Exception: any other, of Pillow's plug-ins.
    """
    if max_pixels <= MAX_PIXELS:
        return Image.open(io.BytesIO(data))
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # Pillow only warns up to twice its limit
    try:
        return Image.open(io.BytesIO(data))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def is_unsupported(error: JpegError) -> bool:
    """Whether a JPEG is of a kind that only Pillow reads, rather than damaged."""
    return str(error).startswith("unsupported")


def _reason(error: Exception) -> str:
    """One line that says what is wrong with an image."""
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own words name the buffer's address, which would differ from run to run.
        return "not an image that Pillow knows"
    words = " ".join(str(error).split())
    if words and isinstance(error, _EXPLAINED):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with mode L or RGB. Raises ValueError for float samples, which have no range."""
    if image.mode == "F":
        raise ValueError("its samples are floats of an unknown range")
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("its samples do not fit in 16 bits")
        return Image.fromarray(np.uint8((samples.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF))
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


@dataclass(frozen=True)
class ArraySource:
    """Images in memory: (n, H, W, 3) uint8."""

    images: npt.NDArray[np.uint8]
    labels: IntArray
    classes: Sequence[str]
    origin: str

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.origin}, image {index}"

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def encoded(self, index: int) -> bytes | None:
        return None

    def select(self, indices: IntArray) -> ArraySource:
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class FolderSource:
    """Image files; a class is a sub-folder."""

    paths: Sequence[str]
    labels: IntArray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image.Image:
        return decode_image(self.paths[index], self.paths[index])

    def encoded(self, index: int) -> bytes | None:
        try:
            with open(self.paths[index], "rb") as file:
                return file.read()
        except OSError as error:
            reason = f"cannot be read ({error.strerror}): mend or remove it"
            raise UserError(f"{self.paths[index]}: {reason}") from error

    def select(self, indices: IntArray) -> FolderSource:
        return FolderSource([self.paths[i] for i in indices], self.labels[indices], self.classes)


@dataclass(frozen=True)
class BetonSource:
    """Images of a .beton file, `indices` of them, and their labels."""

    reader: BetonReader
    indices: IntArray
    labels: IntArray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"{self.reader.path}: sample {self.indices[index]}"

    def image(self, index: int) -> Image.Image:
        sample = int(self.indices[index])
        data = self.reader.image(sample)
        if self.reader.mode[sample] == IMAGE_MODES["raw"]:
            shape = (int(self.reader.height[sample]), int(self.reader.width[sample]), 3)
            return Image.fromarray(data.reshape(shape))
        return decode_image(io.BytesIO(data.data), self.name(index))

    def encoded(self, index: int) -> bytes | None:
        sample = int(self.indices[index])
        raw = self.reader.mode[sample] == IMAGE_MODES["raw"]
        return None if raw else self.reader.image(sample).tobytes()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self.reader.path, self.indices, self.labels, self.classes)

    def select(self, indices: IntArray) -> BetonSource:
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])


def _reopened(
    path: Path, indices: IntArray, labels: IntArray, classes: Sequence[str]
) -> BetonSource:
    return BetonSource(_reader(path), indices, labels, classes)


@functools.lru_cache(maxsize=2)
def _reader(path: Path) -> BetonReader:
    """Checking the tables takes seconds for a large file: a process does it once."""
    return BetonReader(path)


def open_beton(path: Path, part: str, beside_train: bool = False) -> BetonSource | None:
    """All images of a .beton file, whatever the part; None where they are in use for training.

    Raises:
        UserError: a damaged file, or one whose label is any of several fields or missing for some.
    """
    if beside_train:
        return None
    reader = BetonReader(path)
    indices, fields = np.arange(len(reader), dtype=np.int64), reader.label_fields
    if len(fields) > 1:
        raise UserError(
            f"{path}: any of its int fields may be the label ({', '.join(fields)}): write it with "
            "one called label"
        )
    least, most = int(reader.label.min()), int(reader.label.max())
    if most < 0:
        return BetonSource(reader, indices, np.zeros(len(reader), dtype=np.int64), UNLABELLED)
    if least < 0:
        raise UserError(f"{path}: a label is {least}: prepare it from a source with labels")
    classes = reader.info.get("classes") or numbered_classes(reader.label, path)
    if most >= len(classes):
        raise UserError(f"{path}: a label is {most}, but it names {len(classes)} classes")
    return BetonSource(reader, indices, reader.label, classes)


@dataclass(frozen=True)
class NoSource:
    """Stands for a set that is not there: the synthetic loader needs only its size."""

    labels: IntArray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"synthetic image {index}"

    def image(self, index: int) -> Image.Image:
        raise UserError(f"{self.name(index)} has no file: data.loader is synthetic")

    def encoded(self, index: int) -> bytes | None:
        raise UserError(f"{self.name(index)} has no file: data.loader is synthetic")

    def select(self, indices: IntArray) -> NoSource:
        return NoSource(self.labels[indices], self.classes)
