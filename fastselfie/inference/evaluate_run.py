"""`fastselfie evaluate`: measure the networks of a run on held-out images."""

from __future__ import annotations

from pathlib import Path

from fastselfie.config import Config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.metrics import classification_accuracy, pretext_accuracy
from fastselfie.evaluation.representations import evaluate_features
from fastselfie.runs.load import load_run, open_run, stages_of
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.console import say
from fastselfie.system.resources import total_memory
from fastselfie.training.memory import estimate_finetuning


def measure_run(run: Path, data: str | None) -> dict[str, dict[str, float]]:
    """Evaluate every network of a run, also of unfinished stages.

    Args:
        run: Folder of the run.
        data: Held-out images; None: those of the run.

    Returns:
        Stage -> measures. finetuned, supervised: heldout_loss, top1, top5. pretrain: those of
        `pretext_accuracy` on `pretrain.eval_images` images; knn and linear_probe on P's features of
        whole images, fitted on the run's training images.

    Raises:
        UserError: `run` is not a run or has no checkpoint, or images cannot be read.
    """
    config = open_run(run)
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"test": data})})
    accelerator = choose_accelerator(config.runtime)
    found = stages_of(run)
    dataset = open_dataset(config.data, config.seed)
    if dataset.warning:
        say(f"warning: {dataset.warning}")
    held_out = build_loader(dataset.held_out, config.data, config.seed, accelerator.device)
    classes = len(dataset.train.classes)
    pixels = measuring_pixels(config, accelerator, classes)
    measures: dict[str, dict[str, float]] = {}
    for name in found:
        trained = load_run(run, name, allow_unfinished=True)
        if name == PRETRAIN:
            selfie = trained.selfie()
            accelerator.place(selfie)
            train = build_loader(dataset.train, config.data, config.seed, accelerator.device)
            limit = config.pretrain.eval_images
            measures[name] = pretext_accuracy(selfie, held_out, pixels, limit)
            measures[name] |= evaluate_features(selfie.patch_network, train, held_out, pixels)
        else:
            network = trained.network(classes)
            accelerator.place(network)
            measures[name] = classification_accuracy(network, held_out, pixels)
    return measures


def measuring_pixels(config: Config, accelerator: Accelerator, classes: int = 1) -> InputTransform:
    """Return the input transform for evaluation, with passes no larger than in finetuning.

    Args:
        config: Config of the run.
        accelerator: Device to compute on.
        classes: Number of classes.
    """
    estimate = estimate_finetuning(config, classes, accelerator.precision)
    micro_batch = estimate.micro_batch(config.finetune, total_memory(accelerator.device))
    return InputTransform(config, accelerator, micro_batch)
