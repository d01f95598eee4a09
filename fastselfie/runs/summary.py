"""A run's summary.json: the last figures of each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from fastselfie.runs.folder import PAGE, SUMMARY, read_facts
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED, StageName
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically
from fastselfie.training.metrics_log import read_log


def write_summary(
    out: Path, measures: Mapping[StageName, Mapping[str, float]], seconds: float
) -> dict[str, Any]:
    """Write summary.json and return it; figures of stages that did not run now are kept.

    Args:
        out: the run's folder.
        measures: the last metrics of each stage that ran.
        seconds: of the run, added to those in the file.

    Raises:
        OSError: the file cannot be written.
    """
    path = out / SUMMARY
    summary = read_facts(path)
    if path.exists() and not summary:
        say(f"warning: {path}: is damaged: it loses the figures of stages that did not run now")
    if PRETRAIN in measures:
        last, log = measures[PRETRAIN], read_log(out / PRETRAIN / "log.jsonl")
        rates = [line["images_per_s"] for line in log if "images_per_s" in line]
        summary["pretext_accuracy"] = last["pretext_accuracy"]
        summary["images_per_s"] = median(rates) if rates else None  # as on the page
        summary |= {name: last[name] for name in ("knn", "linear_probe") if name in last}
        # Baselines, measured at step 0: k-NN on P's initial weights and on pixels.
        first: Mapping[str, Any] = next((line for line in log if "knn_pixels" in line), {})
        baselines = {"knn_random_weights": "knn", "knn_pixels": "knn_pixels"}
        summary |= {name: first[key] for name, key in baselines.items() if key in first}
    for name in (FINETUNED, SUPERVISED):
        if name in measures:
            summary[f"{name}_accuracy"] = measures[name]["top1"]
    summary["seconds"] = round(summary.get("seconds", 0.0) + seconds, 1)
    summary["report"] = str(out / PAGE)
    write_atomically(path, json.dumps(summary, indent=1) + "\n")
    return summary
