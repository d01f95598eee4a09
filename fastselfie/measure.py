"""`fastselfie evaluate`: what the networks of a finished run are worth on held-out images."""

from __future__ import annotations

from pathlib import Path

from fastselfie.checkpoint import has_checkpoints, load_weights, newest_checkpoint
from fastselfie.data.loaders import build_loader
from fastselfie.data.sources import open_dataset
from fastselfie.device import choose_machine, total_memory
from fastselfie.errors import UserError
from fastselfie.evaluate import (
    Pixels,
    classification_accuracy,
    extract_features,
    knn_accuracy,
    linear_probe_accuracy,
)
from fastselfie.memory import estimate_finetuning
from fastselfie.models.selfie import build_classifier
from fastselfie.run import (
    FINETUNED,
    PRETRAIN,
    SUPERVISED,
    load_patch_network,
    open_run,
)


def measure_run(run: Path, data: str | None) -> dict[str, dict[str, float]]:
    """Measures of every network that the run left, by its name.

    finetuned, supervised: loss, top1, top5. pretrain: knn and linear_probe on P's features of
    whole images, fitted on the run's training images.

    Raises:
        UserError: not a run, one without checkpoints, or images that cannot be read.
    """
    config = open_run(run)
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"test": data})})
    machine = choose_machine(config.runtime)
    found = [n for n in (PRETRAIN, FINETUNED, SUPERVISED) if has_checkpoints(run / n)]
    if not found:
        raise UserError(f"{run}: holds no checkpoint yet: `fastselfie train` makes them")
    dataset = open_dataset(config.data, config.seed)
    estimate = estimate_finetuning(config, len(dataset.train.classes), machine.precision)
    micro_batch = estimate.micro_batch(config.finetune, total_memory(machine.device))
    held_out = build_loader(dataset.held_out, config.data, config.seed, machine.device)
    pixels = Pixels(config, machine, micro_batch)
    measures: dict[str, dict[str, float]] = {}
    for name in found:
        if name == PRETRAIN:
            network = load_patch_network(config, run / name)
            machine.place(network)
            train = build_loader(dataset.train, config.data, config.seed, machine.device)
            bank = extract_features(network, train, pixels, machine)
            queries = extract_features(network, held_out, pixels, machine)
            measures[name] = {
                "knn": knn_accuracy(*bank, *queries),
                "linear_probe": linear_probe_accuracy(*bank, *queries),
            }
        else:
            classifier = build_classifier(config, len(dataset.train.classes))
            checkpoint = newest_checkpoint(run / name, name)
            assert checkpoint is not None
            load_weights(classifier, checkpoint.state["model"], checkpoint.path)
            machine.place(classifier)
            measures[name] = classification_accuracy(classifier, held_out, pixels, machine)
    return measures
