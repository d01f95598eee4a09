"""The Triton kernel of `pointwise_norm_relu`, interpreted, against references in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.tensors import channels_last
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastselfie.kernels import norm_relu_triton, reference
from fastselfie.kernels import pointwise_triton as program
from fastselfie.kernels.convolution import convolution
from fastselfie.kernels.norm_relu import add_norm_relu
from fastselfie.kernels.pointwise import gains, pointwise_norm_relu
from fastselfie.models.resnet import ExecutionOptions, ResNetV2

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
summed = pytest.mark.parametrize("summed", [False, True], ids=["alone", "summed"])

# (B, K, N, H, W). A tile has 64 rows, up to 128 columns and 64 inputs. One row; tiles that no size
# fills, with two blocks of columns and three of inputs; two full tiles; single channels.
SHAPES = [(1, 16, 16, 1, 1), (9, 144, 176, 3, 5), (8, 64, 128, 4, 4)]
ODD = [(13, 33, 40, 3, 3), (5, 1, 1, 4, 7), (3, 130, 150, 5, 5)]


def case(shape, dtype=torch.bfloat16, summed=True, mean=0.5):
    """x, a weight that keeps the scale, and a shortcut or None."""
    b, k, n, h, w = shape
    x = channels_last(torch.randn(b, k, h, w) + 0.5).to(dtype)
    weight = (torch.randn(n, k, 1, 1) / k**0.5).to(dtype)
    return x, weight, channels_last(torch.randn(b, n, h, w) + mean).to(dtype) if summed else None


def pixels(x):
    """(B, C, H, W) -> (R, C) in float64."""
    return x.detach().double().permute(0, 2, 3, 1).flatten(0, 2)


def assert_right(out, partial, x, weight, shortcut):
    """The rounded sum, and its moments, by the errors that float32 sums may have.

    A product of K terms in float32 errs by K 2^-24 of the sum of its terms' sizes. It is rounded to
    its type, by half of eps, and again with the shortcut. A mean of the 64 rows of a tile, merged
    with up to 10 other tiles, has some 100 roundings, of 2^-24 of the largest value each; a sum of
    squares twice as many, of itself.
    """
    true = pixels(reference.pointwise(x.double(), weight.double()))
    terms = pixels(x).abs() @ weight.double().flatten(1).abs().T
    half = torch.finfo(x.dtype).eps / 2
    allowed = x.shape[1] * 2**-24 * terms + half * true.abs()
    if shortcut is not None:
        true = true + pixels(shortcut)
        allowed = allowed + half * (true.abs() + allowed)
    assert out.dtype == x.dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert bool(((pixels(out) - true).abs() <= allowed).all())
    values = pixels(out)
    programs, r = len(partial), len(values)
    counts = torch.zeros(programs, 1, dtype=torch.float64)
    for tile, first in enumerate(range(0, r, 64)):
        counts[tile % programs] += min(64, r - first)
    means, squares = partial.double().unbind(1)
    mean = (counts * means).sum(0) / r
    total = (squares + counts * (means - mean).square()).sum(0)
    exact = (values - values.mean(0)).square().sum(0)
    largest = values.abs().max()
    assert float((mean - values.mean(0)).abs().max() / largest) < 100 * 2**-24
    assert bool(((total - exact).abs() <= 200 * 2**-24 * exact + 1e-30).all())


@dtypes
@summed
@pytest.mark.parametrize("shape", SHAPES + ODD, ids=str)
def test_the_product_and_its_moments(shape, summed, dtype):
    x, weight, shortcut = case(shape, dtype, summed)
    assert_right(*program.product(x, weight.flatten(1), shortcut), x, weight, shortcut)


@summed
def test_programs_that_compute_several_tiles(summed, monkeypatch):
    """Two for each block of columns, which compute 4 of 8 tiles each; the last is not full."""
    monkeypatch.setattr(program, "PROGRAMS", 4)
    x, weight, shortcut = case((9, 16, 144, 8, 8), summed=summed)
    x, shortcut = (t if t is None else t[:, :, 1:] for t in (x, shortcut))
    x, shortcut = (t if t is None else channels_last(t) for t in (x, shortcut))
    out, partial = program.product(x, weight.flatten(1), shortcut)
    assert len(partial) == 2
    assert_right(out, partial, x, weight, shortcut)


def test_a_large_mean_does_not_cancel_the_variance():
    """A sum of squares in float32 would lose five of its digits at a mean of 1000."""
    x, weight, shortcut = case((40, 16, 16, 4, 4), torch.float16, mean=1000.0)
    assert_right(*program.product(x, weight.flatten(1), shortcut), x, weight, shortcut)


def test_the_same_bits_every_time():
    x, weight, shortcut = case(SHAPES[1])
    first, second = (program.product(x, weight.flatten(1), shortcut) for _ in range(2))
    assert all(map(torch.equal, first, second))


# --- with the norm --------------------------------------------------------------------------------


def normed(outputs):
    norm = nn.BatchNorm2d(outputs)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def outcome(norm, given, impl):
    """{name: result or gradient or statistic}. For impl float64, only rounding the sum remains."""
    norm = copy.deepcopy(norm)
    if impl == "float64":
        total = reference.pointwise(*given).double()
        y = reference.norm_relu(norm.double(), total)[1]
        return {"y": y.detach(), "mean": norm.running_mean, "variance": norm.running_var}
    leaves = [t if t is None else t.clone().requires_grad_() for t in given]
    total, y = pointwise_norm_relu(norm, *leaves, impl)
    torch.manual_seed(1)
    incoming = [torch.randn(y.shape).to(y.dtype) for _ in range(2)]
    leaves = [t for t in (*leaves, *norm.parameters()) if t is not None]
    names = ("dx", "dweight", *(["dshortcut"] if given[2] is not None else []), "dscale", "dbias")
    gradients = dict(zip(names, torch.autograd.grad([y, total], leaves, incoming), strict=True))
    found = {"y": y, "sum": total, "mean": norm.running_mean, "variance": norm.running_var}
    assert int(norm.num_batches_tracked) == 1
    return {name: value.detach() for name, value in (found | gradients).items()}


@dtypes
@summed
def test_results_statistics_and_gradients_are_as_good_as_torchs(summed, dtype):
    """Torch's sum may be rounded to the other side at some places, so nothing is equal.

    y and the statistics are compared with float64 on torch's rounded sum, and may be twice as far
    from it as torch's own, or two roundings; the gradients with torch's.
    """
    norm, given = normed(176), case(SHAPES[1], dtype, summed)
    exact, plain, fast = (outcome(norm, given, i) for i in ("float64", "reference", "triton"))
    eps = torch.finfo(dtype).eps
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        true = exact.get(name, plain[name]).double()
        error, allowed = (float((x.double() - true).abs().max()) for x in (value, plain[name]))
        assert value.dtype == plain[name].dtype
        assert error <= 2 * allowed + 4 * eps * float(true.abs().max()), name


@dtypes
@summed
def test_it_is_the_product_and_then_norm_relu(summed, dtype):
    """With the same bits, but for the moments, which are merged in another order."""
    norm, given = normed(176), case(SHAPES[1], dtype, summed)
    found = outcome(norm, given, "triton")
    total, _ = program.product(given[0], given[1].flatten(1), given[2])
    assert torch.equal(found["sum"], total)
    _, y = add_norm_relu(norm, total, None, "triton")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found["y"], y, rtol=2 * eps, atol=eps * 2**-8)
    torch.testing.assert_close(found["mean"], norm.running_mean, rtol=2**-19, atol=2**-19)
    torch.testing.assert_close(found["variance"], norm.running_var, rtol=2**-16, atol=0)


def test_the_norm_does_not_read_the_sum_for_its_moments(monkeypatch):
    seen = launches(monkeypatch)
    outcome(normed(176), case(SHAPES[1]), "triton")
    assert not seen


def launches(monkeypatch):
    """A list that grows with each launch of the norm's own pass for moments."""
    seen, moments = [], norm_relu_triton.moments

    class Counted:
        def __getitem__(self, grid):
            seen.append(grid)
            return moments[grid]

    monkeypatch.setattr(norm_relu_triton, "moments", Counted())
    return seen


