"""A run's page: one HTML file with its figures, curves and pictures inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from fastselfie.atomic import write_atomically
from fastselfie.config import Config
from fastselfie.log import read_log
from fastselfie.report.curves import curve, points_of


def write_page(
    config: Config, run: Path, summary: Mapping[str, Any], environment: Mapping[str, str]
) -> Path:
    """Write `run`/report.html from what the run left in its folder, and return its path.

    Nothing is fetched when it is opened. All text from outside is escaped.
    """
    logs = {
        name: read_log(run / name / "log.jsonl") for name in ("pretrain", "finetuned", "supervised")
    }
    template = Environment(
        loader=PackageLoader("fastselfie.report", "."), autoescape=True, trim_blocks=True
    ).get_template("page.html")
    page = template.render(
        config=config,
        yaml=config.to_yaml(),
        summary=summary,
        chance=1 / config.masked,
        environment=environment,
        curves=_curves(logs, config),
        pictures=_pictures(run / "pretrain" / "pictures", logs["pretrain"]),
        command=f"fastselfie train {run / 'config.yaml'} --out {run}",
    )
    path = run / "report.html"
    write_atomically(path, page)
    return path


def _curves(logs: Mapping[str, list[dict[str, Any]]], config: Config) -> dict[str, str]:
    """Title -> SVG of each chart that has something to show."""
    pretraining = logs["pretrain"]
    arms = {name: logs[name] for name in ("finetuned", "supervised")}

    def of_arms(key: str) -> dict[str, list[tuple[float, float]]]:
        return {name: points_of(log, key) for name, log in arms.items()}

    charts = {
        "Pretext accuracy": curve(
            {
                "training": points_of(pretraining, "accuracy"),
                "held out": points_of(pretraining, "pretext_accuracy"),
            },
            "pretraining step",
            "share of holes answered right",
            chance=1 / config.masked,
        ),
        "Pretext loss": curve(
            {
                "training": points_of(pretraining, "loss"),
                "held out": points_of(pretraining, "heldout_loss"),
            },
            "pretraining step",
            "cross-entropy, nats",
        ),
        "Throughput": curve(
            {"pretraining": points_of(pretraining, "images_per_s")},
            "pretraining step",
            "images a second",
        ),
        "Training loss on the labels": curve(of_arms("loss"), "step", "cross-entropy, nats"),
        "Held-out loss": curve(of_arms("heldout_loss"), "step", "cross-entropy, nats"),
        "Held-out accuracy": curve(of_arms("top1"), "step", "top-1"),
    }
    return {title: svg for title, svg in charts.items() if svg is not None}


def _pictures(folder: Path, log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mask-prediction columns in order of their steps, the originals last."""
    accuracy = dict(points_of(log, "pretext_accuracy"))
    steps = {int(path.stem): path for path in sorted(folder.glob("[0-9]*.png"))}
    columns = [
        {"title": f"step {step:,}", "accuracy": accuracy.get(step), "data": _uri(path)}
        for step, path in steps.items()
    ]
    if not columns:
        return []
    original = {"title": "original", "accuracy": None, "data": _uri(folder / "original.png")}
    return [*columns, original]


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
