"""ResNet v2: sizes, timm's names, and what finetuning takes over from P."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import REPOSITORY

from fastselfie.models.resnet import ResNetV2, Terms


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def through(stages, x):
    return stages(Terms(x)).added()


def test_resnet_50_has_timms_names_and_shapes():
    golden = REPOSITORY / "tests" / "golden" / "timm_resnetv2_50.json"
    expected = json.loads(golden.read_text(encoding="utf-8"))["shapes"]
    network = ResNetV2((3, 4, 6, 3), classes=1000)
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == expected
    assert millions(network) == pytest.approx(25.55, abs=0.02)


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 32), ("cifar", 8)])
def test_a_patch_ends_two_by_two(stem, size):
    network = ResNetV2((1, 1, 1), width=4, stem=stem)
    maps = through(network.stages, network.stem(torch.zeros(2, 3, size, size)))
    assert maps.shape == (2, 64, 2, 2)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 64)


def test_a_bottleneck_is_pre_activated():
    """Negative inputs pass the shortcut untouched: no ReLU after the sum."""
    block = ResNetV2((2, 1, 1), width=4).stages[0].blocks[1]
    torch.nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(through(block, x), x)


def test_finetuning_takes_over_p_and_nothing_else():
    p, network = ResNetV2((1, 2, 1), width=4), ResNetV2((1, 2, 1, 1), width=4, classes=5)
    for norm in (m for m in p.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight)
        norm.running_mean.uniform_()
    fresh = {k: v.clone() for k, v in network.state_dict().items()}
    network.start_from(p)
    taken = {k.replace("norm.", "stages.3.blocks.0.norm1.") if k.startswith("norm.") else k: v
             for k, v in p.state_dict().items()}  # fmt: skip
    for name, value in network.state_dict().items():
        assert torch.equal(value, taken.get(name, fresh[name])), name
    # What stage 4 sees after its first norm is what P pools.
    x = torch.randn(2, 3, 32, 32)
    p.eval()
    network.eval()
    before = through(network.stages[:3], network.stem(x))
    seen = torch.relu(network.stages[3].blocks[0].norm1(before)).mean(dim=(2, 3))
    assert torch.equal(seen, p(x))


def test_the_classifier_starts_near_uniform():
    logits = ResNetV2((1, 1, 1, 1), width=4, classes=10)(torch.randn(8, 3, 32, 32))
    assert torch.nn.functional.cross_entropy(logits, torch.arange(8)) < 2.303 + 0.3
