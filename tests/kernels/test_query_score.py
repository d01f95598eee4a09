"""The Triton program of `query_score`, interpreted, against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastselfie.kernels import reference
from fastselfie.kernels.query_score import query_score

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])

# (B, M, D). M: 1 and the powers of two fill a tile, 3, 13 and 33 leave gaps in it; D: 1 and 17 are
# less than a chunk or not its multiple, 640 is no power of two; B: 1, 3 and 21 do not fill a tile
# of several images, 64 takes several tiles.
CASES = [
    (64, 1, 17),
    (3, 2, 1),
    (64, 4, 64),
    (21, 3, 1024),
    (3, 12, 1024),
    (3, 13, 64),
    (1, 16, 640),
    (3, 33, 64),
    (1, 64, 640),
]
SCALED_BY = 0.5  # the incoming gradient


def task(b, m, d, dtype=torch.float32):
    return torch.randn(b, m, d).to(dtype), torch.randn(b, m, d).to(dtype)


def outcome(v, h, scale, impl, by=SCALED_BY):
    """{name: loss and both gradients} in float64, and the right answers."""
    v, h = (t.clone().requires_grad_() for t in (v, h))
    loss, correct = query_score(v, h, scale, impl)
    gradients = torch.autograd.grad(loss * by, [v, h])
    for gradient, like in zip(gradients, [v, h], strict=True):
        assert (gradient.dtype, gradient.shape) == (like.dtype, like.shape)
    values = (t.double() for t in (loss, *gradients))
    return dict(zip(["loss", "dv", "dh"], values, strict=True)), correct


def assert_as_good_as_the_reference(v, h, scale, by=SCALED_BY, times=2):
    """At the most `times` as far from float64 as the reference with the same inputs.

    The floor, for results that the reference happens to hit: float32 keeps 2^-24 of a term, and
    sums have up to a thousand terms of either sign, which errs by 2^-24 x 32 = 2^-19.
    """
    exact, right = outcome(v.double(), h.double(), scale, "reference", by)
    plain, _ = outcome(v, h, scale, "reference", by)
    fast, correct = outcome(v, h, scale, "triton", by)
    assert correct.dtype == torch.int64
    assert correct == right
    for name, value in exact.items():
        error, allowed = ((x[name] - value).abs().max().item() for x in (fast, plain))
        floor = 2**-19 * max(value.abs().max().item(), by if name == "loss" else 0.0)
        assert error <= times * allowed + floor, name


@dtypes
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_right_answers_and_gradients(case, dtype):
    assert_as_good_as_the_reference(*task(*case, dtype), scale=case[2] ** -0.5)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "fp16"])
def test_an_incoming_gradient_that_is_no_power_of_two(dtype):
    """Rounds a second time: half a step of the stored value, which may lie a binade higher and is
    scaled by 0.7, and half a step of the result: 0.7 x 2 + 1 = 2.4 times the one rounding."""
    assert_as_good_as_the_reference(*task(3, 12, 64, dtype), scale=0.125, by=0.7, times=2.4)


def test_types_may_differ():
    """As autocast leaves them: v from a layer norm in float32, h from a convolution in bfloat16."""
    v, h = task(3, 12, 64)
    for low in DTYPES[1:]:
        assert_as_good_as_the_reference(v, h.to(low), 0.125)
        assert_as_good_as_the_reference(v.to(low), h, 0.125)
    assert_as_good_as_the_reference(v.half(), h.bfloat16(), 0.125)


def test_views_are_read_where_they_are():
    """The model gives a slice of a (B, N, D): bit for bit as its copy."""
    v, h_bnd = torch.randn(3, 4, 64), torch.randn(3, 16, 64)
    loss, _ = query_score(v, h_bnd[:, 12:], 1.0, "triton")
    copy = h_bnd[:, 12:].contiguous()
    assert torch.equal(loss, query_score(v, copy, 1.0, "triton")[0])
    turned = copy.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert turned.stride(-1) != 1
    assert torch.equal(loss, query_score(v, turned, 1.0, "triton")[0])
    apart = v.repeat(2, 1, 1).view(2, 3, 4, 64).transpose(0, 1)[:, 0]
    assert apart.stride(0) != 2 * 4 * 64
    assert torch.equal(loss, query_score(apart, copy, 1.0, "triton")[0])


def test_equal_scores_answer_the_first_and_lose_ln_m():
    v, h = task(3, 4, 17)
    loss, correct = query_score(v, h[:, :1].expand(3, 4, 17), 1.0, "triton")
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert correct.item() == 3  # of each image the place of the first candidate


def test_neither_the_padding_of_a_tile_nor_another_image_is_a_candidate():
    """Three patches in a tile of four places, and five images in tiles of four. Every score of an
    image is below the zero of the padding, and below its queries' scores in the next image."""
    v, h = task(5, 3, 17)
    v, h = v.abs() + 5, -h.abs() * torch.arange(5, 0, -1)[:, None, None]
    assert_as_good_as_the_reference(v, h, scale=1.0)
    assert query_score(v, h, 1.0, "triton")[1] > 0


