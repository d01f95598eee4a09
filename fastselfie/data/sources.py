"""Where images come from: one small interface over folders, CIFAR batches and IDX files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fastselfie.config import DataConfig
from fastselfie.data.beton import IMAGE_MODES, BetonReader
from fastselfie.data.cifar import class_names, is_cifar_folder, read_cifar_folder
from fastselfie.data.idx import is_idx_folder, read_idx_folder
from fastselfie.errors import UserError
from fastselfie.rng import IntArray, Purpose, uniform

_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
_SYNTHETIC_IMAGES, _SYNTHETIC_CLASSES = 50_000, 10
_TEST_NAMES = ("test", "val", "valid", "validation")


class Source(Protocol):
    """Labelled images, by number.

    labels: (n,) int64, numbers of `classes`.
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


def decode_image(file: str | io.BytesIO, name: str) -> Image.Image:
    """Decode with Pillow to RGB; `name` is what a `UserError` calls the image."""
    try:
        with Image.open(file) as image:
            rgb: Image.Image = image.convert("RGB")
            return rgb
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: unreadable image ({reason}): mend or remove it") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {error}: remove it") from error


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


@dataclass(frozen=True)
class BetonSource:
    """Images of a .beton file, `indices` of them."""

    reader: BetonReader
    indices: IntArray
    classes: Sequence[str]

    @cached_property
    def labels(self) -> IntArray:
        # Kept: a loader asks for each batch, and gathering ImageNet's takes a millisecond.
        return self.reader.label[self.indices]

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


@dataclass(frozen=True)
class Dataset:
    """A training part and a held-out part. `split` says where the second came from."""

    train: Source
    held_out: Source
    split: str

    def fingerprint(self) -> str:
        """Of both parts' classes, labels and order: what a resumed run must find again.

        The same for a folder and for the .beton file prepared from it.
        """
        digest = hashlib.sha256()
        for source in (self.train, self.held_out):
            digest.update(repr((isinstance(source, NoSource), list(source.classes))).encode())
            digest.update(source.labels.tobytes())
        return digest.hexdigest()


def select(source: Source, indices: IntArray) -> Source:
    """The images of `source` at `indices`, in that order."""
    if isinstance(source, ArraySource):
        return ArraySource(
            source.images[indices], source.labels[indices], source.classes, source.origin
        )
    if isinstance(source, FolderSource):
        paths = [source.paths[i] for i in indices]
        return FolderSource(paths, source.labels[indices], source.classes)
    if isinstance(source, BetonSource):
        return BetonSource(source.reader, source.indices[indices], source.classes)
    if isinstance(source, NoSource):
        return NoSource(source.labels[indices], source.classes)
    raise TypeError(f"cannot select from {type(source).__name__}")


def open_dataset(data: DataConfig, seed: int = 0) -> Dataset:
    """The training and the held-out images that `data` names.

    Held out are, in this order: data.test; the test part beside data.train's training part;
    data.held_out of each class.

    Raises:
        UserError: a missing or empty folder, other classes in the test part, a broken file.
    """
    if data.loader == "synthetic":
        labels = np.arange(_SYNTHETIC_IMAGES, dtype=np.int64) % _SYNTHETIC_CLASSES
        noise = NoSource(labels, [str(i) for i in range(_SYNTHETIC_CLASSES)])
        return _limited_dataset(Dataset(noise, noise, "synthetic"), data.limit, seed)
    if data.train is None:
        raise UserError(
            "data.train is not set: give an image folder (one sub-folder a class), for example "
            "data.train=DIR, or data.loader=synthetic"
        )
    train = _open_part(Path(data.train).expanduser(), "train")
    if train is None:
        raise UserError(f"{data.train}: holds no training images")
    if data.test is not None:
        held_out, split = _open_part(Path(data.test).expanduser(), "test"), data.test
        if held_out is None:
            raise UserError(f"{data.test}: holds no test images")
    else:
        held_out = _open_part(Path(data.train).expanduser(), "test", beside_train=True)
        split = f"the test part of {data.train}"
        if held_out is None:
            kept, taken = _split(train.labels, data.held_out, seed)
            train, held_out = select(train, kept), select(train, taken)
            split = f"{data.held_out:.0%} of {data.train}"
    if list(train.classes) != list(held_out.classes):
        raise UserError(
            f"{split}: its classes {_some(held_out.classes)} are not those of the training images, "
            f"{_some(train.classes)}"
        )
    return _limited_dataset(Dataset(train, held_out, split), data.limit, seed)


