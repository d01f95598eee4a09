"""Finds the folders of a dataset's parts by their names and by what is in and beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastselfie.data.sources.folder import holds_images, subfolders, unexpected_files
from fastselfie.data.sources.ignored_files import describe_ignored, is_expected
from fastselfie.data.sources.shards import NO_CLASSES, TEST_NAMES, TRAIN_NAMES, USUAL_TEST_NAMES
from fastselfie.errors import UserError
from fastselfie.system.console import say_once


def find_part_folders(path: Path) -> dict[str, Path]:
    """Return the folders of a dataset's parts, by the part's name. Case does not matter.

    An empty held-out folder does not count. A folder called train is the class of trains if other
    folders hold images, there is no held-out part, and it holds images but no folders.
    """
    found: dict[str, Path] = {}
    names = subfolders(path)
    for name in sorted(names, key=lambda name: (name != name.lower(), name)):
        part = "train" if name.lower() in TRAIN_NAMES else name.lower()
        if part == "train" or (part in TEST_NAMES and _is_not_empty(path / name)):
            found.setdefault(part, path / name)
    if "train" not in found:
        return _find_beside_classes(path, names, found)
    others = [path / name for name in names if path / name != found["train"]]
    if len(found) == 1 and any(holds_images(other) for other in others):
        loose = not subfolders(found["train"]) and holds_images(found["train"])
        return {} if loose else found
    return found


def _find_beside_classes(
    path: Path, names: Sequence[str], found: dict[str, Path]
) -> dict[str, Path]:
    """Return the held-out parts among `found` for a dataset without a folder called train.

    The folders beside them are the training classes. A folder that has sub-folders of the same
    names is a part. So is a folder with a usual name but without folders of classes. Any other may
    be a class of that name.
    """
    own = {folder.name for folder in found.values()}
    classes = [name for name in names if name not in own and holds_images(path / name)]
    parts: dict[str, Path] = {}
    for part, folder in found.items():
        maybe_class = classes and holds_images(folder) and not _has_no_classes(folder)
        usual = part in USUAL_TEST_NAMES and not maybe_class
        if usual or set(subfolders(folder)).intersection(classes):
            parts[part] = folder
    return parts


def refuse_nested_parts(train: Path) -> None:
    """Raise UserError if a held-out part is inside the training folder, beside its classes."""
    names = subfolders(train)
    for name in names:
        shared = set(subfolders(train / name)).intersection(names)
        if name.lower() in TEST_NAMES and shared:
            raise UserError(
                f"{train / name}: holds folders of the same names as the classes beside it "
                f"({min(shared)}), so it is a held-out part, not a class: move it out of {train}, "
                f"or pass {train} as the dataset"
            )


def report_beside_parts(path: Path, parts: dict[str, Path]) -> None:
    """Print what is ignored beside the folders of the parts, and which part might be a class."""
    loose = [os.path.basename(file) for file in unexpected_files(path)]
    names = (*TRAIN_NAMES, *TEST_NAMES)
    links = [name for name in loose if name.lower() in names and (path / name).is_symlink()]
    for name in links:
        say_once(f"{path / name}: a broken link, so the dataset has no such part: fix the link")
    others = [path / name for name in subfolders(path)]
    held = [folder for folder in others if folder not in parts.values() and holds_images(folder)]
    if "train" not in parts:
        for folder in parts.values():
            if held and _has_no_classes(folder) and holds_images(folder):
                say_once(
                    f"{path}: {folder.name} is taken for a held-out part without labels, because "
                    "it has no folders of classes: rename it if it is a class"
                )
        return  # the folders beside them are classes
    if ignored := describe_ignored([name for name in loose if name not in links]):
        say_once(f"{path}: {ignored}")
    if held:
        plural = "s" * (len(held) > 1)
        say_once(
            f"{path}: {len(held)} folder{plural} of images beside its parts "
            f"({', '.join(sorted(parts))}) ignored, first: {held[0].name}"
        )


def _has_no_classes(folder: Path) -> bool:
    return NO_CLASSES.issuperset(name.lower() for name in subfolders(folder))


def _is_not_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(not is_expected(entry.name) for entry in entries)