def test_ties_go_to_the_first_maximum():
    """Scores of small integers, which are exact: many ties, each as argmax decides it."""
    v, h = (torch.randint(-1, 2, (64, 4, 2)).float() for _ in range(2))
    scores = reference.query_scores(v, h, 1.0)
    tied = (scores == scores.amax(-1, keepdim=True)).sum(-1) > 1
    assert tied.float().mean() > 0.2
    _, expected = reference.query_score(v, h, 1.0)
    assert query_score(v, h, 1.0, "triton")[1] == expected


@dtypes
def test_scores_of_ten_thousand(dtype):
    v, h = task(3, 12, 64, dtype)
    scale = 1e4 / reference.query_scores(v, h, 1.0).abs().max()
    assert_as_good_as_the_reference(v, h, scale.item())


# A row of nothing but NaN is what this is about; numpy warns of it in the interpreter.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("where", [0, 1])
def test_a_nan_reaches_the_loss_and_is_not_right(where):
    """In the second image: its three neighbours in the tile keep their right answers."""
    given = [t * 100 for t in task(4, 4, 17)]
    alone = [query_score(*(x[b, None] for x in given), 1.0)[1] for b in (0, 2, 3)]
    given[where][1, :, 3] = math.nan
    loss, correct = query_score(*given, 1.0, "triton")
    assert loss.isnan()
    assert correct == sum(alone)


# --- bad input ------------------------------------------------------------------------------------

V = torch.ones(2, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((V[0], V[0]), r"^h has shape \(4, 8\): it must be \(B, M, D\)"),
        ((V[:, :3], V), r"^v has shape \(2, 3, 8\): it must be \(2, 4, 8\)"),
        ((V.to("meta"), V), "^v is on meta, h on cpu"),
        ((torch.ones(2, 65, 8), torch.ones(2, 65, 8)), "^h has M = 65: .* up to 64"),
        ((V.double(), V), "^v is torch.float64"),
        ((V[:0], V[:0]), r"^h has shape \(0, 4, 8\): .* no empty"),
    ],
)
def test_bad_input_names_its_argument(arguments, said):
    with pytest.raises(ValueError, match=said):
        query_score(*arguments, 1.0, "triton")


def test_an_unknown_impl_is_named():
    with pytest.raises(ValueError, match=r"^impl is 'fast': one of auto, reference, triton"):
        query_score(V, V, 1.0, "fast")


def test_auto_takes_what_triton_does_not():
    """On a CPU the reference, and for any arguments that it takes."""
    wide = torch.ones(2, 65, 8).double()
    loss, _ = query_score(wide, wide, 1.0)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(math.log(65))


# --- as torch sees it -----------------------------------------------------------------------------


