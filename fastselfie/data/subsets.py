"""Class-balanced subsets of the labels, kept as index files so that every arm sees the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastselfie.errors import UserError
from fastselfie.rng import IntArray, Purpose, uniform


def balanced_subset(labels: IntArray, per_class: int, seed: int) -> IntArray:
    """`per_class` indices of every class, drawn once for a seed: sorted int64.

    Subsets of one seed are nested: a larger one holds the smaller.

    Raises:
        UserError: a class has fewer images than that.
    """
    draws = uniform(seed, 0, np.arange(len(labels), dtype=np.int64), Purpose.SUBSET, 1)[:, 0]
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise UserError(
                f"finetune.labels: class {label} has {len(members)} images, fewer than the "
                f"{per_class} a class asked for: lower finetune.labels or labels_per_class"
            )
        chosen.append(members[np.argsort(draws[members], kind="stable")[:per_class]])
    return np.sort(np.concatenate(chosen))


def label_subset(
    labels: IntArray, fraction: float, per_class: int | None, seed: int, path: Path
) -> IntArray:
    """The indices in the file at `path`, which is written on the first call.

    A share is turned into floor(fraction x images / classes) of each class, at least one; the
    share 1.0 is every image. An uneven set asks of no class more than its smallest one has.

    Raises:
        UserError: the file is not of these labels, or a class has too few images.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if per_class is None and fraction == 1.0:
        indices = np.arange(len(labels), dtype=np.int64)
    else:
        share = max(1, min(int(fraction * len(labels) / len(counts) + 1e-9), int(counts.min())))
        indices = balanced_subset(labels, per_class or share, seed)
    text = f"# {len(indices)} of {len(labels)} images, {len(counts)} classes, seed {seed}\n"
    text += "".join(f"{index}\n" for index in indices)
    if path.exists():
        if path.read_text(encoding="ascii") != text:
            raise UserError(
                f"{path}: is a subset of other images or of another size: remove it, or use "
                "another --out"
            )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return indices
