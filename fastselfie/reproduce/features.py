"""What P has learned without a label: k-NN and linear probe of its features, and two controls."""

from __future__ import annotations

import torch

from fastselfie.config import Config
from fastselfie.data.loaders import build_loader
from fastselfie.data.sources import Dataset
from fastselfie.data.subsets import choose_labels
from fastselfie.device import Machine
from fastselfie.evaluate import (
    extract_features,
    knn_accuracy,
    linear_probe_accuracy,
    pixel_features,
    pretext_accuracy,
)
from fastselfie.measure import measuring_pixels
from fastselfie.models.selfie import Selfie, build_patch_network

FEATURES = "features.json"
_BANK = 50_000  # images


def measure_features(
    config: Config, dataset: Dataset, machine: Machine, pretrained: Selfie
) -> dict[str, float]:
    """Pretext accuracy on all held-out images; k-NN and linear probe on them, without finetuning.

    The bank is of training images with labels, a balanced choice where there are more than 50,000
    (bank: its size). Of P's features of whole images, of those of the same network as it begins,
    and k-NN of the pixels at 32 a side at most.
    """
    share = min(1.0, _BANK / len(dataset.train))
    chosen = choose_labels(dataset.train.labels, share, None, config.seed)
    source = dataset.train.select(chosen)
    bank, queries = (
        build_loader(images, config.data, config.seed, machine.device)
        for images in (source, dataset.held_out)
    )
    pixels = measuring_pixels(config, machine, len(dataset.train.classes))
    machine.place(pretrained)
    pretext = pretext_accuracy(
        pretrained, queries, pixels, machine, config.patches, len(dataset.held_out)
    )
    torch.manual_seed(config.seed)
    figures = {"bank": len(source), "pretext_accuracy": pretext["pretext_accuracy"]}
    networks = {"p": pretrained.patch_network, "random": build_patch_network(config)}
    for name, network in networks.items():
        machine.place(network)
        known = extract_features(network, bank, pixels, machine)
        asked = extract_features(network, queries, pixels, machine)
        figures[f"{name}_knn"] = knn_accuracy(*known, *asked)
        figures[f"{name}_linear_probe"] = linear_probe_accuracy(*known, *asked)
    known, asked = (pixel_features(loader, pixels) for loader in (bank, queries))
    figures["pixels_knn"] = knn_accuracy(*known, *asked)
    return figures
