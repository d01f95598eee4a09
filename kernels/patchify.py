"""uint8 images -> normalised, flipped, ordered patches, channels-last, in one pass.

`fastselfie.kernels.reference.patchify` defines it. The C++ of kernels/host equals that to the bit,
the Triton program of patchify_triton.py but for the rounding of a fused multiply-add.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.kernels import host, reference
from fastselfie.kernels.impl import Impl, unavailable


def patchify(
    images: Tensor,
    flip: Tensor,
    order: Tensor,
    patch: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> Tensor:
    """As `reference.patchify`: (B, H, W, C) uint8 -> (B, N, C, P, P) in `dtype`, channels-last.

    impl: chooses only the speed. auto: Triton on a GPU where it is installed, on a CPU the C++ for
    three channels and float32 or bfloat16, else reference. triton: on a CPU only with
    TRITON_INTERPRET=1.

    Raises:
        ValueError: P does not divide H and W; Triton is asked for where it does not run; a place of
            `order` is outside of the grid (on a GPU its patch is NaN instead, as is the loss then).
    """
    height, width = images.shape[1:3]
    if height % patch or width % patch:
        raise ValueError(f"patch is {patch}: it must divide the image, {height} x {width}")
    if impl == "triton" and (reason := unavailable(images.device)):
        raise ValueError(reason)
    if impl == "triton" or (impl == "auto" and images.is_cuda and not unavailable(images.device)):
        from fastselfie.kernels import patchify_triton

        scale, offset = reference.scale_and_offset(mean, std, torch.float32)
        out = patchify_triton.patchify(images, flip, order, patch, scale, offset, dtype)
        return out.permute(0, 1, 4, 2, 3)
    if impl == "auto" and _host_takes(images, dtype):
        return _on_host(images, flip, order, patch, mean, std, dtype).permute(0, 1, 4, 2, 3)
    return reference.patchify(images, flip, order, patch, mean, std, dtype)


def _host_takes(images: Tensor, dtype: torch.dtype) -> bool:
    on_host = images.device.type == "cpu" and type(images) is Tensor
    return on_host and images.shape[3] == 3 and dtype in (torch.float32, torch.bfloat16)


def _on_host(
    images: Tensor, flip: Tensor, order: Tensor, patch: int, mean: Tensor, std: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """(B, N, P, P, 3)."""
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
    return out
