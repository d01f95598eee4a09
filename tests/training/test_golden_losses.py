"""Losses of the first steps, which must not change without intent."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, tiny_config, write_image_folder

from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import draw_masks
from fastselfie.data.loaders import build_loader
from fastselfie.kernels.reference import patchify
from fastselfie.models.selfie import build_selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.step import TrainStep

GOLDEN = REPOSITORY / "tests" / "golden" / "losses.json"


def golden_losses(folder, accelerator):
    """Return the losses of 10 steps in float64, in which machines agree to many digits."""
    config = tiny_config(data={"train": str(folder)}, model={"dropout": 0.0})
    model = build_selfie(config).double()
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    seen = []

    def objective(batch):
        order = draw_masks(batch, 0, config.patches)
        patches = patchify(batch.images, batch.flip, order, 8, mean, std, torch.float64)
        loss, correct = model(patches, order)
        seen.append(loss.item())
        return loss, correct, len(batch.images) * model.masked

    step = TrainStep(model, objective, config.pretrain, accelerator, 8)
    with closing(loader.stream(0, 8)) as batches:
        for number in range(10):
            step(number, next(batches))
    return seen


def test_ten_golden_losses(image_folder, accelerator):
    """Run this file as a program only if a change of the losses is intended."""
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))["losses"]
    # Rounding of 1e-16 grows with every update; 1e-9 leaves six digits for that and no more.
    assert golden_losses(image_folder, accelerator) == pytest.approx(expected, rel=1e-9)


if __name__ == "__main__":  # with PYTHONPATH=tests
    with tempfile.TemporaryDirectory() as root:
        torch.manual_seed(0)
        accelerator = choose_accelerator(tiny_config().runtime)
        values = golden_losses(write_image_folder(Path(root)), accelerator)
    about = f"losses of 10 steps of the tiny net in float64; made by {Path(__file__).name}"
    GOLDEN.write_text(json.dumps({"about": about, "losses": values}, indent=1) + "\n")
