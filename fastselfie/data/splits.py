"""Class-balanced subsets of the labels, kept as index files so that every arm sees the same; and
their splits into images to train and to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastselfie.data.random import IntArray, Purpose, uniform
from fastselfie.errors import UserError
from fastselfie.system.files import write_atomically


def choose_labels(
    labels: IntArray,
    fraction: float,
    per_class: int | None,
    seed: int,
    classes: Sequence[str] = (),
) -> IntArray:
    """Indices of the images that keep their label, sorted int64.

    A share is floor(fraction x images / classes) of each class, at least one, and all of a class
    that has fewer; the share 1.0 is every image. Subsets of one seed are nested: a larger one
    holds the smaller. classes: the names of the labels, for the mistake's line.

    Raises:
        UserError: `per_class` is asked for, and a class has fewer.
    """
    if per_class is None and fraction == 1.0:
        return np.arange(len(labels), dtype=np.int64)
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), Purpose.SUBSET, 1)[:, 0]
    present = np.unique(labels)
    # The small number makes 0.05 x 1000 the 50 that is meant, whatever its binary fraction is.
    each = per_class or max(1, int(fraction * len(labels) / len(present) + 1e-9))
    chosen = []
    for label in present:
        members = np.flatnonzero(labels == label)
        if per_class is not None and len(members) < per_class:
            raise UserError(
                f"finetune.labels_per_class: class {_called(label, classes)} has {len(members)} "
                f"images, fewer than the {per_class} a class asked for: lower it"
            )
        chosen.append(members[np.argsort(draws[members], kind="stable")[:each]])
    return np.sort(np.concatenate(chosen))


def validation_split(
    labels: IntArray, seed: int, number: int, classes: Sequence[str] = ()
) -> tuple[IntArray, IntArray]:
    """(trained on, validated on) indices of labelled images, sorted int64: of each class 90 : 10.

    At least one image of a class is in each part. number: which of ten such splits: their tenths
    are disjoint in a class of ten images or more. classes: as for `choose_labels`.

    Raises:
        UserError: a class has one image.
    """
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), Purpose.VALIDATION, 1)[:, 0]
    taken = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(
                f"class {_called(label, classes)} has one labelled image, and a search of the "
                "learning rate needs one to train and one to validate on: give more --labels, or "
                "one rate in reproduce.grid"
            )
        each = max(1, len(members) // 10)
        places = (number * each + np.arange(each)) % len(members)
        taken.append(members[np.argsort(draws[members], kind="stable")[places]])
    validated = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), validated), validated


def _called(label: int, classes: Sequence[str]) -> str:
    return f"'{classes[label]}'" if classes else str(label)


def keep_labels(path: Path, indices: IntArray, labels: IntArray, seed: int) -> None:
    """Write the index file that every arm of a run shares, or check the one that is there.

    Raises:
        UserError: the file at `path` is of another choice.
    """
    text = f"# {len(indices)} of {len(labels)} images, {len(np.unique(labels))} classes, "
    text += f"seed {seed}\n" + "".join(f"{index}\n" for index in indices)
    if not path.exists():
        write_atomically(path, text)
    elif path.read_text(encoding="ascii") != text:
        raise UserError(
            f"{path}: is a choice of other images or of another number: remove it, or use "
            "another --out"
        )
