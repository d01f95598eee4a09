"""Finetuning and its control: where each starts, which images and which learning rate it has."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import picture, tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.finetune import few_labels, finetune
from fastselfie.training.pretrain import pretrain
from fastselfie.training.step import TrainStep


def first_weights(monkeypatch):
    """Record the weights of each stage before its first step, in order."""
    held = []
    original = TrainStep.__init__

    def remember(self, model, *rest):
        original(self, model, *rest)
        held.append({k: v.clone() for k, v in model.state_dict().items()})

    monkeypatch.setattr(TrainStep, "__init__", remember)
    return held


def test_finetuning_starts_from_p_and_the_control_does_not(
    image_folder, tmp_path, accelerator, monkeypatch
):
    config = tiny_config(data={"train": str(image_folder)})
    dataset = open_dataset(config.data)
    network, _ = pretrain(config, dataset, tmp_path / "pretrain", accelerator)
    held = first_weights(monkeypatch)
    for name, start in (("finetuned", network), ("supervised", None)):
        measures = finetune(
            config, few_labels(config, dataset), tmp_path / name, accelerator, start
        )
        assert 0 <= measures["top1"] <= measures["top5"] <= 1
        assert math.isfinite(measures["heldout_loss"])
        assert load_checkpoint(tmp_path / name / "latest.pt")["kind"] == name
    finetuned, supervised = held
    for name, value in network.patch_network.state_dict().items():
        same = name.replace("norm.", "stages.3.blocks.0.norm1.", 1) if name[:5] == "norm." else name
        assert torch.equal(finetuned[same], value), name
    for name in ("stem.conv.weight", "stages.2.blocks.0.conv3.weight"):
        assert not torch.equal(supervised[name], finetuned[name])
    # Weights that do not come from P start the same in both arms.
    assert torch.equal(supervised["head.fc.weight"], finetuned["head.fc.weight"])


def test_both_arms_train_on_labelled_and_evaluate_on_held_out_images(
    image_folder, tmp_path, accelerator, monkeypatch
):
    config = tiny_config(data={"train": str(image_folder)})
    dataset = open_dataset(config.data)
    built = []

    def remember(source, *rest):
        built.append(source)
        return build_loader(source, *rest)

    monkeypatch.setattr("fastselfie.training.finetune.build_loader", remember)
    finetune(config, few_labels(config, dataset), tmp_path, accelerator, None)
    train, held_out = built
    assert len(train) == 8  # half of 16
    assert set(train.paths) < set(dataset.train.paths)
    assert held_out.paths == dataset.held_out.paths


def test_the_control_has_its_own_learning_rate(image_folder, tmp_path, accelerator, monkeypatch):
    rates = []
    original = TrainStep.__init__

    def remember(self, model, objective, settings, *rest):
        original(self, model, objective, settings, *rest)
        rates.append(self.stage.lr)

    monkeypatch.setattr(TrainStep, "__init__", remember)
    config = tiny_config(
        data={"train": str(image_folder)}, finetune={"lr": 0.02, "scratch_lr": 0.3}
    )
    dataset = open_dataset(config.data)
    network, _ = pretrain(config, dataset, tmp_path / "p", accelerator)
    finetune(config, few_labels(config, dataset), tmp_path / "a", accelerator, network)
    finetune(config, few_labels(config, dataset), tmp_path / "b", accelerator, None)
    assert rates == [0.1, 0.02, 0.3]
    # Another rate for the control is no reason to refuse the finetuned arm, and the other way.
    changed = tiny_config(
        data={"train": str(image_folder)}, finetune={"lr": 0.02, "scratch_lr": 0.4}
    )
    finetune(changed, few_labels(changed, dataset), tmp_path / "a", accelerator, network)
    with pytest.raises(UserError, match=r"finetune\.scratch_lr"):
        finetune(changed, few_labels(changed, dataset), tmp_path / "b", accelerator, None)


def test_seeds_differ_in_both_stages(image_folder, tmp_path, accelerator, monkeypatch):
    held = first_weights(monkeypatch)
    for seed in (0, 1):
        config = tiny_config(data={"train": str(image_folder)}).model_copy(update={"seed": seed})
        dataset = open_dataset(config.data)
        pretrain(config, dataset, tmp_path / f"p{seed}", accelerator)
        finetune(config, few_labels(config, dataset), tmp_path / f"f{seed}", accelerator, None)
    assert not torch.equal(held[0]["pooling.u0"], held[2]["pooling.u0"])
    assert not torch.equal(held[1]["stem.conv.weight"], held[3]["stem.conv.weight"])


def test_finetuning_one_class_is_refused(tmp_path, accelerator):
    (tmp_path / "data" / "only").mkdir(parents=True)
    for i in range(20):
        picture(i).save(tmp_path / "data" / "only" / f"{i}.png")
    config = tiny_config(data={"train": str(tmp_path / "data")})
    dataset = open_dataset(config.data)
    pretrain(config, dataset, tmp_path / "pretrain", accelerator)  # needs no classes
    with pytest.raises(UserError, match="one class, 'only'"):
        finetune(config, few_labels(config, dataset), tmp_path / "f", accelerator, None)
