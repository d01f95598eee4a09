"""The moving average of pretraining: its formula, when it changes, and where it is used."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_config
from helpers.training import run_pretraining, stopping_at
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import Batch, Index
from fastselfie.runs.load import load_pretrained
from fastselfie.system.accelerator import Precision
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.ema import MovingAverage
from fastselfie.training.finetune import few_labels, finetune
from fastselfie.training.step import TrainStep


class Operations(TorchDispatchMode):
    """Keeps the names of the operations that torch dispatches."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


SETTINGS = {"ema": 0.75, "steps": 6, "batch_size": 6, "save_every": 4}


def run(folder, out, accelerator, **pretraining):
    return run_pretraining(folder, out, accelerator, pretrain={**SETTINGS, **pretraining})


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def followed(monkeypatch):
    """Compute the average by its formula in float64, from the weights after each step."""
    original, kept = TrainStep.__call__, {}

    def call(self, step, batch):
        if step == 0:
            kept.update({k: v.double() for k, v in self.model.state_dict().items()})
        before = [p.clone() for p in self.model.parameters()]
        original(self, step, batch)
        if not all(map(torch.equal, before, self.model.parameters())):  # it was applied
            for name, value in self.model.state_dict().items():
                kept[name] = 0.75 * kept[name] + 0.25 * value

    monkeypatch.setattr(TrainStep, "__call__", call)
    return kept


def test_it_is_the_average_of_weights_and_batch_statistics(
    image_folder, tmp_path, accelerator, followed
):
    network, _ = run(image_folder, tmp_path, accelerator)
    state = load_checkpoint(tmp_path / "latest.pt")
    for name, value in network.state_dict().items():
        assert torch.equal(value, state["average"][name])
        if value.is_floating_point():
            # Six roundings of 2^-24, of numbers not far above the result.
            torch.testing.assert_close(value.double(), followed[name], rtol=1e-6, atol=1e-7)
            assert not torch.equal(value, state["model"][name]), name
        else:
            assert torch.equal(value, state["model"][name])


def test_one_operation_copies_all_counters():
    """A copy for each batch norm would be 40 launches in ResNet-50's first three stages."""
    network = torch.nn.Sequential(*(torch.nn.BatchNorm1d(2) for _ in range(5)))
    average = MovingAverage(network, 0.5)
    for norm in network:
        norm.num_batches_tracked.fill_(7)
    with Operations() as seen:
        average.follow(torch.tensor(True))
    assert len([name for name in seen.names if "copy" in name]) == 1
    assert [int(norm.num_batches_tracked) for norm in average.model] == [7] * 5


def test_the_average_does_not_change_training(image_folder, tmp_path, accelerator):
    states = []
    for name, decay in (("with", 0.75), ("without", None)):
        run(image_folder, tmp_path / name, accelerator, ema=decay)
        states.append(load_checkpoint(tmp_path / name / "latest.pt"))
    assert same(states[0]["model"], states[1]["model"])
    assert states[1]["average"] is None


def test_a_skipped_step_does_not_change_the_average(
    image_folder, tmp_path, accelerator, monkeypatch, followed
):
    original = TrainStep._gradients

    def gradients(self, batch):
        loss, correct, answers = original(self, batch)
        if self.guard._recent[-1].step in (0, 3):
            for buffer in self.model.buffers():
                buffer.fill_(math.nan if buffer.is_floating_point() else 99)
            loss = loss * math.nan
        return loss, correct, answers

    monkeypatch.setattr(TrainStep, "_gradients", gradients)
    network, _ = run(image_folder, tmp_path, accelerator, on_nonfinite="skip")
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), followed[name], rtol=1e-6, atol=1e-7)
        else:
            assert int(value) == 4


def test_a_step_skipped_by_the_fp16_scaler_does_not_change_the_average(accelerator):
    """The guard does not count a step that only lowers the scale."""
    half = replace(accelerator, precision=Precision("fp16", "test"))
    model = torch.nn.Linear(2, 2)

    def objective(_):
        # Its gradient is the slope x the scale, 2^16: 8 x that is above fp16's 65,504.
        loss = slope * model(torch.ones(1, 2)).float().sum()
        return loss, torch.zeros((), dtype=torch.int64), 1

    step = TrainStep(model, objective, tiny_config().pretrain, half, 8, decay=0.5)
    averaged = step.average.model.weight
    for number, slope in enumerate((0.25, 8.0, 0.25)):
        before = averaged.clone(), model.weight.clone()
        step(number, batch_of(8))
        for moving, was in zip((averaged, model.weight), before, strict=True):
            assert torch.equal(moving, was) == (slope == 8.0)
    assert step.read().skipped == 0
    assert float(step.scaler.get_scale()) == 2.0**15


def batch_of(images):
    index = Index(np.arange(images), np.zeros(images, dtype=np.int64))
    pixels = torch.zeros(images, 2, 2, 3, dtype=torch.uint8)
    return Batch((pixels,), torch.zeros(images), (torch.zeros(images),), index)


def test_a_resumed_run_has_the_same_average(image_folder, tmp_path, accelerator):
    straight, measured = run(image_folder, tmp_path / "straight", accelerator)
    with stopping_at(5):
        run(image_folder, tmp_path / "left", accelerator)
    assert load_checkpoint(tmp_path / "left" / "latest.pt")["step"] == 4
    again, measured_again = run(image_folder, tmp_path / "left", accelerator)
    assert same(again.state_dict(), straight.state_dict())
    assert measured_again == measured


def test_finetuning_evaluation_and_pictures_use_the_average(
    image_folder, tmp_path, accelerator, monkeypatch
):
    measured = []

    def measure(model, *rest):
        measured.append(model)
        return {"heldout_loss": 1.0}

    monkeypatch.setattr("fastselfie.training.pretrain.pretext_accuracy", measure)
    monkeypatch.setattr(
        "fastselfie.training.pretrain._take_picture", lambda model, *_: measure(model)
    )
    network, _ = run(image_folder, tmp_path, accelerator)
    state = load_checkpoint(tmp_path / "latest.pt")
    config = tiny_config(data={"train": str(image_folder)}, pretrain=SETTINGS)
    assert {id(model) for model in measured} == {id(network)}
    assert same(load_pretrained(config, tmp_path, whole=False).state_dict(), state["average"])
    p = load_pretrained(config, tmp_path).patch_network.state_dict()
    assert torch.equal(p["stem.conv.weight"], state["average"]["patch_network.stem.conv.weight"])
    started = []
    original = TrainStep.__init__

    def remember(self, model, *rest):
        started.append(model.stem.conv.weight.detach().clone())
        original(self, model, *rest)

    monkeypatch.setattr(TrainStep, "__init__", remember)
    few = few_labels(config, open_dataset(config.data))
    finetune(config, few, tmp_path / "f", accelerator, network)
    assert torch.equal(started[0], p["stem.conv.weight"])
