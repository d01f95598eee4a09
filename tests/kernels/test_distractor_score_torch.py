"""`distractor_score` as torch sees it: autograd, autocast, opcheck, torch.compile."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastselfie.kernels.distractor_score import distractor_score


def task(b=3, m=4, d=16, grid=4, dtype=torch.float32):
    """u, h, rows, columns, locations."""
    locations = torch.rand(b, grid * grid).argsort(1)[:, :m]
    tensors = torch.randn(b, d).to(dtype), torch.randn(b, m, d).to(dtype)
    return *tensors, torch.randn(grid, d), torch.randn(grid, d), locations


def asked(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


operation = torch.ops.fastselfie.distractor_score.default


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["table", "rows and columns"])
def test_opcheck(form, dtype):
    u, h, rows, columns, locations = task(dtype=dtype)
    given = rows if form == "table" else rows.bfloat16()
    columns = None if form == "table" else columns.requires_grad_()
    places = locations % 4 if form == "table" else locations
    arguments = (*asked(u, h, given), columns, places, 0.5, True)
    # In float16 the backward pass scales the stored gradients, in place: opcheck holds them beside
    # those of a traced graph, which scales copies. The compiled module below sees neither.
    kinds = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if dtype != torch.float16:
        kinds.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operation, arguments, test_utils=kinds)
    torch.library.opcheck(operation, (u, h, given, None, locations % 4, 0.5, False))


def test_opcheck_of_the_scaling():
    torch.library.opcheck(torch.ops.fastselfie.scale_.default, (torch.ones(5), torch.tensor(2.0)))


class Head(nn.Module):
    """The end of the network: a projection of each side, positions, the loss."""

    def __init__(self, impl, row_column, dtype):
        super().__init__()
        self.impl, self.dtype = impl, dtype
        self.left, self.right = nn.Linear(8, 16), nn.Linear(8, 16)
        self.rows, self.columns = (nn.Parameter(torch.randn(4, 16)) for _ in range(2))
        self.table = nn.Parameter(torch.randn(16, 16))
        self.row_column = row_column

    def forward(self, x, y, locations):
        positions = (self.rows, self.columns) if self.row_column else self.table
        u, h = self.left(x).to(self.dtype), self.right(y).to(self.dtype)
        return distractor_score(u, h, positions, locations, 0.25, self.impl)


@pytest.mark.parametrize(
    ("row_column", "dtype"), [(True, torch.float32), (False, torch.float16), (True, torch.bfloat16)]
)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_torch_compile_takes_it_whole(impl, row_column, dtype):
    head = Head(impl, row_column, dtype)
    inputs = torch.randn(3, 8), torch.randn(3, 4, 8), torch.rand(3, 16).argsort(1)[:, :4]
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    results = []
    for run in (head, compiled):
        head.zero_grad()
        loss, correct = run(*inputs)
        (loss * 0.7).backward()
        gradients = [p.grad for p in head.parameters() if p.grad is not None]
        results.append([loss, correct, *gradients])
    assert len(results[0]) == 2 + 4 + (2 if row_column else 1)
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced, rtol=1e-6, atol=1e-7)


def test_the_same_bits_every_time():
    u, h, rows, columns, locations = task(b=64, m=12, d=33, grid=7, dtype=torch.bfloat16)

    def run():
        leaves = asked(u, h, rows, columns)
        loss, _ = distractor_score(*leaves[:2], tuple(leaves[2:]), locations, 0.2, "triton")
        return [loss, *torch.autograd.grad(loss, leaves)]

    assert all(map(torch.equal, run(), run()))


def test_only_what_is_asked_for_gets_a_gradient():
    u, h, rows, columns, locations = task()
    u.requires_grad_()
    columns.requires_grad_()
    loss, correct = distractor_score(u, h, (rows, columns), locations, 1.0, "triton")
    assert not correct.requires_grad
    loss.backward()
    assert u.grad is not None
    assert columns.grad is not None
    assert h.grad is None
    assert rows.grad is None


class _Made(TorchDispatchMode):
    """Numbers in each tensor that an operation makes, views apart."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        out = operation(*arguments, **(named or {}))
        made = [] if operation.is_view else tree_leaves(out)
        self.sizes += [leaf.numel() for leaf in made if isinstance(leaf, torch.Tensor)]
        return out


@pytest.mark.parametrize("row_column", [True, False])
def test_the_backward_pass_of_a_unit_gradient_makes_nothing(row_column):
    """The forward pass made every gradient, autograd makes no zeros; a scalar does not count."""
    u, h, rows, columns, locations = task(dtype=torch.bfloat16)
    leaves = asked(u, h, rows, columns) if row_column else asked(u, h, torch.randn(16, 16))
    positions = tuple(leaves[2:]) if row_column else leaves[2]
    loss, _ = distractor_score(*leaves[:2], positions, locations, 0.2, "triton")
    with _Made() as made:
        loss.backward()
    assert set(made.sizes) == {1}
    assert all(leaf.grad is not None for leaf in leaves)


def test_evaluation_makes_no_gradients(monkeypatch):
    from fastselfie.kernels import distractor_score_triton as program

    made = []
    score = program.score
    monkeypatch.setattr(program, "score", lambda *a: (made.append(a[-1]), score(*a))[1])
    u, h, rows, _columns, locations = task()
    without, _ = distractor_score(u, h, rows, locations % 4, 1.0, "triton")
    with torch.no_grad():
        distractor_score(*asked(u, h, rows), locations % 4, 1.0, "triton")
    loss, _ = distractor_score(*asked(u, h, rows), locations % 4, 1.0, "triton")
    assert made == [False, False, True]
    assert torch.equal(loss, without)


def test_a_second_backward_is_refused_and_not_wrong():
    """The first one has scaled the stored gradients in place."""
    u, h, rows, _columns, locations = task()
    loss, _ = distractor_score(*asked(u, h, rows), locations % 4, 1.0, "triton")
    (loss * 0.5).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_scaler_keeps_small_gradients_of_float16():
    """65536 is no float16, and a 768th part of a small gradient is none with all its bits."""
    u, h, rows, columns, locations = task(b=64, m=12, d=8, grid=7, dtype=torch.float16)
    found = []
    for dtype, impl in (
        (torch.float16, "triton"), (torch.float16, "reference"), (torch.float64, "reference"),
    ):  # fmt: skip
        low = asked(u.to(dtype), (h * 1e-3).to(dtype))
        tables = [t.to(torch.promote_types(dtype, torch.float32)) for t in (rows, columns)]
        loss, _ = distractor_score(*low, tuple(tables), locations, 0.1, impl)
        found.append(torch.autograd.grad(loss * 65536, low))
    for fast, plain, exact in zip(*found, strict=True):
        error, allowed = ((x.double() - exact).norm() / exact.norm() for x in (fast, plain))
        assert error <= 2 * allowed
        assert error < 2**-8


def test_autocast_changes_nothing():
    u, h, rows, columns, locations = task(dtype=torch.bfloat16)
    plain, _ = distractor_score(u, h, (rows, columns), locations, 1.0, "triton")
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = distractor_score(u, h, (rows, columns), locations, 1.0, "triton")
    assert torch.equal(plain, cast)
    assert cast.dtype == torch.float32


def test_triton_is_imported_where_it_is_used():
    code = (
        "import sys, torch; before = 'triton' in sys.modules;"
        "import fastselfie.kernels.distractor_score;"
        "assert before or 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
