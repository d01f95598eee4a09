"""Pretraining: it learns, it is the same for a seed, and it is measured on held-out images."""

from __future__ import annotations

import pytest
import torch
from conftest import picture
from helpers.training import losses, run_pretraining

from fastselfie.config import RuntimeConfig
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.evaluation.metrics import pretext_accuracy
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.metrics_log import read_log


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tiny_network_memorises_eight_images(tmp_path, precision):
    accelerator = choose_accelerator(RuntimeConfig(device="cpu", precision=precision))
    for i in range(10):
        (tmp_path / f"c{i % 2}").mkdir(exist_ok=True)
        picture(i).save(tmp_path / f"c{i % 2}" / f"{i}.png")
    _, _ = run_pretraining(
        tmp_path,
        tmp_path / "out",
        accelerator,
        data={"held_out": 0.2, "pad_mode": "none", "flip": False},
        model={"dropout": 0.0, "width": 16},
        pretrain={"steps": 150, "lr": 0.05, "log_every": 10, "warmup_steps": 10, "eval_every": 150},
    )
    accuracy = [x["accuracy"] for x in read_log(tmp_path / "out" / "log.jsonl") if "accuracy" in x]
    assert accuracy[-1] == 1.0


def test_pretraining_may_have_its_own_padding(image_folder, tmp_path, accelerator):
    modes = {"both": {"data": {"pad_mode": "zero"}}, "own": {"pretrain": {"pad_mode": "zero"}}}
    for name, options in {**modes, "neither": {}}.items():
        run_pretraining(image_folder, tmp_path / name, accelerator, **options)
    assert losses(tmp_path / "own") == losses(tmp_path / "both")
    assert losses(tmp_path / "own") != losses(tmp_path / "neither")


def test_one_seed_gives_identical_losses(image_folder, tmp_path, accelerator):
    for name in ("a", "b"):
        run_pretraining(image_folder, tmp_path / name, accelerator)
    run_pretraining(image_folder, tmp_path / "c", accelerator, pretrain={"lr": 0.2})
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_pretraining_is_measured_on_held_out_images(
    image_folder, tmp_path, accelerator, monkeypatch
):
    built = []

    def remember(source, *rest):
        built.append(build_loader(source, *rest))
        return built[-1]

    monkeypatch.setattr("fastselfie.training.pretrain.build_loader", remember)
    measured = []

    def measure(model, loader, *rest):
        measured.append(loader)
        return pretext_accuracy(model, loader, *rest)

    monkeypatch.setattr("fastselfie.training.pretrain.pretext_accuracy", measure)
    run_pretraining(image_folder, tmp_path, accelerator)
    train, held_out = built
    assert (len(train), len(held_out)) == (16, 8)
    assert set(map(id, measured)) == {id(held_out)}


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(image_folder, tmp_path, accelerator):
    with pytest.raises(UserError, match=r"pretrain: the loss is (nan|inf) at step .*pretrain\.lr"):
        run_pretraining(
            image_folder, tmp_path, accelerator, pretrain={"lr": 1e12, "steps": 12, "save_every": 1}
        )
    path = tmp_path / "latest.pt"
    if path.exists():
        weights = load_checkpoint(path)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
