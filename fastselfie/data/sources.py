"""From a path to labelled images: every format that is read, and the split of a set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastselfie.config import DataConfig
from fastselfie.data import idx, imagenet32, parquet, webdataset
from fastselfie.data.beton import BetonReader
from fastselfie.data.cifar import class_names, is_cifar_folder, read_cifar_folder
from fastselfie.data.images import (
    EXTENSIONS,
    UNLABELLED,
    ArraySource,
    BetonSource,
    FolderSource,
    NoSource,
    Source,
    decode_image,
)
from fastselfie.data.shards import TEST_NAMES
from fastselfie.errors import UserError
from fastselfie.rng import IntArray, Purpose, uniform

__all__ = [
    "ArraySource",
    "BetonSource",
    "Dataset",
    "FolderSource",
    "NoSource",
    "Source",
    "decode_image",
    "expanded",
    "limited",
    "open_dataset",
    "open_part",
]

_SYNTHETIC_IMAGES, _SYNTHETIC_CLASSES = 50_000, 10


@dataclass(frozen=True)
class Dataset:
    """A training part and a held-out part. `split` says where the second came from.

    held_out_is_train: data.test names the images of data.train again.
    """

    train: Source
    held_out: Source
    split: str
    held_out_is_train: bool = False

    @property
    def caution(self) -> str:
        """What must be said beside figures of the held-out images; empty where nothing must."""
        if not self.held_out_is_train:
            return ""
        return (
            f"{self.split}: the held-out images are the training images, so no figure tells of "
            "others: give other images, or data.test=null to hold out a share"
        )

    def fingerprint(self) -> str:
        """Of both parts' classes, labels and order: what a resumed run must find again.

        The same for a folder and for the .beton file prepared from it.
        """
        digest = hashlib.sha256()
        for source in (self.train, self.held_out):
            digest.update(repr((isinstance(source, NoSource), list(source.classes))).encode())
            digest.update(source.labels.tobytes())
        return digest.hexdigest()


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
    train, same = _required(data.train, "train"), False
    if data.test is not None:
        held_out, split = _required(data.test, "test"), data.test
        same = _is_same(data.train, data.test)
    else:
        beside = open_part(expanded(data.train), "test", beside_train=True)
        split = f"the test part of {data.train}"
        if beside is None:
            kept, taken = _split(train.labels, data.held_out, seed)
            train, held_out = train.select(kept), train.select(taken)
            split = f"{data.held_out:.0%} of {data.train}"
        else:
            held_out = beside[0]
    if list(train.classes) != list(held_out.classes):
        raise UserError(
            f"{split}: its classes {_some(held_out.classes)} are not those of the training images, "
            f"{_some(train.classes)}"
        )
    return _limited_dataset(Dataset(train, held_out, split, same), data.limit, seed)


def _is_same(train: str, test: str) -> bool:
    """Whether data.test is opened as the images of data.train: a set without parts is either."""
    ours, theirs = (expanded(path).resolve() for path in (train, test))
    if theirs == ours / "train":
        return True
    return theirs == ours and open_part(theirs, "test", beside_train=True) is None


def expanded(path: str | Path) -> Path:
    """The path with ~ replaced; as it is, and so no such folder, where ~ names an unknown user."""
    return Path(os.path.expanduser(path))


def _required(path: str, part: str) -> Source:
    found = open_part(expanded(path), part)
    if found is None:
        kind = "training" if part == "train" else part
        raise UserError(f"{path}: holds no {kind} images")
    return found[0]


@dataclass(frozen=True)
class _Format:
    """A kind of set. open(path, part, beside_train): None where it has no such part.

    beside_train: the whole of a set without parts is its training part, which is in use already.
    """

    name: str
    matches: Callable[[Path], bool]
    open: Callable[[Path, str, bool], Source | None]


def open_part(path: Path, part: str, beside_train: bool = False) -> tuple[Source, str] | None:
    """The train or test part of any known kind of set, and the kind; None if it has no such part.

    A set without parts is the part that is asked for, unless it already is the training part
    (beside_train).

    Raises:
        UserError: not there, not a set of images, or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    found = next((kind for kind in _FORMATS if kind.matches(path)), None)
    if found is None and not path.is_dir():
        raise UserError(
            f"{path}: not a set of images: give their folder, or a .beton, .tar or .parquet file"
        )
    if found is None:
        inside = [path / name for name in (("train",) if part == "train" else TEST_NAMES)]
        inner = next((folder for folder in inside if folder.is_dir()), None)
        if inner is None and (beside_train or (part == "test" and (path / "train").is_dir())):
            return None
        path, beside_train = inner or path, False
        found = next((kind for kind in _FORMATS if kind.matches(path)), _IMAGE_FOLDER)
    source = found.open(path, part, beside_train)
    return None if source is None else (source, found.name)


