"""A convolution's gradients by matrix products, against torch's in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastselfie.kernels import convolution as module
from fastselfie.kernels.convolution import convolution

# (x, weight, stride): each form that is taken; odd sizes, whose last pixels a stride leaves out.
TAKEN = [
    ((8, 16, 8, 8), (64, 16, 1, 1), 1),
    ((8, 64, 8, 8), (128, 64, 1, 1), 2),
    ((3, 5, 7, 6), (7, 5, 1, 1), 3),
    ((8, 32, 8, 8), (32, 32, 3, 3), 2),
    ((3, 5, 7, 6), (7, 5, 3, 3), 2),
    ((2, 3, 33, 32), (16, 3, 7, 7), 2),
    ((48, 64, 4, 4), (64, 64, 3, 3), 1),  # weights of more than half the images
    ((64, 3, 8, 8), (32, 3, 3, 3), 1),  # a cifar stem wider than a block of channels
]


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


@pytest.mark.parametrize(("shape", "kernel", "stride"), TAKEN)
def test_it_is_as_close_to_float64_as_torch_is(shape, kernel, stride, monkeypatch):
    x, weight = case(shape, kernel)
    used = []
    taken = module._Convolution.apply
    monkeypatch.setattr(module._Convolution, "apply", lambda *a: used.append(1) or taken(*a))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    exact = run(convolution, x.double(), weight.double(), stride, "reference")
    torchs = run(convolution, x, weight, stride, "reference")
    assert not used
    ours = run(convolution, x, weight, stride)
    assert used
    for mine, theirs, true in zip(ours, torchs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert mine.shape == true.shape
        # Sums in float32, rounded once, by half a unit in the last place; torch may round as well.
        rounding = torch.finfo(torch.bfloat16).eps / 2 * true.abs()
        allowed = rounding + float((theirs.double() - true).abs().max()) + 1e-6 * true.abs().max()
        assert ((mine.double() - true).abs() <= allowed).all()


def test_under_autocast_a_float32_weight_has_a_float32_gradient():
    x, weight = case((8, 16, 8, 8), (64, 16, 1, 1), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x, weight)
        plain = F.conv2d(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain)
    for found, expected in zip(
        torch.autograd.grad(y.float().square().sum(), (x, weight)),
        torch.autograd.grad(plain.float().square().sum(), (x, weight)),
        strict=True,
    ):
        assert found.dtype == torch.float32
        # Both are rounded once to bfloat16 from a sum in float32.
        torch.testing.assert_close(found, expected, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-3)


def test_of_an_input_that_needs_no_gradient_none_is_computed(monkeypatch):
    monkeypatch.setattr(module, "_input_gradient", lambda *_: pytest.fail("computed"))
    x, weight = case((2, 3, 32, 32), (16, 3, 7, 7))
    convolution(x.detach(), weight, 2, 3).float().sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    "why",
    ["float32", "float64 under autocast", "NCHW", "no gradients", "frozen", "reference",
     "3x3", "3x3 of one thread", "padded 1x1"],
)  # fmt: skip
def test_elsewhere_it_is_torchs_own(why, monkeypatch):
    monkeypatch.setattr(module._Convolution, "apply", lambda *_: pytest.fail("taken"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 if why == "3x3 of one thread" else 2)
    side, padding = (3 if "3x3" in why else 1), int("3x3" in why or why == "padded 1x1")
    count = 1 if why == "3x3 of one thread" else 64  # one image is less than the weights
    x, weight = case((count, 16, 8, 8), (16, 16, side, side))
    if why == "float32":
        x, weight = x.float(), weight.float()
    elif why == "float64 under autocast":
        x, weight = x.double(), weight.double()
    elif why == "NCHW":
        x = x.contiguous()
    elif why == "frozen":
        weight = weight.detach()
    grads, casts = why != "no gradients", why == "float64 under autocast"
    with torch.set_grad_enabled(grads), torch.autocast("cpu", torch.bfloat16, enabled=casts):
        y = convolution(x, weight, 1, padding, "reference" if why == "reference" else "auto")
        plain = F.conv2d(x, weight, None, 1, padding)
    assert y.dtype == plain.dtype
    assert torch.equal(y, plain)


def test_an_unknown_impl_is_named():
    with pytest.raises(ValueError, match=r"^impl is 'fast': one of auto, reference, triton"):
        convolution(*case((4, 16, 8, 8), (16, 16, 1, 1)), impl="fast")


_ON_ONE_CORE = """
import os, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import torch
from fastselfie.models.resnet import ResNetV2

net = ResNetV2([2, 2, 2], {width}, "cifar").to(memory_format=torch.channels_last)
x = torch.randn({count}, 3, 8, 8).to(memory_format=torch.channels_last)

def step():
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().sum().backward()

for threads in (1, 2):
    torch.set_num_threads(threads)
    step()
    began = time.process_time()
    for _ in range(3):
        step()
    print(time.process_time() - began)
"""


@pytest.mark.parametrize(("width", "count"), [(16, 256), (64, 64)])
def test_two_threads_on_one_core_do_not_wait_for_each_other_by_spinning(width, count):
    """As beside another busy program. With oneDNN's weight gradients: 100 times the time."""
    code = _ON_ONE_CORE.format(width=width, count=count)
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    alone, shared = map(float, done.stdout.split())
    assert shared < 3 * alone
