"""Opens a folder of image files: one sub-folder for each class, or images without labels."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastselfie.data.sources.base import UNLABELLED, FolderSource
from fastselfie.data.sources.decode import EXTENSIONS
from fastselfie.data.sources.ignored_files import describe_ignored, is_expected
from fastselfie.data.sources.shards import named_as_parts
from fastselfie.errors import UserError
from fastselfie.system.console import say_once

_Ids = frozenset[tuple[int, int]]

_TINY_IMAGENET = "val_annotations.txt"  # beside images/: one line for each image, with its class


def is_image(name: str) -> bool:
    """Return whether a file of this name counts as an image."""
    # A hidden file may be the metadata of an image with the image's suffix: macOS's ._NAME.jpg.
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`, including links, excluding hidden ones.

    Raises:
        UserError: `folder` cannot be listed.
    """
    return [entry.name for entry in _entries(folder) if _is_folder(entry) and _is_visible(entry)]


def holds_images(folder: Path) -> bool:
    """Return whether `folder` holds an image at any depth."""
    return any(found.images for found in _walk(str(folder), _ids(folder.resolve().parents)))


def files_below(folder: Path) -> list[str]:
    """Return the paths of all files below `folder`, except those expected beside images."""
    found = _walk(str(folder), _ids(folder.resolve().parents))
    return [path for each in found for path in (*each.images, *each.others)]


def unexpected_files(folder: Path) -> list[str]:
    """Return the paths of the files directly in `folder`, except those expected beside images."""
    found = _list(str(folder))
    return sorted(found.images + found.others)


def open_image_folder(folder: Path, part: str, skip: Collection[str] = ()) -> FolderSource:
    """Open the images of a folder: one sub-folder for each class, at any depth, or loose images.

    Links to folders are followed. The order does not depend on the machine. Ignored files are
    reported. In a held-out part an empty sub-folder names a class; in a training part every class
    needs an image.

    Args:
        folder: Holds the sub-folders of the classes, or images.
        part: train, or a held-out part.
        skip: Names of sub-folders that are not classes.

    Raises:
        UserError: There are no images, or images both in sub-folders and beside them, or a class
            without images.
    """
    if (folder / _TINY_IMAGENET).is_file() and (folder / "images").is_dir():
        if _list(str(folder / "images")).images:
            return _open_tiny_imagenet(folder)
        skip = {*skip, "images"}  # the user moved its images to folders of classes
    classes = [name for name in subfolders(folder) if name not in skip]
    whole = folder.resolve()
    above = _ids((whole, *whole.parents))
    own = _list(str(folder))
    paths: list[str] = []
    labels: list[int] = []
    others = [*own.others]
    for label, name in enumerate(classes):
        before = len(paths)
        for found in _walk(os.path.join(folder, name), above):
            paths += found.images
            others += found.others
        labels += [label] * (len(paths) - before)
    ignored = describe_ignored([os.path.relpath(path, folder) for path in others])
    if own.images and paths:
        raise UserError(
            f"{folder}: has loose images ({os.path.basename(own.images[0])}) beside sub-folders of "
            f"images ({classes[labels[0]]}): move all images to sub-folders, or none"
        )
    if not own.images and not paths:
        nothing = ignored or "it is empty"
        raise UserError(f"{folder}: no images in it or in its sub-folders: {nothing}")
    if paths and part == "train":
        _require_images_of_all(folder, classes, labels, others)
    if ignored:
        say_once(f"{folder}: {ignored}")
    if own.images:
        return FolderSource(own.images, np.zeros(len(own.images), dtype=np.int64), UNLABELLED)
    return FolderSource(paths, np.asarray(labels, dtype=np.int64), classes)


def _require_images_of_all(
    folder: Path, classes: Sequence[str], labels: Sequence[int], others: Sequence[str]
) -> None:
    """Raise UserError if a class has no image. `others` are the paths of ignored files."""
    used = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in used]
    if not empty:
        return
    prefix = os.path.join(folder, empty[0], "")
    inside = describe_ignored([path[len(prefix) :] for path in others if path.startswith(prefix)])
    held = f" ({inside})" if inside else ""
    way_out = "remove the folder"
    if len(used) == 1:
        way_out += f", or pass {folder / classes[labels[0]]} if its sub-folders are the classes"
    if named_as_parts([classes[label] for label in used]):
        way_out += ", or rename the folders of parts to train and val"
    raise UserError(f"{folder / empty[0]}: a class without images{held}: {way_out}")


def _open_tiny_imagenet(folder: Path) -> FolderSource:
    """Open Tiny ImageNet's validation images: loose files, with a table of their classes."""
    table = folder / _TINY_IMAGENET
    text = table.read_text(encoding="utf-8", errors="replace")  # all names in it are ASCII
    rows = [line.split("\t") for line in text.splitlines() if line]
    if any(len(row) < 2 for row in rows):
        raise UserError(f"{table}: its lines are not NAME, CLASS, ...: download it again")
    class_of = {row[0]: row[1] for row in rows}
    names = [os.path.basename(path) for path in _list(str(folder / "images")).images]
    missing = next((name for name in names if name not in class_of), None)
    if missing is not None:
        raise UserError(f"{table}: has no class for {missing}: download it again")
    classes = sorted(set(class_of.values()))
    labels = np.asarray([classes.index(class_of[name]) for name in names], dtype=np.int64)
    return FolderSource([str(folder / "images" / name) for name in names], labels, classes)


@dataclass
class _Listing:
    """Sorted paths in one folder. `others` are files that are neither images nor expected."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _list(folder: str) -> _Listing:
    found = _Listing()
    for entry in _entries(folder):
        if _is_folder(entry):
            found.folders += [entry.path] * _is_visible(entry)
        elif is_image(entry.name) and _is_file_or_broken_link(entry):
            found.images.append(entry.path)
        elif not is_expected(entry.name):
            found.others.append(entry.path)
    return found


def _walk(folder: str, above: _Ids) -> Iterator[_Listing]:
    """Yield the listing of `folder`, then those of its sub-folders, depth first.

    A link to a folder in `above`, or to one on the way down, would never end: it is ignored.

    Args:
        folder: Where to begin.
        above: The folders that it is in.
    """
    own = _ids((Path(folder),))
    if own <= above:
        yield _Listing(others=[folder])
        return
    found = _list(folder)
    yield found
    for inner in found.folders:
        yield from _walk(inner, above | own)


def _ids(folders: Iterable[Path]) -> _Ids:
    """Return the identities of folders, which do not depend on the path to them."""
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


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    # A broken link fails when it is read, by name. A pipe would block for ever.
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:  # a link to itself
        return True


def _is_visible(entry: os.DirEntry[str]) -> bool:
    # macOS adds the folder __MACOSX with metadata to archives.
    return not entry.name.startswith(".") and entry.name != "__MACOSX"
