"""A 1x1 convolution, the shortcut added to it, and the batch norm with ReLU behind, for training.

`reference.pointwise` and `reference.norm_relu` define the results. cuDNN's convolutions in torch
write their result. Then a shortcut is added, and the norm reads the sum for its moments. On a GPU a
Triton kernel (pointwise_triton.py, imported on first use) adds the shortcut to the product and
takes the moments before it writes the sum. This saves 2 passes over the tensor in memory with a
shortcut, and 1 without. The gradient of the norm is `norm_relu`'s, that of the convolution torch's.
This module contains, in order: the public functions, and the custom operator for torch.library with
its gradient.

B images, K input and N output channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.kernels.convolution import convolution
from fastselfie.kernels.impl import Impl, check_impl, uses_triton
from fastselfie.kernels.norm_relu import add_norm_relu, fuses_norm, update_statistics

_DTYPES = (torch.bfloat16, torch.float16)
_MULTIPLE = 16  # of channels: other numbers have no wide loads, and more registers than there are
# FLOP in the time of a byte, of an A100: 312 TFLOP/s dense in half precision and 2,039 GB/s, from
# NVIDIA's data sheet of the SXM card with 80 GB. Of an H100 SXM it is 295: 989 and 3,350.
_FLOP_PER_BYTE = 153.0


def pointwise_norm_relu(
    norm: nn.BatchNorm2d, x: Tensor, weight: Tensor, shortcut: Tensor | None, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return F.conv2d(x, weight) + shortcut, and relu(norm()) of it, as `add_norm_relu` does.

    One operator computes both if `fuses_pointwise`, and a fused kernel may normalise. Otherwise
    these are `convolution` and `add_norm_relu`. The results differ only by rounding.

    Args:
        norm: The batch norm.
        x: (B, K, H, W).
        weight: (N, K, 1, 1).
        shortcut: (B, N, H, W), or None.
        impl: As in `fuses_pointwise`.

    Returns:
        The sum and relu(norm(sum)), (B, N, H, W) each.

    Raises:
        ValueError: `impl` is unknown, or is triton where Triton cannot run.
    """
    if not (fuses_pointwise(x, weight, shortcut, impl) and fuses_norm(norm, x)):
        return add_norm_relu(norm, convolution(x, weight, impl=impl), shortcut, impl)
    vectors = norm.weight, norm.bias
    y, total, found = _pointwise_norm_relu(x, weight.to(x.dtype), shortcut, *vectors, norm.eps)
    update_statistics(norm, found[0], found[1])
    return total, y


def fuses_pointwise(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, impl: Impl = "auto"
) -> bool:
    """Return whether the Triton kernel takes a 1x1 convolution in front of a norm.

    It takes channels-last half precision, also under autocast, with multiples of 16 channels, if
    memory so far binds the product that it gains time at half of the arithmetic peak: see `gains`.
    It has not run on a GPU yet.

    Args:
        x: (B, K, H, W).
        weight: (N, K, 1, 1).
        shortcut: (B, N, H, W), or None.
        impl: auto uses Triton on a GPU. triton also does on a CPU, with TRITON_INTERPRET=1.
            reference is plain torch.

    Raises:
        ValueError: `impl` is unknown, or is triton where Triton cannot run.
    """
    check_impl(impl)
    if not uses_triton(x.device, impl):
        return False
    n, k = weight.shape[:2]
    fits = shortcut is None or (
        shortcut.shape == (len(x), n, *x.shape[2:])
        and shortcut.dtype == x.dtype
        and shortcut.is_contiguous(memory_format=torch.channels_last)
    )
    kind = x.device.type
    working = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return (
        fits
        and x.dtype == working
        and x.dtype in _DTYPES
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
        and k % _MULTIPLE == n % _MULTIPLE == 0
        and gains(k, n, shortcut is not None)
    )


def gains(inputs: int, outputs: int, summed: bool) -> bool:
    """Return whether the fused product takes less time than a separate one, by a cautious model.

    Counted for one pixel, in bytes that an A100 moves meanwhile. The separate convolution takes the
    longer of its arithmetic at peak and of its memory traffic. After it the norm reads the result
    for its moments; with a shortcut it reads both terms and writes their sum. The fused product is
    taken to reach only half of the arithmetic peak.

    Args:
        inputs: K.
        outputs: N.
        summed: Whether a shortcut is added.
    """
    arithmetic = 2 * inputs * outputs / _FLOP_PER_BYTE
    traffic = 2 * (inputs + outputs)
    separate = max(arithmetic, traffic) + 2 * outputs * (3 if summed else 1)
    return max(2 * arithmetic, traffic + 2 * outputs * summed) < separate


# --- custom operator ------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastselfie::pointwise_norm_relu",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? shortcut, Tensor scale, Tensor bias, float epsilon) "
    "-> (Tensor, Tensor, Tensor)",
)
def _pointwise_norm_relu(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, scale: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the sum and the statistics of norm_relu_triton.py; scale is the norm's weight."""
    from fastselfie.kernels import norm_relu_triton, pointwise_triton

    matrix = weight.reshape(weight.shape[:2]).contiguous()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        total, partial = pointwise_triton.product(x, matrix, shortcut)
        vectors = scale.contiguous(), bias.contiguous()
        y, _, found = norm_relu_triton.forward(total, None, *vectors, epsilon, partial)
    return y, total, found


@_pointwise_norm_relu.register_fake
def _(x: Tensor, weight: Tensor, _shortcut: Any, scale: Tensor, *_: Any) -> tuple[Tensor, ...]:
    y, total = (
        torch.empty(
            (x.shape[0], weight.shape[0], *x.shape[2:]), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last,
        )
        for _ in range(2)
    )  # fmt: skip
    return y, total, scale.new_empty(4, len(scale))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, shortcut, _scale, bias, _epsilon = inputs
    _y, total, found = output
    ctx.mark_non_differentiable(found)
    ctx.set_materialize_grads(False)  # y or the sum may have no gradient
    ctx.summed = shortcut is not None
    ctx.save_for_backward(x, weight, total, bias, found)


def _gradient(
    ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    x, weight, total, bias, found = ctx.saved_tensors
    grad_scale = grad_bias = None
    if grad_y is not None:
        grad_total, grad_scale, grad_bias = torch.ops.fastselfie.norm_relu_backward(
            total, grad_y, grad_total, bias, found
        )
    if grad_total is None:
        return (None,) * 6
    settings = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)  # stride, padding, dilation, ...
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_total, x, weight, None, *settings, (*ctx.needs_input_grad[:2], False)
    )
    grad_shortcut = grad_total if ctx.summed else None
    return grad_x, grad_weight, grad_shortcut, grad_scale, grad_bias, None


_pointwise_norm_relu.register_autograd(_gradient, setup_context=_keep)
