"""The Triton program, interpreted, against the reference in float64."""

from __future__ import annotations

import importlib.util
import math
from types import SimpleNamespace

import pytest
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode

from fastselfie.kernels import reference
from fastselfie.kernels.distractor_score import distractor_score, summed
from fastselfie.kernels.impl import unavailable

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# (B, M, D, grid, rows + columns). Not the whole product, which the interpreter would take minutes
# for: every B, M and D that matters is in it, with every dtype, and what could meet does meet. M: 1
# and the powers of two fill a tile, 13 and 33 leave gaps in it; D: 1 and 17 are less than a chunk
# or not its multiple, 640 is no power of two; B: 1 and 3 do not fill a tile, 64 takes several.
CASES = [
    (64, 1, 17, 4, True),
    (3, 2, 1, 2, False),
    (64, 4, 64, 4, False),
    (3, 4, 1024, 4, False),
    (64, 12, 17, 7, True),
    (3, 12, 1024, 7, True),
    (64, 13, 64, 7, False),
    (1, 16, 640, 8, True),
    (3, 33, 64, 12, True),
    (3, 64, 1, 8, True),
    (1, 64, 640, 16, False),
]
SCALED_BY = 0.5  # the incoming gradient


def task(b, m, d, grid, row_column, dtype=torch.float32):
    """u, h in dtype, float32 positions and distinct locations."""
    count = (grid, grid) if row_column else (grid * grid,)
    tables = tuple(torch.randn(n, d) for n in count)
    locations = torch.rand(b, grid * grid).argsort(1)[:, :m]
    positions = tables if row_column else tables[0]
    return torch.randn(b, d).to(dtype), torch.randn(b, m, d).to(dtype), positions, locations


def tables_of(positions):
    return positions if isinstance(positions, tuple) else (positions,)


def outcome(u, h, positions, locations, scale, impl, by=SCALED_BY):
    """{name: loss, right answers and every gradient}, in float64."""
    u, h, *tables = (t.clone().requires_grad_() for t in (u, h, *tables_of(positions)))
    given = tuple(tables) if len(tables) > 1 else tables[0]
    loss, correct = distractor_score(u, h, given, locations, scale, impl)
    names = ["du", "dh", "drows", "dcolumns"][: 2 + len(tables)]
    gradients = torch.autograd.grad(loss * by, [u, h, *tables])
    for gradient, like in zip(gradients, [u, h, *tables], strict=True):
        assert (gradient.dtype, gradient.shape) == (like.dtype, like.shape)
    return dict(
        zip(["loss", *names], (t.double() for t in (loss, *gradients)), strict=True)
    ), correct


def in_float64(u, h, positions, locations, scale, by=SCALED_BY):
    wide = tuple(t.double() for t in tables_of(positions))
    positions = wide if len(wide) > 1 else wide[0]
    return outcome(u.double(), h.double(), positions, locations, scale, "reference", by)


def assert_as_good_as_the_reference(u, h, positions, locations, scale, by=SCALED_BY, times=2):
    """At the most `times` as far from float64 as the reference with the same inputs.

    The floor, for results that the reference happens to hit: float32 keeps 2^-24 of a term, and
    sums have up to a thousand terms of either sign, which errs by 2^-24 x 32 = 2^-19.
    """
    exact, right = in_float64(u, h, positions, locations, scale, by)
    plain, _ = outcome(u, h, positions, locations, scale, "reference", by)
    fast, correct = outcome(u, h, positions, locations, scale, "triton", by)
    assert correct.dtype == torch.int64
    assert correct == right
    for name, value in exact.items():
        error, allowed = ((x[name] - value).abs().max().item() for x in (fast, plain))
        floor = 2**-19 * max(value.abs().max().item(), by if name == "loss" else 0.0)
        assert error <= times * allowed + floor, name


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_right_answers_and_gradients(case, dtype):
    assert_as_good_as_the_reference(*task(*case, dtype), scale=case[2] ** -0.5)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "fp16"])
def test_an_incoming_gradient_that_is_no_power_of_two(dtype):
    """Rounds a second time: half a step of the stored value, which may lie a binade higher and is
    scaled by 0.7, and half a step of the result: 0.7 x 2 + 1 = 2.4 times the one rounding."""
    given = task(3, 12, 64, 7, True, dtype)
    assert_as_good_as_the_reference(*given, scale=0.125, by=0.7, times=2.4)


def test_types_may_differ():
    """As autocast leaves them: u from a layer norm in float32, h from a convolution in bfloat16."""
    u, h, positions, locations = task(3, 12, 64, 7, True)
    assert_as_good_as_the_reference(u, h.bfloat16(), positions, locations, 0.125)
    assert_as_good_as_the_reference(u.half(), h, positions, locations, 0.125)
    low = tuple(t.bfloat16() for t in positions)
    assert_as_good_as_the_reference(u, h.bfloat16(), low, locations, 0.125)


