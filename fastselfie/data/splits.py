"""Class-balanced subsets of the labelled images, and their splits for validation.

A subset is stored as an index file, so that all trainings of a comparison use the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastselfie.data.draws import IntArray, Purpose, uniform
from fastselfie.errors import UserError
from fastselfie.system.files import write_atomically


def choose_labels(
    labels: IntArray,
    fraction: float,
    per_class: int | None,
    seed: int,
    classes: Sequence[str] = (),
) -> IntArray:
    """Choose the images that keep their label, the same number in each class.

    Subsets of one seed are nested: a larger one contains the smaller.

    Args:
        labels: (n,) int64.
        fraction: Share of all images: floor(fraction * images / classes) of each class, at least
            one, or the whole class if it has fewer. 1.0 is every image.
        per_class: Images of each class, in place of `fraction`.
        seed: Chooses the images.
        classes: Names of the classes, for messages.

    Returns:
        Sorted int64 indices.

    Raises:
        UserError: A class has fewer than `per_class` images.
    """
    if per_class is None and fraction == 1.0:
        return np.arange(len(labels), dtype=np.int64)
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), Purpose.SUBSET, 1)[:, 0]
    present = np.unique(labels)
    # 1e-9 corrects the rounding of binary fractions: 0.05 * 1000 must give 50.
    each = per_class or max(1, int(fraction * len(labels) / len(present) + 1e-9))
    chosen = []
    for label in present:
        members = np.flatnonzero(labels == label)
        if per_class is not None and len(members) < per_class:
            raise UserError(
                f"finetune.labels_per_class: class {_class_name(label, classes)} has "
                f"{len(members)} images, fewer than the {per_class} asked for: lower it"
            )
        chosen.append(members[np.argsort(draws[members], kind="stable")[:each]])
    return np.sort(np.concatenate(chosen))


def validation_split(
    labels: IntArray, seed: int, number: int, classes: Sequence[str] = ()
) -> tuple[IntArray, IntArray]:
    """Split labelled images 90 : 10 in each class, with at least one image of a class on each side.

    Args:
        labels: (n,) int64.
        seed: Chooses the images.
        number: Which of ten splits. Their validation images are disjoint in a class of ten images
            or more.
        classes: Names of the classes, for messages.

    Returns:
        Sorted int64 indices of the images to train on, and of those to validate on.

    Raises:
        UserError: A class has only one image.
    """
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), Purpose.VALIDATION, 1)[:, 0]
    taken = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(
                f"class {_class_name(label, classes)} has one labelled image, and a learning-rate "
                "search needs one to train and one to validate on: pass more --labels, or one rate "
                "in reproduce.grid"
            )
        each = max(1, len(members) // 10)
        places = (number * each + np.arange(each)) % len(members)
        taken.append(members[np.argsort(draws[members], kind="stable")[places]])
    validated = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), validated), validated


def _class_name(label: int, classes: Sequence[str]) -> str:
    return f"'{classes[label]}'" if classes else str(label)


def keep_labels(path: Path, indices: IntArray, labels: IntArray, seed: int) -> None:
    """Write the index file of a run's labelled subset, or check the one that exists.

    Args:
        path: The index file.
        indices: Sorted indices of the chosen images.
        labels: (n,) int64, of all images.
        seed: The seed that `indices` were chosen with.

    Raises:
        UserError: The file at `path` holds another choice.
    """
    text = f"# {len(indices)} of {len(labels)} images, {len(np.unique(labels))} classes, "
    text += f"seed {seed}\n" + "".join(f"{index}\n" for index in indices)
    if not path.exists():
        write_atomically(path, text)
    elif path.read_text(encoding="ascii") != text:
        raise UserError(
            f"{path}: was written for other images or another number of labels: remove it, or use "
            "another --out"
        )
