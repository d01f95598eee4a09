"""The schedule as numbers, and which parameters decay."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fastselfie.models.selfie import Selfie
from fastselfie.optim import build_optimizer, learning_rate, parameter_groups


def test_warm_up_is_linear_and_the_cosine_ends_at_zero():
    rates = [learning_rate(s, 1000, 0.4, 100) for s in range(1001)]
    assert rates[0] == pytest.approx(0.004)
    assert rates[99] == rates[100] == pytest.approx(0.4)
    assert rates[550] == pytest.approx(0.2)
    assert rates[1000] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_a_run_shorter_than_its_warm_up_never_reaches_the_peak():
    assert max(learning_rate(s, 10, 0.4, 100) for s in range(10)) < 0.4


def test_only_weights_of_convolutions_and_linear_maps_decay(tiny):
    model = Selfie(tiny())
    decayed, rest = parameter_groups(model, 1e-4)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    rest_names = {names[id(p)] for p in rest["params"]}
    assert decayed_names | rest_names == set(names.values())
    assert not decayed_names & rest_names
    assert {"patch_network.stem.conv.weight", "pooling.blocks.0.qkv.weight"} <= decayed_names
    assert {"pooling.u0", "positions.table", "patch_network.norm.weight"} <= rest_names
    assert not [name for name in decayed_names if "norm" in name or name.endswith("bias")]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-4, 0.0)


def test_the_optimiser_is_nesterov(tiny):
    optimizer = build_optimizer(Selfie(tiny()), tiny().pretrain)
    assert optimizer.defaults["nesterov"]
    assert optimizer.defaults["momentum"] == 0.9