def test_locations_may_repeat():
    u, h, positions, _ = task(3, 4, 17, 4, False)
    locations = torch.tensor([[5, 5, 0, 5], [1, 1, 1, 1], [15, 0, 15, 0]])
    assert_as_good_as_the_reference(u, h, positions, locations, 1.0)


def test_views_are_read_where_they_are():
    """The model gives slices of a (B, N, D) and of a (B, N): bit for bit as their copies."""
    u, h_bnd, positions, order = task(3, 16, 64, 4, False)
    loss, _ = distractor_score(u, h_bnd[:, 12:], positions, order[:, 12:], 1.0, "triton")
    copies = h_bnd[:, 12:].contiguous(), positions, order[:, 12:].contiguous()
    assert torch.equal(loss, distractor_score(u, *copies, 1.0, "triton")[0])
    turned = h_bnd[:, 12:].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert turned.stride(-1) != 1
    assert torch.equal(loss, distractor_score(u, turned, *copies[1:], 1.0, "triton")[0])


# A row of nothing but NaN is what some of these are about; numpy warns of it in the interpreter.
all_nan = pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")


# --- hostile values -------------------------------------------------------------------------------


def test_equal_scores_answer_the_first_and_lose_ln_m():
    u, h, positions, locations = task(3, 4, 17, 4, False)
    h = h[:, :1].expand(3, 4, 17)
    loss, correct = distractor_score(u, h, positions, locations, 1.0, "triton")
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert correct.item() == 3  # of each image the place of the first candidate


def test_the_padding_of_a_tile_is_no_candidate():
    """Three patches in a tile of four, every score below the zero that the padding would have."""
    u, h, positions, locations = task(3, 3, 17, 4, True)
    given = u.abs() + 5, -h.abs(), tuple(t.abs() for t in positions), locations
    assert_as_good_as_the_reference(*given, scale=1.0)
    assert distractor_score(*given, 1.0, "triton")[1] > 0


def test_ties_go_to_the_first_maximum():
    """Scores of small integers, which are exact: many ties, each as argmax decides it."""
    u, h, positions, locations = (
        torch.randint(-1, 2, t.shape).float() if t.is_floating_point() else t
        for t in task(64, 4, 2, 4, False)
    )
    scores = reference.distractor_scores(u, h, positions, locations, 1.0)
    tied = (scores == scores.amax(-1, keepdim=True)).sum(-1) > 1
    assert tied.float().mean() > 0.2
    _, expected = reference.distractor_score(u, h, positions, locations, 1.0)
    assert distractor_score(u, h, positions, locations, 1.0, "triton")[1] == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_scores_of_ten_thousand(dtype):
    u, h, positions, locations = task(3, 12, 64, 7, True, dtype)
    scale = 1e4 / reference.distractor_scores(u, h, summed(positions), locations, 1.0).abs().max()
    assert_as_good_as_the_reference(u, h, positions, locations, scale.item())


def test_one_masked_patch_is_certain():
    result, correct = outcome(*task(3, 1, 17, 4, True), scale=1.0, impl="triton")
    assert correct.item() == 3
    assert all(not value.any() for value in result.values())


@all_nan
@pytest.mark.parametrize("where", [0, 1])
def test_a_nan_reaches_the_loss_and_is_not_right(where):
    """Of h in the second image: its three other neighbours keep their right answers."""
    given = list(task(4, 4, 17, 4, False))
    given[1] *= 100
    alone = [distractor_score(*(x[b : b + 1] if i != 2 else x for i, x in enumerate(given)), 1.0)[1]
             for b in (0, 2, 3)]  # fmt: skip
    given[where][1, ..., 3] = math.nan
    loss, correct = distractor_score(*given, 1.0, "triton")
    assert loss.isnan()
    assert correct == sum(alone)
    assert distractor_score(*given, 1.0, "reference")[0].isnan()


@all_nan
@pytest.mark.parametrize("row_column", [False, True])
@pytest.mark.parametrize("location", [-1, 16, 2**40])
def test_on_a_device_a_location_outside_makes_the_loss_nan(location, row_column):
    """Below the check of CPU tensors, where tensors of a GPU come in."""
    u, h, positions, locations = task(3, 4, 17, 4, row_column)
    locations[1, 2] = location
    rows, columns = positions if row_column else (positions, None)
    loss, *_ = torch.ops.fastselfie.distractor_score(u, h, rows, columns, locations, 1.0, False)
    assert loss.isnan()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["auto", "reference", "triton"])
@pytest.mark.parametrize("location", [-1, 16])
def test_a_location_outside_the_grid_is_named(impl, location):
    u, h, positions, locations = task(3, 4, 17, 4, True)
    locations[1, 2] = location
    with pytest.raises(ValueError, match=f"^locations has {location}: N is 16$"):
        distractor_score(u, h, positions, locations, 1.0, impl)