def _open_part(folder: Path, part: str, beside_train: bool = False) -> Source | None:
    """The train or test part of a folder in any known layout; None if it has no such part.

    An image folder without parts is the part that is asked for, unless it already is the training
    part (beside_train).
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder: give data.train=DIR, see `fastselfie doctor`")
    if folder.suffix == ".beton":
        return None if beside_train else _open_beton(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder: give the folder that holds the images")
    if is_idx_folder(folder) or is_cifar_folder(folder):
        return _open_arrays(folder, part)
    nested = [folder / name for name in (("train",) if part == "train" else _TEST_NAMES)]
    inner = next((path for path in nested if path.is_dir()), None)
    if inner is not None:
        return _open_image_folder(inner)
    has_parts = part == "test" and (folder / "train").is_dir()
    return None if beside_train or has_parts else _open_image_folder(folder)


def _open_arrays(folder: Path, part: str) -> ArraySource | None:
    read = read_idx_folder if is_idx_folder(folder) else read_cifar_folder
    arrays = read(folder, part)
    if arrays is None:
        return None
    return ArraySource(*arrays, class_names(folder, arrays[1]), str(folder))


def _open_beton(path: Path) -> BetonSource:
    reader = BetonReader(path)
    least, most = int(reader.label.min()), int(reader.label.max())
    if least < 0:
        raise UserError(f"{path}: a label is {least}: prepare it from a source with labels")
    classes = reader.info.get("classes") or [str(i) for i in range(most + 1)]
    if most >= len(classes):
        raise UserError(f"{path}: a label is {most}, but it names {len(classes)} classes")
    return BetonSource(reader, np.arange(len(reader), dtype=np.int64), classes)


def _open_image_folder(folder: Path) -> FolderSource:
    """One sub-folder a class, searched to any depth; the order does not depend on the machine."""
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(paths)
        for root, folders, files in os.walk(folder / name, onerror=_unreadable):
            folders[:] = sorted(f for f in folders if f[0] != ".")
            # Hidden files are a file manager's or a notebook's, not images: ._1.jpg for one.
            paths += [os.path.join(root, f) for f in sorted(files) if _is_image(f)]
        labels += [label] * (len(paths) - before)
    if not paths:
        loose = any(p.suffix.lower() in _EXTENSIONS for p in folder.iterdir())
        hint = "move its images into one sub-folder a class" if loose else "it is empty"
        raise UserError(f"{folder}: no images in sub-folders: {hint}")
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        raise UserError(f"{folder / classes[empty[0]]}: a class without images: remove the folder")
    return FolderSource(paths, np.asarray(labels, dtype=np.int64), classes)


def _is_image(name: str) -> bool:
    return name[0] != "." and os.path.splitext(name)[1].lower() in _EXTENSIONS


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed: {error.strerror}")


def _split(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """(kept, held out) indices, the same share of each class.

    A class of one image is never split, so where every class has one the share is of the whole.
    """
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), Purpose.SPLIT, 1)[:, 0]
    taken = _lowest_of_each(draws, labels, fraction)
    if len(taken) == 0:
        taken = _lowest_of_each(draws, np.zeros_like(labels), fraction)
    if len(taken) == 0:
        raise UserError(f"{len(labels)} images are too few to hold out {fraction:.0%} of them")
    kept = np.setdiff1d(np.arange(len(labels), dtype=np.int64), taken)
    return kept, taken


def _lowest_of_each(draws: npt.NDArray[np.float64], labels: IntArray, fraction: float) -> IntArray:
    taken = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = int(fraction * len(members))
        taken.append(members[np.argsort(draws[members], kind="stable")[:count]])
    return np.sort(np.concatenate(taken))


def _limited_dataset(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    train, held_out = (_limited(s, limit, seed) for s in (dataset.train, dataset.held_out))
    return Dataset(train, held_out, dataset.split)


def _limited(source: Source, limit: int | None, seed: int) -> Source:
    if limit is None or limit >= len(source):
        return source
    draws = uniform(seed, 1, np.arange(len(source), dtype=np.int64), Purpose.SPLIT, 1)[:, 0]
    return select(source, np.sort(np.argsort(draws, kind="stable")[:limit]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
