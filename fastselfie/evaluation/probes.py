"""Accuracy of a linear classifier fitted on features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def standardized(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise the columns of both by the mean and standard deviation of `bank`."""
    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-6)
    return (bank - mean) / std, (queries - mean) / std


def linear_probe_accuracy(
    train: Tensor, train_labels: Tensor, queries: Tensor, labels: Tensor, l2: float = 1e-4
) -> float:
    """Top-1 accuracy of a multinomial logistic regression, fitted by L-BFGS.

    Args:
        train: (n, D) features to fit on; both sets are standardised.
        train_labels: (n,) int64.
        queries: (m, D) features to classify.
        labels: (m,) int64, of the queries.
        l2: weight of the squared weights in the loss.
    """
    train, queries = standardized(train, queries)
    classes = int(max(train_labels.max(), labels.max())) + 1
    # Not nn.Linear: its initial weights would advance the generator that dropout uses.
    weight = torch.zeros(classes, train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(classes, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(train, weight, bias)
        loss = F.cross_entropy(logits, train_labels) + l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        logits = F.linear(queries, weight, bias)
        return float((logits.argmax(dim=1) == labels).float().mean())
