"""Every fused operation in plain torch or numpy: what the fast paths are tested against.

Right in float64 as in float32. Shapes: B images, N patches, M masked, K = N - M visible,
D width, H W C pixels, P patch side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

IntArray = npt.NDArray[np.int64]
WordArray = npt.NDArray[np.uint64]


def patchify(
    images: Tensor,
    flip: Tensor,
    order: Tensor,
    patch: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalise, flip, cut into patches and put them in order.

    With `patch` equal to H and an order of zeros this is the normalisation of whole images.

    Args:
        images: (B, H, W, C) uint8.
        flip: (B,) bool, which images to mirror horizontally before they are cut.
        order: (B, N) int64, the location that each output patch is taken from, numbered row by
            row over the grid; need not name every location.
        patch: P, which divides H and W.
        mean, std: (C,) in units of 0..1.

    Returns:
        (B, N, C, P, P) in `dtype`, each patch channels-last in memory.

    Raises:
        ValueError: P does not divide H and W.
    """
    b, height, width, c = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patch is {patch}: it must divide the image, {height} x {width}")
    rows, columns = height // patch, width // patch
    mirrored = torch.where(flip[:, None, None, None], images.flip(2), images)
    cut = mirrored.view(b, rows, patch, columns, patch, c).transpose(2, 3)
    patches = cut.reshape(b, rows * columns, patch, patch, c)
    ordered = patches[torch.arange(b, device=images.device)[:, None], order]
    # float32 before the cast: half precision cannot hold 255 levels / std exactly.
    working = torch.promote_types(dtype, torch.float32)
    scale, offset = (v.to(images.device) for v in scale_and_offset(mean, std, working))
    return (ordered.to(working) * scale + offset).to(dtype).permute(0, 1, 4, 2, 3)


def scale_and_offset(mean: Tensor, std: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a level 0..255 is multiplied by, and what is added then: (C,) each."""
    return 1.0 / (255.0 * std.to(dtype)), -mean.to(dtype) / std.to(dtype)


def distractor_scores(
    u: Tensor, h: Tensor, positions: Tensor, locations: Tensor, scale: float
) -> Tensor:
    """s_jk = scale * (u + position(j)) . h_k: how well candidate k fits masked location j.

    Args:
        u: (B, D), the summary of the visible patches.
        h: (B, M, D), the masked patches; h_k belongs to location k. No position is added.
        positions: (N, D), one vector a location.
        locations: (B, M) int64, where the masked patches were.
        scale: a factor, for example 1 / sqrt(D).

    Returns:
        (B, M, M), locations by candidates, float32 or wider.
    """
    if u.shape[-1] != h.shape[-1] or positions.shape[-1] != h.shape[-1]:
        raise ValueError(
            f"D differs: u has {u.shape[-1]}, h {h.shape[-1]}, positions {positions.shape[-1]}"
        )
    working = torch.promote_types(h.dtype, torch.float32)
    v_bmd = u.to(working)[:, None] + positions.to(working)[locations]
    return torch.einsum("bjd,bkd->bjk", v_bmd, h.to(working)) * scale


def distractor_score(
    u: Tensor, h: Tensor, positions: Tensor, locations: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The Selfie loss and how many locations were answered right.

    Independent softmaxes over the candidates of each location, cross-entropy with the candidate
    that was there (k = j), the mean over locations and images (paper, section 2).

    Arguments as in `distractor_scores`.

    Returns:
        loss: () float32 or wider. correct: () int64, out of B x M.
    """
    with torch.autocast(h.device.type, enabled=False):
        scores_bmm = distractor_scores(u, h, positions, locations, scale)
        b, m, _ = scores_bmm.shape
        target = torch.arange(m, device=h.device).expand(b, m)
        loss = F.cross_entropy(scores_bmm.flatten(0, 1), target.flatten())
        correct = (scores_bmm.argmax(dim=-1) == target).sum()
    return loss, correct


def philox4x32(counter: tuple[WordArray, ...], key: tuple[int, int]) -> tuple[WordArray, ...]:
    """Philox4x32-10: four uint32 words (held in uint64) a counter.

    counter: four broadcastable uint64 arrays with values below 2^32. key: two uint32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        # The products fit in 64 bits: both factors are below 2^32.
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> shift) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(
    seed: int, purpose: int, epochs: IntArray, samples: IntArray, count: int
) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) for each of (B,) samples, (B, count): see kernels/host."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None]
    sample, epoch = samples.astype(np.uint64)[:, None], epochs.astype(np.uint64)[:, None]
    counter = np.broadcast_arrays(sample, epoch, blocks, np.uint64(0))
    words = np.stack(philox4x32(tuple(counter), (seed, purpose)), axis=-1)
    return words.reshape(len(samples), -1)[:, :count].astype(np.float64) * 2.0**-32
