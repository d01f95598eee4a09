"""Compare the Triton kernels of batch norm with ReLU with float64, for gpu_check.py."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.kernels import reference
from fastselfie.kernels.norm_relu import add_norm_relu
from support.checks import within
from support.dry_gpu import sized

_SHAPES = ((588, 64, 8, 8), (49, 33, 3, 3), (588, 1024, 2, 2))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NAMES = ("y", "dx", "dweight", "dbias", "running mean", "running variance")


def norm_parity() -> dict[str, Any]:
    """Results, gradients and statistics of Triton against float64: errors / what is allowed.

    Allowed are twice plain torch's error, half a rounding to the dtype, and 2^-19 of the largest
    value for the float32 sums.
    """
    ratios: dict[str, dict[str, float]] = {}
    for shape, dtype, summed in product(sized(_SHAPES, _SHAPES[1:2]), _DTYPES, (False, True)):
        exact, plain, fast = _outcomes(shape, dtype, summed)
        case = ratios.setdefault(f"{shape}, {dtype}{', summed' if summed else ''}", {})
        for name, true, theirs, ours in zip(_NAMES, exact, plain, fast, strict=True):
            rounding = 2**-19 + torch.finfo(ours.dtype).eps / 2
            allowed = 2 * float((theirs.double() - true).abs().max())
            allowed += rounding * float(true.abs().max())
            case[name] = float((ours.double() - true).abs().max()) / allowed
    return within(ratios, 1.0, "error of what is allowed")


def _outcomes(shape: tuple[int, ...], dtype: torch.dtype, summed: bool) -> list[list[Tensor]]:
    """Return the tensors of `_NAMES`: in float64, by plain torch and by Triton."""
    random = torch.Generator().manual_seed(0)

    def activation() -> Tensor:
        values = torch.randn(shape, generator=random).cuda().to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x, shortcut, grad_y, grad_total = (activation() for _ in range(4))
    norm = nn.BatchNorm2d(shape[1])
    nn.init.normal_(norm.weight, generator=random)
    nn.init.normal_(norm.bias, generator=random)
    made = []
    for kind in ("float64", "reference", "triton"):
        module = copy.deepcopy(norm).cuda()
        leaf = x.clone()
        if kind == "float64":  # rounding the sum to its dtype is a part of the operation
            leaf = (x + shortcut if summed else x).double()
            module.double()
        leaf.requires_grad_()
        if kind == "float64":
            total, y = reference.norm_relu(module, leaf)
        else:
            impl: Any = kind
            total, y = add_norm_relu(module, leaf * 1, shortcut if summed else None, impl)
        results, gradients = [y], [grad_y.to(y.dtype)]
        if summed:
            results, gradients = [y, total], [*gradients, grad_total.to(y.dtype)]
        found = torch.autograd.grad(results, (leaf, *module.parameters()), gradients)
        assert module.running_mean is not None
        assert module.running_var is not None
        made.append([y.detach(), *found, module.running_mean, module.running_var])
    return made
