"""Opens the training part or the held-out part of a dataset, with labels that agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastselfie.data.sources.base import UNLABELLED, Source, is_labelled, relabelled
from fastselfie.data.sources.formats import IMAGE_FOLDER, DatasetLocation, Part, find_dataset
from fastselfie.data.sources.shards import TEST_NAMES
from fastselfie.errors import UserError

# What a part may be called, by its usual name.
PARTS = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def open_part(
    path: Path, part: str, classes: Sequence[str] | None = None
) -> tuple[Source, str] | None:
    """Open the training part or the test part of a dataset in any supported format.

    A dataset without parts counts as whichever part is asked for. The test part is the one that
    `open_held_out` chooses. If its class names are training classes, its labels are indices into
    the training classes.

    Args:
        path: The dataset.
        part: train or test.
        classes: The training classes; None for those of the dataset's own training part.

    Returns:
        The images and the name of the format; None if there is no such part.

    Raises:
        UserError: Nothing is there, no dataset, or a damaged one.
    """
    location = find_dataset(path)
    found = _choose_held_out(location, classes) if part != "train" else None
    found = found or location.open(part, False)
    return None if found is None else (found.source, found.format)


def open_exact_part(path: Path, part: str) -> Source:
    """Open the part of this name, with labels that are indices into the training classes.

    A dataset without parts counts as whichever part is asked for.

    Args:
        path: The dataset.
        part: A key of PARTS.

    Raises:
        UserError: As in `open_part`; or there are other parts alone, or other classes.
    """
    location = find_dataset(path)
    names = PARTS[part]
    found = [opened for name in names if (opened := location.open(name, True)) is not None]
    train = location.open("train", True)
    if not found:
        parts = [name for name in TEST_NAMES if location.open(name, True) is not None]
        apart = part != "train" and (parts or train is not None)
        whole = None if apart else location.open(part, False)
        if whole is None:
            raise UserError(f"{path}: holds no {part} images")
        return whole.source
    if part == "train" or train is None or not is_labelled(found[0].source):
        return found[0].source
    aligned = align_labels(found[0].source, train.source.classes)
    if aligned is None:
        raise UserError(f"{path}: the classes of its {part} part are not those of its train part")
    return aligned


def open_held_out(path: Path, classes: Sequence[str]) -> Part | None:
    """Open the first part in the order of TEST_NAMES that has labels of the training classes.

    If there is none, take the first part with any labels, else the first part. If the training
    images have no labels, take the first part.

    Args:
        path: The dataset.
        classes: The training classes.

    Returns:
        The part; None for a dataset without parts.

    Raises:
        UserError: As in `open_part`.
    """
    return _choose_held_out(find_dataset(path), classes)


def _choose_held_out(location: DatasetLocation, classes: Sequence[str] | None) -> Part | None:
    """Choose as `open_held_out` says; `classes` may be None, as in `open_part`."""
    found: list[Part] = []
    for name in TEST_NAMES:
        part = location.open(name, True)
        if part is None:
            continue
        found.append(part)
        if classes is not None and list(classes) == list(UNLABELLED):
            return part
        if not is_labelled(part.source):
            continue
        if classes is None:
            # If the classes are only numbers from the files, all parts share them.
            own = part.source.classes
            numbered = part.format != IMAGE_FOLDER.name and list(own) == list(
                map(str, range(len(own)))
            )
            train = None if numbered else location.open("train", True)
            classes = own if train is None else train.source.classes
        aligned = align_labels(part.source, classes)
        if aligned is not None:
            return Part(aligned, part.format, name, [other.name for other in found[:-1]])
    labelled = [part for part in found if is_labelled(part.source)]
    return next(iter(labelled or found), None)


def align_labels(source: Source, classes: Sequence[str]) -> Source | None:
    """Return `source` with its labels as indices into `classes`, matched by class name.

    Returns:
        None if a class in use is not in `classes`. Also None if the shared names come in another
        order: then the labels of one of the two may be wrong. Names that are numbers are exempt,
        because folders are sorted as text.
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
