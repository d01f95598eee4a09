"""`train` in the folder of an earlier run: what is resumed, trained again or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from fastselfie.errors import UserError
from fastselfie.runs.load import pretrained_of
from fastselfie.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def only_latest(stage):
    """Delete the older checkpoints of a stage and return latest.pt."""
    for path in stage.glob("step-*.pt"):
        path.unlink()
    return stage / "latest.pt"


def test_labels_are_chosen_again_if_the_first_start_trained_nothing(
    cli, tiny_yaml, image_folder, tmp_path
):
    """For example, an unreadable image ended it, and the user removed the image."""
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


def test_a_truncated_summary_is_rewritten(trained, cli, tiny_yaml, image_folder):
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


def test_resume_never_moves_the_earlier_run_aside(trained, cli, tiny_yaml, image_folder):
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


def test_a_checkpoint_of_another_model_is_refused(trained, cli, tiny_yaml, image_folder):
    """A swapped file: its config fits, and its weights have another width."""
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


def test_resuming_on_other_images_is_refused(trained, cli, tiny_yaml, image_folder):
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


def test_the_control_can_be_trained_later(cli, tiny_yaml, image_folder, tmp_path):
    command = ("train", tiny_yaml, f"data.train={image_folder}", "--out", tmp_path / "run")
    first = json.loads(cli(*command, "finetune.control=false").out)
    assert "supervised_accuracy" not in first
    second = json.loads(cli(*command).out)
    assert second["finetuned_accuracy"] == first["finetuned_accuracy"]
    assert "supervised_accuracy" in second


def test_a_network_that_was_pretrained_with_a_removed_key_is_refused():
    config = tiny_config()
    recorded = config.model_dump(mode="json")
    recorded["pretrain"]["ema"] = 0.9
    found = Checkpoint(Path("latest.pt"), {"config": json.dumps(recorded)})
    with pytest.raises(UserError, match=r"^latest\.pt: was made with pretrain\.ema=0\.9"):
        pretrained_of(config, found)
