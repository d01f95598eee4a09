"""Bytes that a training step moves: benchmarks/traffic.py on small nets, and its parts."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import REPOSITORY
from helpers.benchmarks import run_benchmark
from helpers.tensors import channels_last
from support.compiled_traffic import CompiledTraffic
from support.step_traffic import EagerTraffic
from support.traffic import triton_traffic
from support.traffic_groups import CONVOLUTIONS, FORMS, INPUT, NORMS, POOL, READ_AGAIN
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastselfie.kernels import norm_relu_triton, pointwise_triton


def test_eager_operations_count_what_they_read_and_write():
    x = torch.ones(8)
    with EagerTraffic() as traffic:
        y = x.view(2, 4) + 1  # a view is free; 32 bytes in, 32 out
        y.mul_(2)  # the same
        torch.zeros_like(y)  # 32 out
        y.copy_(torch.empty(2, 4))  # memory alone is free; then as the first
    assert traffic.total == 64 + 64 + 32 + 64
    assert traffic.peak == 64  # y and one other at a time


def test_a_convolution_reads_its_gradient_twice():
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    x = torch.ones(2, 4, 8, 8, requires_grad=True)
    with EagerTraffic() as traffic:
        y = net(x)
        traffic.direction = "backward"
        y.sum().backward()
    size, weight = x.nbytes, 64
    assert traffic.bytes["forward"][CONVOLUTIONS] == 2 * size + weight
    assert traffic.bytes["backward"][CONVOLUTIONS] == 3 * size + 2 * weight
    assert traffic.bytes["backward"][READ_AGAIN] == size


@pytest.mark.parametrize("summed", [False, True])
def test_our_programs_make_the_passes_that_were_counted_in_the_interpreter(summed):
    """kernels.json has those of single loads and stores; here a launch counts its arguments."""
    kernels = json.loads((REPOSITORY / "benchmarks/results/kernels.json").read_text("utf-8"))
    passes = next(n["passes"] for n in kernels["norms"] if n["norm"]["summed"] == summed)
    with FakeTensorMode():
        x, dy, other = (
            channels_last(torch.empty(64 * 49, 256, 8, 8, dtype=torch.bfloat16)) for _ in range(3)
        )  # fmt: skip
        other, bias = other if summed else None, torch.empty(256)
        with EagerTraffic() as forward:
            _, _, found = norm_relu_triton.forward(x, other, bias, bias, 1e-5)
        with EagerTraffic() as backward:
            norm_relu_triton.backward(x, dy, other, bias, found)
    assert forward.total / x.nbytes == pytest.approx(passes["forward"], abs=0.1)
    assert backward.total / x.nbytes == pytest.approx(passes["backward"], abs=0.1)


def test_a_product_counts_every_address_once():
    """In the interpreter, which sees each load and store, and by the arguments of its launch."""
    x, shortcut = (channels_last(torch.randn(3, c, 5, 5)).bfloat16() for c in (144, 176))
    weight = torch.randn(176, 144).bfloat16()
    with triton_traffic() as loads:
        made = pointwise_triton.product(x, weight, shortcut)
    size = sum(t.nbytes for t in (x, weight, shortcut, *made))
    with FakeTensorMode(allow_non_fake_inputs=True), EagerTraffic() as traffic:
        pointwise_triton.product(x, weight, shortcut)
    assert loads.distinct == traffic.programs["multiply"] == traffic.total == size


@pytest.mark.slow
def test_a_fused_kernel_counts_what_it_reads_and_writes():
    plan = CompiledTraffic(set())
    x = torch.ones(1000, requires_grad=True)
    plan.compile(lambda x: (x + 1).sin().sum())(x).backward()
    assert plan.bytes["forward"].total() == x.nbytes + 4
    assert plan.bytes["backward"].total() == 2 * x.nbytes + 4


@pytest.mark.slow
def test_a_step_is_counted_in_every_form(tmp_path):
    out = tmp_path / "traffic.json"
    tiny = ("model.blocks=[1,1,1,1]", "model.width=8", "model.layers=1", "model.heads=8")
    done = run_benchmark(
        "benchmarks/traffic.py", "--json", out, "--batch", "4",
        "data.image_size=64", "model.patch_size=16", *tiny,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    eager, compiled, ours = json.loads(out.read_text("utf-8"))["rows"]
    assert [eager["form"], compiled["form"], ours["form"]] == list(FORMS)
    for direction in ("forward", "backward"):
        rows = [row["bytes"][direction] for row in (eager, compiled, ours)]
        assert rows[0][CONVOLUTIONS] >= rows[1][CONVOLUTIONS] > 0
        shortcuts = rows[2][CONVOLUTIONS] - rows[1][CONVOLUTIONS]  # which 1x1 convolutions add
        assert (shortcuts > 0) == (direction == "forward")
        assert rows[0][NORMS] > rows[1][NORMS] > rows[2][NORMS] > 0
        assert rows[1][POOL] >= rows[2][POOL] > 0
    # A patch's 8x8 maps of 8 channels are read in bfloat16; 4x4 are written, with places of a byte.
    outputs = 4 * 16 * 8 * 4 * 4
    assert [ours["bytes"][d][POOL] for d in ("forward", "backward")] == [11 * outputs] * 2
    pixels = 4 * 64 * 64 * 3  # read as bytes, written in bfloat16 by our program at once
    assert compiled["bytes"]["forward"][INPUT] > ours["bytes"]["forward"][INPUT] > 3 * pixels
    for row in (eager, compiled, ours):
        assert 0.3 < row["estimated_bytes"] / row["peak_bytes"] < 3
