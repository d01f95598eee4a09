"""`reproduce --dry-run`: counts and times, with and without images; writes nothing."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY, tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.reproduce.forecast import ForecastRates, finetuning_rounds, forecast
from fastselfie.reproduce.protocol import make_protocol
from fastselfie.reproduce.scheduler import Scheduler


def test_counts_and_seconds_by_hand(idx_folder, tmp_path):
    config = tiny_config(data={"train": str(idx_folder)}, reproduce={"grid": [0.1, 0.2, 0.4]})
    protocol = make_protocol(config, "20,100", 5, 1.0)
    rates = ForecastRates(pretrain=16.0, finetune=4.0, devices=2, how="")
    dataset, scheduler = open_dataset(config.data), Scheduler(protocol, tmp_path / "out")
    rows = forecast(scheduler, dataset, rates, 0)
    assert [(row.trials, row.steps, row.images) for row in rows] == [
        (1, 4, "40"), (6, 2, "4"), (10, 2, "8"), (6, 2, "36"), (10, 2, "40")]  # fmt: skip
    # 4 steps of 8 images at 16 a second, on one device; 6 runs of 2 x 8 at 4, two at a time.
    assert [row.seconds for row in rows] == [2, 12, 20, 12, 20]
    odd = forecast(scheduler, dataset, rates._replace(devices=4), 0)
    assert [row.seconds for row in odd] == [2, 8, 12, 8, 12]  # 6 are 4 and 2
    # Of 12 searches and 20 seed runs: one after another; all searches, then all seed runs.
    assert [finetuning_rounds(scheduler, devices) for devices in (1, 99)] == [32, 2]
    # The arms A to D in their order: A3 B3 C3, A5 B4, B1 C5 D3, D5. With 4 devices: A3 B1, A4,
    # A1 B2 C1, B4, B1 C2 D1, C4, C1 D2, D4, D1.
    assert [finetuning_rounds(scheduler, devices) for devices in (9, 4)] == [4, 9]
    searches = [
        trial for arm in protocol.arms[:2] for trial in protocol.search_trials(arm, protocol.grid)
    ]
    for trial in searches:
        scheduler.finish(trial, {})
    scheduler.finish(protocol.seed_runs(protocol.arms[2], 0.1)[3], {})
    rest = forecast(scheduler, dataset, rates, 3)  # of 4 steps
    assert [(row.trials, row.done) for row in rest] == [(1, 0), (6, 6), (10, 0), (6, 0), (10, 1)]
    assert [row.seconds for row in rest] == [0.5, 0, 20, 12, 20]
    assert finetuning_rounds(scheduler, 1) == 6 + 19
    assert forecast(scheduler, dataset, rates, 4)[0][1:3] == (1, 1)


@pytest.mark.parametrize("name", ["cifar10", "in32", "in224"])
def test_the_papers_configs_are_planned_on_paper_without_data(cli, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = cli("reproduce", REPOSITORY / "configs" / f"{name}.yaml", "--dry-run",
                 "--plan", "8xH100")  # fmt: skip
    assert result.status == 0, result.err
    flat = " ".join(result.out.split())
    # One pretraining; four shares, two arms, six rates and five seeds.
    for words in ("in all 89 runs", "120,000", "missing data: data.train is not set", "8xH100",
                  "search at 5%", "arms finetuned and supervised"):  # fmt: skip
        assert words in flat
    assert list(tmp_path.iterdir()) == []


def test_jobs_bound_the_gpus_of_a_plan(cli):
    command = (
        "reproduce",
        REPOSITORY / "configs" / "cifar10.yaml",
        "--dry-run",
        "--plan",
        "8xH100",
    )
    all_of_them, one = (cli(*command, *jobs).out for jobs in ((), ("--jobs", 1)))
    assert all_of_them != one
    assert "on one of them" not in one


def test_this_machine_is_timed_by_steps(cli, tiny_yaml, image_folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = cli("reproduce", tiny_yaml, f"data.train={image_folder}", "--labels", "50,100",
                 "--budget", 2, "--dry-run", "--out", tmp_path / "out")  # fmt: skip
    assert result.status == 0, result.err
    assert "from steps of 8 images on cpu in fp32" in " ".join(result.out.split())
    assert "steps x 2 (--budget)" in result.out
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_gpu_is_one_line(cli, tiny_yaml):
    result = cli("reproduce", tiny_yaml, "--dry-run", "--plan", "8xH10")
    assert result.status == 2
    assert "--plan 8xH10: pass COUNTxGPU with one of H200" in result.err
