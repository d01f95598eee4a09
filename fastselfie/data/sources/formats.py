"""From a path to the images of one part: which kind of set it is, and which part is held out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fastselfie.data.sources import cifar, idx, imagenet32, parquet, webdataset
from fastselfie.data.sources.base import UNLABELLED, Source, is_labelled, open_beton, relabelled
from fastselfie.data.sources.folder import (
    files_below,
    holds_images,
    is_image,
    open_image_folder,
    subfolders,
)
from fastselfie.data.sources.foreign import (
    are_known_archives,
    explain,
    parts_inside,
    refuse_imagenet_archives,
)
from fastselfie.data.sources.left_out import left_out
from fastselfie.data.sources.part_folders import part_folders, say_beside
from fastselfie.data.sources.shards import NO_CLASSES, TEST_NAMES, files_of
from fastselfie.errors import UserError
from fastselfie.system.console import say_once


@dataclass(frozen=True)
class _Format:
    """A kind of set. open(path, part, beside_train): None where it has no such part.

    part: train, or one of TEST_NAMES. beside_train: the whole of a set without parts is its
    training part, which is in use already. suffix: of its files, where any number makes a part.
    """

    name: str
    matches: Callable[[Path], bool]
    open: Callable[[Path, str, bool], Source | None]
    suffix: str = ""


@dataclass(frozen=True)
class Part:
    """The images of one part of a set.

    kind: of set. name: the part's own, as test or val; empty where the set has no parts. passed:
    names of the parts before it that have no labels of the training classes.
    """

    source: Source
    kind: str
    name: str = ""
    passed: Sequence[str] = ()


def open_part(
    path: Path, part: str, classes: Sequence[str] | None = None
) -> tuple[Source, str] | None:
    """The train or test part of any known kind of set, and the kind; None if it has no such part.

    A set without parts is the part that is asked for. The test part is the one that `open_held_out`
    chooses; its labels are numbers of the training classes where those have its names.

    Args:
        path: the set.
        part: train or test.
        classes: the training classes; None: those of the set's own training part.

    Raises:
        UserError: not there, not a set of images, or damaged.
    """
    place = _find(path)
    found = _choose(place, classes) if part != "train" else None
    found = found or place.open(part, False)
    return None if found is None else (found.source, found.kind)


def open_held_out(path: Path, classes: Sequence[str]) -> Part | None:
    """The first of a set's parts in TEST_NAMES that has labels of the training classes, `classes`.

    Where there is none: the first that has labels, else the first. Where the training images have
    no labels: the first. None for a set without parts.

    Raises:
        UserError: as `open_part`.
    """
    return _choose(_find(path), classes)


def _choose(of: _Set, classes: Sequence[str] | None) -> Part | None:
    """See `open_held_out`. classes: None: those of the set's training part."""
    found: list[Part] = []
    for name in TEST_NAMES:
        part = of.open(name, True)
        if part is None:
            continue
        found.append(part)
        if classes is not None and list(classes) == list(UNLABELLED):
            return part
        if not is_labelled(part.source):
            continue
        if classes is None:
            train = None if _is_numbered(part) else of.open("train", True)
            classes = part.source.classes if train is None else train.source.classes
        agreed = numbered_as(part.source, classes)
        if agreed is not None:
            passed = [other.name for other in found[:-1]]
            return Part(agreed, part.kind, name, passed)
    labelled = [part for part in found if is_labelled(part.source)]
    return next(iter(labelled or found), None)


def numbered_as(source: Source, classes: Sequence[str]) -> Source | None:
    """Return `source` with its labels as numbers of `classes`.

    None if one of its names is not there, or if the names that both have come in another order:
    then the numbers of one of the two may mean other classes. Names that are numbers have no order
    of their own: folders are sorted as text.
    """
    if list(source.classes) == list(classes):
        return source
    places = {name: number for number, name in reversed(list(enumerate(classes)))}
    used = np.unique(source.labels)
    if not is_labelled(source) or any(source.classes[label] not in places for label in used):
        return None
    shared = [places[name] for name in source.classes if name in places and not name.isdecimal()]
    if shared != sorted(shared):
        return None
    table = np.asarray([places.get(name, -1) for name in source.classes], dtype=np.int64)
    return relabelled(source, table[source.labels], classes)


def _is_numbered(part: Part) -> bool:
    """Whether its classes are the numbers that its files hold, which all parts share."""
    names = part.source.classes
    return part.kind != _IMAGE_FOLDER.name and list(names) == [str(i) for i in range(len(names))]


@dataclass(frozen=True)
class _Set:
    """Where a set is. kind: None for a folder of images or of parts, which `folders` are."""

    path: Path
    kind: _Format | None
    folders: dict[str, Path]

    def open(self, name: str, beside_train: bool) -> Part | None:
        """The part of exactly this name, train or one of TEST_NAMES; see `_Format`."""
        if self.kind is not None:
            source = self.kind.open(self.path, name, beside_train)
            return None if source is None else Part(source, self.kind.name, name)
        if name in self.folders:
            inner = _find(self.folders[name], is_part=True)
            kind = inner.kind or _IMAGE_FOLDER
            names = ("train",) if name == "train" else (name, *TEST_NAMES)
            sources = (kind.open(inner.path, each, False) for each in names)
            source = next((each for each in sources if each is not None), None)
            if source is None:
                return None
            if name != "train" and NO_CLASSES.issuperset(n.lower() for n in source.classes):
                # So Keras wants images without labels: test/unknown/*.jpg.
                source = relabelled(source, np.zeros_like(source.labels), UNLABELLED)
            return Part(source, kind.name, name)
        if beside_train or (name != "train" and "train" in self.folders):
            return None
        own = {folder.name for folder in self.folders.values()}
        classes = (self.path / each for each in subfolders(self.path) if each not in own)
        if name == "train" and own and not any(holds_images(folder) for folder in classes):
            return None
        source = open_image_folder(self.path, name, skip=own)
        return Part(_checked(self.path, source), _IMAGE_FOLDER.name)


