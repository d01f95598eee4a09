"""Features of images and what they are worth without finetuning."""

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
from fastselfie.system.accelerator import Accelerator

_THUMBNAIL = 32  # side of the images that are compared pixel by pixel


def feature_batches(
    network: Classifier | PatchConcat,
    loader: Loader,
    pixels: InputTransform,
    accelerator: Accelerator,
) -> Generator[tuple[Tensor, Tensor]]:
    """Features of images (B, D) float32 and their labels (B,), batch by batch in order."""
    with evaluating(network), closing(loader.in_order(pixels.batch)) as batches:
        for batch in batches:
            with accelerator.autocast():
                features = network.features(pixels.whole(batch)).float()
            yield features, batch.labels


def extract_features(
    network: Classifier | PatchConcat,
    loader: Loader,
    pixels: InputTransform,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor]:
    """All of `feature_batches` at once: (n, D) and (n,), on the loader's device."""
    batches = feature_batches(network, loader, pixels, accelerator)
    features, labels = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(labels)


def evaluate_features(
    network: Classifier,
    bank: Loader,
    queries: Loader,
    pixels: InputTransform,
    accelerator: Accelerator,
    probe: bool = True,
) -> dict[str, float]:
    """Top-1 on `queries` by k-NN (knn) and, unless told not, by a linear probe (linear_probe)."""
    known, asked = (
        extract_features(network, each, pixels, accelerator) for each in (bank, queries)
    )
    found = {"knn": knn_accuracy(*known, *asked)}
    if probe:
        found["linear_probe"] = linear_probe_accuracy(*known, *asked)
    return found


def pixel_features(loader: Loader, pixels: InputTransform) -> tuple[Tensor, Tensor]:
    """Normalised pixels (n, 3 x H x W) float32 and labels (n,): what learned features must beat.

    Images of more than 32 x 32 are averaged down to that: of 224 x 224 ones 10,000 take 6 GB.
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
