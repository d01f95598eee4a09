"""A folder of image files: one sub-folder a class, or loose images without labels."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastselfie.data.sources.base import EXTENSIONS, UNLABELLED, FolderSource
from fastselfie.data.sources.left_out import is_expected, left_out
from fastselfie.data.sources.shards import named_as_parts
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_Ids = frozenset[tuple[int, int]]

_TINY_IMAGENET = "val_annotations.txt"  # beside images/: the class of each image, a line an image


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    # A hidden file may be a picture's metadata with the picture's suffix: macOS's ._NAME.jpg.
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders inside, links to folders among them, in order; no hidden ones.

    Raises:
        UserError: it cannot be listed.
    """
    return [entry.name for entry in _entries(folder) if _is_folder(entry) and _is_visible(entry)]


def holds_images(folder: Path) -> bool:
    """Whether there is an image in `folder`, at any depth."""
    return any(found.images for found in _walk(str(folder), _ids(folder.resolve().parents)))


def files_below(folder: Path) -> list[str]:
    """Paths of the files in `folder` at any depth but for those that are expected beside images."""
    found = _walk(str(folder), _ids(folder.resolve().parents))
    return [path for each in found for path in (*each.images, *each.others)]


def beside_folders(folder: Path) -> list[str]:
    """Paths of the files of `folder` itself but for those that are expected beside images."""
    found = _listed(str(folder))
    return sorted(found.images + found.others)


def open_image_folder(folder: Path, part: str, skip: Collection[str] = ()) -> FolderSource:
    """The images of a folder: of one sub-folder a class, searched to any depth, or loose ones.

    Links to folders are followed. The order does not depend on the machine. What is left out is
    said. An empty sub-folder names a class of a held-out part, which needs no image of each.

    Args:
        folder: holds the sub-folders of the classes, or images.
        part: train, or a held-out part.
        skip: names of sub-folders that are no classes.

    Raises:
        UserError: no images, images both in sub-folders and beside them, a class without images.
    """
    if (folder / _TINY_IMAGENET).is_file() and (folder / "images").is_dir():
        if _listed(str(folder / "images")).images:
            return _open_tiny_imagenet(folder)
        skip = {*skip, "images"}  # its images were sorted into folders of classes
    classes = [name for name in subfolders(folder) if name not in skip]
    whole = folder.resolve()
    above = _ids((whole, *whole.parents))
    own = _listed(str(folder))
    paths: list[str] = []
    labels: list[int] = []
    others = [*own.others]
    for label, name in enumerate(classes):
        before = len(paths)
        for found in _walk(os.path.join(folder, name), above):
            paths += found.images
            others += found.others
        labels += [label] * (len(paths) - before)
    said = left_out([os.path.relpath(path, folder) for path in others])
    if own.images and paths:
        raise UserError(
            f"{folder}: has images of its own ({os.path.basename(own.images[0])}) beside "
            f"sub-folders of images ({classes[labels[0]]}): give each its class's sub-folder, or "
            "none"
        )
    if not own.images and not paths:
        nothing = said or "it is empty"
        raise UserError(f"{folder}: no images, neither in sub-folders nor in itself: {nothing}")
    if paths and part == "train":
        _require_all(folder, classes, labels, others)
    if said:
        say_once(f"{folder}: {said}")
    if own.images:
        return FolderSource(own.images, np.zeros(len(own.images), dtype=np.int64), UNLABELLED)
    return FolderSource(paths, np.asarray(labels, dtype=np.int64), classes)


def _require_all(
    folder: Path, classes: Sequence[str], labels: Sequence[int], others: Sequence[str]
) -> None:
    """Raise UserError where a class has no image. others: paths of what is left out."""
    used = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in used]
    if not empty:
        return
    prefix = os.path.join(folder, empty[0], "")
    inside = left_out([path[len(prefix) :] for path in others if path.startswith(prefix)])
    held = f" ({inside})" if inside else ""
    way_out = "remove the folder"
    if len(used) == 1:
        way_out += f", or give {folder / classes[labels[0]]}, if its sub-folders are the classes"
    if named_as_parts([classes[label] for label in used]):
        way_out += ", or rename the folders of parts to train and val"
    raise UserError(f"{folder / empty[0]}: a class without images{held}: {way_out}")


def _open_tiny_imagenet(folder: Path) -> FolderSource:
    """Tiny ImageNet's validation images: loose, with a table of their classes."""
    table = folder / _TINY_IMAGENET
    text = table.read_text(encoding="utf-8", errors="replace")  # no name in it has such a letter
    rows = [line.split("\t") for line in text.splitlines() if line]
    if any(len(row) < 2 for row in rows):
        raise UserError(f"{table}: not a line of NAME, CLASS, ... an image: fetch it again")
    class_of = {row[0]: row[1] for row in rows}
    names = [os.path.basename(path) for path in _listed(str(folder / "images")).images]
    lacking = next((name for name in names if name not in class_of), None)
    if lacking is not None:
        raise UserError(f"{table}: names no class of {lacking}: fetch it again")
    classes = sorted(set(class_of.values()))
    labels = np.asarray([classes.index(class_of[name]) for name in names], dtype=np.int64)
    return FolderSource([str(folder / "images" / name) for name in names], labels, classes)


@dataclass
class _Found:
    """Paths of the files of one folder, in order. others: what is not taken, and not expected."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _listed(folder: str) -> _Found:
    found = _Found()
    for entry in _entries(folder):
        if _is_folder(entry):
            found.folders += [entry.path] * _is_visible(entry)
        elif is_image(entry.name) and _is_readable(entry):
            found.images.append(entry.path)
        elif not is_expected(entry.name):
            found.others.append(entry.path)
    return found


def _walk(folder: str, above: _Ids) -> Iterator[_Found]:
    """Each folder from `folder` down: its files, then those of its sub-folders.

    above: the folders that it lies in. A link to one of those, or to one on the way down, would
    never end: it is left out.
    """
    own = _ids((Path(folder),))
    if own <= above:
        yield _Found(others=[folder])
        return
    found = _listed(folder)
    yield found
    for inner in found.folders:
        yield from _walk(inner, above | own)


def _ids(folders: Iterable[Path]) -> _Ids:
    """What tells folders apart whatever path leads to them."""
    states = [os.stat(path) for path in folders]
    return frozenset((state.st_dev, state.st_ino) for state in states)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_readable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to none, which is an error to name; a pipe never ends."""
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:  # a link to itself
        return True


def _is_visible(entry: os.DirEntry[str]) -> bool:
    # __MACOSX is what macOS packs beside the files of an archive: their metadata.
    return not entry.name.startswith(".") and entry.name != "__MACOSX"
