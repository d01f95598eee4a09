"""A 1x1 convolution that adds a shortcut, and takes the moments that the next batch norm needs.

`reference.pointwise` defines the result. cuDNN's convolutions in torch write their result; then a
norm reads it for its statistics, and before that a shortcut is added. On a GPU a Triton kernel
(pointwise_triton.py, imported on first use) does both before it writes. That saves 3 passes over
the tensor in memory and costs one to read the shortcut; without a shortcut it saves one. The
gradients are torch's own.

B images, K input and N output channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastselfie.kernels.convolution import convolution
from fastselfie.kernels.impl import Impl, check_impl, uses_triton

_DTYPES = (torch.bfloat16, torch.float16)
# FLOP in the time of a byte, of an A100: 312 TFLOP/s dense in half precision and 2,039 GB/s, from
# NVIDIA's data sheet of the SXM card with 80 GB. Of an H100 SXM it is 295: 989 and 3,350.
_FLOP_PER_BYTE = 153.0


class Moments(NamedTuple):
    """Partial moments of a tensor's channels, for the batch norm that follows.

    Attributes:
        partial: (P, 2, C) float32, see pointwise_triton.py.
        tensor: (B, C, H, W), whose moments they are.
        version: Of the tensor when they were taken, which operations that overwrite it raise. None
            if torch keeps no version, as while torch.compile traces.
    """

    partial: Tensor
    tensor: Tensor
    version: int | None

    def of(self, x: Tensor) -> Tensor | None:
        """Return `partial` if it has the moments of `x` as it is now, else None."""
        if x is not self.tensor:
            return None
        return self.partial if self.version in (None, _version(x)) else None


def pointwise(
    x: Tensor, weight: Tensor, shortcut: Tensor | None = None, impl: Impl = "auto"
) -> tuple[Tensor, Tensor | None, Moments | None]:
    """Return F.conv2d(x, weight) with the shortcut added or beside it, for `add_norm_relu`.

    The Triton kernel takes channels-last half precision, also under autocast, if the product is
    bound by memory so far that it gains time at half of the arithmetic peak; see `gains`. Its speed
    has not been measured on a GPU. In all other cases this is `convolution`.

    Args:
        x: (B, K, H, W).
        weight: (N, K, 1, 1).
        shortcut: (B, N, H, W), or None.
        impl: auto uses Triton on a GPU. triton also does on a CPU, with TRITON_INTERPRET=1.
            reference is plain torch.

    Returns:
        The convolution or the sum, (B, N, H, W); the shortcut if it is still to be added, else
        None; and the moments of the first result, if they were taken.

    Raises:
        ValueError: `impl` is unknown, or is triton where Triton cannot run.
    """
    check_impl(impl)
    if not (uses_triton(x.device, impl) and _takes(x, weight, shortcut)):
        return convolution(x, weight, impl=impl), shortcut, None
    out, partial = _pointwise(x, weight.to(x.dtype), shortcut)
    return out, None, Moments(partial, out, _version(out))


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


def _takes(x: Tensor, weight: Tensor, shortcut: Tensor | None) -> bool:
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
        and gains(k, n, shortcut is not None)
    )


def _version(x: Tensor) -> int | None:
    return None if torch.compiler.is_compiling() or x.is_inference() else x._version


# --- custom operator ------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastselfie::pointwise",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? shortcut) -> (Tensor, Tensor)",
)
def _pointwise(x: Tensor, weight: Tensor, shortcut: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum and its partial moments, see the program."""
    from fastselfie.kernels import pointwise_triton as program

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return program.pointwise(x, weight.reshape(weight.shape[:2]).contiguous(), shortcut)


@_pointwise.register_fake
def _(x: Tensor, weight: Tensor, _shortcut: Tensor | None) -> tuple[Tensor, Tensor]:
    from fastselfie.kernels import pointwise_triton as program

    n, k = weight.shape[:2]
    out = torch.empty(
        (x.shape[0], n, *x.shape[2:]), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    programs = program.programs_of(x.numel() // k, k, n)
    return out, torch.empty(programs, 2, n, dtype=torch.float32, device=x.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, shortcut = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.summed = shortcut is not None
    ctx.save_for_backward(x, weight)


def _gradient(ctx: Any, gradient: Tensor, _partial: Any) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    settings = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)  # stride, padding, dilation, ...
    wanted = (*ctx.needs_input_grad[:2], False)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *settings, wanted
    )
    return grad_x, grad_weight, gradient if ctx.summed else None


_pointwise.register_autograd(_gradient, setup_context=_keep)
