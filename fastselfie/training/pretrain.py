"""Selfie pretraining: from a dataset to a checkpoint of P, A and the positions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch, Loader, build_loader
from fastselfie.evaluation.mask_picture import filled, originals, predictions
from fastselfie.evaluation.metrics import pretext_accuracy
from fastselfie.evaluation.online import Monitor
from fastselfie.models.selfie import Selfie, build_selfie
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import Accelerator
from fastselfie.training.build import BuiltStage, build_stage
from fastselfie.training.disk_errors import DiskErrors
from fastselfie.training.loop import fit
from fastselfie.training.memory import estimate_pretraining
from fastselfie.training.metrics_log import OnLogLine, picture_path
from fastselfie.training.stage_state import Stage

_PICTURED = 6  # images in the mask-prediction picture


def pretraining_stage(config: Config, dataset: Dataset) -> Stage:
    """Return what pretraining's checkpoints must agree with."""
    sections = ("seed", "data", "model", "pretrain")
    return Stage(PRETRAIN, config, config.pretrain, sections, dataset.fingerprint())


def build_pretraining(config: Config, accelerator: Accelerator) -> BuiltStage[Selfie]:
    """Build the pretraining stage, see `build_stage`."""

    def objective(
        forward: Callable[..., Any], pixels: InputTransform, batch: Batch
    ) -> tuple[Tensor, Tensor, int]:
        loss, correct = forward(*pixels.patches(batch))
        return loss, correct, len(batch.images) * config.masked

    settings, estimate = config.pretrain, estimate_pretraining(config, accelerator.precision)
    return build_stage(
        config, settings, accelerator, estimate, lambda: build_selfie(config), objective
    )


def pretrain(
    config: Config,
    dataset: Dataset,
    folder: Path,
    accelerator: Accelerator,
    on_log_line: OnLogLine = lambda: None,
) -> tuple[Selfie, dict[str, float]]:
    """Pretrain on all training images, from the newest checkpoint in `folder` if there is one.

    The labels are only used by `Monitor`.

    Args:
        config: the run's.
        dataset: images to train on and held-out images.
        folder: for log.jsonl, checkpoints and pictures/STEP.png.
        accelerator: where and how to train.
        on_log_line: see `fit`.

    Returns:
        The network and the last metrics.

    Raises:
        UserError: see `fit` and the loaders.
    """
    settings = config.pretrain
    built = build_pretraining(config, accelerator)
    model, pixels, step = built.model, built.pixels, built.step
    with accelerator.ranks.raise_together():
        device, seed = accelerator.device, config.seed
        train = build_loader(dataset.train, config.pretraining_data, seed, device)
        held_out = build_loader(dataset.held_out, config.data, seed, device)
        monitor = Monitor(config, dataset, pixels)
    pictured = frozenset((*settings.picture_steps, settings.steps))

    def evaluate(done: int) -> dict[str, float]:
        with accelerator.ranks.raise_together():
            if done in pictured and accelerator.ranks.is_main:
                path = picture_path(folder, done)
                with DiskErrors(config.checkpoint.on_error, path, "the picture is not written"):
                    _take_picture(model, held_out, pixels, path)
        measures = pretext_accuracy(model, held_out, pixels, settings.eval_images)
        return measures | monitor.measure(model.patch_network, done)

    stage, also_at = pretraining_stage(config, dataset), pictured | monitor.steps
    return model, fit(stage, folder, step, train, evaluate, also_at, on_log_line)


def _take_picture(model: Selfie, loader: Loader, pixels: InputTransform, path: Path) -> None:
    """Save the first held-out images as the model fills them, and the originals beside it."""
    with closing(loader.in_order(_PICTURED, _PICTURED)) as batches:
        images, order, chosen = predictions(model, next(batches), pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    filled(images, order, chosen, pixels.patch_size).save(path)
    originals(images).save(path.with_name("original.png"))
