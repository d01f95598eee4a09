"""Selfie pretraining, from a set of images to a checkpoint of P, A and the positions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch, Loader, build_loader
from fastselfie.evaluation.mask_picture import filled, originals
from fastselfie.evaluation.metrics import evaluating, pretext_accuracy
from fastselfie.evaluation.online import Monitor
from fastselfie.models.selfie import Selfie
from fastselfie.system.accelerator import Accelerator, total_memory
from fastselfie.system.console import say
from fastselfie.training.loop import fit
from fastselfie.training.memory import estimate_pretraining
from fastselfie.training.metrics_log import Show, picture_path
from fastselfie.training.state import Stage
from fastselfie.training.step import TrainStep

_PICTURED = 6  # images in the mask-prediction picture


def pretraining_stage(config: Config, dataset: Dataset) -> Stage:
    """What a pretraining checkpoint must agree with."""
    return Stage(
        kind="pretrain",
        config=config,
        settings=config.pretrain,
        sections=("seed", "data", "model", "pretrain"),
        images=dataset.fingerprint(),
    )


class Pretraining(NamedTuple):
    """A fresh network, what turns batches into its input, and the step that trains it."""

    model: Selfie
    pixels: InputTransform
    step: TrainStep

    @property
    def result(self) -> Selfie:
        """What is measured and handed on: the moving average where there is one."""
        if self.step.average is None:
            return self.model
        assert isinstance(self.step.average.model, Selfie)
        return self.step.average.model


def build_pretraining(config: Config, accelerator: Accelerator) -> Pretraining:
    """The network as the seed draws it, on the machine's device, and its training step."""
    settings = config.pretrain
    torch.manual_seed(config.seed)
    model = Selfie(config)
    accelerator.place(model)
    estimate = estimate_pretraining(config, accelerator.precision)
    memory = total_memory(accelerator.device)
    micro_batch = estimate.micro_batch(settings, memory, accelerator.ranks.world)
    pixels = InputTransform(config, accelerator, micro_batch)
    replica = accelerator.replica(model, config.model.sync_batch_norm)
    forward = accelerator.compiled(replica)

    def objective(batch: Batch) -> tuple[Tensor, Tensor, int]:
        loss, correct = forward(*pixels.patches(batch))
        return loss, correct, len(batch.images) * model.masked

    backend = config.optimizer.backend
    step = TrainStep(replica, objective, settings, accelerator, micro_batch, backend, settings.ema)
    return Pretraining(model, pixels, step)


def pretrain(
    config: Config,
    dataset: Dataset,
    folder: Path,
    accelerator: Accelerator,
    show: Show = lambda: None,
) -> tuple[Selfie, dict[str, float]]:
    """Train on all images of the training part, without labels; return it and the last measures.

    Writes log.jsonl, checkpoints and pictures/STEP.png in `folder`; goes on from the newest. The
    labels are for `Monitor` alone. show: see `fit`.

    Raises:
        UserError: see `fit` and the loaders.
    """
    settings = config.pretrain
    built = build_pretraining(config, accelerator)
    model, pixels, step = built.result, built.pixels, built.step
    with accelerator.ranks.raise_together():
        train, held_out = (
            build_loader(images, data, config.seed, accelerator.device)
            for images, data in (
                (dataset.train, config.pretraining_data),
                (dataset.held_out, config.data),
            )
        )
        monitor = Monitor(config, dataset, pixels, accelerator)
    pictured = frozenset((*settings.picture_steps, settings.steps))

    def evaluate(done: int) -> dict[str, float]:
        with accelerator.ranks.raise_together():
            if done in pictured and accelerator.ranks.is_main:
                try:
                    _take_picture(model, held_out, pixels, accelerator, picture_path(folder, done))
                except OSError as error:
                    if config.checkpoint.on_error == "stop":
                        raise
                    say(
                        f"warning: {picture_path(folder, done)}: {error.strerror}: the picture is "
                        "not written, checkpoint.on_error is continue"
                    )
        measures = pretext_accuracy(model, held_out, pixels, accelerator, settings.eval_images)
        return measures | monitor.measure(model.patch_network, done)

    measures = fit(
        pretraining_stage(config, dataset),
        folder,
        step,
        train,
        evaluate,
        also_at=pictured | monitor.steps,
        show=show,
    )
    return model, measures


def _take_picture(
    model: Selfie, loader: Loader, pixels: InputTransform, accelerator: Accelerator, path: Path
) -> None:
    """The first held-out images as the model fills them now, and once as they are."""
    batches = loader.in_order(_PICTURED, _PICTURED)
    batch = next(batches)
    batches.close()
    with evaluating(model), accelerator.autocast():
        patches, places = pixels.patches(batch)
        scores = model.scores(patches, places)
    images, order = batch.images.cpu().numpy(), places.cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = scores.argmax(dim=-1).cpu().numpy()
    filled(images, order, chosen, pixels.patch_size).save(path)
    originals(images).save(path.with_name("original.png"))
