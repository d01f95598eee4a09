"""Turns uint8 images into normalised, flipped, ordered patches in one pass.

`fastselfie.kernels.reference.patchify` defines the operation. The C++ in kernels/host is equal to
it bit for bit; the Triton kernel in patchify_triton.py differs by the rounding of a fused
multiply-add.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastselfie.kernels import host, reference
from fastselfie.kernels.impl import Impl, check_impl, is_eager, unavailable
from fastselfie.kernels.patch_changes import UNCHANGED, PatchChanges


def patchify(
    images: Tensor,
    flip: Tensor,
    order: Tensor,
    patch: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
    changes: PatchChanges = UNCHANGED,
) -> Tensor:
    """Normalise, flip, cut into patches and put them in order; see `reference.patchify`.

    On a GPU, a location in `order` outside of the grid or a window outside of its cell is not
    checked, because reading it would wait for the GPU. Triton then makes a NaN patch, and so a NaN
    loss; the reference fails like torch's indexing.

    Args:
        images: (B, H, W, C) uint8.
        flip: (B,) bool, which images to mirror horizontally before they are cut.
        order: (B, N) int64, the location in the grid that each patch is taken from.
        patch: P, in pixels; divides H and W.
        mean: (C,) floats, in units of 0..1.
        std: (C,) floats, in units of 0..1.
        dtype: Of the result.
        impl: auto uses Triton on a GPU if installed; on a CPU the C++ for three channels and
            float32 or bfloat16; else the reference. triton takes float32, bfloat16 and float16,
            on a CPU only with TRITON_INTERPRET=1. reference is plain torch.
        changes: Of each patch, see `PatchChanges`. W is their window, P without one.

    Returns:
        (B, N, C, W, W) in `dtype`, each patch channels-last in memory.

    Raises:
        ValueError: An argument has a wrong dtype, shape or device, P does not divide H and W, a
            location is outside of the grid or a window outside of its cell (on a CPU), or Triton
            is not available.
    """
    check_impl(impl)
    _check(images, flip, order, patch, mean, std)
    _check_changes(changes, images, patch)
    reason = unavailable(images.device)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reason = f"dtype is {dtype}: impl triton takes float32, bfloat16 and float16"
    if impl == "triton" and reason:
        raise ValueError(reason)
    on_gpu = impl == "triton" or (impl == "auto" and images.is_cuda and not reason)
    if not on_gpu and (impl == "reference" or not _host_takes(images, dtype)):
        return reference.patchify(images, flip, order, patch, mean, std, dtype, changes)
    scale, offset = reference.scale_and_offset(mean, std, torch.float32, changes.tone)
    if on_gpu:
        from fastselfie.kernels import patchify_triton

        out = patchify_triton.patchify(images, flip, order, patch, scale, offset, dtype, changes)
    else:
        out = _on_host(images, flip, order, patch, scale, offset, dtype, changes)
    return out.permute(0, 1, 4, 2, 3)


def _on_host(
    images: Tensor,
    flip: Tensor,
    order: Tensor,
    patch: int,
    scale: Tensor,
    offset: Tensor,
    dtype: torch.dtype,
    changes: PatchChanges,
) -> Tensor:
    window = changes.window_of(patch)
    out = torch.empty(*order.shape, window, window, 3, dtype=dtype)
    numbers = out if dtype == torch.float32 else out.view(torch.uint16)
    arrays = (images.contiguous().numpy(), flip.numpy(), order.numpy())
    corners = None if changes.corners is None else changes.corners.numpy()
    grey = None if changes.grey is None else changes.grey.numpy()
    factors = (scale.numpy(), offset.numpy(), torch.get_num_threads())
    host.patchify(*arrays, patch, window, corners, grey, *factors, numbers.numpy())
    return out


def _check(
    images: Tensor, flip: Tensor, order: Tensor, patch: int, mean: Tensor, std: Tensor
) -> None:
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images is {_kind(images)}: it must be uint8 of shape (B, H, W, C)")
    b, height, width, c = images.shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch is {patch}: it must divide the image, {height} x {width}")
    if flip.shape != (b,) or flip.dtype != torch.bool:
        raise ValueError(f"flip is {_kind(flip)}: it must be bool of shape (B,) = {(b,)}")
    if order.dim() != 2 or len(order) != b or order.dtype != torch.int64:
        raise ValueError(f"order is {_kind(order)}: it must be int64 of shape (B, N), B = {b}")
    for name, tensor in (("mean", mean), ("std", std)):
        if tensor.shape != (c,) or not tensor.is_floating_point():
            raise ValueError(f"{name} is {_kind(tensor)}: it must be floats of shape (C,) = {(c,)}")
    for name, tensor in (("flip", flip), ("order", order), ("mean", mean), ("std", std)):
        if tensor.device != images.device:
            raise ValueError(f"{name} is on {tensor.device}, images on {images.device}")
    if order.device.type == "cpu" and is_eager(order) and order.numel():
        places = (height // patch) * (width // patch)
        low, high = int(order.numpy().min()), int(order.numpy().max())
        if low < 0 or high >= places:
            raise ValueError(f"order holds {low if low < 0 else high}: N is {places}")


def _check_changes(changes: PatchChanges, images: Tensor, patch: int) -> None:
    b, height, width, c = images.shape
    window, places = changes.window_of(patch), (height // patch) * (width // patch)
    if not 1 <= window <= patch:
        raise ValueError(f"window is {window}: it must be in [1, {patch}], the side of a patch")
    if changes.grey is not None and c != 3:
        raise ValueError(f"grey needs three channels, and images has {c}")
    shapes = {"corners": (b, places, 2), "grey": (b, places), "tone": (b, places, 2)}
    for name, shape in shapes.items():
        tensor = getattr(changes, name)
        if tensor is None:
            continue
        kind = {"corners": torch.int64, "grey": torch.bool}.get(name)
        fits = tensor.is_floating_point() if kind is None else tensor.dtype == kind
        if tensor.shape != shape or not fits:
            raise ValueError(f"{name} is {_kind(tensor)}: it must be {kind or 'floats'} of {shape}")
        if tensor.device != images.device:
            raise ValueError(f"{name} is on {tensor.device}, images on {images.device}")
    corners = changes.corners
    if corners is not None and corners.device.type == "cpu" and is_eager(corners):
        low, high = int(corners.numpy().min(initial=0)), int(corners.numpy().max(initial=0))
        if low < 0 or high > patch - window:
            outside = low if low < 0 else high
            raise ValueError(f"corners holds {outside}: a window must lie in its cell of {patch}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _host_takes(images: Tensor, dtype: torch.dtype) -> bool:
    on_host = images.device.type == "cpu" and type(images) is Tensor  # not a FakeTensor
    return on_host and images.shape[3] == 3 and dtype in (torch.float32, torch.bfloat16)
