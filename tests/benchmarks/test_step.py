"""benchmarks/step.py: the straightforward code computes what ours computes."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from support import step_contenders
from support.step_contenders import MATMULS, Matmul, shape_of
from support.straightforward import StraightforwardSelfie, normalised, their_names

from fastselfie.errors import UserError
from fastselfie.kernels.reference import patchify
from fastselfie.models.selfie import build_selfie


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("positions", ["learned", "row_column"])
def test_the_straightforward_code_gives_the_same_loss_and_gradients(stem, positions):
    side = {"cifar": 8, "imagenet": 16}[stem]  # 2x2 and 1x1 at P's end
    config = tiny_config(
        data={"image_size": 4 * side},
        model={"stem": stem, "positions": positions, "dropout": 0.0, "patch_size": side},
    )
    torch.manual_seed(0)
    ours, theirs = build_selfie(config).double(), StraightforwardSelfie(shape_of(config)).double()
    names = their_names(ours.state_dict(), theirs)
    theirs.load_state_dict({names[name]: value for name, value in ours.state_dict().items()})
    images = torch.randint(0, 256, (3, 4 * side, 4 * side, 3), dtype=torch.uint8)
    flip = torch.tensor([True, False, True])
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    mean, std = (torch.tensor(v).double() for v in (config.data.mean, config.data.std))
    loss, _ = ours(patchify(images, flip, order, side, mean, std, torch.float64), order)
    plain = theirs(normalised(images, flip, mean, std), order)
    loss.backward()
    plain.backward()
    torch.testing.assert_close(loss, plain)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        other = gradients.pop(names[name])
        torch.testing.assert_close(parameter.grad, other)
    assert not gradients


@pytest.mark.parametrize("key", ["patch_gap", "patch_grey", "patch_contrast", "patch_brightness"])
def test_changed_patches_are_not_compared_with_whole_ones(key):
    value = 2 if key == "patch_gap" else 0.5
    with pytest.raises(UserError, match=rf"pretrain\.{key} is {value}: .* needs it to be 0"):
        shape_of(tiny_config(pretrain={key: value}))


def test_facts_keep_one_autograd_graph_in_memory_at_a_time(monkeypatch, tiny_yaml):
    """Memory of a GPU that this process holds is missing for the contenders."""
    with_graph, losses = [], step_contenders._loss
    forward = StraightforwardSelfie.forward

    def seen(*arguments):
        found = losses(*arguments)
        with_graph.append(found[0].requires_grad)
        return found

    def seen_forward(*arguments):
        found = forward(*arguments)
        with_graph.append(found.requires_grad)
        return found

    monkeypatch.setattr(step_contenders, "_loss", seen)
    monkeypatch.setattr(StraightforwardSelfie, "forward", seen_forward)
    facts = step_contenders.facts(str(tiny_yaml), ["data.loader=synthetic"], Matmul(16, 1))
    assert with_graph == [True, False, False, False]
    ours, in_fp32, plain = facts["losses"].values()
    assert ours == in_fp32 == pytest.approx(plain, rel=1e-5)
    assert facts["gflop_per_image"] > 0


def test_a_gpu_multiplies_for_long_between_waits(monkeypatch, accelerator):
    """A launch and a wait take tens of microseconds: a rate without them would be twice as high."""
    fastest = 1e15  # FLOP/s, above the dense bf16 peak of an H200
    side, count = MATMULS["cuda"]
    assert count * 2 * side**3 / fastest > 1e-2

    products, multiply = [], torch.Tensor.__matmul__

    def counted(a, b):
        products.append(a.shape)
        return multiply(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    ticks = iter(range(100))
    monkeypatch.setattr(step_contenders.time, "perf_counter", lambda: next(ticks))
    assert step_contenders._matmul_rate(accelerator, 8, 3) == 3 * 2 * 8**3  # each row takes 1 s
    assert products == [(8, 8)] * 30
