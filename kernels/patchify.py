"""uint8 images -> normalised, flipped, ordered patches, channels-last, in one pass.

`fastselfie.kernels.reference.patchify` defines it; the C++ of kernels/host equals that to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.kernels import host, reference


def patchify(
    images: Tensor,
    flip: Tensor,
    order: Tensor,
    patch: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """As `reference.patchify`: (B, H, W, C) uint8 -> (B, N, C, P, P) in `dtype`, channels-last.

    On a CPU one pass from bytes to patches, without a copy of the image in between, for three
    channels and float32 or bfloat16.

    Raises:
        ValueError: P does not divide H and W; a place of `order` outside of the grid.
    """
    on_host = images.device.type == "cpu" and images.shape[3] == 3
    if not on_host or dtype not in (torch.float32, torch.bfloat16) or type(images) is not Tensor:
        return reference.patchify(images, flip, order, patch, mean, std, dtype)
    height, width = images.shape[1:3]
    if height % patch or width % patch:
        raise ValueError(f"patch is {patch}: it must divide the image, {height} x {width}")
    scale, offset = reference.scale_and_offset(mean, std, torch.float32)
    out = torch.empty(*order.shape, patch, patch, 3, dtype=dtype)
    numbers = out if dtype == torch.float32 else out.view(torch.uint16)
    host.patchify(
        images.contiguous().numpy(),
        flip.numpy(),
        order.numpy(),
        patch,
        scale.numpy(),
        offset.numpy(),
        torch.get_num_threads(),
        numbers.numpy(),
    )
    return out.permute(0, 1, 4, 2, 3)
