"""Rates, seconds and hours from made-up logs, and where they are shown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.reproductions import FIGURES
from rich.console import Console

from fastselfie.reproduce import cost
from fastselfie.reproduce.protocol import Arm
from fastselfie.reproduce.table import print_table, write_table

BATCH = 10
LOG = [
    {"step": 0, "top1": 0.1},
    {"step": 10, "images_per_s": 50.0},  # 2 s
    {"step": 20, "images_per_s": 100.0},  # 1 s
    {"step": 20, "top1": 0.5},
    {"step": 30, "images_per_s": 100.0},
    {"step": 30, "top1": 0.6},
]


def test_seconds_are_those_of_the_steps():
    found = cost.training_cost(LOG, BATCH)
    assert found == {"images_per_s": pytest.approx(75.0), "seconds": pytest.approx(4.0)}
    assert cost.training_cost(LOG[:1], BATCH) is None
    assert cost.accuracy_over_time(LOG, BATCH) == [(0.0, 0.1), (3.0, 0.5), (4.0, 0.6)]


def costs_of(out, facts, with_pretraining=True):
    arms = [Arm(5.0, "finetuned"), Arm(5.0, "supervised")]
    stage = SimpleNamespace(batch_size=BATCH)
    config = SimpleNamespace(pretrain=stage, finetune=stage)
    trials = {arm: [SimpleNamespace(name=f"{arm.start}-{seed}") for seed in (0, 1)] for arm in arms}
    protocol = SimpleNamespace(config=config, arms=arms, seed_runs=lambda arm, _: trials[arm])
    scheduler = SimpleNamespace(
        protocol=protocol, finished_arm=lambda _: (SimpleNamespace(lr=0.1), [])
    )
    folders = [out / "runs" / trial.name for arm in arms for trial in trials[arm]]
    for folder in folders + [out / "pretrain"] * with_pretraining:
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(line) + "\n" for line in LOG)
        (folder / "log.jsonl").write_text(lines, encoding="utf-8")
    (out / "environment.json").write_text(json.dumps(facts), encoding="utf-8")
    return cost.write_costs(scheduler, out)


def test_hours_are_of_cores_on_a_cpu_and_of_gpus_elsewhere(tmp_path):
    on_cpu = costs_of(tmp_path / "cpu", {"device": "cpu", "threads": "2"})
    assert on_cpu["unit"] == "core-hours"
    assert on_cpu["pretraining"]["hours"] == pytest.approx(4 * 2 / 3600)
    finetuned, supervised = on_cpu["arms"]
    assert finetuned["hours_with_pretraining"] == pytest.approx(2 * 4 * 2 / 3600)
    assert supervised["hours_with_pretraining"] == supervised["hours"]
    assert finetuned["curve"] == [[0.0, 0.1], [3.0, 0.5], [4.0, 0.6]]
    assert json.loads((tmp_path / "cpu" / cost.FILE).read_text()) == on_cpu

    facts = {"device": "NVIDIA H100", "threads": "2", "processes": "8"}
    on_gpus = costs_of(tmp_path / "gpu", facts)
    assert on_gpus["unit"] == "GPU-hours"
    assert on_gpus["pretraining"]["hours"] == pytest.approx(4 * 8 / 3600)
    assert on_gpus["arms"][0]["hours"] == pytest.approx(4 / 3600)


@pytest.mark.parametrize("width", [60, 200])
def test_the_table_and_the_page_show_them(tmp_path, width):
    costs = costs_of(tmp_path / "runs", {"device": "cpu"})
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_table(FIGURES, Path("made-up/table.html"), console, costs)
    assert "core-hours" in console.file.getvalue().replace("\n", " ")
    assert "75" in console.file.getvalue()
    write_table(FIGURES, tmp_path, costs)
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert "core-hours with pretraining" in page
    assert page.count("<svg") == 2


def test_without_logs_there_is_no_row(tmp_path):
    assert costs_of(tmp_path, {}, with_pretraining=False)["pretraining"] is None
