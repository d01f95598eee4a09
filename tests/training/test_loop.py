"""A stage that stops and resumes: by a signal, from a checkpoint, with another config."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from conftest import tiny_config
from helpers.training import losses, run_pretraining, stopping_at

from fastselfie.config import RuntimeConfig
from fastselfie.errors import UserError
from fastselfie.models.selfie import build_selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.signals import Interrupted, deferred_signals
from fastselfie.training.checkpoint import Checkpoint, load_checkpoint
from fastselfie.training.stage_state import restore
from fastselfie.training.step import TrainStep


@pytest.mark.parametrize("loader", ["resident", "folder"])
def test_a_resumed_run_equals_a_straight_one(image_folder, tmp_path, accelerator, loader):
    """The run stops in the middle of an epoch (16 images, batches of 6); every bit is the same."""
    options = {"data": {"loader": loader}, "pretrain": {"steps": 6, "batch_size": 6}}
    network, final = run_pretraining(image_folder, tmp_path / "straight", accelerator, **options)
    with stopping_at(5):
        run_pretraining(image_folder, tmp_path / "resumed", accelerator, **options)
    assert load_checkpoint(tmp_path / "resumed" / "latest.pt")["step"] == 4
    again, measured = run_pretraining(image_folder, tmp_path / "resumed", accelerator, **options)
    assert measured == final
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_finished_stage_is_not_run_again(image_folder, tmp_path, accelerator, monkeypatch):
    _, first = run_pretraining(image_folder, tmp_path, accelerator)
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: pytest.fail("trained again"))
    _, second = run_pretraining(image_folder, tmp_path, accelerator)
    assert second == first


def test_resuming_in_another_precision_gives_a_warning(image_folder, tmp_path, accelerator, capsys):
    run_pretraining(image_folder, tmp_path / "out", accelerator, checkpoint={"keep": 9})
    for path in (tmp_path / "out").glob("*.pt"):
        if path.name != "step-0000002.pt":
            path.unlink()
    half = choose_accelerator(RuntimeConfig(device="cpu", precision="bf16"))
    run_pretraining(image_folder, tmp_path / "out", half)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "was trained in fp32, resumes in bf16" in said
    assert "runtime.precision=fp32" in said


def test_resuming_with_another_config_is_refused(image_folder, tmp_path, accelerator):
    run_pretraining(image_folder, tmp_path, accelerator)
    with pytest.raises(
        UserError, match=r"pretrain\.steps \(4 -> 9\), pretrain\.lr \(0\.1 -> 0\.3\)"
    ):
        run_pretraining(image_folder, tmp_path, accelerator, pretrain={"lr": 0.3, "steps": 9})


def test_a_resumed_run_keeps_its_micro_batch(image_folder, tmp_path, accelerator):
    """Even with other memory: batch norm must see the same number of images."""
    run_pretraining(
        image_folder, tmp_path / "a", accelerator, pretrain={"save_every": 1, "micro_batch_size": 4}
    )
    state = load_checkpoint(tmp_path / "a" / "latest.pt")
    assert state["micro_batch"] == 4
    config = tiny_config(data={"train": str(image_folder)})
    model = build_selfie(config)
    step = TrainStep(model, lambda _: None, config.pretrain, accelerator, 8)
    restore(step, Checkpoint(tmp_path, state))
    assert step.micro_batch == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_a_saved_step(
    image_folder, tmp_path, accelerator, monkeypatch, number
):
    options = {"pretrain": {"steps": 6, "save_every": 6}}
    network, final = run_pretraining(image_folder, tmp_path / "straight", accelerator, **options)
    original = TrainStep.__call__

    def signalled(self, step, batch):
        if step == 2:
            os.kill(os.getpid(), number)
        original(self, step, batch)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", signalled)
        with pytest.raises(Interrupted) as caught:
            run_pretraining(image_folder, tmp_path / "left", accelerator, **options)
    assert caught.value.number == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(tmp_path / "left" / "latest.pt")["step"] == 3
    again, measured = run_pretraining(image_folder, tmp_path / "left", accelerator, **options)
    assert measured == final
    weights = [n.patch_network.norm.weight for n in (again, network)]
    assert torch.equal(*weights)


def test_a_second_signal_acts_at_once():
    with deferred_signals() as pending:
        os.kill(os.getpid(), signal.SIGINT)
        assert pending.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
