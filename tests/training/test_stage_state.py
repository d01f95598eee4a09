"""A resumed run continues as it would have, although keys that are free to change were changed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
from conftest import picture, tiny_config, write_beton

from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.signals import Interrupted
from fastselfie.training.checkpoint import Checkpoint, newest_checkpoint
from fastselfie.training.pretrain import build_pretraining, pretrain
from fastselfie.training.stage_state import restore
from fastselfie.training.step import TrainStep

pytestmark = pytest.mark.slow

TRAINING = {"steps": 8, "batch_size": 8, "micro_batch_size": 4, "lr": 0.02}


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    path = tmp_path_factory.mktemp("stage") / "a.beton"
    return write_beton(path, [picture(i) for i in range(20)], [i % 2 for i in range(20)])


def configured(beton, **runtime):
    data = {"train": str(beton), "held_out": 0.2}
    return tiny_config(
        data=data, pretrain=TRAINING, runtime={"precision": "fp32", "threads": 2, **runtime}
    )


def run(config, out):
    accelerator = choose_accelerator(config.runtime)
    return pretrain(config, open_dataset(config.data, config.seed), out, accelerator)[
        0
    ].state_dict()


def leave(config, out, monkeypatch, at):
    """Train `at` steps and leave as after a SIGTERM."""
    original = TrainStep.__call__

    def step_and_leave(self, step, batch):
        if step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step_and_leave)
        with pytest.raises(Interrupted):
            run(config, out)


def distance(one, other):
    """The largest difference of a weight, as a share of the largest weight of its tensor."""
    shares = [
        (one[name].double() - other[name]).abs().max() / other[name].abs().max()
        for name in other
        if other[name].is_floating_point() and other[name].any()
    ]
    return float(max(shares))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"channels_last": False}),
        ({"channels_last": False}, {}),
        ({}, {"kernels": "reference"}),
        ({"kernels": "reference"}, {}),
        ({}, {"activation_checkpointing": True}),
        ({"activation_checkpointing": True}, {}),
        ({}, {"threads": 1}),
    ],
)
def test_a_run_goes_on_under_another_runtime(beton, tmp_path, monkeypatch, before, after):
    """Half under each is no farther from the first than a whole run under the second.

    Sums of another order round otherwise, and training makes such a difference grow. A factor of
    10 is for that: a momentum in the order of the other layout makes 1,000,000 of it.
    """
    first, second = configured(beton, **before), configured(beton, **after)
    straight, other = run(first, tmp_path / "a"), run(second, tmp_path / "b")
    leave(first, tmp_path / "c", monkeypatch, 4)
    resumed = run(second, tmp_path / "c")
    rounding = max(distance(other, straight), torch.finfo(torch.float32).eps)
    assert distance(resumed, straight) <= 10 * rounding


def test_every_buffer_is_restored_in_the_layout_of_its_parameter(beton, tmp_path, monkeypatch):
    config = configured(beton, channels_last=True)
    leave(config, tmp_path, monkeypatch, 3)
    found = newest_checkpoint(tmp_path, "pretrain")
    accelerator = choose_accelerator(configured(beton, channels_last=False).runtime)
    step = build_pretraining(config, accelerator).step
    restore(step, found)
    saved = found.state["optimizer"]["state"]
    parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
    assert len(saved) == len(parameters)
    changed = 0
    for number, parameter in enumerate(parameters):
        buffer = step.optimizer.state[parameter]["momentum_buffer"]
        assert buffer.stride() == parameter.stride()
        assert torch.equal(buffer, saved[number]["momentum_buffer"])
        changed += buffer.stride() != saved[number]["momentum_buffer"].stride()
    assert changed  # else this tests nothing


def test_a_checkpoint_in_micro_batches_does_not_go_on_with_cuda_graphs(
    beton, tmp_path, monkeypatch, accelerator
):
    """Its micro-batches are those of the checkpoint, not those that this machine would choose."""
    leave(configured(beton), tmp_path, monkeypatch, 3)
    found = newest_checkpoint(tmp_path, "pretrain")
    step = build_pretraining(configured(beton), accelerator).step
    step.accelerator = replace(accelerator, compile="reduce-overhead")
    with pytest.raises(UserError, match=r"^runtime\.cuda_graphs .* 8 images .* of 4: set"):
        restore(step, Checkpoint(found.path, found.state))
