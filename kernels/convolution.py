"""A convolution whose weight gradient in bfloat16 on a CPU is a matrix product.

oneDNN's can split the channels over the threads, which then wait for each other twice an image,
spinning: threads that share a core, as beside another busy program, each burn a time slice of some
milliseconds at every wait, and a step of tenths of a second takes tens. A matrix product has no
such wait, and few of oneDNN's gradients in float32 have one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.kernels.impl import Impl, check_impl


def convolution(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, impl: Impl = "auto"
) -> Tensor:
    """F.conv2d(x, weight, None, stride, padding), differentiable once.

    x: (B, C, H, W). weight: (K, C, k, k). In bfloat16 on a CPU, where x is channels-last and
    oneDNN's threads would wait or a matrix product is as fast, the weight gradient is one; else,
    and with impl reference, it is torch's. They differ by rounding alone. There is no Triton
    program, and impl triton is auto: a GPU has no such barriers.

    Raises:
        ValueError: an unknown impl.
    """
    check_impl(impl)
    if impl == "reference" or not _takes(x, weight, stride, padding):
        return F.conv2d(x, weight, None, stride, padding)
    x, weight = x.bfloat16(), weight.bfloat16()
    y: Tensor = _Convolution.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    return y


def _takes(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    return (
        # Neither traced for compilation nor fake, as in the memory estimate.
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and _dtype(x) == _dtype(weight) == torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
        # A 3x3 of stride 1 is nine times its input as a matrix: only where it must be.
        and ((weight.shape[2:] == (1, 1) and padding == 0) or stride > 1 or _waits(x, weight))
    )


def _waits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN splits the channels over the threads, as measured at stride 1 on two.

    That is where the weights are more than a thread's share of x, of 16 and more channels; of fewer
    in, wherever there is more than one block of 16 out.
    """
    (outputs, inputs), threads = weight.shape[:2], torch.get_num_threads()
    many = inputs < 16 < outputs or x.numel() < weight.numel() * threads
    return threads > 1 and many


def _dtype(x: Tensor) -> torch.dtype:
    """In which it is computed: autocast leaves float64 as it is."""
    casts = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if casts else x.dtype


class _Convolution(torch.autograd.Function):
    """(x, weight, stride, padding) -> y. A strided 1x1 is one of stride 1 over what it sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.shape, ctx.skips = x.shape, 1
        if weight.shape[2:] == (1, 1) and padding == 0 and stride > 1:
            x = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
            ctx.skips, stride = stride, 1
        ctx.stride, ctx.padding = stride, padding
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(x, weight, gradient, ctx.stride, ctx.padding)
            if ctx.skips > 1:
                seen = grad_x
                grad_x = torch.empty(
                    ctx.shape, dtype=x.dtype, memory_format=torch.channels_last
                ).zero_()
                grad_x[:, :, :: ctx.skips, :: ctx.skips] = seen
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, weight, gradient, ctx.stride, ctx.padding)
        return grad_x, grad_weight, None, None


def _input_gradient(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int
) -> Tensor:
    settings = ((stride, stride), (padding, padding), (1, 1), False, (0, 0), 1)
    wanted: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *settings, (True, False, False)
    )[0]
    return wanted


def _weight_gradient(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int
) -> Tensor:
    """Output pixels by channels, times output pixels by what each saw: (K, C, k, k)."""
    outputs, inputs, height, width = weight.shape
    pixels = gradient.permute(0, 2, 3, 1)
    x = x.permute(0, 2, 3, 1)
    if padding:  # without any, pad would copy
        x = F.pad(x, (0, 0, padding, padding, padding, padding))
    image, row, column, channel = x.stride()
    seen = x.as_strided(
        (*pixels.shape[:3], height, width, inputs),
        (image, row * stride, column * stride, row, column, channel),
    )
    product = pixels.reshape(-1, outputs).t() @ seen.reshape(-1, height * width * inputs)
    return product.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
