"""Finetuning on few labels from P, and the supervised control: the same network from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.loaders import Batch, build_loader
from fastselfie.data.sources import Dataset
from fastselfie.data.subsets import choose_labels
from fastselfie.device import Machine, total_memory
from fastselfie.errors import UserError
from fastselfie.evaluate import Pixels, classification_accuracy
from fastselfie.log import Show
from fastselfie.loop import Stage, fit
from fastselfie.memory import estimate_finetuning
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import build_classifier
from fastselfie.rng import IntArray
from fastselfie.step import TrainStep


def finetuning_stage(config: Config, dataset: Dataset, from_p: bool) -> Stage:
    """What a checkpoint of the finetuned network, or of the control, must agree with."""
    settings = config.finetune
    own_rate = settings.scratch_lr is not None
    if not from_p and settings.scratch_lr is not None:
        settings = settings.model_copy(update={"lr": settings.scratch_lr})
    sections = ("seed", "data", "model", "pretrain", "finetune")
    return Stage(
        kind="finetuned" if from_p else "supervised",
        config=config,
        settings=settings,
        sections=sections if from_p else tuple(s for s in sections if s != "pretrain"),
        images=dataset.fingerprint(),
        unused=("finetune.scratch_lr",) if from_p else ("finetune.lr",) if own_rate else (),
    )


def labelled(config: Config, dataset: Dataset) -> IntArray:
    """Indices of the training images that finetuning sees, the same for both arms.

    Raises:
        UserError: fewer than two classes, or too few images in one.
    """
    if len(dataset.train.classes) < 2:
        raise UserError(
            f"{dataset.train.name(0)}: the training images are of one class, "
            f"'{dataset.train.classes[0]}': finetuning needs two, pretraining alone is "
            "--stage pretrain"
        )
    settings = config.finetune
    return choose_labels(
        dataset.train.labels, settings.labels, settings.labels_per_class, config.seed
    )


class Finetuning(NamedTuple):
    """A fresh network, what turns batches into its input, and the step that trains it."""

    network: ResNetV2
    pixels: Pixels
    step: TrainStep


def build_finetuning(
    config: Config, stage: Stage, classes: int, machine: Machine, start: ResNetV2 | None
) -> Finetuning:
    """The classifier on the machine's device, from P if `start` is given, and its training step."""
    torch.manual_seed(config.seed)
    network = build_classifier(config, classes)
    if start is not None:
        network.start_from(start)
    machine.place(network)
    estimate = estimate_finetuning(config, classes, machine.precision)
    memory = total_memory(machine.device)
    micro_batch = estimate.micro_batch(stage.settings, memory, machine.ranks.world)
    pixels = Pixels(config, machine, micro_batch)
    replica = machine.replica(network, config.model.sync_batch_norm)
    forward = machine.compiled(replica)

    def objective(batch: Batch) -> tuple[Tensor, Tensor, int]:
        logits = forward(pixels.whole(batch)).float()
        right = (logits.argmax(dim=1) == batch.labels).sum()
        return F.cross_entropy(logits, batch.labels), right, len(batch.images)

    backend = config.optimizer.backend
    step = TrainStep(replica, objective, stage.settings, machine, micro_batch, backend)
    return Finetuning(network, pixels, step)


def finetune(
    config: Config,
    dataset: Dataset,
    folder: Path,
    machine: Machine,
    start: ResNetV2 | None,
    show: Show = lambda: None,
) -> dict[str, float]:
    """Train all four stages and a classifier on the labelled images; return the last measures.

    start: P, or None for the control. Stage 4 and the classifier begin as usual in both.
    show: see `fit`.

    Raises:
        UserError: see `labelled`, `fit` and the loaders.
    """
    stage = finetuning_stage(config, dataset, from_p=start is not None)
    classes = len(dataset.train.classes)
    network, pixels, step = build_finetuning(config, stage, classes, machine, start)
    few = dataset.train.select(labelled(config, dataset))
    with machine.ranks.as_one():
        train = build_loader(few, config.data, config.seed, machine.device)
        held_out = build_loader(dataset.held_out, config.data, config.seed, machine.device)

    def evaluate(step: int) -> dict[str, float]:
        del step
        return classification_accuracy(network, held_out, pixels, machine)

    return fit(stage, folder, step, train, evaluate, show=show)
