"""The Triton kernels of `norm_relu`, interpreted, against the reference in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.tensors import channels_last
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fastselfie.kernels import matrix_tiles_triton, reference
from fastselfie.kernels import norm_relu_triton as program
from fastselfie.kernels.norm_relu import add_norm_relu, norm_relu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
summed = pytest.mark.parametrize("summed", [False, True], ids=["alone", "summed"])

# A tile has up to 64 channels; 4,096 entries, or 2,048 if the channels are no multiple of 16. Three
# values (of two, the terms of dx cancel); a tile that is not full; several tiles of one channel; 33
# channels, which are no power of two; more channels than a tile; several tiles of aligned channels.
SHAPES = [(3, 1, 1, 1), (3, 5, 1, 7), (50, 1, 15, 17), (65, 33, 3, 3), (9, 130, 3, 5),
          (70, 16, 3, 5)]  # fmt: skip


def case(shape, dtype=torch.float32, mean=0.5):
    """A norm, x, a shortcut, and the gradients of both results."""
    norm = nn.BatchNorm2d(shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape) * 2 + mean
    return norm, *(channels_last(t).to(dtype) for t in (x, *torch.randn(3, *shape)))


def outcome(norm, x, shortcut, grad_y, grad_total, impl):
    """{name: result or gradient or statistic}; without a shortcut, x is the sum.

    For impl float64, x and the shortcut are added in their dtype: rounding that sum is part of the
    operation.
    """
    norm = copy.deepcopy(norm)
    x, shortcut = (t.clone() if t is not None else None for t in (x, shortcut))
    if impl == "float64":
        total = (x if shortcut is None else x + shortcut).double().requires_grad_()
        norm.double()
        y = reference.norm_relu(norm, total)[1]
        leaves = (total, *norm.parameters())
    else:
        x.requires_grad_()
        if shortcut is not None:
            shortcut.requires_grad_()
        # x * 1 may be overwritten, unlike a leaf.
        total, y = add_norm_relu(norm, x * 1, shortcut, impl)
        leaves = (x, *norm.parameters())
    results, gradients = [y], [grad_y.to(y.dtype)]
    if shortcut is not None:
        results, gradients = [y, total], [grad_y.to(y.dtype), grad_total.to(y.dtype)]
        leaves += (shortcut if impl != "float64" else total,)
    found = torch.autograd.grad(results, leaves, gradients)
    names = ("dx", "dweight", "dbias", "dshortcut")
    values = {"y": y, "sum": total, "mean": norm.running_mean, "variance": norm.running_var}
    assert int(norm.num_batches_tracked) == 1
    return {k: v.detach() for k, v in {**values, **dict(zip(names, found, strict=False))}.items()}


def assert_as_good_as_torch(given):
    """At most twice as far from float64 as eager torch with the same inputs, or a floor.

    Float32 keeps 2^-24 of a term. A result is the end of some ten roundings, and of sums of up to
    40,000 terms of either sign, which err by 2^-24 x 200 where they cancel: with 2^-19 of the
    largest value, results that torch happens to hit are allowed for. A result in half precision is
    rounded to it once, by half of eps.
    """
    exact = outcome(*given, "float64")
    plain, fast = (outcome(*given, impl) for impl in ("reference", "triton"))
    for name, true in exact.items():
        assert fast[name].dtype == plain[name].dtype, name
        error, allowed = (float((x[name].double() - true).abs().max()) for x in (fast, plain))
        rounding = 2**-19 + (torch.finfo(fast[name].dtype).eps / 2)
        assert error <= 2 * allowed + rounding * float(true.abs().max()), name


@dtypes
@summed
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_gradients_and_statistics(shape, summed, dtype):
    norm, x, shortcut, grad_y, grad_total = case(shape, dtype)
    assert_as_good_as_torch((norm, x, shortcut if summed else None, grad_y, grad_total))


@dtypes
@summed
def test_programs_that_read_several_tiles(summed, dtype, monkeypatch):
    """Three read 3, 2 and 2 tiles, and the last tile is not full."""
    monkeypatch.setattr(matrix_tiles_triton, "PROGRAMS", 3)
    norm, x, shortcut, grad_y, grad_total = case((7, 64, 7, 9), dtype)
    tiling = matrix_tiles_triton.tiling_of(7 * 7 * 9, 64)
    assert (tiling.programs, tiling.tiles) == (3, 7)
    assert_as_good_as_torch((norm, x, shortcut if summed else None, grad_y, grad_total))


def test_a_large_mean_does_not_cancel_the_variance():
    """A sum of squares in float32 would: at a mean of 1000 it has no digit of the variance left."""
    norm, x, _, grad_y, _ = case((40, 16, 16, 16), mean=1000.0)
    exact, fast = (outcome(norm, x, None, grad_y, None, impl) for impl in ("float64", "triton"))
    assert float((fast["y"].double() - exact["y"]).abs().max()) < 1e-3
    assert float((fast["variance"].double() / exact["variance"] - 1).abs().max()) < 1e-5


def test_the_sum_is_rounded_before_its_moments():
    """The backward pass reads the rounded sum: it must be what was normalised."""
    norm, x, shortcut, *_ = case((9, 8, 3, 3), torch.bfloat16)
    total, y = add_norm_relu(copy.deepcopy(norm), x.clone(), shortcut, "triton")
    assert torch.equal(total, x + shortcut)
    assert torch.equal(y, norm_relu(norm, total, "triton"))


def test_the_inputs_stay_as_they_are():
    norm, x, shortcut, *_ = case((9, 8, 3, 3))
    before = x.clone(), shortcut.clone()
    add_norm_relu(norm, x, shortcut, "triton")
    assert all(map(torch.equal, before, (x, shortcut)))


@summed
def test_the_same_bits_every_time(summed):
    norm, x, shortcut, *rest = case((65, 33, 3, 3), torch.bfloat16)
    first, second = (
        outcome(norm, x, shortcut if summed else None, *rest, "triton") for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@dtypes
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by NumPy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_its_channel_and_no_other(dtype, value):
    norm, x, *_ = case((4, 3, 2, 2), dtype)
    x[0, 1, 0, 0] = value
    with torch.no_grad():
        y = norm_relu(norm, x, "triton")
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2]].isfinite().all()
    assert norm.running_var.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("asked", ["y", "sum"])
def test_a_result_without_a_gradient(asked):
    norm, x, shortcut, gradient, _ = case((9, 8, 3, 3))
    x.requires_grad_()
    shortcut.requires_grad_()
    results = [add_norm_relu(copy.deepcopy(norm), x * 1, shortcut, impl)
               for impl in ("reference", "triton")]  # fmt: skip
    number = ["sum", "y"].index(asked)
    found = [torch.autograd.grad(r[number], (x, shortcut), gradient) for r in results]
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_a_gradient_in_another_layout_is_read_right():
    """The mean over a map has an expanded gradient; another may be NCHW."""
    norm, x, *_ = case((9, 8, 3, 3))
    x.requires_grad_()
    found = []
    for impl in ("reference", "triton"):
        y = norm_relu(copy.deepcopy(norm), x, impl)
        loss = y.mean(dim=(2, 3)).square().sum() + (y * torch.randn(9, 8, 3, 3).abs()).sum() * 0
        found.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


# --- the cases that it does not take --------------------------------------------------------------


@pytest.mark.parametrize(
    "why", ["eval", "NCHW", "float64", "all bfloat16", "without weights", "shortcut in float64"]
)
def test_elsewhere_it_is_torchs_own(why, monkeypatch):
    monkeypatch.setattr(program, "forward", lambda *_: pytest.fail("fused"))
    norm, x, shortcut, *_ = case((4, 3, 2, 2))
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
        shortcut = shortcut.double()
    expected = F.relu(copy.deepcopy(norm)(x + shortcut.to(x.dtype)))
    with torch.no_grad():
        y = add_norm_relu(norm, x, shortcut, "triton")[1]
    # The C++ on a CPU takes the last case: it differs by rounding.
    eps = torch.finfo(y.dtype).eps
    torch.testing.assert_close(y, expected, rtol=2 * eps, atol=8 * eps)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    norm, x, *_ = case((4, 3, 2, 2))
    with pytest.raises(ValueError, match=r"^impl is triton, but the tensors are on cpu"):
        norm_relu(norm, x, "triton")
    norm.eval()  # no fused kernel is used: a run of a GPU can be evaluated on a CPU
    assert norm_relu(norm, x, "triton").shape == x.shape


def test_statistics_are_not_counted_where_the_module_does_not():
    norm, x, *_ = case((4, 3, 2, 2))
    norm.track_running_stats = False
    norm_relu(norm, x, "triton")
    assert int(norm.num_batches_tracked) == 0
    assert not norm.running_mean.any()


def test_without_momentum_the_statistics_are_plain_means():
    """As in torch's module."""
    norm, x, other, *_ = case((4, 3, 2, 2))
    norm.momentum = None
    expected = copy.deepcopy(norm)
    for each in (x, other):
        norm_relu(norm, each, "triton")
        expected(each)
    torch.testing.assert_close(norm.running_mean, expected.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, expected.running_var, rtol=1e-5, atol=1e-6)


