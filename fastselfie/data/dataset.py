"""Opens the training images and the held-out images of a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastselfie.config import DataConfig
from fastselfie.data.draws import Purpose, uniform
from fastselfie.data.sources.base import (
    UNLABELLED,
    ArraySource,
    FolderSource,
    NoSource,
    Source,
    is_labelled,
    relabelled,
)
from fastselfie.data.sources.beton import BetonSource
from fastselfie.data.sources.file_list import FileList, find_place
from fastselfie.data.sources.formats import find_dataset
from fastselfie.data.sources.parts import align_labels, choose_held_out, open_part
from fastselfie.data.sources.shards import named_as_parts
from fastselfie.data.splits import held_out_split
from fastselfie.errors import UserError

__all__ = [
    "ArraySource",
    "BetonSource",
    "Dataset",
    "FileList",
    "FolderSource",
    "NoSource",
    "Source",
    "class_warning",
    "find_place",
    "limited",
    "open_dataset",
    "open_part",
]

_SYNTHETIC_IMAGES, _SYNTHETIC_CLASSES = 50_000, 10
# Folder names that describe the type of the files, not the content of the pictures.
_ROLES = frozenset({
    "annotations", "image", "images", "img", "imgs", "jpegimages", "labels", "masks",
    "segmentationclass", "trimaps",
})  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Training images and held-out images.

    Both have the same classes. The exception is pretraining with held-out images that have no
    labels of the training classes.

    Attributes:
        train: The training images.
        held_out: The held-out images.
        split: Where the held-out images come from, for messages.
        held_out_is_train: Whether data.test names the same images as data.train.
    """

    train: Source
    held_out: Source
    split: str
    held_out_is_train: bool = False

    @property
    def warning(self) -> str:
        """A warning to print beside results on the held-out images; "" if there is none."""
        if not self.held_out_is_train:
            return ""
        return (
            f"{self.split}: the held-out images are the training images, so the results say "
            "nothing about other images: pass other images, or data.test=null to hold out a share"
        )

    @property
    def comparable(self) -> bool:
        """Whether both parts have the same classes."""
        return list(self.train.classes) == list(self.held_out.classes)

    def fingerprint(self) -> str:
        """Return a hash of both parts' classes, labels and order, which a resumed run compares.

        A folder and the .beton file prepared from it have the same fingerprint.
        """
        digest = hashlib.sha256()
        for source in (self.train, self.held_out):
            digest.update(repr((isinstance(source, NoSource), list(source.classes))).encode())
            digest.update(source.labels.tobytes())
        return digest.hexdigest()


def open_dataset(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | DataConfig,
    seed: int = 0,
    labels_needed: bool = True,
) -> Dataset:
    """Open the training images and the held-out images of a dataset.

    The held-out images are the first of these that exists: data.test; the held-out part of
    data.train that has labels of the training classes; the share data.held_out of each class, 0.1
    by default. They need not show every class. If the training images have no labels, the labels of
    the held-out images are dropped.

    Args:
        data: The path of the training images, or the paths of several .beton files; or the `data`
            section of what `load_config` returns,
            which may name the held-out images too.
        seed: Chooses the images that are held out or kept by data.limit.
        labels_needed: Whether held-out images without labels of the training classes are refused.

    Raises:
        UserError: A path is missing, empty or damaged, or the held-out part has other classes.
    """
    if not isinstance(data, DataConfig):
        if isinstance(data, (str, os.PathLike)):
            data = DataConfig(train=os.fspath(data))
        else:
            data = DataConfig(train=[os.fspath(each) for each in data])
    if data.loader == "synthetic":
        labels = np.arange(_SYNTHETIC_IMAGES, dtype=np.int64) % _SYNTHETIC_CLASSES
        noise: Source = NoSource(labels, [str(i) for i in range(_SYNTHETIC_CLASSES)])
        noise = limited(noise, data.limit, seed)
        return Dataset(noise, noise, "synthetic")
    if data.train is None:
        raise UserError(
            "data.train is not set: pass an image folder with one sub-folder for each class, for "
            "example data.train=DIR, or data.loader=synthetic"
        )
    place, same = find_place(data.train), False
    train = open_part(place, "train").source
    if data.test is not None:
        other = find_place(data.test)
        held_out = open_part(other, "held_out", train.classes).source
        split = str(other if isinstance(other, FileList) else data.test)
        same = _is_same(place, other)
    else:
        beside = choose_held_out(find_dataset(place), train.classes)
        if beside is None or (is_labelled(train) and not is_labelled(beside.source)):
            kept, taken = held_out_split(train.labels, data.held_out, seed)
            train, held_out = train.select(kept), train.select(taken)
            split = f"{data.held_out:.0%} of {place}"
            if beside is not None:
                split += f": its {beside.name} part has no labels"
        else:
            held_out, split = beside.source, f"the {beside.name} part of {place}"
            if beside.rejected:
                split += f" (no labels of the training classes in: {', '.join(beside.rejected)})"
    held_out = _align_held_out(train, held_out, split, labels_needed)
    train, held_out = (limited(each, data.limit, seed) for each in (train, held_out))
    return Dataset(train, held_out, split, same)


