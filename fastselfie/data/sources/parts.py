"""Opens the training part or the held-out part of a dataset, with labels that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastselfie.data.sources.base import UNLABELLED, Source, is_labelled, relabelled
from fastselfie.data.sources.file_list import FileList
from fastselfie.data.sources.formats import IMAGE_FOLDER, DatasetLocation, Part, find_dataset
from fastselfie.data.sources.shards import TEST_NAMES
from fastselfie.errors import UserError

# What a part may be called, by its usual name.
PARTS = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPOKEN = {"train": "training", "held_out": "held-out"}


def open_part(
    path: Path | FileList | DatasetLocation, part: str, classes: Sequence[str] | None = None
) -> Part:
    """Open one part of a dataset in any supported format.

    A dataset without parts counts as whichever part is asked for. If the class names of a held-out
    part are training classes, its labels are indices into the training classes.

    Args:
        path: The dataset, as `find_place` or `find_remote` returns it.
        part: A key of PARTS; or held_out, the part that `choose_held_out` chooses.
        classes: The training classes, for held_out; None for those of the dataset's own training
            part.

    Raises:
        UserError: Nothing is there, no dataset, or a damaged one; or it has other parts alone, or a
            part has other classes than the training part.
    """
    location = path if isinstance(path, DatasetLocation) else find_dataset(path)
    if part == "held_out":
        found = choose_held_out(location, classes)
    else:
        named = (location.open(name, True) for name in PARTS[part])
        found = next((opened for opened in named if opened is not None), None)
    found = found or location.open(part, False)
    if found is None:
        kind = _SPOKEN.get(part, part)
        raise UserError(f"{path}: holds no {kind} images: pass another part or dataset")
    train = location.open("train", True) if part in ("val", "test") else None
    if train is None or not is_labelled(found.source):
        return found
    aligned = align_labels(found.source, train.source.classes)
    if aligned is None:
        raise UserError(f"{path}: the classes of its {part} part are not those of its train part")
    return replace(found, source=aligned)


def choose_held_out(location: DatasetLocation, classes: Sequence[str] | None) -> Part | None:
    """Open the first part in the order of TEST_NAMES that has labels of the training classes.

    If there is none, take the first part with any labels, else the first part. If the training
    images have no labels, take the first part.

    Args:
        location: The dataset.
        classes: The training classes; None for those of the dataset's own training part.

    Returns:
        The part; None for a dataset without parts.

    Raises:
        UserError: A part is damaged.
    """
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
            own = list(part.source.classes)
            numbered = part.format != IMAGE_FOLDER.name and own == [*map(str, range(len(own)))]
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