U, H, TABLE, PLACES = (
    torch.ones(2, 8),
    torch.ones(2, 4, 8),
    torch.ones(16, 8),
    torch.ones(2, 4).long(),
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((U[:, :7], H, TABLE, PLACES), r"^u has shape \(2, 7\)"),
        ((U[:1], H, TABLE, PLACES), r"^u has shape \(1, 8\)"),
        ((U, H[0], TABLE, PLACES), r"^h has shape \(4, 8\)"),
        ((U, H, TABLE[:, :7], PLACES), r"^positions has shape \(16, 7\): D is 8"),
        ((U, H, (TABLE, TABLE[:, 1:]), PLACES), r"^positions has shape \(16, 7\)"),
        ((U, H, TABLE, PLACES[:, :3]), r"^locations is torch.int64 of shape \(2, 3\)"),
        ((U, H, TABLE, PLACES.float()), "^locations is torch.float32"),
        ((U, H, TABLE, PLACES.bool()), "^locations is torch.bool .* int64 or int32"),
        ((U, H, TABLE, PLACES.to(torch.uint8)), "^locations is torch.uint8"),
        ((U, H, TABLE, PLACES.to("meta")), "^locations is on meta, h on cpu"),
        ((U, torch.ones(2, 65, 8), TABLE, torch.ones(2, 65).long()), "^h has M = 65: .* up to 64"),
        ((U, H.double(), TABLE, PLACES), "^h is torch.float64"),
        ((U[:0], H[:0], TABLE, PLACES[:0]), r"^h has shape \(0, 4, 8\): .* no empty"),
        ((U, H, torch.ones(257, 8), PLACES), "^positions has 257 rows"),
    ],
)
def test_bad_input_names_its_argument(arguments, said):
    with pytest.raises(ValueError, match=said):
        distractor_score(*arguments, 1.0, "triton")


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_locations_of_32_bits_are_the_same(impl):
    u, h, positions, locations = task(3, 4, 17, 4, True)
    wide, narrow = (
        distractor_score(u, h, positions, places, 1.0, impl)[0]
        for places in (locations, locations.int())
    )
    assert torch.equal(wide, narrow)


def test_an_unknown_impl_is_named():
    with pytest.raises(ValueError, match=r"^impl is 'fast': one of auto, reference, triton"):
        distractor_score(U, H, TABLE, PLACES, 1.0, "fast")


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"^impl is triton, but the tensors are on cpu"):
        distractor_score(U, H, TABLE, PLACES, 1.0, "triton")


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^impl is triton, .*pip install 'fastselfie\[triton\]'"):
        distractor_score(U, H, TABLE, PLACES, 1.0, "triton")


def test_a_triton_that_is_too_old_is_named(monkeypatch):
    monkeypatch.delattr(triton.language, "gather")
    with pytest.raises(ValueError, match=r"^impl is triton, .* too old here: .*'triton>=3\.3'"):
        distractor_score(U, H, TABLE, PLACES, 1.0, "triton")


def test_a_gpu_that_is_too_old_is_named(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=7))
    assert "sm_80 or newer, but the tensors are on cuda:0" in unavailable(device)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=8))
    monkeypatch.setattr("fastselfie.kernels.impl.launch_fault", lambda: None)
    assert unavailable(device) is None


@pytest.mark.parametrize(("major", "version", "fits"), [
    (12, "3.3.0", False), (12, "3.3.1", True), (10, "3.3.0", True),
])  # fmt: skip
def test_a_triton_without_products_for_a_gpu_is_named(monkeypatch, major, version, fits):
    properties = SimpleNamespace(major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr("fastselfie.kernels.impl.launch_fault", lambda: None)
    monkeypatch.setattr(triton, "__version__", version)
    reason = unavailable(torch.device("cuda", 0))
    assert (reason is None) == fits
    assert fits or "too old for the GPU of cuda:0: pip install --upgrade 'triton>=3.3.1'" in reason


def test_auto_takes_what_triton_does_not():
    """On a CPU the reference, and for any arguments that it takes."""
    u, h = torch.ones(2, 8).double(), torch.ones(2, 65, 8).double()
    loss, _ = distractor_score(u, h, TABLE.double(), torch.ones(2, 65).long(), 1.0)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(math.log(65))


@pytest.mark.parametrize(("masked", "rows", "fused"), [(2, 64, True), (1, 64, False),
                                                       (2, 65, False)])  # fmt: skip
def test_auto_leaves_what_has_no_good_tile_to_plain_torch(monkeypatch, masked, rows, fused):
    module = importlib.import_module("fastselfie.kernels.distractor_score")
    calls = []
    monkeypatch.setattr(module, "_refusal", lambda *_: None)
    monkeypatch.setattr(module, "_score", lambda *_: calls.append(1) or (0, 0))
    monkeypatch.setattr(reference, "distractor_score", lambda *_: (0, 0))
    with FakeTensorMode():  # tensors on a GPU that need none
        u, h = torch.empty(3, 8, device="cuda"), torch.empty(3, masked, 8, device="cuda")
        locations = torch.empty(3, masked, dtype=torch.int64, device="cuda")
        distractor_score(u, h, torch.empty(rows, 8, device="cuda"), locations, 1.0)
    assert bool(calls) == fused
