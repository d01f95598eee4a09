"""Finetuning of a pretrained network on few labels, and the control from scratch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, Source
from fastselfie.data.draws import IntArray
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch, build_loader
from fastselfie.data.splits import choose_labels
from fastselfie.errors import UserError
from fastselfie.evaluation.metrics import classification_accuracy
from fastselfie.models.selfie import Classifier, Selfie, build_classifier
from fastselfie.stage_names import FINETUNED, SUPERVISED
from fastselfie.system.accelerator import Accelerator
from fastselfie.training.build import BuiltStage, build_stage
from fastselfie.training.loop import fit
from fastselfie.training.memory import estimate_finetuning
from fastselfie.training.metrics_log import OnLogLine
from fastselfie.training.stage_state import Stage


class FewLabels(NamedTuple):
    """The images of a finetuning.

    Attributes:
        train: labelled images to train on.
        held_out: images to evaluate on.
        images: fingerprint of both; the checkpoints must agree with it.
    """

    train: Source
    held_out: Source
    images: str


def finetuning_stage(config: Config, images: str, from_p: bool) -> Stage:
    """Return what the checkpoints of a finetuning must agree with.

    Args:
        config: the run's.
        images: see `FewLabels`.
        from_p: True: the finetuned network; False: the control, which has `finetune.scratch_lr`.
    """
    settings, sections = config.finetune, ("seed", "data", "model", "finetune")
    if from_p:
        unused = ["finetune.scratch_lr"]
        return Stage(FINETUNED, config, settings, (*sections, "pretrain"), images, unused)
    unused = []
    if settings.scratch_lr is not None:
        settings = settings.model_copy(update={"lr": settings.scratch_lr})
        unused = ["finetune.lr"]
    return Stage(SUPERVISED, config, settings, sections, images, unused)


def labelled(config: Config, dataset: Dataset) -> IntArray:
    """Choose the training images that finetuning sees; the control sees the same ones.

    Returns:
        Their indices, (n,) int64.

    Raises:
        UserError: fewer than two classes, or too few images of one.
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
    """Select the images of `dataset` that finetuning sees. Raises UserError as `labelled` does."""
    few = dataset.train.select(labelled(config, dataset))
    return FewLabels(few, dataset.held_out, dataset.fingerprint())


def build_finetuning(
    config: Config, stage: Stage, classes: int, accelerator: Accelerator, start: Selfie | None
) -> BuiltStage[Classifier]:
    """Build a finetuning stage, see `build_stage`.

    Args:
        config: the run's.
        stage: what `finetuning_stage` made: its settings may be the control's.
        classes: outputs of the classifier.
        accelerator: where and how it trains.
        start: the pretrained network; None: the classifier starts from scratch.
    """

    def objective(
        forward: Callable[..., Any], pixels: InputTransform, batch: Batch
    ) -> tuple[Tensor, Tensor, int]:
        logits = forward(pixels.whole(batch)).float()
        right = (logits.argmax(dim=1) == batch.labels).sum()
        return F.cross_entropy(logits, batch.labels), right, len(batch.images)

    estimate = estimate_finetuning(config, classes, accelerator.precision)
    build = partial(build_classifier, config, classes, start)
    return build_stage(config, stage.settings, accelerator, estimate, build, objective)


def finetune(
    config: Config,
    few: FewLabels,
    folder: Path,
    accelerator: Accelerator,
    start: Selfie | None,
    on_log_line: OnLogLine = lambda: None,
) -> dict[str, float]:
    """Train all layers of the classifier, from the newest checkpoint in `folder` if there is one.

    Args:
        config: the run's.
        few: images to train and to evaluate on.
        folder: for log.jsonl and checkpoints.
        accelerator: where and how to train.
        start: the pretrained network; None: the control, which starts from scratch. The layers that
            pretraining lacks, stage 4 and the head, have the same initial weights in both.
        on_log_line: see `fit`.

    Returns:
        The last metrics, see `classification_accuracy`.

    Raises:
        UserError: see `fit` and the loaders.
    """
    stage = finetuning_stage(config, few.images, from_p=start is not None)
    classes = len(few.train.classes)
    built = build_finetuning(config, stage, classes, accelerator, start)
    network, pixels = built.model, built.pixels
    with accelerator.ranks.raise_together():
        train = build_loader(few.train, config.data, config.seed, accelerator.device)
        held_out = build_loader(few.held_out, config.data, config.seed, accelerator.device)
    evaluate = partial(classification_accuracy, network, held_out, pixels)
    return fit(stage, folder, built.step, train, lambda _: evaluate(), on_log_line=on_log_line)
