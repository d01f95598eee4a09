"""A loss or gradient that is not finite: no weight is harmed, and the step can be run again."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import Batch, Index, build_loader
from fastselfie.errors import UserError
from fastselfie.system.accelerator import Precision
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.finetune import few_labels, finetune
from fastselfie.training.metrics_log import read_log
from fastselfie.training.nonfinite import Guard
from fastselfie.training.optimizer import begin_momentum, build_optimizer
from fastselfie.training.pretrain import pretrain
from fastselfie.training.step import TrainStep

pytestmark = pytest.mark.slow

# Read only at step 6: what went wrong before stays unread for up to five steps.
LATE = {"steps": 6, "save_every": 6, "log_every": 6, "eval_every": 6, "batch_size": 6}


def config_of(folder, pretraining, **model):
    return tiny_config(data={"train": str(folder)}, model=model, pretrain=pretraining)


def run(config, out, accelerator):
    return pretrain(config, open_dataset(config.data, config.seed), out, accelerator)[0]


def harm(monkeypatch, steps, what):
    """At `steps` (0 is the first) the loss is NaN with all that follows, or one gradient is."""
    original = TrainStep._gradients

    def gradients(self, batch):
        loss, correct, answers = original(self, batch)
        if self.guard._recent[-1].step in steps:
            found = [p for p in self.model.parameters() if p.grad is not None]
            for parameter in found if what == "loss" else found[5:6]:
                parameter.grad.fill_(math.nan if what == "loss" else math.inf)
            if what == "loss":
                loss = loss * math.nan
                for buffer in self.model.buffers():
                    buffer.fill_(math.nan if buffer.is_floating_point() else 99)
        return loss, correct, answers

    monkeypatch.setattr(TrainStep, "_gradients", gradients)


def equal(one, other):
    """Bit for bit, and the same keys."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [0, 2])
def test_raise_stops_with_the_state_before(
    image_folder, tmp_path, accelerator, monkeypatch, what, step
):
    """Weights, momentum, batch statistics, random state, although steps went on until the log."""
    straight = config_of(image_folder, {**LATE, "save_every": 1})
    straight = straight.model_copy(
        update={"checkpoint": straight.checkpoint.model_copy(update={"keep": 9})}
    )
    run(straight, tmp_path / "straight", accelerator)
    harm(monkeypatch, {step}, what)
    words = "loss is nan" if what == "loss" else "norm of the gradient is inf"
    file = tmp_path / "run" / f"nonfinite-000000{step + 1}.pt"
    with pytest.raises(UserError, match=rf"{words} at step {step + 1}: lower pretrain\.lr") as said:
        run(config_of(image_folder, LATE), tmp_path / "run", accelerator)
    assert f"`fastselfie replay {file}`" in str(said.value)
    assert [p.name for p in (tmp_path / "run").glob("*.pt")] == [file.name]
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()
    record = load_checkpoint(file)
    assert record["step"] == step
    assert len(record["samples"]) == len(record["epochs"]) == 6
    if step:
        before = load_checkpoint(tmp_path / "straight" / f"step-000000{step}.pt")
        for name in ("model", "random"):
            assert equal(record[name], before[name]), name
        assert equal(record["optimizer"]["state"], before["optimizer"]["state"])


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("steps", [{0}, {1, 2, 4}])
def test_skip_is_as_if_the_step_had_not_been(
    image_folder, tmp_path, accelerator, monkeypatch, what, steps
):
    settings = {**LATE, "on_nonfinite": "skip", "max_skipped_in_a_row": 3}
    config = config_of(image_folder, settings, dropout=0.0)
    original, seen = TrainStep.__call__, []

    def leave_out(self, step, batch):
        if step not in steps:
            original(self, step, batch)
            seen.append(float(self._totals["loss"]))

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", leave_out)
        expected = run(config, tmp_path / "expected", accelerator)
    harm(monkeypatch, steps, what)
    found = run(config, tmp_path / "found", accelerator)
    assert equal(dict(found.state_dict()), dict(expected.state_dict()))
    (mean,) = [line for line in read_log(tmp_path / "found" / "log.jsonl") if "loss" in line]
    assert mean["loss"] == seen[-1] / (6 - len(steps))
    assert mean["skipped_steps"] == len(steps)