def _open_arrays(
    read: Callable[[Path, str], tuple[npt.NDArray[np.uint8], IntArray] | None],
    name_classes: Callable[[Path, IntArray], list[str]],
) -> Callable[[Path, str, bool], Source | None]:
    def open_arrays(folder: Path, part: str, beside_train: bool) -> Source | None:
        arrays = read(folder, part)
        if arrays is None:
            return None
        return ArraySource(*arrays, name_classes(folder, arrays[1]), str(folder))

    return open_arrays


def _open_beton(path: Path, part: str, beside_train: bool) -> Source | None:
    if beside_train:
        return None
    reader = BetonReader(path)
    least, most = int(reader.label.min()), int(reader.label.max())
    if least < 0:
        raise UserError(f"{path}: a label is {least}: prepare it from a source with labels")
    classes = reader.info.get("classes") or [str(i) for i in range(most + 1)]
    if most >= len(classes):
        raise UserError(f"{path}: a label is {most}, but it names {len(classes)} classes")
    return BetonSource(reader, np.arange(len(reader), dtype=np.int64), classes)


def _open_image_folder(folder: Path, part: str, beside_train: bool) -> Source | None:
    """One sub-folder a class, searched to any depth; or images without labels, one class.

    The order does not depend on the machine.
    """
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    classes = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    loose = [e.path for e in entries if e.is_file() and _is_image(e.name)]
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for root, folders, files in os.walk(folder / name, onerror=_unreadable):
            folders[:] = sorted(f for f in folders if f[0] != ".")
            found = [os.path.join(root, f) for f in sorted(files) if _is_image(f)]
            paths += found
            labels += [label] * len(found)
    if loose and paths:
        raise UserError(
            f"{folder}: has images of its own ({os.path.basename(loose[0])}) beside sub-folders "
            f"of images ({classes[labels[0]]}): give each its class's sub-folder, or none"
        )
    if loose:
        return FolderSource(loose, np.zeros(len(loose), dtype=np.int64), UNLABELLED)
    if not paths:
        raise UserError(f"{folder}: no images, neither in sub-folders nor in itself: it is empty")
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        raise UserError(f"{folder / classes[empty[0]]}: a class without images: remove the folder")
    return FolderSource(paths, np.asarray(labels, dtype=np.int64), classes)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed: {error.strerror}")


def _is_image(name: str) -> bool:
    # A hidden file may be a picture's metadata with the picture's suffix: macOS's ._NAME.jpg.
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


_IMAGE_FOLDER = _Format("image folder", Path.is_dir, _open_image_folder)
# The first that matches; an image folder is what matches none of them.
_FORMATS = (
    _Format(".beton file", lambda path: path.suffix == ".beton", _open_beton),
    _Format("IDX", idx.is_idx_folder, _open_arrays(idx.read_idx_folder, class_names)),
    _Format("CIFAR", is_cifar_folder, _open_arrays(read_cifar_folder, class_names)),
    _Format(
        "ImageNet 32x32",
        imagenet32.is_imagenet32_folder,
        _open_arrays(imagenet32.read_imagenet32_folder, imagenet32.class_names),
    ),
    _Format("WebDataset", webdataset.is_webdataset, webdataset.open_webdataset),
    _Format("parquet", parquet.is_parquet, parquet.open_parquet),
)


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
    train, held_out = (limited(s, limit, seed) for s in (dataset.train, dataset.held_out))
    return replace(dataset, train=train, held_out=held_out)


def limited(source: Source, limit: int | None, seed: int) -> Source:
    """`limit` images of `source` drawn by the seed, in their order; all where there are fewer."""
    if limit is None or limit >= len(source):
        return source
    draws = uniform(seed, 1, np.arange(len(source), dtype=np.int64), Purpose.SPLIT, 1)[:, 0]
    return source.select(np.sort(np.argsort(draws, kind="stable")[:limit]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
