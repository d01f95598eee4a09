"""Evaluate the features of P without labels: k-NN and linear probe, beside two controls."""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, limited
from fastselfie.data.loaders import build_loader
from fastselfie.data.splits import choose_labels
from fastselfie.evaluation.knn import knn_accuracy
from fastselfie.evaluation.metrics import pretext_accuracy
from fastselfie.evaluation.probes import standardized
from fastselfie.evaluation.representations import (
    evaluate_features,
    extract_features,
    pixel_features,
)
from fastselfie.inference.evaluate_run import measuring_pixels
from fastselfie.models.selfie import PatchConcat, Selfie, build_patch_network
from fastselfie.system.accelerator import Accelerator

_Labelled = tuple[Tensor, Tensor]  # (n, D) and (n,)

FEATURES = "features.json"
# Its keys.
FIGURES = frozenset(
    (
        "bank", "bank_places", "pretext_accuracy", "pretext_accuracy_cropped",
        "p_knn", "p_linear_probe", "p_knn_places",
        "random_knn", "random_linear_probe", "random_knn_places",
        "pixels_knn", "pixels_knn_standardised",
    )
)  # fmt: skip
_BANK = 50_000  # images
_PLACES_MEMORY = 2**30  # bytes for the vectors of all patches: 65,536 images of the slim network


def measure_features(
    config: Config, dataset: Dataset, accelerator: Accelerator, pretrained: Selfie
) -> dict[str, float]:
    """Measure pretext accuracy, k-NN and linear probe on the held-out images, without finetuning.

    The bank holds labelled training images, a class-balanced choice of 50,000 if there are more.

    Args:
        config: Config of the reproduction.
        dataset: Its images.
        accelerator: Device to compute on.
        pretrained: The pretrained network.

    Returns:
        `FIGURES`, accuracies as shares of 1:

        * pretext_accuracy: without augmentation; pretext_accuracy_cropped: with the crops of
          pretraining;
        * bank: number of images in the bank;
        * p_*: pooled features that P computes of whole images; random_*: those of the same network
          before training; pixels_*: the pixels, at most 32x32;
        * *_places: the vectors of all patches, concatenated, which keep positions as pixels do.
          These and pixels_knn_standardised have each column standardised over their bank;
        * bank_places: images in that bank, as many as fit in 1 GiB; also the most queries.
    """
    share = min(1.0, _BANK / len(dataset.train))
    chosen = choose_labels(dataset.train.labels, share, None, config.seed)
    source = dataset.train.select(chosen)
    held = _PLACES_MEMORY // (4 * config.patches * config.model.embedding_width)
    few, few_asked = (limited(each, held, config.seed) for each in (source, dataset.held_out))
    bank, queries, placed, asking = (
        build_loader(images, config.data, config.seed, accelerator.device)
        for images in (source, dataset.held_out, few, few_asked)
    )
    pixels = measuring_pixels(config, accelerator, len(dataset.train.classes))
    figures: dict[str, float] = {"bank": len(bank.source), "bank_places": len(placed.source)}
    accelerator.place(pretrained)
    for name, data in (("", config.data), ("_cropped", config.pretraining_data)):
        held_out = build_loader(dataset.held_out, data, config.seed, accelerator.device)
        count = len(held_out.source)
        found = pretext_accuracy(pretrained, held_out, pixels, count, bool(name))
        figures[f"pretext_accuracy{name}"] = found["pretext_accuracy"]
    torch.manual_seed(config.seed)
    networks = {"p": pretrained.patch_network, "random": build_patch_network(config)}
    for name, network in networks.items():
        accelerator.place(network)
        measures = evaluate_features(network, bank, queries, pixels)
        figures |= {f"{name}_{key}": value for key, value in measures.items()}
        places = PatchConcat(network, config.grid)
        known, asked = (extract_features(places, x, pixels) for x in (placed, asking))
        figures[f"{name}_knn_places"] = _knn_standardised(known, asked)
    known, asked = (pixel_features(loader, pixels) for loader in (bank, queries))
    figures["pixels_knn"] = knn_accuracy(*known, *asked)
    known, asked = (pixel_features(loader, pixels) for loader in (placed, asking))
    figures["pixels_knn_standardised"] = _knn_standardised(known, asked)
    return figures


def _knn_standardised(known: _Labelled, asked: _Labelled) -> float:
    bank, queries = standardized(known[0], asked[0])
    return knn_accuracy(bank, known[1], queries, asked[1])
