"""Loss and accuracy of a network on held-out images, in eval mode and without augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Loader
from fastselfie.evaluation.context_use import foreign_queries
from fastselfie.models.selfie import Classifier, Selfie


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode, without gradients, inside the block; then restore its mode."""
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
    limit: int,
    augment: bool = False,
) -> dict[str, float]:
    """Loss and accuracy of the pretext task; chance is 1 / M.

    Each image has the same mask in every evaluation. Every rank calls it and evaluates its share.

    Args:
        model: on the device of `pixels`.
        loader: of held-out images.
        pixels: makes the network's input; its accelerator has the precision and the ranks.
        limit: number of images.
        augment: crop and flip as in training. If that makes the accuracy much higher, the crop
            reveals locations.

    Returns:
        heldout_loss and pretext_accuracy; pretext_accuracy_other_context and
        pretext_accuracy_no_context, see `foreign_queries`. Another image's context needs a pass of
        two images at least; without one its accuracy is left out.
    """
    ranks, loss, answers, others = pixels.accelerator.ranks, 0.0, 0.0, 0.0
    right = [0.0, 0.0, 0.0]  # with the image's own context, another image's, none
    ranks.broadcast_buffers(model)
    with (
        ranks.raise_together(),
        evaluating(model),
        closing(loader.in_order(pixels.batch, limit, ranks, augment)) as batches,
    ):
        for batch in batches:
            with pixels.accelerator.autocast():
                patches, order = pixels.patches(batch)
                vectors = model.vectors(patches)
                own = model.encoded(vectors, order)
                batch_loss, correct = model.score(own, order)
                foreign = foreign_queries(model, vectors, own, order)
                found = [correct, *(model.score(encoded, order)[1] for encoded in foreign)]
            count = len(batch.images) * model.masked
            loss += float(batch_loss) * count
            answers += count
            if len(batch.images) == 1:  # it has no other image
                found[1].zero_()
            else:
                others += count
            # Of NaN scores argmax takes the first, which would look like chance.
            if math.isfinite(loss):
                right = [sum(pair) for pair in zip(right, torch.stack(found).tolist(), strict=True)]
    loss, answers, others, *right = ranks.summed(loss, answers, others, *right)
    measures = {"heldout_loss": loss / answers, "pretext_accuracy": right[0] / answers}
    if others:
        measures["pretext_accuracy_other_context"] = right[1] / others
    return measures | {"pretext_accuracy_no_context": right[2] / answers}


def classification_accuracy(
    model: Classifier, loader: Loader, pixels: InputTransform
) -> dict[str, float]:
    """Loss, top-1 and top-5 accuracy over all images of `loader`.

    Every rank calls it and evaluates its share.

    Returns:
        heldout_loss, top1 and top5.
    """
    ranks, loss, top1, top5 = pixels.accelerator.ranks, 0.0, 0.0, 0.0
    ranks.broadcast_buffers(model)
    with (
        ranks.raise_together(),
        evaluating(model),
        closing(loader.in_order(pixels.batch, ranks=ranks)) as batches,
    ):
        for batch in batches:
            with pixels.accelerator.autocast():
                logits = model(pixels.whole(batch)).float()
            loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            top1 += int(best[:, 0].sum())
            top5 += int(best.sum())
    loss, top1, top5 = ranks.summed(loss, top1, top5)
    count = len(loader.source)
    return {"heldout_loss": loss / count, "top1": top1 / count, "top5": top5 / count}
