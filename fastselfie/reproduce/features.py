"""What P has learned without a label: k-NN and linear probe of its features, and two controls."""

from __future__ import annotations

from pathlib import Path

import torch

from fastselfie.checkpoint import newest_checkpoint
from fastselfie.config import Config
from fastselfie.data.loaders import build_loader
from fastselfie.data.sources import Dataset
from fastselfie.data.subsets import choose_labels
from fastselfie.device import Machine, total_memory
from fastselfie.evaluate import (
    Pixels,
    extract_features,
    knn_accuracy,
    linear_probe_accuracy,
    pixel_features,
)
from fastselfie.memory import estimate_finetuning
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import build_patch_network
from fastselfie.run import PRETRAIN

FEATURES = "features.json"
_BANK = 50_000  # images


def measure_features(
    config: Config, dataset: Dataset, machine: Machine, patch_network: ResNetV2
) -> dict[str, float]:
    """k-NN and linear probe on held-out images, the bank being training images with labels.

    Of P's features of whole images, of those of the same network as it begins, and k-NN of the
    pixels at 32 a side at most. bank: its size, a balanced choice where there are more than 50,000.
    """
    share = min(1.0, _BANK / len(dataset.train))
    chosen = choose_labels(dataset.train.labels, share, None, config.seed)
    source = dataset.train.select(chosen)
    bank, queries = (
        build_loader(images, config.data, config.seed, machine.device)
        for images in (source, dataset.held_out)
    )
    estimate = estimate_finetuning(config, len(dataset.train.classes), machine.precision)
    batch = estimate.micro_batch(config.finetune, total_memory(machine.device))
    pixels = Pixels(config, machine, batch)
    torch.manual_seed(config.seed)
    figures: dict[str, float] = {"bank": len(source)}
    for name, network in (("p", patch_network), ("random", build_patch_network(config))):
        machine.place(network)
        known = extract_features(network, bank, pixels, machine)
        asked = extract_features(network, queries, pixels, machine)
        figures[f"{name}_knn"] = knn_accuracy(*known, *asked)
        figures[f"{name}_linear_probe"] = linear_probe_accuracy(*known, *asked)
    known, asked = (pixel_features(loader, pixels) for loader in (bank, queries))
    figures["pixels_knn"] = knn_accuracy(*known, *asked)
    return figures


def pretext_of(out: Path) -> float:
    """Pretext accuracy on held-out images at the end of the pretraining in `out`."""
    found = newest_checkpoint(out / PRETRAIN, PRETRAIN)
    assert found is not None
    return float(found.state["metrics"]["pretext_accuracy"])
