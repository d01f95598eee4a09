"""Batch norm with ReLU in one pass against torch's two operations in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastselfie.kernels import norm_relu as module
from fastselfie.kernels.host import norm_relu_backward, norm_relu_forward
from fastselfie.kernels.norm_relu import norm_relu


def case(shape, seed=0, mean=0.5):
    random = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.randn(shape[1], generator=random))
        norm.bias.copy_(torch.randn(shape[1], generator=random))
    x = torch.randn(shape, generator=random) * 2 + mean
    gradient = torch.randn(shape, generator=random)
    return norm, *(t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))


def run(f, norm, x, gradient):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = f(norm, x)
    y.backward(gradient)
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean,
            norm.running_var, norm.num_batches_tracked]  # fmt: skip


def plain(norm, x):
    return F.relu(norm(x))


# 64 rows make a block: one row, an unfinished block, many; one channel and no multiple of 8.
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 1), (3, 5, 1, 7), (8, 64, 8, 8), (65, 33, 1, 1), (16, 1024, 2, 2)]
)
def test_it_is_as_close_to_float64_as_torch_is(shape, monkeypatch):
    norm, x, gradient = case(shape)
    exact = run(plain, copy.deepcopy(norm).double(), x.double(), gradient.double())
    torchs = run(plain, copy.deepcopy(norm), x, gradient)
    used = []
    fused = module._NormReLU.apply
    monkeypatch.setattr(module._NormReLU, "apply", lambda *a: used.append(1) or fused(*a))
    ours = run(norm_relu, copy.deepcopy(norm), x, gradient)
    assert used
    for mine, theirs, true in zip(ours, torchs, exact, strict=True):
        scale = float(true.abs().max())
        error = float((mine.double() - true).abs().max())
        allowed = 2 * float((theirs.double() - true).abs().max()) + 4e-7 * scale
        assert error <= allowed


def test_a_large_mean_does_not_cancel_the_variance():
    """A sum of squares in float32 would: at a mean of 1000 it has no digit of the variance left."""
    norm, x, gradient = case((32, 16, 4, 4), mean=1000.0)
    exact = run(plain, copy.deepcopy(norm).double(), x.double(), gradient.double())
    ours = run(norm_relu, norm, x, gradient)
    assert float((ours[0].double() - exact[0]).abs().max()) < 1e-3
    assert float((ours[5].double() / exact[5] - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", [(3, 5, 1, 7), (65, 33, 1, 1), (16, 256, 2, 2)])
def test_bfloat16_is_rounded_once(shape):
    """What is computed of bfloat16 is float32's of the same numbers, to the bit."""
    norm, x, gradient = case(shape)
    x, gradient = x.bfloat16(), gradient.bfloat16()
    wide = run(norm_relu, copy.deepcopy(norm), x.float(), gradient.float())
    ours = run(norm_relu, copy.deepcopy(norm), x, gradient)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    for mine, theirs in zip(ours, wide, strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype))


def test_the_threads_change_nothing():
    norm, x, gradient = case((40, 24, 4, 4))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(run(norm_relu, copy.deepcopy(norm), x, gradient))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF])  # the second, rounded, would be -0
def test_a_nan_goes_through(dtype, bits):
    norm, x, _ = case((4, 3, 2, 2))
    x[0, 1, 0, 0] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    x = x.to(dtype)
    y = norm_relu(norm, x)
    assert y[:, 1].isnan().all()
    assert not y[:, 0].isnan().any()


@pytest.mark.parametrize(
    "why", ["eval", "NCHW", "float64", "all bfloat16", "without weights", "one value"]
)
def test_elsewhere_it_is_torchs_own(why, monkeypatch):
    monkeypatch.setattr(module._NormReLU, "apply", lambda *_: pytest.fail("fused"))
    norm, x, _ = case((4, 3, 2, 2))
    if why == "eval":
        norm.eval()
    elif why == "NCHW":
        x = x.contiguous()
    elif why == "float64":
        norm, x = norm.double(), x.double()
    elif why == "without weights":
        norm = nn.BatchNorm2d(3, affine=False)
    elif why == "all bfloat16":
        norm, x = norm.bfloat16(), x.bfloat16()
    else:
        x = x[:1, :, :1, :1]
        with pytest.raises(ValueError, match="more than 1 value"):
            norm_relu(norm, x)
        return
    assert torch.equal(norm_relu(norm, x), plain(copy.deepcopy(norm), x))


def test_an_unknown_impl_is_named():
    norm, x, _ = case((4, 3, 2, 2))
    with pytest.raises(ValueError, match=r"^impl is 'fast': one of auto, reference, triton"):
        norm_relu(norm, x, "fast")


def test_statistics_are_not_counted_where_the_module_does_not():
    norm, x, _ = case((4, 3, 2, 2))
    norm.track_running_stats = False
    norm_relu(norm, x)
    assert int(norm.num_batches_tracked) == 0
    assert not norm.running_mean.any()


def test_wrong_arrays_are_refused():
    x = np.zeros((4, 3), np.float32)
    c, found = np.zeros(3, np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="weight is"):
        norm_relu_forward(x, np.zeros(2, np.float32), c, 1e-5, 1, found, x)
    with pytest.raises(ValueError, match="y is"):
        norm_relu_forward(x, c, c, 1e-5, 1, found, x.astype(np.float64))
    with pytest.raises(ValueError, match="found is"):
        norm_relu_forward(x, c, c, 1e-5, 1, c, x)
    with pytest.raises(ValueError, match="threads"):
        norm_relu_forward(x, c, c, 1e-5, 0, found, x)
    with pytest.raises(ValueError, match="gradient is"):
        norm_relu_backward(x, x[:2], c, found, 1e-5, 1, x, c, c)
    half = x.astype(np.uint16)
    with pytest.raises(ValueError, match="y is a contiguous uint16"):
        norm_relu_forward(half, c, c, 1e-5, 1, found, x)
    with pytest.raises(ValueError, match="grad_x is a contiguous uint16"):
        norm_relu_backward(half, half, c, found, 1e-5, 1, x, c, c)
