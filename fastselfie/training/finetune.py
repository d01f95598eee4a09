"""Finetuning on few labels from pretraining, and the control: the same network from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import update_bn

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, Source
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch, Loader, build_loader
from fastselfie.data.random import IntArray
from fastselfie.data.splits import choose_labels
from fastselfie.errors import UserError
from fastselfie.evaluation.metrics import classification_accuracy
from fastselfie.models.selfie import Classifier, Selfie, build_classifier
from fastselfie.system.accelerator import Accelerator, random_state, set_random_state, total_memory
from fastselfie.training.checkpoint import has_checkpoints
from fastselfie.training.loop import fit
from fastselfie.training.memory import estimate_finetuning
from fastselfie.training.metrics_log import Show
from fastselfie.training.state import Stage
from fastselfie.training.step import TrainStep


class FewLabels(NamedTuple):
    """The labelled images that one network is trained on, and those that it is measured on.

    images: a fingerprint, which its checkpoints must agree with.
    """

    train: Source
    held_out: Source
    images: str


def finetuning_stage(config: Config, images: str, from_p: bool) -> Stage:
    """What a checkpoint of the finetuned network, or of the control, must agree with."""
    settings = config.finetune
    own_rate = ("finetune.lr",) if settings.scratch_lr is not None else ()
    if not from_p and settings.scratch_lr is not None:
        settings = settings.model_copy(update={"lr": settings.scratch_lr})
    sections = ("seed", "data", "model", "pretrain", "finetune")
    return Stage(
        kind="finetuned" if from_p else "supervised",
        config=config,
        settings=settings,
        sections=sections if from_p else tuple(s for s in sections if s != "pretrain"),
        images=images,
        unused=("finetune.scratch_lr",) if from_p else ("finetune.recalibrate", *own_rate),
    )


def labelled(config: Config, dataset: Dataset) -> IntArray:
    """Indices of the training images that finetuning sees, the same for both arms.

    Raises:
        UserError: fewer than two classes, or too few images in one.
    """
    if len(dataset.train.classes) < 2:
        raise UserError(
            f"{config.data.train}: the training images are of one class, "
            f"'{dataset.train.classes[0]}': finetuning needs two, pretraining alone is "
            "--stage pretrain"
        )
    settings, train = config.finetune, dataset.train
    return choose_labels(
        train.labels, settings.labels, settings.labels_per_class, config.seed, train.classes
    )


def few_labels(config: Config, dataset: Dataset) -> FewLabels:
    """What finetuning sees of `dataset`. Raises what `labelled` does."""
    few = dataset.train.select(labelled(config, dataset))
    return FewLabels(few, dataset.held_out, dataset.fingerprint())


class Finetuning(NamedTuple):
    """A fresh network, what turns batches into its input, and the step that trains it."""

    network: Classifier
    pixels: InputTransform
    step: TrainStep


def build_finetuning(
    config: Config, stage: Stage, classes: int, accelerator: Accelerator, start: Selfie | None
) -> Finetuning:
    """The classifier on the machine's device, from `start` if there is one, and its step."""
    torch.manual_seed(config.seed)
    network = build_classifier(config, classes, start)
    accelerator.place(network)
    estimate = estimate_finetuning(config, classes, accelerator.precision)
    memory = total_memory(accelerator.device)
    micro_batch = estimate.micro_batch(stage.settings, memory, accelerator.ranks.world)
    pixels = InputTransform(config, accelerator, micro_batch)
    replica = accelerator.replica(network, config.model.sync_batch_norm)
    forward = accelerator.compiled(replica)

    def objective(batch: Batch) -> tuple[Tensor, Tensor, int]:
        logits = forward(pixels.whole(batch)).float()
        right = (logits.argmax(dim=1) == batch.labels).sum()
        return F.cross_entropy(logits, batch.labels), right, len(batch.images)

    backend = config.optimizer.backend
    step = TrainStep(replica, objective, stage.settings, accelerator, micro_batch, backend)
    return Finetuning(network, pixels, step)


def finetune(
    config: Config,
    few: FewLabels,
    folder: Path,
    accelerator: Accelerator,
    start: Selfie | None,
    show: Show = lambda: None,
) -> dict[str, float]:
    """Train the classifier on the labelled images, all of it; return the last measures.

    start: the pretrained network, or None for the control. What that does not bring, stage 4 and
    the head, begins alike in both. show: see `fit`.

    Raises:
        UserError: see `fit` and the loaders.
    """
    stage = finetuning_stage(config, few.images, from_p=start is not None)
    classes = len(few.train.classes)
    network, pixels, step = build_finetuning(config, stage, classes, accelerator, start)
    fresh = accelerator.ranks.broadcast_from_main(lambda: not has_checkpoints(folder))
    if start is not None and fresh and config.finetune.recalibrate:
        with accelerator.ranks.raise_together():
            # One of its own: what it skips, training counts.
            seen = build_loader(few.train, config.data, config.seed, accelerator.device)
        recalibrate(network, seen, pixels, accelerator, config.finetune.recalibrate)
    with accelerator.ranks.raise_together():
        train = build_loader(few.train, config.data, config.seed, accelerator.device)
        held_out = build_loader(few.held_out, config.data, config.seed, accelerator.device)

    def evaluate(step: int) -> dict[str, float]:
        del step
        return classification_accuracy(network, held_out, pixels, accelerator)

    return fit(stage, folder, step, train, evaluate, show=show)


def recalibrate(
    network: Classifier,
    loader: Loader,
    pixels: InputTransform,
    accelerator: Accelerator,
    images: int,
) -> None:
    """Take batch norm's running statistics anew: the plain mean over passes of so many images.

    They are the first that training would see, in its order and with its crops: in the order of
    the files a pass would be of one class. Every process looks at all of them.
    """
    passes = -(-images // pixels.batch)

    def inputs() -> Iterator[Tensor]:
        with closing(loader.stream(0, pixels.batch)) as batches:
            for _ in range(passes):
                with accelerator.ranks.raise_together():
                    batch = next(batches)
                yield pixels.whole(batch)

    # In training mode, as it must be: A's dropout draws there, and training's draws shall not move.
    state = random_state(accelerator.device)
    with accelerator.autocast():
        update_bn(inputs(), network)
    set_random_state(state, accelerator.device)
