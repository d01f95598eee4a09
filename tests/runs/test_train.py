"""`train` and `evaluate` from the command line, from images to the page, and their mistakes."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest
import torch
import yaml
from conftest import REPOSITORY, picture

from fastselfie import __version__
from fastselfie.training import checkpoint_writer as saver
from fastselfie.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def trained(cli, tiny_yaml, image_folder, tmp_path):
    out = tmp_path / "run"
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 0, result.err
    return out, json.loads(result.out.splitlines()[-1])


def only_latest(stage):
    """latest.pt, whose older brothers are gone."""
    for path in stage.glob("step-*.pt"):
        path.unlink()
    return stage / "latest.pt"


def test_a_run_leaves_its_figures_its_page_and_its_config(trained, image_folder):
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


def test_a_warm_up_that_outlasts_its_stage_is_said(cli, tiny_yaml, image_folder, tmp_path):
    long = ("pretrain.warmup_steps=5", "finetune.warmup_steps=9")
    command = ("train", tiny_yaml, f"data.train={image_folder}", *long, "--stage", "pretrain")
    result = cli(*command, "--out", tmp_path / "x")
    assert result.status == 0, result.err
    said = " ".join(result.err.split())
    assert "warning: pretrain.warmup_steps is 5, more than pretrain.steps = 4" in said
    assert "finetune.warmup_steps" not in said  # which does not run


def test_held_out_classes_that_none_trains_are_said(cli, tiny_yaml, tmp_path):
    for index in range(20):
        folder = tmp_path / "photos" / f"{index}"
        folder.mkdir(parents=True)
        picture(index).save(folder / "only.png")
    command = ("train", tiny_yaml, f"data.train={tmp_path / 'photos'}", "finetune.control=false")
    said = " ".join(cli(*command, "--out", tmp_path / "x").err.split())
    assert "warning: 2 of the 2 held-out images are of classes without a training image" in said


def test_training_images_that_are_held_out_are_said(cli, tiny_yaml, image_folder, tmp_path):
    """A set without parts is whatever part is asked for."""
    folder = image_folder / "train"
    command = ("train", tiny_yaml, f"data.train={folder}", "--stage", "pretrain")
    said = " ".join(cli(*command, f"data.test={folder}", "--out", tmp_path / "x").err.split())
    assert f"warning: {folder}: the held-out images are the training images" in said
    other = cli(*command, f"data.test={image_folder}", "--out", tmp_path / "y")
    assert "warning" not in other.err


def test_labels_chosen_by_a_start_that_trained_nothing_are_chosen_anew(
    cli, tiny_yaml, image_folder, tmp_path
):
    """As where an unreadable image ended it, which its user then removed."""
    bad = image_folder / "train" / "cat" / "bad.jpg"
    bad.write_text("no image")
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "x")
    assert "bad.jpg: unreadable image" in cli(*command).err
    assert (tmp_path / "x" / "labels.txt").exists()
    bad.unlink()
    result = cli(*command)
    assert result.status == 0, result.err


def test_the_same_command_again_trains_nothing(trained, cli, tiny_yaml, image_folder):
    out, figures = trained
    stamp = (out / "pretrain" / "latest.pt").stat().st_mtime_ns
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 0
    again = json.loads(result.out.splitlines()[-1])
    assert again["pretext_accuracy"] == figures["pretext_accuracy"]
    assert again["finetuned_accuracy"] == figures["finetuned_accuracy"]
    assert (out / "pretrain" / "latest.pt").stat().st_mtime_ns == stamp


def test_evaluate_measures_every_network(trained, cli, image_folder):
    out, figures = trained
    result = cli("evaluate", out)
    measures = json.loads(result.out.splitlines()[-1])
    assert set(measures) == {"pretrain", "finetuned", "supervised"}
    assert measures["finetuned"]["top1"] == pytest.approx(figures["finetuned_accuracy"])
    assert set(measures["pretrain"]) == {"knn", "linear_probe"}
    other = json.loads(cli("evaluate", out, "--data", image_folder / "train").out)
    assert set(other) == set(measures)


def test_a_summary_that_was_cut_short_is_written_again(trained, cli, tiny_yaml, image_folder):
    out, figures = trained
    path = out / "summary.json"
    path.write_text(path.read_text(encoding="utf-8")[:20], encoding="utf-8")
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    result = cli(*command, "--stage", "pretrain")
    assert result.status == 0
    assert result.err.count("summary.json: is damaged") == 1
    summary = json.loads(result.out.splitlines()[-1])
    assert summary["pretext_accuracy"] == figures["pretext_accuracy"]
    assert "finetuned_accuracy" not in summary
    assert {"knn", "linear_probe", "knn_random_weights", "knn_pixels"} <= set(figures)
    assert json.loads(path.read_text(encoding="utf-8")) == summary


def test_stages_one_by_one(cli, tiny_yaml, image_folder, tmp_path):
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    early = cli(*command, "--stage", "finetuned")
    assert early.status == 2
    assert "has no pretrained network" in early.err
    assert cli(*command, "--stage", "pretrain").status == 0
    figures = json.loads(cli(*command, "--stage", "finetune").out)
    assert {"pretext_accuracy", "finetuned_accuracy", "supervised_accuracy"} <= set(figures)


def test_never_moves_the_earlier_run_aside(trained, cli, tiny_yaml, image_folder):
    out, _ = trained
    command = ("train", tiny_yaml, f"data.train={image_folder}", "pretrain.lr=0.2", "--out", out)
    refused = cli(*command)
    assert refused.status == 2
    assert "pretrain.lr (0.1 -> 0.2)" in refused.err
    assert "--resume never" in refused.err
    assert cli(*command, "--resume", "never", "--stage", "pretrain").status == 0
    (aside,) = [p for p in out.parent.iterdir() if p.name.startswith("run.")]
    assert load_checkpoint(aside / "finetuned" / "latest.pt")["step"] == 2
    assert not (out / "finetuned").exists()


def test_resume_from_another_run_and_from_a_checkpoint(trained, cli, tiny_yaml, image_folder):
    out, figures = trained
    command = ("train", tiny_yaml, f"data.train={image_folder}")
    copy = cli(*command, "--resume", out, "--out", out.parent / "copy")
    assert json.loads(copy.out)["finetuned_accuracy"] == figures["finetuned_accuracy"]
    single = cli(*command, "--resume", out / "pretrain" / "latest.pt", "--out", out.parent / "one",
                 "--stage", "pretrain")  # fmt: skip
    assert json.loads(single.out)["pretext_accuracy"] == figures["pretext_accuracy"]
    busy = cli(*command, "--resume", out, "--out", out.parent / "copy")
    assert busy.status == 2
    assert "has checkpoints of its own" in busy.err
    gone = cli(*command, "--resume", out / "nothing", "--out", out.parent / "third")
    assert gone.status == 2
    assert not (out.parent / "third").exists()


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


def test_a_bad_image_ends_the_run_with_its_path(cli, tiny_yaml, image_folder, tmp_path):
    (image_folder / "train" / "cat" / "2.png").write_bytes(b"\x89PNG cut")
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    assert result.status == 2
    assert "cat/2.png: unreadable image" in result.err
    assert not (tmp_path / "run" / "pretrain" / "latest.pt").exists()


def test_a_checkpoint_of_another_model_is_refused(trained, cli, tiny_yaml, image_folder):
    """Its config says the right width and its weights are of another: a swapped file."""
    out, _ = trained
    path = only_latest(out / "pretrain")
    state = load_checkpoint(path)
    state["model"]["patch_network.norm.weight"] = torch.ones(7)
    state["step"] = 2
    save_checkpoint(path, state)
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 2
    assert "pretrain/latest.pt: its weights do not fit" in result.err


def test_a_damaged_checkpoint_is_named(trained, cli, tiny_yaml, image_folder):
    out, _ = trained
    path = only_latest(out / "pretrain")
    path.write_bytes(path.read_bytes()[:1000])
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 2
    assert f"{path}: damaged" in result.err


def test_a_refused_resume_leaves_the_run_as_it_was(trained, cli, tiny_yaml, image_folder):
    out, _ = trained
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for change in ("model.width=8", "pretrain.lr=0.4", "data.loader=synthetic"):
        for stage in ("all", "pretrain", "finetune"):
            refused = cli("train", tiny_yaml, f"data.train={image_folder}", change, "--out", out,
                          "--stage", stage)  # fmt: skip
            assert refused.status == 2, (change, stage)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_other_images_are_not_gone_on_with(trained, cli, tiny_yaml, image_folder):
    out, _ = trained
    (image_folder / "test" / "cat" / "0.png").unlink()
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 2
    assert "trained or measured on other images" in result.err


def test_an_unfinished_pretraining_is_not_finetuned(cli, tiny_yaml, image_folder, tmp_path):
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    cli(*command, "--stage", "pretrain")
    path = only_latest(tmp_path / "run" / "pretrain")
    save_checkpoint(path, {**load_checkpoint(path), "step": 3})
    result = cli(*command, "--stage", "finetune")
    assert result.status == 2
    assert "pretraining stopped at step 3 of 4" in result.err


def test_the_control_can_come_later(cli, tiny_yaml, image_folder, tmp_path):
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    first = json.loads(cli(*command, "finetune.control=false").out)
    assert "supervised_accuracy" not in first
    second = json.loads(cli(*command).out)
    assert second["finetuned_accuracy"] == first["finetuned_accuracy"]
    assert "supervised_accuracy" in second


def test_evaluate_reads_the_weights_of_the_run(trained, cli):
    """Another checkpoint, other measures: nothing is measured of a fresh network."""
    out, _ = trained
    before = json.loads(cli("evaluate", out).out)
    for name in ("pretrain", "finetuned"):
        state = load_checkpoint(out / name / "latest.pt")
        state["model"] = {k: torch.zeros_like(v) if "weight" in k else v
                          for k, v in state["model"].items()}  # fmt: skip
        save_checkpoint(out / name / "latest.pt", state)
    after = json.loads(cli("evaluate", out).out)
    assert after["finetuned"]["heldout_loss"] != before["finetuned"]["heldout_loss"]
    assert after["pretrain"]["knn"] == 0.5  # all features alike
    assert after["supervised"] == before["supervised"]


def test_evaluate_measures_the_images_that_are_given(trained, cli, tmp_path):
    out, _ = trained
    for name in ("cat", "dog"):
        (tmp_path / "other" / name).mkdir(parents=True)
        picture(77).save(tmp_path / "other" / name / "0.png")
    measures = json.loads(cli("evaluate", out, "--data", tmp_path / "other").out)
    assert measures["finetuned"]["top1"] == 0.5  # the same picture under both names


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


def test_evaluate_refuses_what_is_no_run(cli, tmp_path):
    result = cli("evaluate", tmp_path)
    assert result.status == 2
    assert "not a run" in result.err


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


def test_doctor_and_version(cli):
    result = cli("doctor")
    assert result.status == 0
    for words in ("torch", "device", "disk", "shared memory", "matplotlib"):
        assert words in result.out
    assert cli("--version").out.strip() == __version__


def test_waiting_threads_leave_their_core_to_others(cli, monkeypatch):
    """Set before torch is loaded: see main."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    cli("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cli("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_usage_mistakes_have_status_2(cli):
    assert cli("train").status == 2
    assert cli("tarin").status == 2
