"""`fastselfie evaluate`: what the networks of a finished run are worth on held-out images."""

from __future__ import annotations

from pathlib import Path

from fastselfie.config import Config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.metrics import classification_accuracy
from fastselfie.evaluation.representations import evaluate_features
from fastselfie.runs.load import open_run, open_trained, stages_of
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import Accelerator, choose_accelerator, total_memory
from fastselfie.system.console import say
from fastselfie.training.memory import estimate_finetuning


def measure_run(run: Path, data: str | None) -> dict[str, dict[str, float]]:
    """Measures of every network that the run left, by its name, of an unfinished stage too.

    finetuned, supervised: heldout_loss, top1, top5. pretrain: knn and linear_probe on P's features
    of whole images, fitted on the run's training images.

    Raises:
        UserError: not a run, one without checkpoints, or images that cannot be read.
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
        network = open_trained(run, name, allow_unfinished=True).network(classes)
        accelerator.place(network)
        if name == PRETRAIN:
            train = build_loader(dataset.train, config.data, config.seed, accelerator.device)
            measures[name] = evaluate_features(network, train, held_out, pixels, accelerator)
        else:
            measures[name] = classification_accuracy(network, held_out, pixels, accelerator)
    return measures


def measuring_pixels(config: Config, accelerator: Accelerator, classes: int = 1) -> InputTransform:
    """What turns batches into a run's networks' input, no more images at a time than finetuning."""
    estimate = estimate_finetuning(config, classes, accelerator.precision)
    micro_batch = estimate.micro_batch(config.finetune, total_memory(accelerator.device))
    return InputTransform(config, accelerator, micro_batch)
