"""A run left at any step and gone on with is the run that never stopped, bit for bit."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from conftest import jpeg_bytes, picture, textured, tiny_config, write_beton

from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import Loader
from fastselfie.system.signals import Interrupted
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import pretrain
from fastselfie.training.step import TrainStep

pytestmark = pytest.mark.slow

# An epoch is 16 images: it ends inside a batch. Lines of the log, evaluations and checkpoints fall
# on other steps than the one at which the run is left.
TRAINING = {"steps": 8, "batch_size": 6, "micro_batch_size": 3, "log_every": 4, "eval_every": 5,
            "save_every": 7}  # fmt: skip


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    """20 JPEGs of several sizes and 2 raw images, of which 16 train."""
    images = [jpeg_bytes(textured(i, 50 + 3 * i, 90 - 2 * i)) for i in range(20)]
    images += [picture(i, 60, 50) for i in range(2)]
    path = tmp_path_factory.mktemp("resume") / "a.beton"
    return write_beton(path, images, [i % 2 for i in range(22)])


def run(accelerator, out, monkeypatch, leave_at=None, **data):
    """The network, and (samples, epochs, a sum of the pixels) of each step."""
    config = tiny_config(data=data, pretrain=TRAINING)
    original, seen = TrainStep.__call__, []

    def remember(self, step, batch):
        samples, epochs = (values.tolist() for values in batch.index)
        seen.append((step, samples, epochs, int(batch.images.long().sum())))
        if step + 1 == leave_at:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", remember)
        dataset = open_dataset(config.data, config.seed)
        if leave_at is None:
            return pretrain(config, dataset, out, accelerator), seen
        with pytest.raises(Interrupted):
            pretrain(config, dataset, out, accelerator)
        return None, seen


def logged(out):
    clock = ("time", "images_per_s", "waiting")
    lines = read_log(out / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


CASES = [
    ("native", "resized", 2, 1, 3),
    ("native", "pad", 1, 2, 6),
    ("folder", "resized", 0, 2, 5),
    ("folder", "pad", 2, 0, 1),
    ("resident", "pad", 0, 1, 3),
    pytest.param("dali", "resized", 2, 1, 3, marks=pytest.mark.extra),
]


@pytest.mark.parametrize(("loader", "crop", "workers", "other", "step"), CASES)
def test_a_run_that_was_left_ends_as_the_straight_one(
    beton, image_folder, tmp_path, accelerator, monkeypatch, loader, crop, workers, other, step
):
    """With another number of workers afterwards."""
    train = image_folder if loader == "folder" else beton
    if loader != "folder" and crop == "pad":  # small raw images, as the shift wants them
        train = write_beton(tmp_path / "b.beton", [picture(i) for i in range(20)], [0, 1] * 10)
    data = {"train": str(train), "loader": loader, "crop": crop, "held_out": 0.2}
    straight, every = run(accelerator, tmp_path / "a", monkeypatch, workers=workers, **data)
    _, first = run(accelerator, tmp_path / "b", monkeypatch, step, workers=workers, **data)
    again, rest = run(accelerator, tmp_path / "b", monkeypatch, workers=other, **data)
    assert len(first) == step
    assert first + rest == every
    assert again[1] == straight[1]
    assert logged(tmp_path / "b") == logged(tmp_path / "a")
    for name, value in straight[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[name], value), name


def test_skipped_images_are_counted_from_the_first_step(
    image_folder, tmp_path, accelerator, monkeypatch
):
    (image_folder / "train" / "cat" / "3.png").write_bytes(b"\x89PNG cut")
    data = {"train": str(image_folder), "loader": "folder", "on_error": "skip"}
    run(accelerator, tmp_path / "a", monkeypatch, **data)
    run(accelerator, tmp_path / "b", monkeypatch, 5, **data)
    run(accelerator, tmp_path / "b", monkeypatch, **data)
    assert logged(tmp_path / "b") == logged(tmp_path / "a")
    counts = [line["skipped"] for line in logged(tmp_path / "a") if "skipped" in line]
    assert counts[-1] == 3  # once an epoch


def test_crops_that_cannot_be_repeated_are_said(
    image_folder, tmp_path, accelerator, monkeypatch, capsys
):
    """As FFCV's cannot: tests/data/test_ffcv.py."""
    data = {"train": str(image_folder)}
    run(accelerator, tmp_path / "a", monkeypatch, 2, **data)
    monkeypatch.setattr(Loader, "repeats", False)
    capsys.readouterr()
    run(accelerator, tmp_path / "a", monkeypatch, **data)
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1
    assert "resumed at step 2, but the random crops of data.loader=auto cannot" in said[0]
