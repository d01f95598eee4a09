"""The max pool of the stem: 3x3 windows, 2 apart, with a border of 1 pixel.

`reference.max_pool` defines the operation; `impl` changes only the speed. On a GPU the forward pass
keeps one byte for each maximum: its place in the window. The backward pass is one Triton kernel
that writes the gradient in its own dtype (max_pool_triton.py, imported on first use). The inductor
of torch 2.13 fills a float32 tensor, adds to it with atomics and converts it. Our kernels move
fewer bytes. They have not run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastselfie.kernels import reference
from fastselfie.kernels.impl import Impl, check_impl, uses_triton

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def max_pool(x: Tensor, impl: Impl = "auto") -> Tensor:
    """Return F.max_pool2d(x, 3, 2, 1), differentiable once.

    The results have the same bits. A gradient is the sum of at most 4 terms, in float32 and always
    in the same order, and rounded once.

    Args:
        x: (B, C, H, W).
        impl: auto uses Triton on a GPU if it is installed, for channels-last float32, bfloat16 and
            float16. triton needs Triton for such `x`: on a CPU only with TRITON_INTERPRET=1.
            reference is plain torch.

    Returns:
        (B, C, ceil(H / 2), ceil(W / 2)), in x's dtype.

    Raises:
        ValueError: `impl` is unknown, or is triton where Triton cannot run.
    """
    check_impl(impl)
    fits = x.dtype in _DTYPES and x.is_contiguous(memory_format=torch.channels_last)
    if not (fits and x.numel() > 0 and uses_triton(x.device, impl)):
        return reference.max_pool(x)
    y: Tensor = _max_pool(x)[0]
    return y


# --- custom operators -----------------------------------------------------------------------------


@torch.library.custom_op("fastselfie::max_pool", mutates_args=())
def _max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return y, and the place of each maximum in its window: 0 to 8 in uint8, row by row."""
    from fastselfie.kernels import max_pool_triton as program

    y, places = _outputs(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        program.forward(x, y, places)
    return y, places


@_max_pool.register_fake
def _outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    b, c, height, width = x.shape
    pooled = (b, c, (height + 1) // 2, (width + 1) // 2)
    return _empty(x, pooled, x.dtype), _empty(x, pooled, torch.uint8)


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    layout = torch.channels_last
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout)


@torch.library.custom_op("fastselfie::max_pool_backward", mutates_args=())
def _max_pool_backward(grad_y: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient of x, (B, C, height, width)."""
    from fastselfie.kernels import max_pool_triton as program

    grad_x: Tensor = _gradient_of_x(grad_y, places, height, width)
    with torch.cuda.device_of(grad_y):  # type: ignore[no-untyped-call]
        program.backward(grad_y.contiguous(memory_format=torch.channels_last), places, grad_x)
    return grad_x


@_max_pool_backward.register_fake
def _gradient_of_x(grad_y: Tensor, _places: Tensor, height: int, width: int) -> Tensor:
    return _empty(grad_y, (*grad_y.shape[:2], height, width), grad_y.dtype)


def _keep(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    places = output[1]
    ctx.mark_non_differentiable(places)
    ctx.set_materialize_grads(False)  # else zeros would be made for the places
    ctx.size = inputs[0].shape[2:]
    ctx.save_for_backward(places)


def _gradient(ctx: Any, grad_y: Tensor | None, _: None) -> Tensor | None:
    return None if grad_y is None else _max_pool_backward(grad_y, *ctx.saved_tensors, *ctx.size)


_max_pool.register_autograd(_gradient, setup_context=_keep)
