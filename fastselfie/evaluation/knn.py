"""Accuracy of a k-nearest-neighbour vote on features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BANK_PART = 65_536  # features; their similarities to 1,024 queries take 256 MiB


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int = 20
) -> float:
    """Top-1 accuracy of a weighted k-NN vote: cosine similarity s, weight exp(s / 0.07).

    This is the protocol of Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018.

    Args:
        bank: (n, D) features that vote.
        bank_labels: (n,) int64.
        queries: (m, D) features to classify.
        labels: (m,) int64, of the queries.
        k: number of votes for a query.
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
    """Find the k largest products of each query with the bank: values and rows, (m, k) each."""
    values, rows = [], []
    for start in range(0, len(bank), _BANK_PART):
        part = bank[start : start + _BANK_PART]
        best = (queries @ part.T).topk(min(k, len(part)), dim=1)
        values.append(best.values)
        rows.append(best.indices + start)
    all_values = torch.cat(values, dim=1)
    nearest = all_values.topk(min(k, all_values.shape[1]), dim=1)
    return nearest.values, torch.cat(rows, dim=1).gather(1, nearest.indices)