def test_too_many_skipped_in_a_row_stop(image_folder, tmp_path, accelerator, monkeypatch):
    settings = {**LATE, "on_nonfinite": "skip", "max_skipped_in_a_row": 2}
    harm(monkeypatch, {0, 2, 3}, "loss")
    with pytest.raises(UserError, match="loss is nan at step 4"):
        run(config_of(image_folder, settings), tmp_path, accelerator)
    assert not (tmp_path / "latest.pt").exists()


def test_the_row_is_counted_over_a_resume(image_folder, tmp_path, accelerator, monkeypatch):
    settings = {**LATE, "save_every": 2, "on_nonfinite": "skip", "max_skipped_in_a_row": 2}
    harm(monkeypatch, {1, 2}, "loss")
    with pytest.raises(UserError, match="at step 3"):
        run(config_of(image_folder, settings), tmp_path, accelerator)
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 2
    with pytest.raises(UserError, match="at step 3"):
        run(config_of(image_folder, settings), tmp_path, accelerator)


def test_momentum_begins_at_zero_as_torch_begins_it(accelerator):
    """The same bits as torch's own first step, which takes the gradient as it is."""
    settings, weights = tiny_config().pretrain, []
    for begun in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 5)
        optimizer = build_optimizer(model, settings)
        if begun:
            begin_momentum(optimizer)
        for _ in range(3):
            model(torch.randn(4, 7)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("stage", ["pretrain", "supervised"])
def test_replay_runs_the_very_step_again(
    image_folder, tmp_path, accelerator, monkeypatch, cli, stage
):
    """A good step is called bad, so its loss can be told: that of the straight run, bit for bit."""
    settings = {"steps": 4, "batch_size": 6, "log_every": 1, "save_every": 4, "eval_every": 4}
    config = tiny_config(
        data={"train": str(image_folder)}, pretrain=settings, finetune={**settings, "labels": 1.0}
    )
    dataset = open_dataset(config.data, config.seed)

    def train(out):
        if stage == "pretrain":
            pretrain(config, dataset, out, accelerator)
        else:
            finetune(config, few_labels(config, dataset), out, accelerator, None)

    train(tmp_path / "straight")
    losses = [x["loss"] for x in read_log(tmp_path / "straight" / "log.jsonl") if "loss" in x]
    judge = Guard.judge

    def calls_it_bad(self, step, loss, norm):
        return judge(self, step, loss * math.nan if step == 2 else loss, norm)

    with monkeypatch.context() as patch:
        patch.setattr(Guard, "judge", calls_it_bad)
        with pytest.raises(UserError, match=f"{stage}: the loss is nan at step 3"):
            train(tmp_path / "run")
    result = cli("replay", tmp_path / "run" / "nonfinite-0000003.pt")
    assert result.status == 0, result.err
    found = json.loads(result.out.splitlines()[-1])
    assert found["losses"] == [losses[2]]
    assert found["step"] == 3
    assert found["parameter"] is found["activation"] is found["gradient"] is None
    loader = build_loader(dataset.train, config.data, 0, accelerator.device)
    with closing(loader.stream(12, 6)) as batches:
        assert found["samples"] == next(batches).index.samples.tolist()
    for sample in found["samples"]:
        assert dataset.train.name(sample) in result.out


def test_replay_names_what_is_not_finite(image_folder, tmp_path, cli, tiny_yaml):
    out = tmp_path / "run"
    command = (
        "train",
        tiny_yaml,
        f"data.train={image_folder}",
        "--stage",
        "pretrain",
        "--out",
        out,
    )
    stopped = cli(*command, "pretrain.lr=1e12", "pretrain.steps=12", "pretrain.micro_batch_size=4")
    assert stopped.status == 2
    (file,) = (out / "pretrain").glob("nonfinite-*.pt")
    result = cli("replay", file)
    found = json.loads(result.out.splitlines()[-1])
    assert len(found["losses"]) == 2
    assert found["parameter"] is None  # the guard kept the weights whole
    assert found["activation"] or found["gradient"]
    assert (found["gradient"] or found["activation"]) in result.out
    assert not all(isinstance(value, float) for value in (*found["losses"], *found["norms"]))
    refused = cli("replay", out / "config.yaml")
    assert refused.status == 2
    (image_folder / "train" / "cat" / "0.png").unlink()
    assert "are not those of the run" in cli("replay", file).err


@pytest.mark.parametrize(("limit", "stops"), [(3, True), (4, False)])
def test_too_many_images_in_a_row_that_cannot_be_read_stop(image_folder, accelerator, limit, stops):
    """Over the end of a batch too: a batch is 4, images 2 to 4 are bad, 7 is bad alone."""
    config = tiny_config(
        data={"train": str(image_folder), "loader": "folder", "on_error": "skip",
              "max_skipped_in_a_row": limit}
    )  # fmt: skip
    source = open_dataset(config.data).train
    for row in (2, 3, 4, 7):
        with open(source.paths[row], "wb") as file:
            file.write(b"gone")
    loader = build_loader(source, config.data, 0, accelerator.device)
    if not stops:
        assert len(list(loader.in_order(4))) == 4
        assert loader.skipped == 4
        return
    with pytest.raises(UserError, match=r"2\.png: unreadable.*first of 3 images in a row"):
        list(loader.in_order(4))


def zeros(images):
    index = Index(np.arange(images), np.zeros(images, dtype=np.int64))
    flat = torch.zeros(images)
    return Batch((torch.zeros(images, 2, 2, 3, dtype=torch.uint8),), flat, (flat,), index)


def test_one_overflow_in_fp16_halves_the_scale_and_changes_nothing_else(accelerator):
    half = replace(accelerator, precision=Precision("fp16", "test"))
    model = torch.nn.Linear(2, 2)

    def objective(_):
        # Its gradient is the slope x the scale, 2^16: 8 x that is above fp16's 65,504.
        loss = slope * model(torch.ones(1, 2)).float().sum()
        return loss, torch.zeros((), dtype=torch.int64), 1

    training = TrainStep(model, objective, tiny_config().pretrain, half, 8)
    for number, slope in enumerate((0.25, 8.0, 0.25)):
        before = model.weight.clone()
        training(number, zeros(8))
        assert torch.equal(model.weight, before) == (slope == 8.0)
    assert training.read().skipped == 0
    assert float(training.scaler.get_scale()) == 2.0**15


@pytest.mark.parametrize(("on_nonfinite", "step"), [("raise", 31), ("skip", 33)])
def test_a_gradient_that_is_never_finite_stops_fp16_too(accelerator, on_nonfinite, step):
    """Its scale falls from 2^16 to 2^-14 in 30 steps; the next finds it spent."""
    half = replace(accelerator, precision=Precision("fp16", "test"))
    stage = tiny_config(
        pretrain={"on_nonfinite": on_nonfinite, "max_skipped_in_a_row": 3, "log_every": 50}
    ).pretrain
    model = torch.nn.Linear(2, 2)

    def objective(_):
        zero = (model.weight - model.weight.detach()).sqrt().sum()  # its slope is infinite
        return zero, torch.zeros((), dtype=torch.int64), 1

    training = TrainStep(model, objective, stage, half, 8)
    before = [p.clone() for p in model.parameters()]
    for number in range(40):
        training(number, zeros(8))
    found = training.guard.nonfinite_step()
    assert (found.step, found.loss, found.norm) == (step, 0.0, math.inf)
    assert all(map(torch.equal, before, model.parameters()))
