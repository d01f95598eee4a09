"""The folders of a set's parts, known by their names and by what lies in and beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastselfie.data.sources.folder import beside_folders, holds_images, subfolders
from fastselfie.data.sources.left_out import is_expected, left_out
from fastselfie.data.sources.shards import NO_CLASSES, TEST_NAMES, TRAIN_NAMES, USUAL_TEST_NAMES
from fastselfie.system.console import say_once


def part_folders(path: Path) -> dict[str, Path]:
    """The folders of a set's parts, by the part's name. Capitals do not count.

    A held-out part is not empty. A folder called train beside others with images, without a
    held-out part and without folders in it, is the class of trains.
    """
    found: dict[str, Path] = {}
    names = subfolders(path)
    for name in sorted(names, key=lambda name: (name != name.lower(), name)):
        part = "train" if name.lower() in TRAIN_NAMES else name.lower()
        if part == "train" or (part in TEST_NAMES and _holds_something(path / name)):
            found.setdefault(part, path / name)
    if "train" not in found:
        return _beside_classes(path, names, found)
    others = [path / name for name in names if path / name != found["train"]]
    if len(found) == 1 and any(holds_images(other) for other in others):
        loose = not subfolders(found["train"]) and holds_images(found["train"])
        return {} if loose else found
    return found


def _beside_classes(path: Path, names: Sequence[str], found: dict[str, Path]) -> dict[str, Path]:
    """Those of `found` that are held-out parts where no folder is called train.

    The folders beside them are the training classes. One with folders of the same names is a part.
    So is one with a usual name but no folders of classes; any other may be a class of that name.
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


def say_beside(path: Path, parts: dict[str, Path]) -> None:
    """Say what is left out beside the folders of the parts, and which part might be a class."""
    loose = [os.path.basename(file) for file in beside_folders(path)]
    names = (*TRAIN_NAMES, *TEST_NAMES)
    links = [name for name in loose if name.lower() in names and (path / name).is_symlink()]
    for name in links:
        say_once(f"{path / name}: a link to no folder, so the set has no such part: mend the link")
    others = [path / name for name in subfolders(path)]
    held = [folder for folder in others if folder not in parts.values() and holds_images(folder)]
    if "train" not in parts:
        for folder in parts.values():
            if held and _has_no_classes(folder) and holds_images(folder):
                say_once(
                    f"{path}: {folder.name} is taken for a held-out part without labels, since it "
                    "has no folders of classes: rename it if it is a class"
                )
        return  # the folders beside are classes
    if said := left_out([name for name in loose if name not in links]):
        say_once(f"{path}: {said}")
    if held:
        plural = "s" * (len(held) > 1)
        say_once(
            f"{path}: {len(held)} folder{plural} of images beside its parts "
            f"({', '.join(sorted(parts))}) left out, first: {held[0].name}"
        )


def _has_no_classes(folder: Path) -> bool:
    return NO_CLASSES.issuperset(name.lower() for name in subfolders(folder))


def _holds_something(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(not is_expected(entry.name) for entry in entries)
