"""What the runs say: means, spreads, paired differences, and the notes that belong to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from fastselfie.data.dataset import Dataset
from fastselfie.reproduce.control import control_note
from fastselfie.reproduce.protocol import Group
from fastselfie.reproduce.scheduler import Agenda, Choice, Result
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
    """The t between whose negative and itself Student's distribution holds `level`.

    By bisection of the distribution of a whole number of degrees of `freedom` (Abramowitz and
    Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(100):  # far below what a float tells apart
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability of [-t, t]."""
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
    """mean and std, with n - 1 below the line: None of a single value."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Figures:
    """mean of first - second, pair by pair, and the ends of its 95% confidence interval.

    By Student's t over the pairs; low and high are None of a single pair.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n, middle = len(differences), mean(differences)
    if n == 1:
        return {"mean": middle, "low": None, "high": None}
    half = student_t(n - 1) * stdev(differences) / math.sqrt(n)
    return {"mean": middle, "low": middle - half, "high": middle + half}


def summary_of(agenda: Agenda, dataset: Dataset, features: Figures) -> Figures:
    """Every figure of the table and every run, accuracies as shares of 1; the paper's in percent.

    features: what `measure_features` gave.
    """
    plan = agenda.plan
    config = plan.config
    return {
        "name": config.name,
        "budget": plan.budget,
        "seeds": list(plan.seeds),
        "images": {
            "train": len(dataset.train),
            "held_out": len(dataset.held_out),
            "split": dataset.split,
        },
        "rows": [_row(agenda, labels) for labels in plan.labels],
        "features": {**features, "pretext_chance": 1 / config.masked},
        "notes": _notes(agenda, dataset),
        "runs": [agenda.results[run] for run in agenda.runs()],
        "config": config.model_dump(mode="json"),
    }


def _row(agenda: Agenda, labels: float) -> Figures:
    arms = {
        group.arm: agenda.finals(group) for group in agenda.plan.groups if group.labels == labels
    }
    row: Figures = {"labels": labels, "images": arms[FINETUNED][0]["images"]}
    row["n"] = len(arms[FINETUNED])
    for arm in (FINETUNED, SUPERVISED):
        row[arm] = _arm(agenda, Group(labels, arm), arms[arm]) if arm in arms else None
    row["difference"] = row["spread_ratio"] = None
    if SUPERVISED in arms:
        row["difference"] = paired_difference(row[FINETUNED]["top1"], row[SUPERVISED]["top1"])
        ours, theirs = row[FINETUNED]["std"], row[SUPERVISED]["std"]
        row["spread_ratio"] = theirs / ours if ours else None
    row["paper"] = _paper(agenda.plan.config.reproduce.paper, labels)
    return row


def _arm(agenda: Agenda, group: Group, finals: list[Result]) -> Figures:
    choice = agenda.choice(group)
    assert choice is not None
    top1 = [result["top1"] for result in finals]
    scores = {f"{lr:g}": score for lr, score in choice.scores.items()}
    return {**spread(top1), "top1": top1, "lr": choice.lr, "search": scores}


def _paper(name: str | None, labels: float) -> Figures | None:
    row = PAPER[name].get(labels) if name is not None else None
    if row is None:
        return None
    difference = round(row[FINETUNED][0] - row[SUPERVISED][0], 1)
    return {arm: list(row[arm]) for arm in (FINETUNED, SUPERVISED)} | {"difference": difference}


def _notes(agenda: Agenda, dataset: Dataset) -> list[str]:
    """The conditions, without which the numbers say nothing."""
    plan = agenda.plan
    config, grid = plan.config, plan.grid
    whole = "" if plan.budget == 1 else f" (--budget {plan.budget:g} of the config's)"
    seeds = f"seeds {plan.seeds[0]} to {plan.seeds[-1]}" if len(plan.seeds) > 1 else "one seed"
    notes = [
        f"{config.pretrain.steps:,} steps of pretraining with {config.pretrain.batch_size:,} "
        f"images, {config.finetune.steps:,} of finetuning with {config.finetune.batch_size:,}, "
        f"in both arms{whole}.",
        f"Pretrained on {len(dataset.train):,} images without labels; measured on "
        f"{len(dataset.held_out):,} images, {dataset.split}. {seeds[0].upper()}{seeds[1:]}, the "
        "same labelled images for all.",
    ]
    if len(grid) > 1:
        count = config.reproduce.splits
        splits = "one 90/10 split" if count == 1 else f"{count} 90/10 splits"
        widen = config.reproduce.widen
        beyond = f", and of up to {widen} beyond an end that is the best," if widen else ""
        apart = (
            ""
            if dataset.held_out_is_train
            else "; never on the images that the table is measured on"
        )
        notes.append(
            f"Learning rate, for each share and arm: the best of "
            f"{', '.join(f'{lr:g}' for lr in grid)}{beyond} on {splits} of the labelled training "
            f"images, one seed{apart}."
        )
    groups = [group for group in plan.groups if group.arm == SUPERVISED]
    supervised = [result for group in groups for result in agenda.finals(group)]
    if (note := control_note(supervised)) is not None:
        notes.append(note)
    if dataset.warning:
        notes.append(f"Warning: {dataset.warning}.")
    choices = {group: agenda.choice(group) for group in plan.groups}
    return notes + [text for group, choice in choices.items() for text in _caveats(group, choice)]


def _caveats(group: Group, choice: Choice | None) -> list[str]:
    assert choice is not None
    where, notes = f"{group.labels:g}%, {group.arm}", []
    if choice.at_edge:
        notes.append(f"{where}: the best rate, {choice.lr:g}, is at the edge of those tried.")
    lost = [f"{lr:g}" for lr, score in choice.scores.items() if score is None]
    if lost:
        notes.append(f"{where}: training diverged at {', '.join(lost)}.")
    return notes
