"""Features of images, and their evaluation without finetuning."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Loader
from fastselfie.evaluation.knn import knn_accuracy
from fastselfie.evaluation.metrics import evaluating
from fastselfie.evaluation.probes import linear_probe_accuracy
from fastselfie.models.selfie import Classifier, PatchConcat

_THUMBNAIL = 32  # side of the images that are compared pixel by pixel


def feature_batches(
    network: Classifier | PatchConcat, loader: Loader, pixels: InputTransform
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield the features (B, D) float32 and labels (B,) int64 of each batch, in order."""
    with evaluating(network), closing(loader.in_order(pixels.batch)) as batches:
        for batch in batches:
            with pixels.accelerator.autocast():
                features = network.features(pixels.whole(batch)).float()
            yield features, batch.labels


def extract_features(
    network: Classifier | PatchConcat, loader: Loader, pixels: InputTransform
) -> tuple[Tensor, Tensor]:
    """Concatenate all of `feature_batches`: (n, D) and (n,), on the loader's device."""
    batches = feature_batches(network, loader, pixels)
    features, labels = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(labels)


def evaluate_features(
    network: Classifier,
    bank: Loader,
    queries: Loader,
    pixels: InputTransform,
    probe: bool = True,
) -> dict[str, float]:
    """Evaluate features by k-NN and a linear probe.

    Args:
        network: whose features; on the device of `pixels`.
        bank: images whose labels are known.
        queries: images to classify.
        pixels: makes the network's input.
        probe: whether to fit the linear probe.

    Returns:
        Top-1 accuracy on `queries`: knn and, if `probe`, linear_probe.
    """
    known, asked = (extract_features(network, x, pixels) for x in (bank, queries))
    found = {"knn": knn_accuracy(*known, *asked)}
    if probe:
        found["linear_probe"] = linear_probe_accuracy(*known, *asked)
    return found


def pixel_features(loader: Loader, pixels: InputTransform) -> tuple[Tensor, Tensor]:
    """Normalised pixels (n, 3 x H x W) float32 and labels (n,): a baseline for learned features.

    Images larger than 32 x 32 are averaged down to that size: 10,000 of 224 x 224 would take 6 GB.
    """
    features, labels = [], []
    with torch.inference_mode(), closing(loader.in_order(pixels.batch)) as batches:
        for batch in batches:
            images = pixels.whole(batch, torch.float32)
            if images.shape[-1] > _THUMBNAIL:
                images = F.adaptive_avg_pool2d(images, _THUMBNAIL)
            features.append(images.flatten(1))
            labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)
