"""Resume in a folder, take control trials from another, and refuse folders that do not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.reproductions import ARGUMENTS, make_reproduction, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    before = torch.get_num_threads()
    yield make_reproduction(tmp_path_factory.mktemp("reproduce"))
    torch.set_num_threads(before)  # every run here has one: the order of a sum is another on two


def test_another_config_or_set_is_refused(setting, cli):
    config, out = setting
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for change, words in (
        ("reproduce.splits=2", "reproduce.splits (1 -> 2)"),
        ("finetune.weight_decay=0.1", "finetune.weight_decay (0.0001 -> 0.1)"),
        (f"data.test={config.parent / 'images' / 'train'}", "started on other images"),
    ):
        result = cli("reproduce", config, *ARGUMENTS, change, "--out", out)
        assert result.status == 2
        assert words in result.err
    again = ("reproduce", config, *ARGUMENTS, "--out", out)
    planned = cli(*again, "--dry-run").out
    assert "in all 9 runs, all done" in " ".join(planned.split())
    assert "0 of 4" in planned
    for change, words in (
        ("runtime.precision=bf16", "started in fp32, but this machine uses bf16"),
        ("finetune.batch_size=4", "finetune.batch_size (8 -> 4)"),
    ):
        for dry in ((), ("--dry-run",)):
            result = cli(*again, change, *dry)
            assert result.status == 2
            assert words in result.err
    # Neither this machine nor its images count for another, on paper.
    elsewhere = ("runtime.precision=bf16", "data.train=/none", "--dry-run", "--plan", "H100")
    result = cli(*again, *elsewhere)
    assert result.status == 0, result.err
    assert "all done" in result.out
    shorter = cli("reproduce", config, *ARGUMENTS, "--budget", 0.5, "--out", out)
    assert "pretrain.steps (4 -> 2)" in shorter.err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_an_ablation_of_pretraining_takes_the_control_of_another(setting, cli, tmp_path):
    """What the control lacks is trained; a control with another config is refused."""
    config, reference = setting
    out, control = tmp_path / "out", ("--control", reference)
    command = ("reproduce", config, *ARGUMENTS, "--out", out)
    result = cli(*command, "finetune.batch_size=4", *control)
    refused_line = result.err.splitlines()[-1]
    assert "finetune.batch_size (8 -> 4)" in refused_line
    assert "another --control" in refused_line
    result = cli(*command, "--control", tmp_path)
    assert "has no reproduce.json" in result.err
    result = cli(*command, "runtime.precision=bf16", *control)
    assert "was started in fp32, but this machine uses bf16" in result.err
    assert not out.exists()

    part = tmp_path / "part"
    shutil.copytree(reference, part)
    (part / "runs" / "labels-50" / "supervised" / "seed-1" / "result.json").unlink()
    command = (*command, "pretrain.pad_mode=zero", "--control", part)
    planned = " ".join(cli(*command, "--dry-run").out.split())
    assert "in all 9 runs, 3 of them done" in planned
    assert not out.exists()
    result = cli(*command)
    assert result.status == 0, result.err
    assert f"3 supervised trials are taken from {part}" in " ".join(result.err.split())
    assert "1 of the 2 supervised runs are taken from part" in " ".join(table(out)["notes"])
    found, before = table(out)["rows"][0], table(reference)["rows"][0]
    assert found["supervised"] == before["supervised"]
    losses = [
        [trial["heldout_loss"] for trial in table(folder)["runs"] if trial["arm"] == "finetuned"]
        for folder in (out, reference)
    ]
    assert losses[0] != losses[1]
    trained = {path.parent.name for path in (out / "runs").glob("*/supervised/*/*.pt")}
    assert trained == {"seed-1"}


def test_a_seed_run_of_a_rate_that_a_search_no_longer_chooses_is_kept_aside(setting, cli, tmp_path):
    config, reference = setting
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    (row,) = table(out)["rows"]
    before = row["finetuned"]["lr"]
    for path in (out / "runs" / "labels-50" / "finetuned").glob("lr-*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "top1": float(result["lr"] != before)}))
    result = cli("reproduce", config, *ARGUMENTS, "--out", out)
    assert result.status == 0, result.err
    assert table(out)["rows"][0]["finetuned"]["lr"] != before
    assert table(out)["rows"][0]["supervised"] == row["supervised"]
    kept = out / "runs" / "labels-50" / "finetuned" / f"seed-0-lr-{before:g}" / "result.json"
    assert json.loads(kept.read_text())["lr"] == before


def test_a_folder_of_unknown_precision_goes_on_and_stays_one(setting, cli, tmp_path):
    """Earlier versions did not record it."""
    config, reference = setting
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    path = out / "reproduce.json"
    record = json.loads(path.read_text())
    assert record.pop("precision") == "fp32"
    path.write_text(json.dumps(record))
    assert cli("reproduce", config, *ARGUMENTS, "--out", out).status == 0
    assert "precision" not in json.loads(path.read_text())
