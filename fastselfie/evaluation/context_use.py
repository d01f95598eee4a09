"""How much of the pretext task is answered from the image around a masked location.

The candidates of an image are scored without its context, and with the context of another image. If
neither lowers the accuracy, the patches are placed by their own look, and A learns nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.models.selfie import Encoded, Selfie


def foreign_queries(model: Selfie, vectors: Tensor, own: Encoded, order: Tensor) -> list[Encoded]:
    """Return `own` with queries from another image's visible patches, and from no patches.

    The other image is the previous one of the batch. Its patches are those at the places that are
    visible in the image itself, so only the content is foreign. With `model.query: summed` u is the
    other image's own, which says the same and needs no second pass through A, and without patches
    it is 0.

    Args:
        model: in eval mode.
        vectors: (B, N, D), `Selfie.vectors` of the batch.
        own: `Selfie.encoded` of them.
        order: (B, N) int64, the places of the vectors.
    """
    if not model.pooled:
        u = own.query
        return [own._replace(query=u.roll(1, 0)), own._replace(query=torch.zeros_like(u))]
    k = order.shape[1] - model.masked
    at = order[..., None].expand_as(vectors)
    by_place = torch.zeros_like(vectors).scatter(1, at, vectors)
    other = by_place.roll(1, 0).gather(1, at)[:, :k]
    without = model.query(vectors[:, :0], order[:, k:])
    return [own._replace(query=model.query(other, order)), own._replace(query=without)]