# --- as torch sees it -----------------------------------------------------------------------------


@dtypes
@summed
def test_opcheck(summed, dtype):
    norm, x, shortcut, grad_y, grad_total = case((9, 8, 3, 3), dtype)
    given = (x.requires_grad_(), shortcut.requires_grad_() if summed else None)
    operators = torch.ops.fastselfie
    torch.library.opcheck(operators.norm_relu.default, (*given, norm.weight, norm.bias, 1e-5))
    found = torch.rand(4, 8) + 0.5
    arguments = x.detach(), grad_y, grad_total if summed else None, norm.bias.detach(), found
    torch.library.opcheck(operators.norm_relu_backward.default, arguments)


class Block(nn.Module):
    """A convolution, a norm of its sum with the input, and the sum once more."""

    def __init__(self, impl):
        super().__init__()
        self.conv, self.norm, self.impl = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), impl

    def forward(self, x):
        total, y = add_norm_relu(self.norm, self.conv(x), x, self.impl)
        return y * 0.7 + total


def trained(run, block, x):
    block.zero_grad()
    y = run(x)
    y.square().mean().backward()
    return [y, *(p.grad for p in block.parameters()), *block.buffers()]


def wrapped(kind, block):
    if kind == "torch.compile":
        return torch.compile(block, fullgraph=True, backend="aot_eager")
    if kind == "checkpointing":
        return lambda x: checkpoint(block, x, use_reentrant=False)
    return DistributedDataParallel(block)


@pytest.fixture
def alone(tmp_path):
    """A process group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["torch.compile", "checkpointing", "DDP"])
def test_it_trains_under(kind, alone):
    """The same bits as without, but for the statistics, which checkpointing counts twice."""
    x = channels_last(torch.randn(6, 8, 3, 3)).requires_grad_()
    block = Block("triton").to(memory_format=torch.channels_last)
    other, plain = copy.deepcopy(block), copy.deepcopy(block)
    plain.impl = "reference"
    expected, found = trained(block, block, x), trained(wrapped(kind, other), other, x)
    compared = len(expected) - (3 if kind == "checkpointing" else 0)
    for number in range(compared):
        torch.testing.assert_close(found[number], expected[number], rtol=1e-6, atol=1e-7)
    for fast, true in zip(expected, trained(plain, plain, x), strict=True):
        torch.testing.assert_close(fast, true, rtol=1e-4, atol=1e-5)
