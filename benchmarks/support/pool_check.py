"""Compare the Triton kernels of the max pool with torch's, for gpu_check.py."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastselfie.kernels.impl import Impl
from fastselfie.kernels.max_pool import max_pool
from support.checks import require, within
from support.dry_gpu import sized

_SHAPES = ((588, 64, 16, 16), (49, 33, 7, 5), (3, 130, 1, 9))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pool_parity() -> dict[str, Any]:
    """Gradients of Triton against float64: errors / what is allowed. Maxima have torch's bits.

    Allowed are half a rounding to the dtype, and three roundings of float32 for a sum of 4 terms.
    A third of the values are equal, so that it matters which of them gets the gradient.
    """
    ratios: dict[str, dict[str, float]] = {}
    random = torch.Generator().manual_seed(0)
    for shape, dtype in product(sized(_SHAPES, _SHAPES[1:2]), _DTYPES):
        name = f"{shape}, {dtype}"
        x = torch.randn(shape, generator=random).clamp_min(-0.4).cuda().to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        y = max_pool(x, "reference")
        gradient = torch.randn(y.shape, generator=random).cuda().to(dtype)
        (found, dx), (_, again) = (_outcome(x, gradient, "triton") for _ in range(2))
        require(torch.equal(found, y), f"{name}: a maximum differs from torch's")
        require(torch.equal(dx, again), f"{name}: a gradient differs from call to call")
        exact, magnitudes = (
            _outcome(x.double(), g.double(), "reference")[1] for g in (gradient, gradient.abs())
        )
        allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 3 * 2**-24 * magnitudes
        error = (dx.double() - exact).abs() / allowed.clamp_min(1e-30)
        ratios[name] = {"dx": float(error.max())}
    return within(ratios, 1.0, "error of what is allowed")


def _outcome(x: Tensor, gradient: Tensor, impl: Impl) -> tuple[Tensor, Tensor]:
    """Return the maxima, and the gradient of x."""
    x = x.detach().requires_grad_()
    y = max_pool(x, impl)
    (dx,) = torch.autograd.grad(y, x, gradient)
    return y.detach(), dx
