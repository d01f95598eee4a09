"""The optimizer: SGD with Nesterov momentum, its parameter groups and its learning rate.

Paper (section 3): SGD, Nesterov momentum 0.9, cosine decay to zero after 100 warm-up steps,
L2 weight decay 1e-4.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.config import StageConfig
from fastselfie.errors import UserError

_DECAYED = (nn.Conv2d, nn.Linear)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate of a step: a linear warm-up, then a cosine decay.

    Args:
        step: 0 is the first.
        steps: of the stage; the cosine would reach zero at this step.
        peak: the maximum rate.
        warmup: steps of the warm-up, which starts at peak / warmup.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the parameters into two groups: those with weight decay, and the rest.

    Weights of convolutions and linear layers decay. The type of the owning module decides, not a
    substring of the name.
    """
    decayed = [m.weight for m in model.modules() if isinstance(m, _DECAYED)]
    ids = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in ids]
    split = ((decayed, weight_decay), (rest, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in split]


def build_optimizer(
    model: nn.Module, stage: StageConfig, backend: str = "torch"
) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum in one fused kernel.

    Args:
        model: its parameters are on their device already.
        stage: learning rate, momentum and weight decay.
        backend: torch, or apex for NVIDIA's.

    Raises:
        UserError: apex is not installed, is another package of that name, was built without its
            CUDA code, or `model` is not on a GPU.
    """
    groups: Sequence[dict[str, object]] = parameter_groups(model, stage.weight_decay)
    settings = {"lr": stage.lr, "momentum": stage.momentum, "nesterov": stage.momentum > 0}
    if backend == "apex":
        return _apex_sgd(groups, settings)
    return torch.optim.SGD(groups, **settings, fused=True)  # type: ignore[arg-type]


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialise the momentum of torch's SGD to zero before the first step.

    If that step is skipped (not finite, or fp16's scale too large), the buffers that torch would
    allocate stay uninitialised. The result is the same: 0.9 x 0 + g is torch's initial g.
    """
    if optimizer.state or not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] > 0 else []:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load momentum from a checkpoint that was saved under any `runtime` and `optimizer` settings.

    The fused kernel reads momentum in the memory format of the parameter, but torch's
    load_state_dict keeps the format of the saved buffer, which depends on `runtime.channels_last`.
    It also restores the saved settings, among them `fused`, which depends on `optimizer.backend`.

    Args:
        optimizer: of the same model, its parameters on their device and in their memory format.
        state: the result of `optimizer.state_dict()`.
    """
    own, saved = optimizer.state_dict()["param_groups"], state["param_groups"]
    # With the saved parameters: torch compares the sizes of the groups.
    groups = [{**ours, "params": theirs["params"]} for ours, theirs in zip(own, saved, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                buffers[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _apex_sgd(
    groups: Sequence[dict[str, Any]], settings: dict[str, float]
) -> torch.optim.Optimizer:
    remedy = "build it from github.com/NVIDIA/apex, or set optimizer.backend=torch"
    spec = importlib.util.find_spec("apex")
    if spec is None:
        raise UserError(f"optimizer.backend is apex, which is not installed: {remedy}")
    try:
        from apex.optimizers import FusedSGD

        class ApexSGD(FusedSGD):  # type: ignore[misc]
            """FusedSGD with torch's zero_grad: its own takes no argument."""

            zero_grad = torch.optim.Optimizer.zero_grad

        if any(p.device.type != "cuda" for group in groups for p in group["params"]):
            raise UserError(
                "optimizer.backend is apex, which needs a GPU: set optimizer.backend=torch"
            )
        sgd: torch.optim.Optimizer = ApexSGD(groups, **settings)
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"optimizer.backend is apex, but {_found_apex(spec)} is not NVIDIA's, or was built "
            f"without its CUDA code ({reason}): {remedy}"
        ) from error
    return sgd


def _found_apex(spec: ModuleSpec) -> str:
    try:
        return f"the apex {importlib.metadata.version('apex')} that is installed"
    except importlib.metadata.PackageNotFoundError:  # a mere folder of that name
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        return f"the apex in {', '.join(places)}"
