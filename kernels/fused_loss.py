"""What the fused losses share: the tensors that Triton takes, and gradients that are stored.

The Triton kernels compute every gradient in the forward pass. The backward pass scales them in
place by the incoming gradient. Shapes: B images, M masked, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastselfie.kernels.impl import unavailable

MAX_MASKED = 64
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(h: Tensor, *others: tuple[str, Tensor]) -> str | None:
    """Return why Triton cannot take these arguments, or None if it can.

    Args:
        h: (B, M, D).
        others: Names and values of the other tensors of floats.
    """
    for name, tensor in (*others, ("h", h)):
        if tensor.dtype not in _DTYPES:
            return f"{name} is {tensor.dtype}: impl triton takes float32, bfloat16 and float16"
    if h.numel() == 0:
        return f"h has shape {tuple(h.shape)}: impl triton takes no empty tensor"
    if h.shape[1] > MAX_MASKED:
        return f"h has M = {h.shape[1]}: impl triton takes up to {MAX_MASKED} masked patches"
    return unavailable(h.device)


def storing_factor(query: Tensor, h: Tensor, scale: float) -> float:
    """Return the factor that the gradients of the sum over B x M are stored with.

    1 / (B M) makes them the gradients of the mean. The backward pass then has nothing to do if the
    incoming gradient is 1. In float16, whose smallest normal number is 6e-5, they would be too
    small before the gradient scaler's factor is applied. So there the scale of the scores is
    replaced by a factor of 64 to 128, for gradients of 1e-6 to 500 per unit of scale. The factor
    that is then missing is a power of two, which changes no bit of a significand. A larger gradient
    is stored as infinity, whatever the incoming gradient is: a gradient scaler skips that step, and
    a lower loss scale does not help.
    """
    answers = h.shape[0] * h.shape[1]
    if torch.float16 not in (query.dtype, h.dtype):
        return 1.0 / answers
    return 2.0 ** math.frexp(64 * answers / (abs(scale) or 1.0))[1] / answers


def scaled(stored: Tensor, factor: Tensor) -> Tensor:
    """Multiply a stored gradient by `factor` (), in place unless torch.compile traces."""
    if type(stored) is not Tensor:
        # torch.compile traces: it fuses this with what follows, and must not change saved tensors.
        return (stored.float() * factor).to(stored.dtype)
    _scale_(stored, factor)
    return stored


@torch.library.custom_op("fastselfie::scale_", mutates_args=("x",))
def _scale_(x: Tensor, factor: Tensor) -> None:
    """Multiply dense `x` by `factor` () in float32, in place. A factor of 1 writes nothing.

    x.mul_(factor) would first round the factor to x's dtype. The largest float16 is 65504, where
    a gradient scaler begins.
    """
    from fastselfie.kernels import fused_loss_triton as program

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        program.scale_(x, factor)
