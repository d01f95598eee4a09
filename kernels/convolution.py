"""A convolution whose weight gradient on a CPU needs no barrier between threads.

In oneDNN's weight gradients the threads spin at barriers, in some algorithms twice for each image.
If two threads share a core, for example beside another busy program, each barrier costs a time
slice of some milliseconds. A step of tenths of a second then takes tens of seconds. oneDNN's choice
of algorithm depends on the shape, the dtype, the instruction set and the version. So here each
thread computes the weight gradient of its own images with a single-threaded algorithm, and the
results are added. Forward passes and input gradients have no such barriers.

B images, C input and K output channels, H x W pixels, k x k the kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastselfie.kernels.host import run_parallel, set_openmp_threads
from fastselfie.kernels.impl import Impl, check_impl, is_eager

_DTYPES = (torch.bfloat16, torch.float32)


def convolution(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, impl: Impl = "auto"
) -> Tensor:
    """Return F.conv2d(x, weight, None, stride, padding), differentiable once.

    For channels-last bfloat16 or float32 on a CPU the weight gradient is the sum of one partial
    gradient for each thread. Under autocast each partial gradient is rounded to bfloat16 once, and
    they are added in float32. In all other cases the gradient is torch's. Both differ only by
    rounding.

    Args:
        x: (B, C, H, W).
        weight: (K, C, k, k).
        stride: Stride of both axes.
        padding: Zeros on each side of both axes.
        impl: auto or reference. triton is the same as auto: a GPU has no such barriers.

    Returns:
        (B, K, H', W').

    Raises:
        ValueError: `impl` is unknown.
    """
    check_impl(impl)
    if impl == "reference" or not _takes(x, weight):
        return F.conv2d(x, weight, None, stride, padding)
    y: Tensor = _Convolution.apply(x.to(_dtype(x)), weight, stride, padding)  # type: ignore[no-untyped-call]
    return y


def _takes(x: Tensor, weight: Tensor) -> bool:
    return (
        is_eager(x)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and _dtype(x) == _dtype(weight)
        and _dtype(x) in _DTYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and len(x) > 0
        and _shares_openmp()
    )


@functools.cache
def _shares_openmp() -> bool:
    """Return whether torch uses the same OpenMP library as our extension."""
    threads = torch.get_num_threads()
    set_openmp_threads(threads + 1)
    shares = torch.get_num_threads() == threads + 1
    set_openmp_threads(threads)
    return shares


def _dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that `x` is computed in. Autocast does not change float64."""
    casts = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if casts else x.dtype


class _Convolution(torch.autograd.Function):
    """(x, weight, stride, padding) -> y in x's dtype; the weight and its gradient keep their dtype.

    A strided 1x1 convolution is computed with stride 1 on the pixels that it reads.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.shape, ctx.dtype, ctx.skips = x.shape, weight.dtype, 1
        weight = weight.to(x.dtype)
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
            grad_x = _gradients(x, weight, gradient, ctx.stride, ctx.padding, of_x=True)
            if ctx.skips > 1:
                seen = grad_x
                grad_x = torch.empty(
                    ctx.shape, dtype=x.dtype, memory_format=torch.channels_last
                ).zero_()
                grad_x[:, :, :: ctx.skips, :: ctx.skips] = seen
        if ctx.needs_input_grad[1]:
            found = _weight_gradient(x, weight, gradient, ctx.stride, ctx.padding)
            grad_weight = found.to(ctx.dtype)
        return grad_x, grad_weight, None, None


def _weight_gradient(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int
) -> Tensor:
    """Return the sum of the threads' partial gradients: (K, C, k, k) float32."""
    count = min(torch.get_num_threads(), len(x))
    images, gradients = x.chunk(count), gradient.chunk(count)
    parts: list[Tensor] = [weight] * len(images)

    def task(number: int) -> None:
        # Torch configures OpenMP at its first use in a thread, which would overwrite our setting.
        # So use it first. With more than one thread here oneDNN would deadlock.
        torch.get_num_threads()
        set_openmp_threads(1)
        with torch.no_grad():
            parts[number] = _part(images[number], weight, gradients[number], stride, padding)

    run_parallel(task, len(images))
    total = parts[0].float()
    for part in parts[1:]:
        total += part
    return total


def _part(x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int) -> Tensor:
    """Return the weight gradient of these images, computed by the calling thread.

    oneDNN reads and writes the gradient once for each image. A matrix product first copies x to a
    matrix with k^2 values for each output pixel and channel, which is written, read, packed and
    read again; a 1x1 convolution needs no copy. So the product moves fewer bytes if there are more
    output channels than twice the output pixels.
    """
    outputs, inputs, height, width = weight.shape
    pixels = gradient.permute(0, 2, 3, 1)
    if (height, width) != (1, 1) and outputs <= 2 * pixels.shape[1] * pixels.shape[2]:
        return _gradients(x, weight, gradient, stride, padding, of_x=False)
    x = x.permute(0, 2, 3, 1)
    if padding:  # F.pad copies even without padding
        x = F.pad(x, (0, 0, padding, padding, padding, padding))
    image, row, column, channel = x.stride()
    seen = x.as_strided(
        (*pixels.shape[:3], height, width, inputs),
        (image, row * stride, column * stride, row, column, channel),
    )
    product = pixels.reshape(-1, outputs).t() @ seen.reshape(-1, height * width * inputs)
    return product.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def _gradients(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int, *, of_x: bool
) -> Tensor:
    """Return torch's gradient of x or of the weight."""
    settings = ((stride, stride), (padding, padding), (1, 1), False, (0, 0), 1)
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *settings, (of_x, not of_x, False)
    )
    wanted: Tensor = found[0 if of_x else 1]
    return wanted
