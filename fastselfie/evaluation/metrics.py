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
from fastselfie.kernels.patchify import patchify
from fastselfie.models.selfie import Classifier, Selfie, SideBySide
from fastselfie.system.accelerator import Machine
from fastselfie.system.trace_ranges import phase

_THUMBNAIL = 32  # side of the images that are compared pixel by pixel
_BANK_PART = 65_536  # features: their products with 1,024 queries take 256 MiB


class Pixels:
    """Turns the pixels of a batch into the network's input: patches, or whole images.

    batch: images a forward pass when measuring, at most as many as a training pass has.
    """

    def __init__(self, config: Config, machine: Machine, batch: int) -> None:
        self.batch = min(256, batch)
        self.patch_size = config.model.patch_size
        self.grid = config.grid
        self.mean = torch.tensor(config.data.mean, device=machine.device)
        self.std = torch.tensor(config.data.std, device=machine.device)
        self.dtype = machine.precision.dtype
        self.impl = config.runtime.kernels

    def patches(self, batch: Batch) -> Tensor:
        """(B, N, 3, P, P), visible first and masked last; P is in proportion to the images."""
        return self._cut(batch, batch.images.shape[1] // self.grid)

    def whole(self, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
        """(B, 3, H, W), in the machine's precision or in `dtype`."""
        return self._cut(batch, batch.images.shape[1], dtype)[:, 0]

    def _cut(self, batch: Batch, side: int, dtype: torch.dtype | None = None) -> Tensor:
        with phase("patchify"):
            return patchify(
                batch.images,
                batch.flip,
                batch.order,
                side,
                self.mean,
                self.std,
                dtype or self.dtype,
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
    model: Selfie,
    loader: Loader,
    pixels: Pixels,
    machine: Machine,
    patches: int,
    limit: int,
    augment: bool = False,
) -> dict[str, float]:
    """Loss and accuracy of the pretext task on `limit` images; chance is 1 / M.

    The masks are drawn once for each image, so every step is measured on the same task. augment:
    cropped and flipped as in training. If it is far more often right than without, the crop gives
    places away.
    """
    ranks, loss, right, answers = machine.ranks, 0.0, 0.0, 0.0
    ranks.take_buffers(model)
    with (
        ranks.as_one(),
        evaluating(model),
        closing(loader.evaluate(pixels.batch, patches, limit, ranks, augment)) as batches,
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
    model: Classifier, loader: Loader, pixels: Pixels, machine: Machine
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
    network: Classifier | SideBySide, loader: Loader, pixels: Pixels, machine: Machine
) -> Generator[tuple[Tensor, Tensor]]:
    """Features of images (B, D) float32 and their labels (B,), batch by batch in order."""
    with evaluating(network), closing(loader.evaluate(pixels.batch)) as batches:
        for batch in batches:
            with machine.autocast():
                features = network.features(pixels.whole(batch)).float()
            yield features, batch.labels


def extract_features(
    network: Classifier | SideBySide, loader: Loader, pixels: Pixels, machine: Machine
) -> tuple[Tensor, Tensor]:
    """All of `feature_batches` at once: (n, D) and (n,), on the loader's device."""
    batches = feature_batches(network, loader, pixels, machine)
    features, labels = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(labels)


def feature_worth(
    network: Classifier,
    bank: Loader,
    queries: Loader,
    pixels: Pixels,
    machine: Machine,
    probe: bool = True,
) -> dict[str, float]:
    """Top-1 on `queries` by k-NN (knn) and, unless told not, by a linear probe (linear_probe)."""
    known, asked = (extract_features(network, each, pixels, machine) for each in (bank, queries))
    found = {"knn": knn_accuracy(*known, *asked)}
    if probe:
        found["linear_probe"] = linear_probe_accuracy(*known, *asked)
    return found


def pixel_features(loader: Loader, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Normalised pixels (n, 3 x H x W) float32 and labels (n,): what learned features must beat.

    Images of more than 32 x 32 are averaged down to that: of 224 x 224 ones 10,000 take 6 GB.
    """
    features, labels = [], []
    with torch.inference_mode(), closing(loader.evaluate(pixels.batch)) as batches:
        for batch in batches:
            images = pixels.whole(batch, torch.float32)
            if images.shape[-1] > _THUMBNAIL:
                images = F.adaptive_avg_pool2d(images, _THUMBNAIL)
            features.append(images.flatten(1))
            labels.append(batch.labels)
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
        similarity, nearest = _nearest(part, bank, k)
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / 0.07).exp())
        right += int((votes.argmax(dim=1) == answer).sum())
    return right / len(queries)


def _nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest products of each query with the bank and where they are: (m, k) each."""
    best, where = queries.new_empty(len(queries), 0), None
    for start in range(0, len(bank), _BANK_PART):
        part = bank[start : start + _BANK_PART]
        products, rows = (queries @ part.T).topk(min(k, len(part)), dim=1)
        rows = rows + start
        where = rows if where is None else torch.cat([where, rows], dim=1)
        best = torch.cat([best, products], dim=1)
        best, chosen = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, chosen)
    assert where is not None
    return best, where


def standardised(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both with each column's mean taken off and over its deviation, as they are in `bank`."""
    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-6)
    return (bank - mean) / std, (queries - mean) / std


def linear_probe_accuracy(
    train: Tensor, train_labels: Tensor, queries: Tensor, labels: Tensor, l2: float = 1e-4
) -> float:
    """Top-1 of a multinomial logistic regression on standardised features, fitted by L-BFGS."""
    train, queries = standardised(train, queries)
    classes = int(max(train_labels.max(), labels.max())) + 1
    # No nn.Linear, which draws its first weights from the generator that dropout uses.
    weight = torch.zeros(classes, train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(classes, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(train, weight, bias)
        loss = F.cross_entropy(logits, train_labels) + l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[[Callable[[], Tensor]], object] = optimizer.step
    step(closure)
    with torch.inference_mode():
        logits = F.linear(queries, weight, bias)
        return float((logits.argmax(dim=1) == labels).float().mean())