@pytest.mark.parametrize("asked", ["y", "sum"])
def test_a_result_without_a_gradient(asked):
    given, norm = case(SHAPES[1]), normed(176)
    found = []
    for impl in ("triton", "reference"):
        leaves = [t.clone().requires_grad_() for t in given]
        results = pointwise_norm_relu(copy.deepcopy(norm), *leaves, impl)
        torch.manual_seed(1)
        result = results[["sum", "y"].index(asked)]
        gradient = torch.randn(result.shape).to(result.dtype)
        found.append(torch.autograd.grad(result, leaves, gradient))
    for fast, plain in zip(*found, strict=True):
        allowed = 2**-5 * float(plain.abs().max())  # 8 roundings to bfloat16
        assert float((fast.double() - plain.double()).abs().max()) <= allowed


# --- what it takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "summed", "fused"),
    [
        # in224, in bytes of an A100 a pixel, fused against separate: (256, against 256 + 128), ...
        (64, 64, False, True),  # 256, 384
        (64, 256, True, True),  # 1152, 2176
        (256, 64, False, True),  # 640, 768
        (256, 128, False, True),  # 857, 1024
        (128, 512, True, True),  # 2304, 4352
        (512, 128, False, False),  # 1713, 1536
        (512, 256, False, False),  # 3427, 2225
        (256, 1024, True, True),  # 6853, 9571
        (1024, 256, False, False),  # 6853, 3939
        (512, 2048, True, False),  # 27413, 25995
    ],
)
def test_products_that_memory_binds_are_fused(inputs, outputs, summed, fused):
    assert gains(inputs, outputs, summed) == fused