def _checked(path: Path, source: Source) -> Source:
    """The same; UserError where its one class is a folder that holds a set of several parts."""
    # A class may be of a table, without a folder of its own.
    if len(source.classes) == 1 and (path / source.classes[0]).is_dir():
        inner = parts_inside(path / source.classes[0])
        if inner is not None:
            raise UserError(
                f"{path}: all its images would be of one class, '{source.classes[0]}': give "
                f"{inner}, which holds the parts of a set"
            )
    return source


def _find(path: Path, is_part: bool = False) -> _Set:
    """Where the set is. is_part: of another; all its folders are classes, whatever their names.

    Raises:
        UserError: not there, or not a set of images.
    """
    try:
        there = path.exists()
    except OSError:  # a name that is too long, a folder that is closed
        there = False
    if not there:
        raise UserError(f"{path}: no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder: give one that is")
    kind = _kind_of(path)
    if kind is not None:
        _require_one_kind(path, kind)
        return _Set(path, kind, {})
    if not path.is_dir():
        raise UserError(f"{path}: {explain(path)}")
    folders = {} if is_part else part_folders(path)
    if folders or holds_images(path):
        if folders:
            say_beside(path, folders)
        return _Set(path, None, folders)
    inside = _sets_inside(path)
    if len(inside) == 1:
        if inside[0].kind is not None:
            _require_one_kind(inside[0].path, inside[0].kind)
        return inside[0]
    if inside:
        places = ", ".join(str(found.path.relative_to(path)) for found in inside)
        raise UserError(f"{path}: holds {len(inside)} sets: give one of {places}")
    reason = explain(path)
    if reason:
        raise UserError(f"{path}: no images: {reason}")
    return _Set(path, None, {})


def _require_one_kind(path: Path, kind: _Format) -> None:
    """Say which images and shards of a folder of `kind` are not read.

    Raises:
        UserError: more loose images than shards: either may be meant.
    """
    if not path.is_dir():
        return
    shards = files_of(path, kind.suffix) if kind.suffix else []
    read = path if shards else path / "data"
    files = [
        file
        for file in files_below(path)
        if is_image(os.path.basename(file))
        or (kind.suffix and file.endswith(kind.suffix) and Path(file).parent != read)
    ]
    loose = [file for file in files if Path(file).parent == path]
    if shards and len(loose) > len(shards):
        raise UserError(
            f"{path}: either its {len(loose)} images ({os.path.basename(loose[0])}) or its "
            f"{len(shards)} {kind.suffix} files ({shards[0].name}) may be the set: move the others "
            "away"
        )
    if said := left_out([os.path.relpath(file, path) for file in files]):
        say_once(f"{path}: {said}")


def _sets_inside(path: Path, depth: int = 2) -> list[_Set]:
    """Those of sub-folders and of theirs: torchvision keeps MNIST in MNIST/raw."""
    found: list[_Set] = []
    for folder in (path / name for name in subfolders(path)):
        kind = _kind_of(folder)
        if kind is not None:
            found.append(_Set(folder, kind, {}))
        elif depth > 1:
            found += _sets_inside(folder, depth - 1)
    return found


def _kind_of(path: Path) -> _Format | None:
    found = next((kind for kind in _FORMATS if kind.matches(path)), None)
    # What lies beside the folders of images does not make them another set: archives, tables.
    if found is not None and path.is_dir() and _has_image_folders(path, found):
        return None
    if found is not None and found.name == "WebDataset":
        if are_known_archives(path):
            return None
        refuse_imagenet_archives(path)
    return found


def _has_image_folders(path: Path, beside: _Format) -> bool:
    """Whether the folder has training images in a part's folder, or class folders with images.

    beside: the kind of set that its other files would be.
    """
    if "train" in part_folders(path):
        return True
    shards = [file.name for file in files_of(path, beside.suffix)] if beside.suffix else []
    if shards == ["metadata.parquet"]:
        return holds_images(path)  # of Hugging Face: what is known of each image, beside them
    if beside.name == "parquet" and not shards:
        return False  # of Hugging Face: the files are in data/, and pictures of the set beside it
    classes = (path / name for name in subfolders(path) if holds_images(path / name))
    return len(list(islice(classes, 2))) == 2


_IMAGE_FOLDER = _Format(
    "image folder", Path.is_dir, lambda path, part, beside_train: open_image_folder(path, part)
)
# The first that matches; an image folder is what matches none of them.
_FORMATS = (
    _Format(".beton file", lambda path: path.suffix == ".beton", open_beton),
    _Format("IDX", idx.is_idx_folder, idx.open_idx),
    _Format("CIFAR", cifar.is_cifar_folder, cifar.open_cifar),
    _Format("ImageNet 32x32", imagenet32.is_imagenet32_folder, imagenet32.open_imagenet32),
    _Format("WebDataset", webdataset.is_webdataset, webdataset.open_webdataset, ".tar"),
    _Format("parquet", parquet.is_parquet, parquet.open_parquet, ".parquet"),
)
