"""What the accuracies of a reproduction cost: images/s, seconds, hours of cores or GPUs.

Everything is read from the logs of the stages. Two reproductions of the same bits differ in it, so
it is no part of table.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fastselfie.report.curves import line_chart
from fastselfie.reproduce.scheduler import RUNS, Scheduler
from fastselfie.reproduce.statistics import Figures
from fastselfie.runs.folder import ENVIRONMENT, read_facts
from fastselfie.stage_names import FINETUNED, PRETRAIN
from fastselfie.system.files import write_atomically
from fastselfie.training.metrics_log import read_log

FILE = "cost.json"
HEAD = ("labels", "arm", "images/s", "seconds")


def write_costs(scheduler: Scheduler, out: Path) -> Figures:
    """Write cost.json in `out`, the folder of a finished reproduction, and return its figures.

    Returns:
        unit: "core-hours" or "GPU-hours". pretraining: images_per_s, seconds and hours; None
        without a log. arms: the same for each arm, as means over the seed runs that have a log,
        with hours_with_pretraining and curve, the accuracy by seconds of training.
    """
    facts = read_facts(out / ENVIRONMENT)
    on_cpu = facts.get("device", "cpu") == "cpu"
    units = int(facts.get("threads", 1)) if on_cpu else 1
    batches = scheduler.protocol.config.pretrain.batch_size
    before = training_cost(read_log(out / PRETRAIN / "log.jsonl"), batches)
    if before is not None:
        before["hours"] = before["seconds"] * units * int(facts.get("processes", 1)) / 3600
    costs: Figures = {
        "unit": "core-hours" if on_cpu else "GPU-hours",
        "pretraining": before,
        "arms": _arms(scheduler, out, units, before),
    }
    write_atomically(out / FILE, json.dumps(costs, indent=1) + "\n")
    return costs


def _arms(scheduler: Scheduler, out: Path, units: int, before: Figures | None) -> list[Figures]:
    arms = []
    for arm in scheduler.protocol.arms:
        choice, _ = scheduler.finished_arm(arm)
        trials = scheduler.protocol.seed_runs(arm, choice.lr)
        logs = [read_log(out / RUNS / trial.name / "log.jsonl") for trial in trials]
        batch = scheduler.protocol.config.finetune.batch_size
        found = [each for log in logs if (each := training_cost(log, batch)) is not None]
        if not found:  # a control's results may have been copied without logs
            continue
        cost = {key: mean(each[key] for each in found) for key in found[0]}
        cost["hours"] = cost["seconds"] * units / 3600
        also = before["hours"] if before is not None and arm.start == FINETUNED else 0.0
        curves = [accuracy_over_time(log, batch) for log in logs]
        points = [curve for curve in curves if len(curve) == len(curves[0])]
        arms.append(
            {
                "labels": arm.labels,
                "start": arm.start,
                **cost,
                "hours_with_pretraining": cost["hours"] + also,
                "curve": [
                    [mean(values) for values in zip(*same_step, strict=True)]
                    for same_step in zip(*points, strict=True)
                ],
            }
        )
    return arms


def training_cost(log: Sequence[dict[str, Any]], batch_size: int) -> Figures | None:
    """Return images_per_s and seconds of the steps in a stage's log; None if it has none.

    Evaluations and checkpoints are not counted, nor is work that a kill lost.
    """
    times = _times(log, batch_size)
    if not times:
        return None
    step, seconds = times[-1]
    return {"images_per_s": step * batch_size / seconds, "seconds": seconds}


def accuracy_over_time(log: Sequence[dict[str, Any]], batch_size: int) -> list[tuple[float, float]]:
    """Return (seconds of training, top-1) of every evaluation in a stage's log."""
    times = [(0, 0.0), *_times(log, batch_size)]
    measured = [(line["step"], line["top1"]) for line in log if "top1" in line]
    return [(max(seconds for at, seconds in times if at <= step), top1) for step, top1 in measured]


def _times(log: Sequence[dict[str, Any]], batch_size: int) -> list[tuple[int, float]]:
    """Return the steps of a log's training lines, each with the seconds of training until it."""
    times: list[tuple[int, float]] = []
    before, seconds = 0, 0.0
    for line in log:
        if line.get("images_per_s") and line["step"] > before:
            seconds += (line["step"] - before) * batch_size / line["images_per_s"]
            before = line["step"]
            times.append((before, seconds))
    return times


def cost_cells(costs: Figures) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the table of costs."""
    unit = costs["unit"]
    rows = []
    if (before := costs["pretraining"]) is not None:
        rows.append(["", "pretraining", *_rate(before), f"{before['hours']:.2f}", ""])
    for arm in costs["arms"]:
        hours = (arm["hours"], arm["hours_with_pretraining"])
        rows.append(
            [f"{arm['labels']:g}%", arm["start"], *_rate(arm), *(f"{h:.2f}" for h in hours)]
        )
    return [*HEAD, unit, f"{unit} with pretraining"], rows


def _rate(cost: Figures) -> list[str]:
    return [f"{cost['images_per_s']:,.0f}", f"{cost['seconds']:,.0f}"]


def time_chart(costs: Figures) -> str | None:
    """Return an SVG chart of accuracy over training time; None without matplotlib or points.

    The curve of a finetuned arm begins where pretraining ends.
    """
    before = costs["pretraining"]["seconds"] if costs["pretraining"] else 0.0
    curves = {
        f"{arm['start']}, {arm['labels']:g}%": [
            ((seconds + (before if arm["start"] == FINETUNED else 0.0)) / 60, top1)
            for seconds, top1 in arm["curve"]
        ]
        for arm in costs["arms"]
    }
    return line_chart(curves, "minutes of training", "test top-1", percent=True)