@pytest.mark.parametrize(
    "why",
    ["float32", "NCHW", "24 channels", "shortcut in float32", "much arithmetic", "one value",
     "eval", "reference"],
)  # fmt: skip
def test_elsewhere_it_is_a_convolution_and_a_norm(why, monkeypatch):
    monkeypatch.setattr(program, "product", lambda *_: pytest.fail("fused"))
    shapes = {"24 channels": (3, 24, 16, 2, 2), "much arithmetic": (2, 512, 2048, 1, 1)}
    x, weight, shortcut = case(shapes.get(why, (3, 16, 16, 2, 2)))
    norm = normed(len(weight)).train(why != "eval")
    if why == "float32":
        x, weight, shortcut = x.float(), weight.float(), shortcut.float()
    elif why == "NCHW":
        x = x.contiguous()
    elif why == "shortcut in float32":
        shortcut = shortcut.float()
    elif why == "one value":
        with pytest.raises(ValueError, match="more than 1 value"):
            pointwise_norm_relu(norm, x[:1, :, :1, :1], weight, None, "triton")
        return
    impl = "reference" if why == "reference" else "triton"
    expected = add_norm_relu(copy.deepcopy(norm), convolution(x, weight), shortcut, impl)
    found = pointwise_norm_relu(norm, x, weight, shortcut, impl)
    assert all(map(torch.equal, found, expected))


def test_autocast_casts_the_weight_and_its_gradient():
    (x, weight, _), norm = case(SHAPES[1], summed=False), normed(176)
    leaf = weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, y = pointwise_norm_relu(copy.deepcopy(norm), x, leaf, None, "triton")
    assert torch.equal(total, program.product(x, weight.flatten(1), None)[0])
    gradient = torch.autograd.grad(y.float().square().sum(), leaf)[0]
    rounded = weight.clone().requires_grad_()
    _, y = pointwise_norm_relu(norm, x, rounded, None, "triton")
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, torch.autograd.grad(y.float().square().sum(), rounded)[0].float())


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"^impl is triton, but the tensors are on cpu"):
        pointwise_norm_relu(normed(16), *case(SHAPES[0]), "triton")


# --- as torch sees it -----------------------------------------------------------------------------


@summed
def test_opcheck(summed):
    given = case((5, 32, 48, 4, 4), summed=summed)
    given, norm = [t if t is None else t.requires_grad_() for t in given], normed(48)
    operator = torch.ops.fastselfie.pointwise_norm_relu.default
    torch.library.opcheck(operator, (*given, norm.weight, norm.bias, 1e-5))


def net(kernels, checkpointed=False):
    torch.manual_seed(2)
    options = ExecutionOptions(checkpointed, kernels)
    made = ResNetV2((2, 1), width=16, stem="cifar", options=options)
    return made.to(memory_format=torch.channels_last)


def trained(run, network):
    """Features, gradients and statistics of a pass in bfloat16."""
    torch.manual_seed(3)
    x = channels_last(torch.randn(6, 3, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        y = run(x)
    y.float().square().mean().backward()
    found = {"y": y.detach(), **{n: p.grad for n, p in network.named_parameters()}}
    return found | dict(network.named_buffers())


def assert_near(found, expected):
    """Within what bfloat16 leaves of some 20 layers."""
    for name, value in found.items():
        apart = float((value.double() - expected[name].double()).norm())
        assert apart <= 0.06 * float(expected[name].double().norm()) + 1e-3, name


def test_every_norm_behind_a_1x1_convolution_computes_it(monkeypatch):
    """Of 10 norms, those behind 3x3 convolutions and the stem read their input for moments, 4."""
    seen, network, plain = launches(monkeypatch), net("triton"), net("reference")
    found = trained(network, network)
    assert len(seen) == 4
    assert_near(found, trained(plain, plain))
    network.eval()
    with torch.no_grad():
        network(channels_last(torch.randn(2, 3, 4, 4)))
    assert len(seen) == 4


def test_activation_checkpointing_gives_the_same():
    network, other = net("triton", checkpointed=True), net("triton")
    assert_near(trained(network, network), trained(other, other))


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("kind", ["torch.compile", "DDP"])
def test_a_network_trains_under(kind, tmp_path):
    """A compiled network's weight gradients are torch's: of several threads, other sums."""
    network, other = net("triton"), net("triton")
    expected = trained(other, other)
    if kind == "torch.compile":
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        found = trained(compiled, network)
    else:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            found = trained(DistributedDataParallel(network), network)
        finally:
            torch.distributed.destroy_process_group()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7, msg=name)
