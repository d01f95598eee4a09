"""References in plain torch or NumPy that define every fused operation.

The fast paths are tested against them. They are accurate in float64 too. Shapes: B images,
N patches, M masked, K = N - M visible, D width, H W C pixels, P patch side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.kernels.patch_changes import UNCHANGED, PatchChanges

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
    changes: PatchChanges = UNCHANGED,
) -> Tensor:
    """Normalise, flip, cut into patches and put them in order.

    With `patch` equal to H and W and an order of zeros, this normalises whole images.

    Args:
        images: (B, H, W, C) uint8.
        flip: (B,) bool, which images to mirror horizontally before they are cut.
        order: (B, N) int64, the location that each output patch is taken from, numbered row by
            row over the grid. It may leave out and repeat locations.
        patch: P, in pixels; divides H and W.
        mean: (C,) floats, in units of 0..1.
        std: (C,) floats, in units of 0..1.
        dtype: Of the result.
        changes: Of each patch, see `PatchChanges`. W is their window, P without one.

    Returns:
        (B, N, C, W, W) in `dtype`, each patch channels-last in memory.

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
    kept = _windows(patches, changes.window_of(patch), changes.corners)
    if changes.grey is not None:
        kept = torch.where(changes.grey[:, :, None, None, None], luma(kept)[..., None], kept)
    image = torch.arange(b, device=images.device)[:, None]
    # Compute in float32: half precision cannot hold 255 levels / std exactly.
    working = torch.promote_types(dtype, torch.float32)
    factors = (v.to(images.device) for v in scale_and_offset(mean, std, working, changes.tone))
    if changes.tone is not None:
        factors = (v[image, order][:, :, None, None] for v in factors)
    scale, offset = factors
    return (kept[image, order].to(working) * scale + offset).to(dtype).permute(0, 1, 4, 2, 3)


def _windows(patches: Tensor, window: int, corners: Tensor | None) -> Tensor:
    """Cut the windows out of the cells: (B, G, P, P, C) -> (B, G, W, W, C)."""
    b, places, patch, _, _ = patches.shape
    if window == patch:
        return patches
    if corners is None:
        corners = torch.full((b, places, 2), (patch - window) // 2, device=patches.device)
    y, x = (corners[..., None] + torch.arange(window, device=patches.device)).unbind(2)
    image = torch.arange(b, device=patches.device)[:, None, None, None]
    place = torch.arange(places, device=patches.device)[:, None, None]
    return patches[image, place, y[..., :, None], x[..., None, :]]


def luma(pixels: Tensor) -> Tensor:
    """Return the grey level of RGB pixels, rounded as Pillow's mode L: (..., 3) -> (...) uint8."""
    red, green, blue = pixels.int().unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768 >> 16).to(torch.uint8)


