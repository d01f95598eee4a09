"""Summarise the trials: means, standard deviations, paired differences, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from fastselfie.data.dataset import Dataset
from fastselfie.reproduce.control import control_note
from fastselfie.reproduce.protocol import STARTS
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.stage_names import FINETUNED, SUPERVISED

Figures = dict[str, Any]

# Table 1 of the paper: test top-1 in percent, mean and std of 5 runs, by percent of the labels.
PAPER: dict[str, dict[float, dict[str, tuple[float, float]]]] = {
    "cifar10": {
        5: {SUPERVISED: (75.9, 0.7), FINETUNED: (75.9, 0.4)},
        8: {SUPERVISED: (79.3, 1.0), FINETUNED: (80.3, 0.3)},
        20: {SUPERVISED: (88.3, 0.3), FINETUNED: (89.1, 0.5)},
        100: {SUPERVISED: (95.5, 0.2), FINETUNED: (95.7, 0.1)},
    },
    "imagenet32": {
        5: {SUPERVISED: (13.1, 0.8), FINETUNED: (18.3, 0.1)},
        10: {SUPERVISED: (25.9, 0.5), FINETUNED: (30.2, 0.5)},
        20: {SUPERVISED: (32.7, 0.4), FINETUNED: (33.5, 0.2)},
        100: {SUPERVISED: (55.7, 0.6), FINETUNED: (56.4, 0.6)},
    },
    "imagenet224": {
        5: {SUPERVISED: (35.6, 0.7), FINETUNED: (46.7, 0.4)},
        10: {SUPERVISED: (59.6, 0.2), FINETUNED: (61.9, 0.2)},
        20: {SUPERVISED: (65.7, 0.2), FINETUNED: (67.1, 0.2)},
        100: {SUPERVISED: (76.9, 0.2), FINETUNED: (77.0, 0.1)},
    },
}


def student_t(freedom: int, level: float = 0.95) -> float:
    """Return the two-sided quantile of Student's t distribution.

    Found by bisection of the distribution function (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        freedom: Degrees of freedom, a whole number.
        level: Probability of the interval from -t to t.
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(100):  # more bits than a float has
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Return the probability of [-t, t]."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    sine = math.sin(angle)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def spread(values: Sequence[float]) -> Figures:
    """Return mean and std, with n - 1 in the denominator; std is None for a single value."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Figures:
    """Return the mean of first - second over pairs, and its 95% confidence interval.

    The interval is Student's t over the pairs; its ends, low and high, are None for one pair.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n, middle = len(differences), mean(differences)
    if n == 1:
        return {"mean": middle, "low": None, "high": None}
    half = student_t(n - 1) * stdev(differences) / math.sqrt(n)
    return {"mean": middle, "low": middle - half, "high": middle + half}


def summary_of(scheduler: Scheduler, dataset: Dataset, features: Figures) -> Figures:
    """Return all figures of the table and all results.

    Args:
        scheduler: Of a finished reproduction.
        dataset: Its images.
        features: From `measure_features`.

    Returns:
        Accuracies as shares of 1; the paper's in percent, as printed there.
    """
    protocol = scheduler.protocol
    config = protocol.config
    return {
        "name": config.name,
        "budget": protocol.budget,
        "seeds": list(protocol.seeds),
        "images": {
            "train": len(dataset.train),
            "held_out": len(dataset.held_out),
            "split": dataset.split,
        },
        "rows": [_row(scheduler, labels) for labels in protocol.labels],
        "features": {**features, "pretext_chance": 1 / config.masked},
        "notes": _notes(scheduler, dataset),
        "runs": [scheduler.results[trial] for trial in scheduler.trials()],
        "config": config.model_dump(mode="json"),
    }


def _row(scheduler: Scheduler, labels: float) -> Figures:
    keys = ("labels", "images", "n", *STARTS, "difference", "spread_ratio", "paper")
    row: Figures = {**dict.fromkeys(keys), "labels": labels}
    for arm in (arm for arm in scheduler.protocol.arms if arm.labels == labels):
        choice, results = scheduler.finished_arm(arm)
        row |= {"images": results[0]["images"], "n": len(results)}
        top1 = [result["top1"] for result in results]
        scores = {f"{lr:g}": score for lr, score in choice.scores.items()}
        row[arm.start] = {**spread(top1), "top1": top1, "lr": choice.lr, "search": scores}
    if row[SUPERVISED] is not None:
        row["difference"] = paired_difference(row[FINETUNED]["top1"], row[SUPERVISED]["top1"])
        ours, theirs = row[FINETUNED]["std"], row[SUPERVISED]["std"]
        row["spread_ratio"] = theirs / ours if ours else None
    paper = PAPER.get(scheduler.protocol.config.reproduce.paper or "", {}).get(labels)
    if paper is not None:
        difference = round(paper[FINETUNED][0] - paper[SUPERVISED][0], 1)
        top1_of = {start: list(top1) for start, top1 in paper.items()}
        row["paper"] = {**top1_of, "difference": difference}
    return row


def _notes(scheduler: Scheduler, dataset: Dataset) -> list[str]:
    """Return the conditions of the numbers, one sentence or two each."""
    protocol = scheduler.protocol
    config, grid = protocol.config, protocol.grid
    whole = "" if protocol.budget == 1 else f" (--budget {protocol.budget:g} of the config's)"
    first, last = protocol.seeds[0], protocol.seeds[-1]
    seeds = f"Seeds {first} to {last}" if last > first else "One seed"
    notes = [
        f"{config.pretrain.steps:,} steps of pretraining with {config.pretrain.batch_size:,} "
        f"images, {config.finetune.steps:,} of finetuning with {config.finetune.batch_size:,}, "
        f"in both arms{whole}.",
        f"Pretrained on {len(dataset.train):,} images without labels; measured on "
        f"{len(dataset.held_out):,} images, {dataset.split}. {seeds}, the same labelled images "
        "for all.",
    ]
    if len(grid) > 1:
        count = config.reproduce.splits
        splits = "one 90/10 split" if count == 1 else f"{count} 90/10 splits"
        widen = config.reproduce.widen
        beyond = f", and of up to {widen} beyond the grid if its edge is best," if widen else ""
        measured = "never on the images that the table is measured on"
        apart = "" if dataset.held_out_is_train else f"; {measured}"
        notes.append(
            f"Learning rate, for each share and arm: the best of "
            f"{', '.join(f'{lr:g}' for lr in grid)}{beyond} on {splits} of the labelled training "
            f"images, one seed{apart}."
        )
    arms = {arm: scheduler.finished_arm(arm) for arm in protocol.arms}
    supervised = [r for arm, (_, found) in arms.items() if arm.start == SUPERVISED for r in found]
    if (note := control_note(supervised)) is not None:
        notes.append(note)
    if dataset.warning:
        notes.append(f"Warning: {dataset.warning}.")
    for arm, (choice, _) in arms.items():
        where = f"{arm.labels:g}%, {arm.start}"
        if choice.at_edge:
            notes.append(f"{where}: the best rate, {choice.lr:g}, is at the edge of those tried.")
        lost = [f"{lr:g}" for lr, score in choice.scores.items() if score is None]
        if lost:
            notes.append(f"{where}: training diverged at {', '.join(lost)}.")
    return notes
