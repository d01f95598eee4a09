"""The Triton kernels of `max_pool`, interpreted, against torch's own and float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.tensors import channels_last
from support.traffic import triton_traffic
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastselfie.kernels import max_pool_triton as program
from fastselfie.kernels.max_pool import max_pool
from fastselfie.models.resnet import ExecutionOptions, ResNetV2

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])

# A tile has 1,024 entries, of up to 64 channels. One pixel; a tile that is not full; several tiles
# of images that end inside of a tile, with 33 channels, which are no power of two; more channels
# than a tile.
SHAPES = [(1, 1, 1, 1), (1, 5, 7, 4), (5, 33, 7, 6), (2, 130, 6, 5)]


def outcome(x, gradient, impl):
    """The result, and the gradient of x."""
    x = x.detach().requires_grad_()
    y = max_pool(x, impl)
    (dx,) = torch.autograd.grad(y, x, gradient.to(y.dtype))
    return y.detach(), dx


def case(shape, dtype):
    """x, and the gradient of the result."""
    x = channels_last(torch.randn(shape)).to(dtype)
    return x, channels_last(torch.randn_like(max_pool(x, "reference")))


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_maximum_has_the_same_bits_and_the_gradient_is_rounded_once(shape, dtype):
    """A sum of up to 4 terms in float32 errs by 3 x 2^-24 of their magnitudes."""
    x, gradient = case(shape, dtype)
    y, dx = outcome(x, gradient, "triton")
    torchs, theirs = outcome(x, gradient, "reference")
    assert torch.equal(y, torchs)
    assert y.dtype == dx.dtype == dtype
    _, exact = outcome(x.double(), gradient.double(), "reference")
    _, magnitudes = outcome(x.double(), gradient.double().abs(), "reference")
    rounding = torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((dx.double() - exact).abs() <= 3 * 2**-24 * magnitudes + rounding).all()
    _, windows = outcome(x.double(), torch.ones(y.shape), "reference")
    alone = windows <= (2 if dtype == torch.float32 else 1)  # torch may round each sum to x's dtype
    assert torch.equal(dx[alone], theirs[alone])


@dtypes
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 4), (4, 3), (5, 5), (6, 6)])
def test_of_equal_values_the_first_gets_the_gradient(size, dtype):
    """As in torch. Sums of whole numbers are exact in every dtype, so all bits are the same."""
    x = channels_last(torch.randint(0, 3, (2, 3, *size))).to(dtype)
    gradient = torch.randint(-8, 9, max_pool(x, "reference").shape)
    for ours, torchs in zip(
        *(outcome(x, gradient, impl) for impl in ("triton", "reference")), strict=True
    ):
        assert torch.equal(ours, torchs)


@dtypes
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by NumPy
def test_what_is_not_finite_is_as_in_torch(dtype):
    """NaN passes through, also beside infinity; -inf alone is a maximum."""
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])
    x = channels_last(values[torch.randint(0, 4, (4, 8, 6, 7))]).to(dtype)
    x[0] = float("-inf")
    gradient = torch.randint(-8, 9, (4, 8, 3, 4))
    (ours, dx), (torchs, theirs) = (outcome(x, gradient, i) for i in ("triton", "reference"))
    assert ours.isnan().any()
    assert torch.equal(ours.isnan(), torchs.isnan())
    assert torch.equal(ours.nan_to_num(), torchs.nan_to_num())
    assert torch.equal(dx, theirs)


def test_a_gradient_that_is_not_finite_reaches_one_pixel():
    x, gradient = case((2, 3, 4, 4), torch.bfloat16)
    gradient[1, 1, 1, 1] = float("nan")
    _, dx = outcome(x, gradient, "triton")
    assert dx.isnan().sum() == 1


def test_the_same_bits_every_time():
    x, gradient = case((5, 33, 7, 6), torch.bfloat16)
    first, second = (outcome(x, gradient, "triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_gradient_in_another_layout_is_read_right():
    """The mean over a map has an expanded gradient; another may be NCHW."""
    x, gradient = case((2, 3, 4, 4), torch.float32)
    expected = outcome(x, gradient, "reference")[1]
    assert torch.equal(outcome(x, gradient.contiguous(), "triton")[1], expected)
    x.requires_grad_()
    found = [torch.autograd.grad(max_pool(x, i).mean(), x)[0] for i in ("triton", "reference")]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@dtypes
def test_each_address_is_used_once_but_for_caches(dtype):
    """22 bytes an output in half precision; benchmarks/traffic.py counts the same."""
    x, gradient = case((2, 64, 16, 16), dtype)
    with triton_traffic() as forward:
        y = max_pool(x.requires_grad_(), "triton")
    with triton_traffic() as backward:
        y.backward(gradient)
    least = x.nbytes + y.nbytes + y.numel()
    assert (forward.distinct, backward.distinct) == (least, least)


# --- the cases that it does not take --------------------------------------------------------------


@pytest.mark.parametrize("why", ["NCHW", "float64", "empty", "auto on a CPU"])
def test_elsewhere_it_is_torchs_own(why, monkeypatch):
    monkeypatch.setattr(program, "forward", lambda *_: pytest.fail("fused"))
    x, _ = case((2, 3, 6, 6), torch.float32)
    if why == "NCHW":
        x = x.contiguous()
    elif why == "float64":
        x = x.double()
    elif why == "empty":
        x = x[:0]
    y = max_pool(x, "auto" if why == "auto on a CPU" else "triton")
    assert torch.equal(y, F.max_pool2d(x, 3, 2, 1))


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x, _ = case((2, 3, 6, 6), torch.float32)
    with pytest.raises(ValueError, match=r"^impl is triton, but the tensors are on cpu"):
        max_pool(x, "triton")
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        max_pool(x, "cuda")


def test_the_stem_uses_it_in_training_only(monkeypatch):
    """A run of a GPU can be evaluated and exported on a CPU."""
    network = ResNetV2((1, 1, 1), width=4, options=ExecutionOptions(kernels="triton"))
    stem = network.stem.to(memory_format=torch.channels_last)
    assert list(stem.state_dict()) == ["conv.weight"]
    x = channels_last(torch.randn(2, 3, 16, 16))
    with triton_traffic() as traffic:
        trained = stem(x)
    assert traffic.total
    monkeypatch.delenv("TRITON_INTERPRET")
    assert torch.equal(stem.eval()(x), trained)


# --- as torch sees it -----------------------------------------------------------------------------


@dtypes
def test_opcheck(dtype):
    x, gradient = case((3, 8, 5, 6), dtype)
    operators = torch.ops.fastselfie
    torch.library.opcheck(operators.max_pool.default, (x.requires_grad_(),))
    places = channels_last(torch.randint(0, 9, gradient.shape)).to(torch.uint8)
    torch.library.opcheck(operators.max_pool_backward.default, (gradient, places, 5, 6))


class Net(nn.Module):
    """A convolution and the pool."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return max_pool(self.conv(x), "triton")


@pytest.mark.parametrize("kind", ["torch.compile", "checkpointing"])
def test_it_trains_under(kind):
    """The same bits as without."""
    net, x = Net().to(memory_format=torch.channels_last), channels_last(torch.randn(2, 3, 9, 8))
    run = {
        "torch.compile": torch.compile(net, fullgraph=True, backend="aot_eager"),
        "checkpointing": lambda x: checkpoint(net, x, use_reentrant=False),
    }[kind]
    found = []
    for each in (net, run):
        net.zero_grad()
        y = each(x)
        y.square().mean().backward()
        found.append([y, net.conv.weight.grad.clone()])
    assert all(map(torch.equal, *found))
