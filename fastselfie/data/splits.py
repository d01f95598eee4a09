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


def shuffled_classes(labels: IntArray, seed: int, purpose: Purpose) -> dict[int, IntArray]:
    """Return the indices of the images of each class that is present, in a random order."""
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), purpose, 1)[:, 0]
    order = np.argsort(draws, kind="stable")
    ordered = labels[order]
    return {int(label): order[ordered == label] for label in np.unique(labels)}


def held_out_split(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Choose the same share of each class; of all images if every class has too few for that.

    Args:
        labels: (n,) int64.
        fraction: The share to hold out.
        seed: Chooses the images.

    Returns:
        Sorted int64 indices of the kept images, and of the held-out images.

    Raises:
        UserError: There are too few images.
    """
    for classes in (labels, np.zeros_like(labels)):
        members = shuffled_classes(classes, seed, Purpose.SPLIT).values()
        taken = np.sort(np.concatenate([own[: int(fraction * len(own))] for own in members]))
        if len(taken):
            return np.setdiff1d(np.arange(len(labels), dtype=np.int64), taken), taken
    raise UserError(f"{len(labels)} images are too few to hold out {fraction:.0%} of them")


def choose_labels(
    labels: IntArray, fraction: float, per_class: int | None, seed: int, classes: Sequence[str] = ()
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
    members = shuffled_classes(labels, seed, Purpose.SUBSET)
    # 1e-9 corrects the rounding of binary fractions: 0.05 * 1000 must give 50.
    each = per_class or max(1, int(fraction * len(labels) / len(members) + 1e-9))
    for label, own in members.items():
        if per_class is not None and len(own) < per_class:
            raise UserError(
                f"finetune.labels_per_class: class {_class_name(label, classes)} has "
                f"{len(own)} images, fewer than the {per_class} asked for: lower it"
            )
    return np.sort(np.concatenate([own[:each] for own in members.values()]))


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
    taken = []
    for label, members in shuffled_classes(labels, seed, Purpose.VALIDATION).items():
        if len(members) < 2:
            raise UserError(
                f"class {_class_name(label, classes)} has one labelled image, and a learning-rate "
                "search needs one to train and one to validate on: pass more --labels, or one rate "
                "in reproduce.grid"
            )
        each = max(1, len(members) // 10)
        taken.append(members[(number * each + np.arange(each)) % len(members)])
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
