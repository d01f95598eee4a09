"""The pretraining network: sizes, the loss at the start, and what may see a position."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import REPOSITORY, tiny_config

from fastselfie.configfile import load_config
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Positions, Selfie, build_classifier
from fastselfie.rng import patch_orders


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def inputs(config, images):
    """Noise as patches, and each image's own order."""
    side = config.model.patch_size
    samples = torch.arange(images).numpy()
    order = torch.from_numpy(patch_orders(0, 0, samples, config.patches))
    return torch.randn(images, config.patches, 3, side, side), order


def test_sizes_are_the_papers():
    model = Selfie(load_config(REPOSITORY / "configs" / "in224.yaml"))
    p, a = millions(model.patch_network), millions(model.pooling)
    assert p == pytest.approx(8.54, abs=0.02)
    assert a == pytest.approx(16.54, abs=0.02)
    assert p + a == pytest.approx(25.08, abs=0.02)
    classifier = build_classifier(load_config(REPOSITORY / "configs" / "in224.yaml"), 1000)
    assert millions(classifier) == pytest.approx(25.55, abs=0.02)


@pytest.mark.parametrize("name", ["cifar10", "in32", "in224"])
def test_the_loss_at_step_0_is_near_ln_m(name):
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml")
    loss, _ = Selfie(config)(*inputs(config, 4))
    assert abs(loss.item() - math.log(config.masked)) < 0.3


def test_raw_scores_start_far_above_ln_m():
    """Why the scores are scaled by default."""
    config = load_config(REPOSITORY / "configs" / "cifar10.yaml", ["model.logit_scale=none"])
    loss, _ = Selfie(config)(*inputs(config, 4))
    assert loss.item() > math.log(config.masked) + 2


@pytest.fixture
def small():
    return Selfie(tiny_config()).double().eval(), inputs(tiny_config(), 3)


@pytest.mark.parametrize("positions", ["learned", "row_column"])
def test_the_fused_loss_trains_like_the_reference(positions):
    """To float32: a convolution's gradient sums some hundred terms, each within a few 2^-24."""
    found = []
    for kernels in ("reference", "triton"):
        config = tiny_config(model={"positions": positions}, runtime={"kernels": kernels})
        torch.manual_seed(0)
        model = Selfie(config)
        loss, correct = model.eval()(*inputs(config, 3))
        loss.backward()
        found.append([loss, correct, *(p.grad for p in model.parameters())])
    for plain, fused in zip(*found, strict=True):
        scale = max(plain.abs().max().item(), 1e-3)
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * scale)


def test_shuffling_masked_patches_with_their_locations_keeps_the_loss(small):
    model, (patches, order) = small
    shuffled = torch.cat([torch.arange(12), 12 + torch.tensor([2, 3, 1, 0])])
    before, _ = model(patches.double(), order)
    after, _ = model(patches[:, shuffled].double(), order[:, shuffled])
    assert after.item() == pytest.approx(before.item(), rel=1e-10)


def test_shuffling_visible_patches_with_their_locations_keeps_u(small):
    model, (patches, order) = small
    shuffled = torch.cat([torch.randperm(12), torch.arange(12, 16)])
    before = model.encode(patches.double(), order).u
    after = model.encode(patches[:, shuffled].double(), order[:, shuffled]).u
    assert torch.allclose(before, after, rtol=1e-10, atol=1e-12)


def test_the_encoder_sees_positions_unless_switched_off(small):
    model, (patches, order) = small
    other = torch.cat([order[:, :12].roll(1, dims=1), order[:, 12:]], dim=1)
    before, after = (model.encode(patches.double(), o).u for o in (order, other))
    assert not torch.allclose(before, after)
    model.encoder_positions = False
    before, after = (model.encode(patches.double(), o).u for o in (order, other))
    assert torch.equal(before, after)


def test_the_candidates_carry_no_position(small):
    """h depends on neither the position tables nor the locations."""
    model, (patches, order) = small
    before = model.encode(patches.double(), order).h
    torch.nn.init.normal_(model.positions.table)
    after = model.encode(patches.double(), order.flip(1)).h
    assert torch.equal(before, after)


def test_every_patch_goes_through_p_once(small, monkeypatch):
    model, (patches, order) = small
    seen = []
    forward = ResNetV2.forward
    monkeypatch.setattr(
        ResNetV2, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1]
    )
    model(patches.double(), order)
    assert seen == [3 * 16]


def test_every_parameter_receives_gradient(small):
    model, (patches, order) = small
    model.train()
    model(patches.double(), order)[0].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert without == []


def test_row_and_column_positions_are_summed():
    positions = Positions("row_column", 7, 8, std=1.0)
    table = positions()
    assert table.shape == (49, 8)
    assert torch.equal(table[7 * 2 + 5], positions.rows[2] + positions.columns[5])


@pytest.mark.parametrize("kind", ["learned", "row_column"])
def test_positions_start_with_the_asked_spread(kind):
    table = Positions(kind, 7, 1024, std=0.5)()
    # 14 x 1024 independent entries at least: a relative error of 1 / sqrt(2 x 14336), four times.
    assert table.std().item() == pytest.approx(0.5, rel=4 / math.sqrt(2 * 14 * 1024) * 2)
