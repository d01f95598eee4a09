"""`train` from the command line: what a run leaves, its warnings and its mistakes."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest
import yaml
from conftest import REPOSITORY, picture

from fastselfie.training import checkpoint_writer as saver
from fastselfie.training.checkpoint import load_checkpoint


def test_a_run_writes_its_summary_report_and_config(trained, image_folder):
    out, figures = trained
    assert {"pretext_accuracy", "finetuned_accuracy", "supervised_accuracy", "images_per_s",
            "seconds"} <= set(figures)  # fmt: skip
    assert 0 <= figures["pretext_accuracy"] <= 1
    assert figures["images_per_s"] > 0
    assert json.loads((out / "summary.json").read_text()) == figures
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["train"] == str(image_folder)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    assert page.count('src="data:image/png;base64,') == 3  # step 0, step 4, the originals
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert sorted(p.name for p in (out / "pretrain" / "pictures").iterdir()) == [
        "0000000.png", "0000004.png", "original.png"]  # fmt: skip
    assert list((out / "pretrain" / "tensorboard").iterdir())


def test_a_warmup_longer_than_its_stage_gives_a_warning(cli, tiny_yaml, image_folder, tmp_path):
    long = ("pretrain.warmup_steps=5", "finetune.warmup_steps=9")
    command = ("train", tiny_yaml, f"data.train={image_folder}", *long, "--stage", "pretrain")
    result = cli(*command, "--out", tmp_path / "x")
    assert result.status == 0, result.err
    said = " ".join(result.err.split())
    assert "warning: pretrain.warmup_steps is 5, more than pretrain.steps = 4" in said
    assert "finetune.warmup_steps" not in said  # which does not run


def test_held_out_classes_without_training_images_give_a_warning(cli, tiny_yaml, tmp_path):
    for index in range(20):
        folder = tmp_path / "photos" / f"{index}"
        folder.mkdir(parents=True)
        picture(index).save(folder / "only.png")
    command = ("train", tiny_yaml, f"data.train={tmp_path / 'photos'}", "finetune.control=false")
    said = " ".join(cli(*command, "--out", tmp_path / "x").err.split())
    assert "warning: 2 of the 2 held-out images are of classes without a training image" in said


def test_training_images_that_are_also_held_out_give_a_warning(
    cli, tiny_yaml, image_folder, tmp_path
):
    """A dataset without parts gives all images for every part."""
    folder = image_folder / "train"
    command = ("train", tiny_yaml, f"data.train={folder}", "--stage", "pretrain")
    said = " ".join(cli(*command, f"data.test={folder}", "--out", tmp_path / "x").err.split())
    assert f"warning: {folder}: the held-out images are the training images" in said
    other = cli(*command, f"data.test={image_folder}", "--out", tmp_path / "y")
    assert "warning" not in other.err


def test_stages_can_be_run_one_by_one(cli, tiny_yaml, image_folder, tmp_path):
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    early = cli(*command, "--stage", "finetuned")
    assert early.status == 2
    assert "has no pretrained network" in early.err
    assert cli(*command, "--stage", "pretrain").status == 0
    figures = json.loads(cli(*command, "--stage", "finetune").out)
    assert {"pretext_accuracy", "finetuned_accuracy", "supervised_accuracy"} <= set(figures)


def mistakes():
    return {
        "no_data": (["data.train=null"], "data.train is not set"),
        "missing": (["data.train=/no/such"], "/no/such: no such file or folder"),
        "unknown_key": (["pretrain.stepz=3"], "did you mean 'pretrain.steps'?"),
        "wrong_type": (["seed=yes"], "seed is true"),
        "too_many_labels": (
            ["finetune.labels_per_class=9"],
            "class 'cat' has 8 images, fewer than the 9",
        ),
        "gpu": (["runtime.device=cuda"], "runtime.device is cuda, but this torch is a CPU build"),
        "one_class": (["data.train={one_class}"], "the training images are of one class, 'only'"),
        "fp16": (["runtime.precision=fp16"], "fp16, which needs a GPU"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_mistake_is_one_line_and_status_2(cli, tiny_yaml, image_folder, tmp_path, name):
    overrides, words = mistakes()[name]
    (tmp_path / "one" / "only").mkdir(parents=True)
    for i in range(20):
        picture(i).save(tmp_path / "one" / "only" / f"{i}.png")
    overrides = [text.format(one_class=tmp_path / "one") for text in overrides]
    out = tmp_path / "run"
    result = cli("train", tiny_yaml, f"data.train={image_folder}", *overrides, "--out", out)
    assert result.status == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in result.err
    assert not out.exists()


def test_an_unreadable_image_ends_the_run_and_is_named(cli, tiny_yaml, image_folder, tmp_path):
    (image_folder / "train" / "cat" / "2.png").write_bytes(b"\x89PNG cut")
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    assert result.status == 2
    assert "cat/2.png: unreadable image" in result.err
    assert not (tmp_path / "run" / "pretrain" / "latest.pt").exists()


@pytest.mark.parametrize("kind", ["file", "inside"])
def test_an_out_that_cannot_be_a_folder_is_named(cli, tiny_yaml, image_folder, tmp_path, kind):
    (tmp_path / "taken").write_text("x")
    out = tmp_path / "taken" if kind == "file" else tmp_path / "taken" / "run"
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 2
    assert "another --out" in result.err


def test_brackets_in_a_path_are_shown_as_they_are(cli, tiny_yaml, image_folder, tmp_path):
    odd = image_folder.rename(tmp_path / "[old] [")
    command = ("train", tiny_yaml, f"data.train={odd}", "--out", tmp_path / "run")
    assert cli(*command, "--dry-run").status == 0
    assert "[old] [" in cli(*command, "--stage", "pretrain").err


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(
    cli, tiny_yaml, image_folder, tmp_path, monkeypatch
):
    save = saver.save_checkpoint

    def full_at_4(path, state):
        if state["step"] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, state)

    monkeypatch.setattr(saver, "save_checkpoint", full_at_4)
    out = tmp_path / "run"
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 2
    assert re.search(r"step-0000004\.pt: No space left on device: make room", result.err)
    assert load_checkpoint(out / "pretrain" / "latest.pt")["step"] == 2


@pytest.mark.slow
def test_in224_steps_on_any_image_folder(cli, image_folder, tmp_path):
    """The paper's network on a CPU, one step of two images."""
    result = cli(
        "train", REPOSITORY / "configs" / "in224.yaml", f"data.train={image_folder}",
        "pretrain.steps=1", "pretrain.batch_size=2", "pretrain.eval_images=2", "data.workers=0",
        "--stage", "pretrain", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert json.loads(result.out)["pretext_accuracy"] >= 0


def test_synthetic_data_needs_no_folder(cli, tiny_yaml, tmp_path):
    result = cli("train", tiny_yaml, "data.loader=synthetic", "data.limit=64", "--out",
                 tmp_path / "run", "--stage", "pretrain")  # fmt: skip
    assert result.status == 0, result.err
