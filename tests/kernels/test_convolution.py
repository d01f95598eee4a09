"""A convolution's gradients by the threads' parts, against torch's in float64."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.kernels import convolution as module
from fastselfie.kernels.convolution import convolution
from fastselfie.kernels.host import openmp_threads
from fastselfie.models.resnet import ExecutionOptions, ResNetV2

# (x, weight, stride): matrix products and oneDNN's, strides, paddings; odd sizes, whose last pixels
# a stride leaves out; a batch that the threads do not divide, and one of fewer images than threads.
FORMS = [
    ((8, 16, 8, 8), (64, 16, 1, 1), 1),
    ((8, 64, 8, 8), (128, 64, 1, 1), 2),
    ((3, 5, 7, 6), (7, 5, 1, 1), 3),
    ((8, 32, 8, 8), (32, 32, 3, 3), 2),
    ((3, 5, 7, 6), (7, 5, 3, 3), 2),
    ((2, 3, 33, 32), (16, 3, 7, 7), 2),
    ((1, 3, 33, 32), (16, 3, 7, 7), 2),
    ((48, 64, 4, 4), (64, 64, 3, 3), 1),
    ((7, 16, 8, 8), (16, 16, 3, 3), 1),
    ((9, 64, 2, 2), (64, 64, 3, 3), 1),
    ((64, 3, 8, 8), (32, 3, 3, 3), 1),
]
THREADS = 3


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def case(shape, kernel, dtype=torch.bfloat16):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(kernel, generator=random).to(dtype)
    return x.requires_grad_(), weight.requires_grad_()


def run(f, x, weight, stride, impl="auto"):
    """y and the gradients of its product with a fixed random tensor."""
    x, weight = (t.detach().clone().requires_grad_() for t in (x, weight))
    y = f(x, weight, stride, weight.shape[2] // 2, impl)
    toward = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, (x, weight), toward.bfloat16().to(y.dtype))]


@pytest.fixture
def parts(monkeypatch):
    """The weight gradients that threads computed: (openmp_threads, thread, gradient)."""
    found = []
    original = module._part

    def part(*arguments):
        made = original(*arguments)
        found.append((openmp_threads(), threading.get_ident(), made))
        return made

    monkeypatch.setattr(module, "_part", part)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("shape", "kernel", "stride"), FORMS)
def test_it_is_as_close_to_float64_as_torch_is(shape, kernel, stride, dtype, parts):
    x, weight = case(shape, kernel, dtype)
    exact = run(convolution, x.double(), weight.double(), stride, "reference")
    torchs = run(convolution, x, weight, stride, "reference")
    assert not parts
    ours = run(convolution, x, weight, stride)
    assert len(parts) == min(THREADS, shape[0])
    half_a_unit = torch.finfo(dtype).eps / 2
    # Each part is rounded once, and so is their sum; torch rounds the whole once or more.
    rounded = [0.0, 0.0, half_a_unit * sum(part.double().abs() for *_, part in parts)]
    for mine, theirs, true, extra in zip(ours, torchs, exact, rounded, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == true.shape
        allowed = half_a_unit * true.abs() + extra
        # Sums are in float32: what torch's order of them loses, ours may lose.
        allowed += float((theirs.double() - true).abs().max()) + 1e-6 * true.abs().max()
        assert ((mine.double() - true).abs() <= allowed).all()


def test_under_autocast_the_parts_are_added_in_float32(parts):
    x, weight = case((8, 16, 8, 8), (64, 16, 1, 1), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x, weight)
        plain = F.conv2d(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain)
    grad_x, grad_weight = torch.autograd.grad(y.float().square().sum(), (x, weight))
    their_x, their_weight = torch.autograd.grad(plain.float().square().sum(), (x, weight))
    assert grad_x.dtype == grad_weight.dtype == torch.float32
    half_a_unit = torch.finfo(torch.bfloat16).eps / 2
    # Ours rounds each part to bfloat16, torch's the sum; sums in float32 differ by 1e-6.
    allowed = half_a_unit * (sum(part.float().abs() for *_, part in parts) + their_weight.abs())
    assert ((grad_weight - their_weight).abs() <= allowed + 1e-6 * their_weight.abs().max()).all()
    torch.testing.assert_close(grad_x, their_x, rtol=2 * half_a_unit, atol=0)


def test_of_an_input_that_needs_no_gradient_none_is_computed(monkeypatch):
    x, weight = case((2, 3, 32, 32), (16, 3, 7, 7))
    y = convolution(x.detach(), weight, 2, 3)
    original = module._gradients

    def gradients(*arguments, of_x):
        assert not of_x
        return original(*arguments, of_x=of_x)

    monkeypatch.setattr(module, "_gradients", gradients)
    y.float().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    "why", ["float64", "float64 under autocast", "NCHW", "no gradients", "frozen", "reference",
            "another OpenMP"],
)  # fmt: skip
def test_elsewhere_it_is_torchs_own(why, monkeypatch):
    monkeypatch.setattr(module._Convolution, "apply", lambda *_: pytest.fail("taken"))
    monkeypatch.setattr(module, "_shares_openmp", lambda: why != "another OpenMP")
    x, weight = case((64, 16, 8, 8), (16, 16, 3, 3))
    if "float64" in why:
        x, weight = x.double(), weight.double()
    elif why == "NCHW":
        x = x.contiguous()
    elif why == "frozen":
        weight = weight.detach()
    grads, casts = why != "no gradients", why == "float64 under autocast"
    with torch.set_grad_enabled(grads), torch.autocast("cpu", torch.bfloat16, enabled=casts):
        y = convolution(x, weight, 1, 1, "reference" if why == "reference" else "auto")
        plain = F.conv2d(x, weight, None, 1, 1)
    assert y.dtype == plain.dtype
    assert torch.equal(y, plain)


def test_an_empty_batch_has_gradients_of_zero():
    x, weight = case((0, 16, 8, 8), (64, 16, 1, 1))
    convolution(x, weight).float().sum().backward()
    assert not weight.grad.any()


def test_an_unknown_impl_is_named():
    with pytest.raises(ValueError, match=r"^impl is 'fast': one of auto, reference, triton"):
        convolution(*case((4, 16, 8, 8), (16, 16, 1, 1)), impl="fast")


def test_torch_and_the_extension_share_openmp():
    assert module._shares_openmp()
    assert torch.get_num_threads() == openmp_threads() == THREADS


class _WeightGradients(TorchDispatchMode):
    """The threads that oneDNN may plan for, at each weight gradient of the calling thread."""

    def __init__(self):
        super().__init__()
        self.threads = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.convolution_backward.default and arguments[-1][1]:
            self.threads.append(openmp_threads())
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_no_weight_gradient_of_a_network_is_planned_for_several_threads(impl, precision, parts):
    """With several, oneDNN's threads may spin at barriers: the control sees torch's do so."""
    net = ResNetV2([1, 1, 1], 16, "cifar", options=ExecutionOptions(kernels=impl)).to(
        memory_format=torch.channels_last
    )
    x = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        y = net(x)
    with _WeightGradients() as seen:
        y.float().sum().backward()
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in net.modules())
    if impl == "reference":
        assert not parts
        assert seen.threads == [THREADS] * convolutions
        return
    assert {threads for threads, *_ in parts} == {1}
    assert len({thread for _, thread, _ in parts}) == THREADS
    assert len(parts) == THREADS * convolutions
    assert set(seen.threads) == {1}
    assert torch.get_num_threads() == THREADS


def test_an_exception_in_a_part_reaches_the_caller(monkeypatch):
    def part(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(module, "_part", part)
    y = convolution(*case((8, 16, 8, 8), (64, 16, 1, 1)))
    with pytest.raises(RuntimeError, match="no memory"):
        y.float().sum().backward()
    assert torch.get_num_threads() == THREADS