@dtypes
def test_opcheck(dtype):
    operation = torch.ops.fastselfie.query_score.default
    asked = [t.requires_grad_() for t in task(3, 4, 16, dtype)]
    # float16: see the test of `distractor_score`.
    kinds = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if dtype != torch.float16:
        kinds.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operation, (*asked, 0.5, True), test_utils=kinds)
    torch.library.opcheck(operation, (*task(3, 4, 16, dtype), 0.5, False))


class Head(nn.Module):
    """The end of the network: a projection of each side, the loss."""

    def __init__(self, impl, dtype):
        super().__init__()
        self.impl, self.dtype = impl, dtype
        self.left, self.right = nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, x, y):
        v, h = self.left(x).to(self.dtype), self.right(y).to(self.dtype)
        return query_score(v, h, 0.25, self.impl)


@dtypes
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_torch_compile_takes_it_whole(impl, dtype):
    head = Head(impl, dtype)
    inputs = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    results = []
    for run in (head, torch.compile(head, fullgraph=True, backend="aot_eager")):
        head.zero_grad()
        loss, correct = run(*inputs)
        (loss * 0.7).backward()
        results.append([loss, correct, *(p.grad for p in head.parameters())])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced, rtol=1e-6, atol=1e-7)


def test_the_same_bits_every_time():
    v, h = task(64, 12, 33, torch.bfloat16)
    (first, _), (second, _) = (outcome(v, h, 0.2, "triton") for _ in range(2))
    assert all(map(torch.equal, first.values(), second.values()))


def test_only_what_is_asked_for_gets_a_gradient():
    v, h = task(3, 4, 16)
    loss, correct = query_score(v.requires_grad_(), h, 1.0, "triton")
    assert not correct.requires_grad
    loss.backward()
    assert v.grad is not None
    assert h.grad is None


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


def test_the_backward_pass_of_a_unit_gradient_makes_nothing():
    """The forward pass made both gradients, autograd makes no zeros; a scalar does not count."""
    leaves = [t.requires_grad_() for t in task(3, 4, 16, torch.bfloat16)]
    loss, _ = query_score(*leaves, 0.2, "triton")
    with _Made() as made:
        loss.backward()
    assert set(made.sizes) == {1}
    assert all(leaf.grad is not None for leaf in leaves)


def test_evaluation_makes_no_gradients(monkeypatch):
    from fastselfie.kernels import query_score_triton as program

    made = []
    score = program.score
    monkeypatch.setattr(program, "score", lambda *a: (made.append(a[-1]), score(*a))[1])
    v, h = task(3, 4, 16)
    without, _ = query_score(v, h, 1.0, "triton")
    v.requires_grad_()
    with torch.no_grad():
        query_score(v, h, 1.0, "triton")
    loss, _ = query_score(v, h, 1.0, "triton")
    assert made == [False, False, True]
    assert torch.equal(loss, without)


def test_a_second_backward_is_refused_and_not_wrong():
    """The first one has scaled the stored gradients in place."""
    loss, _ = query_score(*(t.requires_grad_() for t in task(3, 4, 16)), 1.0, "triton")
    (loss * 0.5).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_scaler_keeps_small_gradients_of_float16():
    """65536 is no float16, and a 768th part of a small gradient is none with all its bits."""
    v, h = task(64, 12, 8, torch.float16)
    found = []
    for dtype, impl in (
        (torch.float16, "triton"), (torch.float16, "reference"), (torch.float64, "reference"),
    ):  # fmt: skip
        low = [t.to(dtype).requires_grad_() for t in (v, h * 1e-3)]
        loss, _ = query_score(*low, 0.1, impl)
        found.append(torch.autograd.grad(loss * 65536, low))
    for fast, plain, exact in zip(*found, strict=True):
        error, allowed = ((x.double() - exact).norm() / exact.norm() for x in (fast, plain))
        assert error <= 2 * allowed
        assert error < 2**-8


def test_autocast_changes_nothing():
    v, h = task(3, 4, 16, torch.bfloat16)
    plain, _ = query_score(v, h, 1.0, "triton")
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = query_score(v, h, 1.0, "triton")
    assert torch.equal(plain, cast)
    assert cast.dtype == torch.float32
