"""A GPU whose memory is too small: smaller micro-batches in the first step, and never later."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from helpers.training import run_pretraining, stopping_at

from fastselfie.data.loaders import Batch
from fastselfie.errors import UserError
from fastselfie.system import console
from fastselfie.training.build import build_stage
from fastselfie.training.checkpoint import newest_checkpoint
from fastselfie.training.memory import MemoryEstimate, smaller_micro_batch
from fastselfie.training.step import TrainStep

SECTIONS = {"data": {"loader": "resident"}, "model": {"dropout": 0.1}}


@pytest.fixture
def room(monkeypatch):
    """Return a function that lets memory run out in the backward pass of more than N images."""
    gradients = TrainStep._gradients

    def limit(images, from_call=0):
        calls = iter(range(10**6))

        def limited(self, batch: Batch):
            found = gradients(self, batch)  # what it left behind must not count
            if next(calls) >= from_call and self.micro_batch > images:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return found

        monkeypatch.setattr(TrainStep, "_gradients", limited)

    return limit


def weights(folder):
    return newest_checkpoint(folder, "pretrain").state


def test_the_first_step_runs_again_in_half_the_images_as_if_it_had_begun_so(
    image_folder, tmp_path, accelerator, room, capsys
):
    configured = {**SECTIONS, "pretrain": {"micro_batch_size": 4}}
    run_pretraining(image_folder, tmp_path / "configured", accelerator, **configured)
    room(4)
    capsys.readouterr()
    run_pretraining(image_folder, tmp_path / "halved", accelerator, **SECTIONS)
    said = capsys.readouterr().err
    assert said.count("out of memory in the first step: passes of 8 images become passes of 4") == 1
    expected, found = (weights(tmp_path / name) for name in ("configured", "halved"))
    assert found["micro_batch"] == 4
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    assert torch.equal(found["random"]["cpu"], expected["random"]["cpu"])


def test_a_resumed_run_keeps_the_smaller_size(image_folder, tmp_path, accelerator, room):
    room(4)
    run_pretraining(image_folder, tmp_path / "straight", accelerator, **SECTIONS)
    with stopping_at(3):
        run_pretraining(image_folder, tmp_path / "resumed", accelerator, **SECTIONS)
    room(8)  # now there is memory for all images at once
    run_pretraining(image_folder, tmp_path / "resumed", accelerator, **SECTIONS)
    straight, resumed = (weights(tmp_path / name) for name in ("straight", "resumed"))
    assert resumed["micro_batch"] == 4
    for name, value in straight["model"].items():
        assert torch.equal(resumed["model"][name], value), name


@pytest.mark.parametrize(
    ("images", "from_call", "sections", "said"),
    [
        (3, 0, {}, "at step 1, in passes of 4 images: lower micro_batch_size"),  # halved once
        (4, 1, {}, "at step 2, in passes of 8 images"),  # never later than in the first step
        (4, 0, {"micro_batch_size": 8}, "at step 1, in passes of 8 images"),  # the user's
        (0, 0, {"micro_batch_size": 1}, "at step 1, in passes of 1 images"),
    ],
)
def test_otherwise_one_line_ends_the_run(
    image_folder, tmp_path, accelerator, room, images, from_call, sections, said
):
    room(images, from_call)
    with pytest.raises(UserError, match=f"^out of memory {said}"):
        run_pretraining(image_folder, tmp_path, accelerator, **SECTIONS, pretrain=sections)


def test_half_of_a_micro_batch_divides_the_batch():
    sizes = {(8, 8): 4, (16, 8): 4, (6, 12): 3, (5, 10): 2, (7, 7): 1, (1, 8): None}
    assert {given: smaller_micro_batch(*given) for given in sizes} == sizes


def test_less_memory_than_one_image_needs_is_said_before(accelerator, monkeypatch, capsys):
    console.say_once.cache_clear()
    config, estimate = tiny_config(), MemoryEstimate(1, 2**40, 2**30)
    model = torch.nn.Linear(1, 1)
    build_stage(config, config.pretrain, accelerator, estimate, lambda: model, lambda *_: None)
    said = capsys.readouterr().err
    assert "warning: a pass of one image needs about 1,025.0 GiB of memory, but there are" in said
    assert estimate.shortage(2**40 + 2**30) is None
