"""Measures of a network on images it has not seen, in eval mode and without augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.config import Config
from fastselfie.data.loaders import Batch, Loader
from fastselfie.device import Machine
from fastselfie.kernels.patchify import patchify
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Selfie
from fastselfie.phases import phase


class Pixels:
    """Turns the pixels of a batch into the network's input: patches, or whole images.

    batch: images a forward pass when measuring, at most as many as a training pass has.
    """

    def __init__(self, config: Config, machine: Machine, batch: int) -> None:
        self.batch = min(256, batch)
        self.patch_size = config.model.patch_size
        self.image_size = config.data.image_size
        self.mean = torch.tensor(config.data.mean, device=machine.device)
        self.std = torch.tensor(config.data.std, device=machine.device)
        self.dtype = machine.precision.dtype
        self.impl = config.runtime.kernels

    def patches(self, batch: Batch) -> Tensor:
        """(B, N, 3, P, P), visible first and masked last."""
        return self._cut(batch, self.patch_size)

    def whole(self, batch: Batch) -> Tensor:
        """(B, 3, H, W)."""
        return self._cut(batch, self.image_size)[:, 0]

    def _cut(self, batch: Batch, side: int) -> Tensor:
        with phase("patchify"):
            return patchify(
                batch.images,
                batch.flip,
                batch.order,
                side,
                self.mean,
                self.std,
                self.dtype,
                self.impl,
            )


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
    model: Selfie, loader: Loader, pixels: Pixels, machine: Machine, patches: int, limit: int
) -> dict[str, float]:
    """Loss and accuracy of the pretext task on `limit` images; chance is 1 / M.

    The masks are drawn once for each image, so every step is measured on the same task.
    """
    ranks, loss, right, answers = machine.ranks, 0.0, 0.0, 0.0
    ranks.take_buffers(model)
    with (
        ranks.as_one(),
        evaluating(model),
        closing(loader.evaluate(pixels.batch, patches, limit, ranks)) as batches,
    ):
        for batch in batches:
            with machine.autocast():
                batch_loss, correct = model(pixels.patches(batch), batch.order)
            count = len(batch.images) * model.masked
            loss += float(batch_loss) * count
            # The largest of NaNs is the first, which would pass for chance.
            right += int(correct) if math.isfinite(loss) else 0
            answers += count
    loss, right, answers = ranks.summed(loss, right, answers)
    return {"heldout_loss": loss / answers, "pretext_accuracy": right / answers}


def classification_accuracy(
    model: ResNetV2, loader: Loader, pixels: Pixels, machine: Machine
) -> dict[str, float]:
    """Loss, top-1 and top-5 accuracy over all images of `loader`."""
    ranks, loss, top1, top5 = machine.ranks, 0.0, 0.0, 0.0
    ranks.take_buffers(model)
    with (
        ranks.as_one(),
        evaluating(model),
        closing(loader.evaluate(pixels.batch, ranks=ranks)) as batches,
    ):
        for batch in batches:
            with machine.autocast():
                logits = model(pixels.whole(batch)).float()
            loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            top1 += int(best[:, 0].sum())
            top5 += int(best.sum())
    loss, top1, top5 = ranks.summed(loss, top1, top5)
    count = len(loader)
    return {"heldout_loss": loss / count, "top1": top1 / count, "top5": top5 / count}


def feature_batches(
    network: ResNetV2, loader: Loader, pixels: Pixels, machine: Machine
) -> Generator[tuple[Tensor, Tensor]]:
    """Features of whole images (B, D) float32 and their labels (B,), batch by batch in order."""
    with evaluating(network), closing(loader.evaluate(pixels.batch)) as batches:
        for batch in batches:
            with machine.autocast():
                features = network.features(pixels.whole(batch)).float()
            yield features, batch.labels


def extract_features(
    network: ResNetV2, loader: Loader, pixels: Pixels, machine: Machine
) -> tuple[Tensor, Tensor]:
    """All of `feature_batches` at once: (n, D) and (n,), on the loader's device."""
    batches = feature_batches(network, loader, pixels, machine)
    features, labels = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int = 20
) -> float:
    """Top-1 of a weighted k-NN vote: cosine similarity s, weight exp(s / 0.07).

    Protocol of Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018. bank: (n, D). queries: (m, D).
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    classes = int(max(bank_labels.max(), labels.max())) + 1
    right = 0
    for part, answer in zip(torch.split(queries, 1024), torch.split(labels, 1024), strict=True):
        similarity, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / 0.07).exp())
        right += int((votes.argmax(dim=1) == answer).sum())
    return right / len(queries)


def linear_probe_accuracy(
    train: Tensor, train_labels: Tensor, queries: Tensor, labels: Tensor, l2: float = 1e-4
) -> float:
    """Top-1 of a multinomial logistic regression on standardised features, fitted by L-BFGS."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    train, queries = (train - mean) / std, (queries - mean) / std
    classes = int(max(train_labels.max(), labels.max())) + 1
    linear = nn.Linear(train.shape[1], classes, device=train.device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(train), train_labels) + l2 * linear.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[[Callable[[], Tensor]], object] = optimizer.step
    step(closure)
    with torch.inference_mode():
        return float((linear(queries).argmax(dim=1) == labels).float().mean())
