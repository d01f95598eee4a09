"""Finetuning on few labels from P, and the supervised control: the same network from scratch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.loaders import Batch, build_loader
from fastselfie.data.sources import Dataset
from fastselfie.data.subsets import label_subset
from fastselfie.device import Machine, total_memory
from fastselfie.errors import UserError
from fastselfie.evaluate import Pixels, classification_accuracy
from fastselfie.loop import Stage, fit
from fastselfie.memory import estimate_finetuning
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import build_classifier
from fastselfie.step import TrainStep


def finetune(
    config: Config,
    dataset: Dataset,
    folder: Path,
    subset: Path,
    machine: Machine,
    start: ResNetV2 | None,
) -> dict[str, float]:
    """Train all four stages and a classifier on the labelled subset; return the last measures.

    start: P, or None for the control. Stage 4 and the classifier begin as usual in both.
    subset: the index file that both arms share.

    Raises:
        UserError: fewer than two classes, too few images a class; see `fit` and the loaders.
    """
    classes = len(dataset.train.classes)
    if classes < 2:
        raise UserError(
            f"{dataset.train.name(0)}: the training images are of one class, "
            f"'{dataset.train.classes[0]}': finetuning needs two, pretraining alone is "
            "--stage pretrain"
        )
    settings = config.finetune
    if start is None and settings.scratch_lr is not None:
        settings = settings.model_copy(update={"lr": settings.scratch_lr})
    torch.manual_seed(config.seed)
    network = build_classifier(config, classes)
    if start is not None:
        network.start_from(start)
    machine.place(network)
    pixels = Pixels(config, machine)

    def objective(batch: Batch) -> tuple[Tensor, Tensor, int]:
        logits = network(pixels.whole(batch)).float()
        right = (logits.argmax(dim=1) == batch.labels).sum()
        return F.cross_entropy(logits, batch.labels), right, len(batch.images)

    indices = label_subset(
        dataset.train.labels, settings.labels, settings.labels_per_class, config.seed, subset
    )
    train = build_loader(dataset.train.select(indices), config.data, config.seed, machine.device)
    held_out = build_loader(dataset.held_out, config.data, config.seed, machine.device)

    def evaluate(step: int) -> dict[str, float]:
        del step
        return classification_accuracy(network, held_out, pixels, machine)

    micro_batch = estimate_finetuning(config, classes, machine.precision).micro_batch(
        settings, total_memory(machine.device)
    )
    step = TrainStep(network, objective, settings, machine, micro_batch)
    stage = Stage(
        kind="supervised" if start is None else "finetuned",
        folder=folder,
        config=config,
        settings=settings,
        sections=("seed", "data", "model", "finetune") + (("pretrain",) if start else ()),
        patches=1,
    )
    return fit(stage, step, train, evaluate)