def scale_and_offset(
    mean: Tensor, std: Tensor, dtype: torch.dtype, tone: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the factor of a level 0..255 and the offset added to the product.

    Args:
        mean: (C,) floats, in units of 0..1.
        std: (C,) floats, in units of 0..1.
        dtype: Of the results.
        tone: (B, G, 2) floats, contrast and brightness of each patch, as in `PatchChanges`.

    Returns:
        (C,) each, or (B, G, C) each if there is a tone.
    """
    mean, std = mean.to(dtype), std.to(dtype)
    if tone is None:
        return 1.0 / (255.0 * std), -mean / std
    contrast, brightness = tone.to(dtype)[..., None].unbind(2)
    return contrast * (1.0 / (255.0 * std)), (brightness - contrast * mean) / std


def norm_relu(
    norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add a shortcut, normalise and apply the ReLU. The module updates its running statistics.

    Args:
        norm: The batch norm.
        x: (B, C, H, W).
        shortcut: (B, C, H, W), or None: `x` is the sum.

    Returns:
        The sum and relu(norm(sum)), (B, C, H, W) each.
    """
    total = x if shortcut is None else x + shortcut
    return total, F.relu(norm(total))


def max_pool(x: Tensor) -> Tensor:
    """Take the maximum of 3x3 windows, 2 apart, with a border of 1 pixel.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, C, ceil(H / 2), ceil(W / 2)).
    """
    return F.max_pool2d(x, 3, 2, 1)


def pointwise(x: Tensor, weight: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """Convolve with a 1x1 kernel, and add a shortcut to the result as it is rounded.

    Args:
        x: (B, K, H, W).
        weight: (N, K, 1, 1).
        shortcut: (B, N, H, W), or None.

    Returns:
        (B, N, H, W). Its moments, which the next norm needs, are those of the rounded sum.
    """
    product = F.conv2d(x, weight)
    return product if shortcut is None else product + shortcut


def distractor_scores(
    u: Tensor, h: Tensor, positions: Tensor, locations: Tensor, scale: float
) -> Tensor:
    """Return s_jk = scale * (u + position(j)) . h_k, the score of candidate k at location j.

    Args:
        u: (B, D), the summary of the visible patches.
        h: (B, M, D), the masked patches; h_k belongs to location k. No position is added to it.
        positions: (N, D), one vector for each location.
        locations: (B, M) int64, where the masked patches were.
        scale: A factor, for example 1 / sqrt(D).

    Returns:
        (B, M, M), locations by candidates, float32 or wider.

    Raises:
        ValueError: The widths D differ.
    """
    if u.shape[-1] != h.shape[-1] or positions.shape[-1] != h.shape[-1]:
        raise ValueError(
            f"D differs: u has {u.shape[-1]}, h {h.shape[-1]}, positions {positions.shape[-1]}"
        )
    working = torch.promote_types(h.dtype, torch.float32)
    v_bmd = u.to(working)[:, None] + positions.to(working)[locations]
    return query_scores(v_bmd, h, scale)


def distractor_score(
    u: Tensor, h: Tensor, positions: Tensor, locations: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the Selfie loss (arXiv 1906.02940, section 2), and count the correct answers.

    Each masked location has a softmax over the candidates. The loss is the cross-entropy with the
    candidate that was there (k = j), averaged over locations and images.

    Args:
        u: As in `distractor_scores`.
        h: As in `distractor_scores`.
        positions: As in `distractor_scores`.
        locations: As in `distractor_scores`.
        scale: As in `distractor_scores`.

    Returns:
        The loss, () float32 or wider; and the correct answers, () int64, out of B x M.
    """
    with torch.autocast(h.device.type, enabled=False):
        return _cross_entropy(distractor_scores(u, h, positions, locations, scale))


def query_scores(v: Tensor, h: Tensor, scale: float) -> Tensor:
    """Return s_jk = scale * v_j . h_k, the score of candidate k at location j.

    Args:
        v: (B, M, D), a query for each masked location.
        h: (B, M, D), the masked patches; h_k belongs to location k. No position is added to it.
        scale: A factor, for example 1 / sqrt(D).

    Returns:
        (B, M, M), locations by candidates, float32 or wider.
    """
    working = torch.promote_types(h.dtype, torch.float32)
    return torch.einsum("bjd,bkd->bjk", v.to(working), h.to(working)) * scale


def query_score(v: Tensor, h: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute the loss of `distractor_score` for queries that are given.

    Args:
        v: As in `query_scores`.
        h: As in `query_scores`.
        scale: As in `query_scores`.

    Returns:
        The loss, () float32 or wider; and the correct answers, () int64, out of B x M.
    """
    with torch.autocast(h.device.type, enabled=False):
        return _cross_entropy(query_scores(v, h, scale))


def _cross_entropy(scores_bmm: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss and the correct answers, where candidate j is right at location j."""
    b, m, _ = scores_bmm.shape
    target = torch.arange(m, device=scores_bmm.device).expand(b, m)
    loss = F.cross_entropy(scores_bmm.flatten(0, 1), target.flatten())
    return loss, (scores_bmm.argmax(dim=-1) == target).sum()


def philox4x32(counter: tuple[WordArray, ...], key: tuple[int, int]) -> tuple[WordArray, ...]:
    """Apply Philox4x32-10 (Salmon et al., SC 2011) to counters.

    Args:
        counter: Four broadcastable uint64 arrays with values below 2^32.
        key: Two values below 2^32.

    Returns:
        Four uint64 arrays with values below 2^32.
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
    """Draw `count` numbers in [0, 1) for each sample, as `fastselfie.kernels.host.uniform` does.

    Args:
        seed: First half of the key, below 2^32.
        purpose: Second half of the key, below 2^32.
        epochs: (B,) int64.
        samples: (B,) int64 ids below 2^32.
        count: Numbers for each sample.

    Returns:
        (B, count) float64.
    """
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None]
    sample, epoch = samples.astype(np.uint64)[:, None], epochs.astype(np.uint64)[:, None]
    counter = np.broadcast_arrays(sample, epoch, blocks, np.uint64(0))
    words = np.stack(philox4x32(tuple(counter), (seed, purpose)), axis=-1)
    return words.reshape(len(samples), -1)[:, :count].astype(np.float64) * 2.0**-32
