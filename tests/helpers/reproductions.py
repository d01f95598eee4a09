"""A finished reproduction for tests, and the table of one."""

from __future__ import annotations

import json

from conftest import picture, tiny_config

from fastselfie.reproduce.execute import reproduce
from fastselfie.reproduce.protocol import make_protocol

ARGUMENTS = ("--labels", "50", "--seeds", "2")


def make_reproduction(root):
    """Return (config file, folder of its finished reproduction); 20 + 6 images per class."""
    for part, count in (("train", 20), ("test", 6)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(1000 * label + 100 * (part == "test") + i).save(folder / f"{i}.png")
    config = tiny_config(
        data={"train": str(root / "images")},
        reproduce={"grid": [0.05, 0.1]},
        runtime={"threads": 1},
    )
    (root / "tiny.yaml").write_text(config.to_yaml(), encoding="utf-8")
    reproduce(make_protocol(config, "50", 2, 1.0), root / "one", jobs=1)
    return root / "tiny.yaml", root / "one"


def table(out):
    return json.loads((out / "table.json").read_text(encoding="utf-8"))


# A table's figures, made up.
FIGURES = {
    "name": "made-up",
    "rows": [
        {
            "labels": 5.0, "images": 2500, "n": 5,
            "finetuned": {"mean": 0.7591, "std": 0.0042, "top1": [], "lr": 0.05, "search": {}},
            "supervised": {"mean": 0.742, "std": 0.0126, "top1": [], "lr": 0.1, "search": {}},
            "difference": {"mean": 0.0171, "low": -0.0013, "high": 0.0355},
            "spread_ratio": 3.0,
            "paper": {"finetuned": [75.9, 0.4], "supervised": [75.9, 0.7], "difference": 0.0},
        },
        {
            "labels": 0.5, "images": 250, "n": 1,
            "finetuned": {"mean": 0.5, "std": None, "top1": [], "lr": 0.4, "search": {}},
            "supervised": None, "difference": None, "spread_ratio": None, "paper": None,
        },
    ],
    "features": {
        "bank": 50000, "p_knn": 0.5, "p_linear_probe": 0.6, "random_knn": 0.3,
        "random_linear_probe": 0.4, "pixels_knn": 0.35, "bank_places": 4096,
        "p_knn_places": 0.51, "random_knn_places": 0.41, "pixels_knn_standardised": 0.36,
        "pretext_accuracy": 0.8, "pretext_accuracy_cropped": 0.85, "pretext_chance": 0.25,
    },
    "notes": ["A note with <b> & [bold]brackets[/]."],
}  # fmt: skip
