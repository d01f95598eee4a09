"""Measures of a network on images it has not seen, in eval mode and without augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Loader
from fastselfie.models.selfie import Classifier, Selfie
from fastselfie.system.accelerator import Accelerator


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the mode it was in comes back."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def pretext_accuracy(
    model: Selfie,
    loader: Loader,
    pixels: InputTransform,
    accelerator: Accelerator,
    limit: int,
    augment: bool = False,
) -> dict[str, float]:
    """Loss and accuracy of the pretext task on `limit` images; chance is 1 / M.

    The masks are drawn once for each image, so every step is measured on the same task. augment:
    cropped and flipped as in training. If it is far more often right than without, the crop gives
    places away.
    """
    ranks, loss, right, answers = accelerator.ranks, 0.0, 0.0, 0.0
    ranks.broadcast_buffers(model)
    with (
        ranks.raise_together(),
        evaluating(model),
        closing(loader.in_order(pixels.batch, limit, ranks, augment)) as batches,
    ):
        for batch in batches:
            with accelerator.autocast():
                batch_loss, correct = model(*pixels.patches(batch))
            count = len(batch.images) * model.masked
            loss += float(batch_loss) * count
            # The largest of NaNs is the first, which would pass for chance.
            right += int(correct) if math.isfinite(loss) else 0
            answers += count
    loss, right, answers = ranks.summed(loss, right, answers)
    return {"heldout_loss": loss / answers, "pretext_accuracy": right / answers}


def classification_accuracy(
    model: Classifier, loader: Loader, pixels: InputTransform, accelerator: Accelerator
) -> dict[str, float]:
    """Loss, top-1 and top-5 accuracy over all images of `loader`."""
    ranks, loss, top1, top5 = accelerator.ranks, 0.0, 0.0, 0.0
    ranks.broadcast_buffers(model)
    with (
        ranks.raise_together(),
        evaluating(model),
        closing(loader.in_order(pixels.batch, ranks=ranks)) as batches,
    ):
        for batch in batches:
            with accelerator.autocast():
                logits = model(pixels.whole(batch)).float()
            loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            top1 += int(best[:, 0].sum())
            top5 += int(best.sum())
    loss, top1, top5 = ranks.summed(loss, top1, top5)
    count = len(loader.source)
    return {"heldout_loss": loss / count, "top1": top1 / count, "top5": top5 / count}
