"""Fused batch norm and ReLU for training, and the sum in front of them if there is one.

`reference.norm_relu` defines the operation; `impl` changes only the speed. Eager torch reads and
writes the activations 13 times; the fused kernels do 8 times, in C++ on a CPU
(kernels/host/norm_relu.inl) and in Triton on a GPU (norm_relu_triton.py, imported on first use).
This module contains, in order: the public functions, the running statistics, the custom operators
for torch.library with their gradient, and the autograd function for a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.kernels import reference
from fastselfie.kernels.host import norm_relu_backward, norm_relu_forward
from fastselfie.kernels.impl import Impl, check_impl, is_eager, uses_triton

_HOST_DTYPES = (torch.float32, torch.bfloat16)
_TRITON_DTYPES = (*_HOST_DTYPES, torch.float16)


def norm_relu(norm: nn.BatchNorm2d, x: Tensor, impl: Impl = "auto") -> Tensor:
    """Return relu(norm(x)), and update the running statistics as the module does.

    A fused kernel is used for channels-last `x`, if the norm is in training mode and has float32
    weights. Otherwise the two operations run separately. The results differ only by rounding.

    Args:
        norm: The batch norm.
        x: (B, C, H, W).
        impl: auto uses Triton on a GPU if it is installed, for float32, bfloat16 and float16; the
            C++ on a CPU for float32 and bfloat16, unless torch.compile traces. triton needs Triton
            where a fused kernel is used: on a CPU only with TRITON_INTERPRET=1. reference is plain
            torch.

    Returns:
        (B, C, H, W), in x's dtype.

    Raises:
        ValueError: `impl` is unknown, or is triton where Triton cannot run.
    """
    return add_norm_relu(norm, x, None, impl)[1]


def add_norm_relu(
    norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Return x + shortcut, and `norm_relu` of it.

    With Triton the sum is part of the fused kernel, and so is the sum of its two gradients.

    Args:
        norm: The batch norm.
        x: (B, C, H, W). May be overwritten by the sum: nothing else may need it.
        shortcut: (B, C, H, W), or None: `x` is the sum.
        impl: As in `norm_relu`.

    Returns:
        The sum and relu(norm(sum)), (B, C, H, W) each.

    Raises:
        ValueError: As in `norm_relu`.
    """
    check_impl(impl)
    fuses = impl != "reference" and fuses_norm(norm, x)
    if fuses and _triton_takes(x, shortcut, impl):
        y, total, found = _norm_relu(x, shortcut, norm.weight, norm.bias, norm.eps)
        total = x if shortcut is None else total
        update_statistics(norm, found[0], found[1])
        return total, y
    total = x if shortcut is None else x.add_(shortcut)
    if not (fuses and x.device.type == "cpu" and x.dtype in _HOST_DTYPES and is_eager(x)):
        return reference.norm_relu(norm, total)
    y, mean, variance = _NormReLU.apply(total, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    count = x.numel() // x.shape[1]
    update_statistics(norm, mean, variance * (count / (count - 1)))
    return total, y


def fuses_norm(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Return whether a fused kernel may normalise `x`, (B, C, H, W), by its batch."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1]  # one value has no variance: the module raises the error
    )


def _triton_takes(x: Tensor, shortcut: Tensor | None, impl: Impl) -> bool:
    fits = shortcut is None or (
        shortcut.shape == x.shape
        and shortcut.dtype == x.dtype
        and shortcut.is_contiguous(memory_format=torch.channels_last)
    )
    return uses_triton(x.device, impl) and fits and x.dtype in _TRITON_DTYPES


# --- running statistics ---------------------------------------------------------------------------


def update_statistics(norm: nn.BatchNorm2d, mean: Tensor, unbiased_variance: Tensor) -> None:
    """Update the running statistics of a norm, if it tracks them, by those (C,) of its batch."""
    if not norm.track_running_stats:
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / float(norm.num_batches_tracked)
    running = [norm.running_mean, norm.running_var]
    torch._foreach_lerp_(running, [mean, unbiased_variance], momentum)


# --- custom operators -----------------------------------------------------------------------------


@torch.library.custom_op(
    "fastselfie::norm_relu",
    mutates_args=(),
    schema="(Tensor x, Tensor? shortcut, Tensor weight, Tensor bias, float epsilon) "
    "-> (Tensor, Tensor, Tensor)",
)
def _norm_relu(
    x: Tensor, shortcut: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y; the sum, empty without a shortcut; and the statistics, see the program."""
    from fastselfie.kernels import norm_relu_triton as program

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return program.forward(x, shortcut, weight.contiguous(), bias.contiguous(), epsilon)


@_norm_relu.register_fake
def _(x: Tensor, shortcut: Tensor | None, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    total = x.new_empty(0) if shortcut is None else torch.empty_like(x)
    return torch.empty_like(x), total, weight.new_empty(4, len(weight))


@torch.library.custom_op(
    "fastselfie::norm_relu_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor grad_y, Tensor? grad_total, Tensor bias, Tensor found) "
    "-> (Tensor, Tensor, Tensor)",
)
def _norm_relu_backward(
    x: Tensor, grad_y: Tensor, grad_total: Tensor | None, bias: Tensor, found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the sum, the weight and the bias."""
    from fastselfie.kernels import norm_relu_triton as program

    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    if grad_total is not None:
        grad_total = grad_total.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return program.backward(x, grad_y, grad_total, bias.contiguous(), found)


@_norm_relu_backward.register_fake
def _(x: Tensor, _y: Tensor, _total: Tensor | None, bias: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), bias.new_empty(bias.shape), bias.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, shortcut, _weight, bias, _epsilon = inputs
    _y, total, found = output
    ctx.mark_non_differentiable(found)
    ctx.set_materialize_grads(False)  # the sum may have no gradient but that of y
    ctx.summed = shortcut is not None
    ctx.save_for_backward(total if ctx.summed else x, bias, found)


def _gradient(
    ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return grad_total, grad_total, None, None, None
    grad_total = grad_total if ctx.summed else None
    x, bias, found = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = _norm_relu_backward(x, grad_y, grad_total, bias, found)
    return grad_x, grad_x if ctx.summed else None, grad_weight, grad_bias, None


_norm_relu.register_autograd(_gradient, setup_context=_keep)


# --- on a CPU -------------------------------------------------------------------------------------


class _NormReLU(torch.autograd.Function):
    """(x, weight, bias, epsilon) -> y, mean (C,), biased variance (C,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, found = torch.empty_like(x), torch.empty(4, len(weight))
        arrays = (_array(x), _array(weight), _array(bias))
        norm_relu_forward(*arrays, epsilon, torch.get_num_threads(), _array(found), _array(y))
        ctx.save_for_backward(x, weight, found)
        ctx.epsilon = epsilon
        mean, variance = found[0], found[1]
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, found = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = map(torch.empty_like, (x, weight, weight))
        arrays = (_array(x), _array(gradient), _array(weight), _array(found))
        results = (_array(grad_x), _array(grad_weight), _array(grad_bias))
        norm_relu_backward(*arrays, ctx.epsilon, torch.get_num_threads(), *results)
        return grad_x, grad_weight, grad_bias, None


def _array(tensor: Tensor) -> Any:
    """Return a NumPy view: bfloat16 as uint16, activations as a matrix of pixels by channels."""
    tensor = tensor.detach()
    if tensor.dim() == 4:
        tensor = tensor.permute(0, 2, 3, 1).flatten(0, 2)
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
