"""Tables of the files that recipe.py writes."""

from __future__ import annotations

from statistics import mean
from typing import Any

from fastselfie.reproduce.statistics import paired_difference
from support.markdown import machine, table
from support.recipes import CONTEXT_NAME, PAPER_NAME
from support.training_tables import gain, percents


def recipes(result: dict[str, Any]) -> str:
    """The candidates of recipe.py, on held-out training images."""
    rows = []
    for row in result["rows"]:
        top1 = row["top1"]["finetuned"]
        rows.append([
            row["name"], str(len(row["seeds"])),
            " / ".join(_percent(mean(found)) for found in row["context"].values()),
            _percent(row["features"]["pretext_chance"][0]),
            _percent(mean(row["features"]["p_knn"])),
            *(percents(found) for found in top1.values()),
        ])  # fmt: skip
    shares = list(result["rows"][0]["top1"]["finetuned"])
    head = ["pretraining", "n", "pretext: own / other / no context", "chance", "k-NN",
            *(f"finetuned, {share}%" for share in shares)]  # fmt: skip
    features = result["rows"][0]["features"]
    beside = {
        "k-NN of random weights": mean(features["random_knn"]),
        "k-NN of pixels": mean(features["pixels_knn"]),
    }
    return "\n".join([*table(head, rows), "", _note(result, beside)])


def switches(result: dict[str, Any]) -> str:
    """The candidates with one switch turned, beside the one that they change."""
    found = {row["name"]: row for row in result["rows"]}
    rows = []
    for name, row in found.items():
        beside = PAPER_NAME if name.startswith(PAPER_NAME) else CONTEXT_NAME
        rows.append([
            name, str(len(row["seeds"])),
            _percent(mean(row["features"]["pretext_accuracy"])),
            _percent(row["features"]["pretext_chance"][0]),
            percents(_only(row["top1"]["finetuned"])),
            "" if name == beside else _difference(row, found[beside]),
        ])  # fmt: skip
    head = ["pretraining", "n", "pretext accuracy", "chance", "finetuned", "difference (95%)"]
    return "\n".join([*table(head, rows), "", _note(result, {})])


def pretext_by_images(result: dict[str, Any]) -> str:
    """Pretext accuracy on held-out images, by the images that pretraining has seen."""
    rows = result["rows"]
    seen = [f"{images:,} images" for images, _ in rows[0]["pretext_by_images"][0]]
    head = ["pretraining", "chance", *seen, "another image's context", "no context"]
    lines = []
    for row in rows:
        points = zip(*row["pretext_by_images"], strict=True)
        accuracies = [mean(accuracy for _, accuracy in point) for point in points]
        other = [mean(row["context"][f"pretext_accuracy_{which}_context"])
                 for which in ("other", "no")]  # fmt: skip
        chance = row["features"]["pretext_chance"][0]
        lines.append([row["name"], *map(_percent, (chance, *accuracies, *other))])
    columns = table(head, lines)
    for share in rows[0]["top1"]["finetuned"]:
        ends = [[row["name"], percents(row["top1"]["finetuned"][share])] for row in rows]
        columns += ["", *table(["pretraining", f"finetuned, {share}% of the labels"], ends)]
    return "\n".join([*columns, "", _note(result, {})])


def _difference(row: dict[str, Any], beside: dict[str, Any]) -> str:
    """Return the difference between runs of the same seed; its interval if there are several."""
    top1, other = (
        dict(zip(each["seeds"], _only(each["top1"]["finetuned"]), strict=True))
        for each in (row, beside)
    )
    difference = paired_difference(list(top1.values()), [other[seed] for seed in top1])
    return gain(difference) if len(top1) > 1 else f"{100 * difference['mean']:+.1f}"


def _only(by_share: dict[str, list[float]]) -> list[float]:
    """Return the accuracies of the only share of the labels."""
    (found,) = by_share.values()
    return found


def _note(result: dict[str, Any], beside: dict[str, float]) -> str:
    """Return the lengths of the stages, the controls and the machine."""
    settings = result["rows"][0]["config"]
    controls = {
        f"{row['name']}: supervised, {share}%" if i else f"supervised, {share}%": mean(found)
        for i, row in enumerate(result["rows"])
        for share, found in row["top1"]["supervised"].items()
    }
    figures = ", ".join(f"{name} {_percent(value)}" for name, value in (controls | beside).items())
    return (
        f"{settings['pretrain']['steps']:,} steps of pretraining with "
        f"{settings['pretrain']['batch_size']} images, {settings['finetune']['steps']:,} of "
        f"finetuning with {settings['finetune']['batch_size']}. Beside them: {figures}. "
        f"{machine(result['environment'])}."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"
