"""`train --dry-run`: the plan, and what it says without data."""

from __future__ import annotations

from dataclasses import replace

from conftest import REPOSITORY, tiny_config
from rich.table import Table

from fastselfie.runs import dry_run
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.memory import MemoryEstimate


def test_dry_run_prints_the_plan_and_touches_nothing(cli, tiny_yaml, image_folder, tmp_path):
    out = tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out, "--dry-run")
    assert result.status == 0
    flat = " ".join(result.out.split())
    for words in ("16 of 2 classes", "4 of 16 patches masked", "parameters of P", "4 steps x 8",
                  "MiB an image", "batch_size: 8", "resident"):  # fmt: skip
        assert words in flat
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_on_a_missing_path_is_refused(cli, tiny_yaml):
    result = cli("train", tiny_yaml, "data.train=/no/such", "--dry-run")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert "/no/such: no such file or folder" in result.err


def test_dry_run_without_data_says_how_to_make_it(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("train", REPOSITORY / "configs" / "in224.yaml", "--dry-run")
    assert result.status == 0
    flat = " ".join(result.out.split())
    assert "data.train is not set" in flat
    assert "ILSVRC2012_img_train.tar" in flat
    assert "8.54 M" in flat
    assert "120,000 steps x 1,024 images" in flat
    assert list(tmp_path.iterdir()) == []


def test_dry_run_names_a_memory_that_is_too_small_for_one_image(cli, monkeypatch):
    monkeypatch.setattr(dry_run, "total_memory", lambda device: 2**20)
    result = cli("train", "quickstart", "data.loader=synthetic", "--dry-run")
    lines = [line for line in result.out.splitlines() if line.startswith("missing memory: ")]
    assert [line.split(": ")[1] for line in lines] == ["pretraining", "finetuning"]
    assert "a pass of one image needs about 0." in lines[0]


def test_dry_run_says_whether_a_gpu_compiles_each_stage():
    """A stage with progressive sizes is not compiled."""
    config = tiny_config(finetune={"progressive": [16]})
    gpu = replace(choose_accelerator(config.runtime), compile="default")
    table = Table()
    for name in ("pretrain", "finetune"):
        estimate = MemoryEstimate(1, 1, 1)
        dry_run._add_stage(table, name, getattr(config, name), estimate, gpu)
    texts = dict(zip(*(column._cells for column in table.columns), strict=True))
    assert texts["pretrain, compile"] == "default"
    assert texts["finetune, compile"].startswith("off: each image size of finetune.progressive")
