"""Fused batch norm and ReLU for training on a CPU, in C++ (kernels/host/norm_relu.inl).

Eager torch reads and writes the activations 13 times; the fused kernel does 8 times. On a GPU
torch.compile fuses the two with their neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastselfie.kernels.host import norm_relu_backward, norm_relu_forward
from fastselfie.kernels.impl import Impl, check_impl, is_eager


def norm_relu(norm: nn.BatchNorm2d, x: Tensor, impl: Impl = "auto") -> Tensor:
    """Return relu(norm(x)), and update the running statistics as the module does.

    The fused kernel is used on a CPU for channels-last float32 or bfloat16, if the norm is in
    training mode and has float32 weights. Otherwise the two operations run separately. The results
    differ only by rounding.

    Args:
        norm: The batch norm.
        x: (B, C, H, W).
        impl: auto or reference. triton is the same as auto: on a GPU torch.compile fuses the two.

    Returns:
        (B, C, H, W), in x's dtype.

    Raises:
        ValueError: `impl` is unknown.
    """
    check_impl(impl)
    if impl == "reference" or not _fuses(norm, x):
        return F.relu(norm(x))
    y: Tensor
    y, mean, variance = _NormReLU.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    if norm.track_running_stats:
        _update_statistics(norm, mean, variance, x.numel() // x.shape[1])
    return y


def _fuses(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    return (
        is_eager(x)
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and norm.affine
        and norm.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1]  # one value has no variance: the module raises the error
    )


def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), momentum)


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
