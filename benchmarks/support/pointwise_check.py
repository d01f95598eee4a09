"""Compare the Triton kernel of 1x1 convolutions with float64, and its time with cuDNN's."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.kernels import reference
from fastselfie.kernels.norm_relu import add_norm_relu, update_statistics
from fastselfie.kernels.pointwise import gains, pointwise_norm_relu
from support.checks import within
from support.dry_gpu import sized

_SHAPES = ((588, 64, 256, 8), (49, 48, 80, 3), (588, 256, 1024, 2))  # B, K, N, height and width
_DTYPES = (torch.bfloat16, torch.float16)
_NAMES = ("sum", "y", "dx", "dweight", "running mean", "running variance")
_PATCHES = 49
# K, N and height of the 1x1 convolutions of in224, and whether they have a shortcut.
_IN224 = (
    (64, 64, 8, False), (256, 64, 8, False), (64, 256, 8, True), (256, 128, 8, False),
    (128, 512, 4, True), (512, 128, 4, False), (512, 256, 4, False), (256, 1024, 2, True),
    (1024, 256, 2, False),
)  # fmt: skip


def product_parity() -> dict[str, Any]:
    """Sums, gradients and the next norm's results against float64: errors / what is allowed.

    Allowed are twice plain torch's error, the roundings of the product and of the sum, and 2^-19 of
    the largest value for sums in float32.
    """
    ratios: dict[str, dict[str, float]] = {}
    for shape, dtype, summed in product(sized(_SHAPES, _SHAPES[1:2]), _DTYPES, (False, True)):
        if not gains(shape[1], shape[2], summed):
            continue  # the fused program would not be used
        exact, plain, fast = _outcomes(shape, dtype, summed)
        case = ratios.setdefault(f"{shape}, {dtype}{', summed' if summed else ''}", {})
        for name, true, theirs, ours in zip(_NAMES, exact, plain, fast, strict=True):
            rounding = 2**-19 + torch.finfo(ours.dtype).eps
            allowed = 2 * float((theirs.double() - true).abs().max())
            allowed += rounding * float(true.abs().max())
            case[name] = float((ours.double() - true).abs().max()) / allowed
    return within(ratios, 1.0, "error of what is allowed")


def product_times() -> dict[str, Any]:
    """Milliseconds of each 1x1 convolution of in224 with the norm behind it, forward: see _IN224.

    cudnn: torch's convolution, and a norm that adds the shortcut and takes the moments; fused: one
    operator, whose product does both. auto: which of them training takes.
    """
    rows = []
    for k, n, side, summed in sized(_IN224, ((16, 32, 2, True),)):
        images = sized(256, 1) * _PATCHES
        x, weight, shortcut, _ = _inputs((images, k, n, side), torch.bfloat16, summed)
        norm = nn.BatchNorm2d(n).cuda()
        runs = {
            "cudnn": lambda: _separate(norm, x, weight, shortcut),  # noqa: B023
            "fused": lambda: _fused(norm, x, weight, shortcut),  # noqa: B023
        }
        with torch.no_grad():
            taken = {name: _milliseconds(run) for name, run in runs.items()}
        chosen = "fused" if gains(k, n, summed) else "cudnn"
        rows.append({"shape": [images, k, n, side], "summed": summed, "ms": taken, "auto": chosen})
    return {"products": rows}


def _separate(norm: nn.BatchNorm2d, x: Tensor, weight: Tensor, shortcut: Tensor | None) -> None:
    add_norm_relu(norm, nn.functional.conv2d(x, weight), shortcut, "triton")


def _fused(norm: nn.BatchNorm2d, x: Tensor, weight: Tensor, shortcut: Tensor | None) -> None:
    """Also where `auto` does not take it."""
    vectors = norm.weight, norm.bias
    operator = torch.ops.fastselfie.pointwise_norm_relu
    _, _, found = operator(x, weight, shortcut, *vectors, norm.eps)
    update_statistics(norm, found[0], found[1])


def _milliseconds(run: Callable[[], None]) -> float:
    """Return the median; in a dry run the time of one call."""

    def once() -> float:
        began = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - began)

    def repeated() -> float:
        from triton.testing import do_bench

        return float(do_bench(run, return_mode="median"))

    return float(f"{sized(repeated, once)():.5g}")


def _inputs(
    shape: tuple[int, ...], dtype: torch.dtype, summed: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return x, the weight, the shortcut if there is one, and a gradient of the result."""
    b, k, n, side = shape
    random = torch.Generator().manual_seed(0)

    def activation(channels: int) -> Tensor:
        values = torch.randn((b, side, side, channels), generator=random).cuda().to(dtype)
        return values.permute(0, 3, 1, 2)

    weight = (torch.randn((n, k, 1, 1), generator=random) / k**0.5).cuda().to(dtype)
    return activation(k), weight, activation(n) if summed else None, activation(n)


def _outcomes(shape: tuple[int, ...], dtype: torch.dtype, summed: bool) -> list[list[Tensor]]:
    """Return the tensors of `_NAMES`: in float64, by plain torch and by Triton."""
    x, weight, shortcut, gradient = _inputs(shape, dtype, summed)
    norm = nn.BatchNorm2d(shape[2])
    made = []
    for kind in ("float64", "reference", "triton"):
        module = copy.deepcopy(norm).cuda()
        wide = torch.float64 if kind == "float64" else dtype
        taken, weights = (t.clone().to(wide).requires_grad_() for t in (x, weight))
        added = None if shortcut is None else shortcut.to(wide)
        if kind == "float64":
            total = reference.pointwise(taken, weights, added)
            y = reference.norm_relu(module.double(), total)[1]
        else:
            impl: Any = kind
            total, y = pointwise_norm_relu(module, taken, weights, added, impl)
        incoming = gradient.to(wide)
        found = torch.autograd.grad((total, y), (taken, weights), (incoming, incoming))
        assert module.running_mean is not None
        assert module.running_var is not None
        statistics = module.running_mean, module.running_var
        made.append([total.detach(), y.detach(), *found, *statistics])
    return made