def _align_held_out(train: Source, held_out: Source, split: str, labels_needed: bool) -> Source:
    """Return the held-out images with labels that are indices into the training classes."""
    if not is_labelled(train):
        return relabelled(held_out, np.zeros(len(held_out), dtype=np.int64), train.classes)
    aligned = align_labels(held_out, train.classes)
    if aligned is not None:
        return aligned
    if not labels_needed:
        return held_out
    if not is_labelled(held_out):
        raise UserError(
            f"{split}: its images have no labels, which the evaluation needs: pass other images as "
            "data.test, data.test=null to hold out a share of the training images, or --stage "
            "pretrain"
        )
    used = (held_out.classes[label] for label in np.unique(held_out.labels))
    unknown = [name for name in used if name not in set(train.classes)]
    if len(train.classes) == 1 and named_as_parts([*train.classes, *held_out.classes]):
        raise UserError(
            f"{split}: the only folder of each part is named as a part again "
            f"({_some([*train.classes, *held_out.classes])}): pass the inner folders as data.train "
            "and data.test"
        )
    if not unknown:
        raise UserError(
            f"{split}: its classes {_some(held_out.classes)} come in another order than those of "
            f"the training images, {_some(train.classes)}, so the labels of one of them may be "
            "wrong: write both with one list of classes"
        )
    raise UserError(
        f"{split}: its classes {_some(held_out.classes)} are not those of the training images, "
        f"{_some(train.classes)}, which lack {_some(unknown)}: pass other images as data.test, or "
        "rename the classes"
    )


def class_warning(source: Source, path: object) -> str:
    """Return a warning if the classes at `path` look like a misread folder; "" if they do not.

    Args:
        source: The training images.
        path: Where they are, for the message.
    """
    classes = list(source.classes)
    if classes == list(UNLABELLED):
        return f"{path}: {len(source):,} images without labels, for pretraining only"
    if len(classes) == 1:
        return (
            f"warning: {path}: all {len(source):,} images are of one class, '{classes[0]}': if its "
            "sub-folders are the classes, pass it instead"
        )
    roles = [name for name in classes if name.lower() in _ROLES]
    if roles:
        return (
            f"warning: {path}: {_some(roles)} are taken for classes, as any sub-folder is: pass "
            "the folder that holds the folders of the classes"
        )
    if named_as_parts(classes):
        return (
            f"warning: {path}: {_some(classes)} are taken for classes, but are named as parts: "
            "rename them to train and val, or pass data.train and data.test"
        )
    return ""


def _is_same(train: Path | FileList, test: Path | FileList) -> bool:
    """Return whether data.test opens the images of data.train again.

    A dataset without parts opens as either part.
    """
    if isinstance(train, FileList) or isinstance(test, FileList):
        return _resolved(train) == _resolved(test)
    ours, theirs = train.resolve(), test.resolve()
    if theirs == ours / "train":
        return True
    return theirs == ours and choose_held_out(find_dataset(theirs), UNLABELLED) is None


def _resolved(place: Path | FileList) -> list[Path]:
    files = place.files if isinstance(place, FileList) else (place,)
    return sorted(file.resolve() for file in files)


def limited(source: Source, limit: int | None, seed: int) -> Source:
    """Return `limit` random images of `source` in their order.

    Args:
        source: The images.
        limit: How many to keep; None, or a number above len(source), keeps all.
        seed: Chooses the images.
    """
    if limit is None or limit >= len(source):
        return source
    draws = uniform(seed, 1, np.arange(len(source), dtype=np.int64), Purpose.SPLIT, 1)[:, 0]
    return source.select(np.sort(np.argsort(draws, kind="stable")[:limit]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
