"""The schedule as numbers, and which parameters decay."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from conftest import tiny_config

from fastselfie.errors import UserError
from fastselfie.models.selfie import build_selfie
from fastselfie.training.optimizer import (
    build_optimizer,
    learning_rate,
    load_optimizer,
    parameter_groups,
)


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
    model = build_selfie(tiny())
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
    optimizer = build_optimizer(build_selfie(tiny()), tiny().pretrain)
    assert optimizer.defaults["nesterov"]
    assert optimizer.defaults["momentum"] == 0.9


def test_momentum_of_another_backend_is_taken_and_its_settings_are_not():
    """apex's groups know of no `fused`, without which torch's SGD refuses to leave a step out."""
    model = torch.nn.Linear(2, 2)
    saved = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    saved.step()
    state = saved.state_dict()
    for group in state["param_groups"]:
        group.clear()
        group.update(params=[0, 1], lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    load_optimizer(optimizer, state)
    assert optimizer.param_groups[0]["fused"]
    for parameter in model.parameters():
        kept = saved.state[parameter]["momentum_buffer"]
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], kept)


# --- apex -------------------------------------------------------------------------------------

# As NVIDIA's: its constructor looks for its CUDA code, its zero_grad takes no argument.
FUSED = """
import torch

class FusedSGD(torch.optim.SGD):
    def __init__(self, params, lr, momentum=0.0, nesterov=False):
        if {refuses}:
            raise RuntimeError("apex.optimizers.FusedSGD requires cuda extensions")
        super().__init__(params, lr, momentum, nesterov=nesterov)

    def zero_grad(self):
        super().zero_grad()
"""


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """Puts a package of that name first on the path: files by their names."""

    def place(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield place
    for name in [n for n in sys.modules if n.partition(".")[0] == "apex"]:
        del sys.modules[name]


def on_a_gpu():
    """Parameters that say they were there."""

    class Cuda(torch.nn.Parameter):
        device = torch.device("cuda")

    model = torch.nn.Linear(2, 2)
    model.weight, model.bias = (Cuda(p.detach().clone()) for p in (model.weight, model.bias))
    return model


def build(model):
    return build_optimizer(model, tiny_config().pretrain, "apex")


def refusal():
    with pytest.raises(UserError) as refused:
        build(torch.nn.Linear(2, 2))
    (line,) = str(refused.value).splitlines()
    return line


def test_without_apex_it_is_said():
    assert refusal().startswith("optimizer.backend is apex, which is not installed: build it from")


def test_another_package_of_that_name_is_told_with_its_version(apex):
    metadata = "Name: apex\nVersion: 0.9.10\n"
    apex({"apex/__init__.py": "", "apex-0.9.10.dist-info/METADATA": metadata})
    assert "the apex 0.9.10 that is installed is not NVIDIA's" in refusal()


def test_a_folder_of_that_name_is_told_with_its_path(apex, tmp_path):
    apex({"apex/readme.txt": ""})
    assert f"the apex in {tmp_path / 'apex'} is not NVIDIA's" in refusal()


def test_apex_without_its_cuda_code_is_told(apex):
    apex({"apex/__init__.py": "", "apex/optimizers.py": FUSED.format(refuses=True)})
    with pytest.raises(UserError, match=r"^optimizer\.backend is .* requires cuda extensions"):
        build(on_a_gpu())


def test_apex_on_a_cpu_is_refused(apex):
    apex({"apex/__init__.py": "", "apex/optimizers.py": FUSED.format(refuses=False)})
    assert refusal() == "optimizer.backend is apex, which needs a GPU: set optimizer.backend=torch"


def test_apex_clears_gradients_as_torch_does(apex):
    apex({"apex/__init__.py": "", "apex/optimizers.py": FUSED.format(refuses=False)})
    optimizer = build(on_a_gpu())
    assert optimizer.defaults["nesterov"]
    (parameter, *_) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(2, 2)
    optimizer.zero_grad(set_to_none=True)
    assert parameter.grad is None
