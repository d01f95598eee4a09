"""`evaluate` from the command line: which networks, weights and images it measures."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import picture

from fastselfie.training.checkpoint import load_checkpoint, save_checkpoint


def test_evaluate_measures_every_network(trained, cli, image_folder):
    out, figures = trained
    result = cli("evaluate", out)
    measures = json.loads(result.out.splitlines()[-1])
    assert set(measures) == {"pretrain", "finetuned", "supervised"}
    assert measures["finetuned"]["top1"] == pytest.approx(figures["finetuned_accuracy"])
    assert set(measures["pretrain"]) == {
        "heldout_loss", "pretext_accuracy", "pretext_accuracy_other_context",
        "pretext_accuracy_no_context", "knn", "linear_probe",
    }  # fmt: skip
    assert measures["pretrain"]["pretext_accuracy"] == figures["pretext_accuracy"]
    other = json.loads(cli("evaluate", out, "--data", image_folder / "train").out)
    assert set(other) == set(measures)


def test_evaluate_reads_the_weights_of_the_run(trained, cli):
    """With another checkpoint the measures differ, so they are not of a fresh network."""
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


def test_evaluate_refuses_a_folder_that_is_no_run(cli, tmp_path):
    result = cli("evaluate", tmp_path)
    assert result.status == 2
    assert "not a run" in result.err


def test_a_checkpoint_of_the_other_query_is_refused(trained, cli):
    """Its weights have the same shapes, so nothing else would notice."""
    out, _ = trained
    config = out / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "query: summed" in text
    config.write_text(text.replace("query: summed", "query: pooled"), encoding="utf-8")
    for command in (["evaluate", out], ["train", config, "--stage", "finetune", "--out", out],
                    ["train", config, "--out", out]):  # fmt: skip
        result = cli(*command)
        assert result.status == 2
        (line,) = result.err.strip().splitlines()[-1:]
        assert "model.query" in line
        assert "Traceback" not in result.err
