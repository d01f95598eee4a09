"""The optimiser: SGD with Nesterov momentum, its parameter groups and its learning rate.

Paper (section 3): SGD, Nesterov momentum 0.9, cosine decay to zero after 100 warm-up steps,
L2 weight decay 1e-4.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastselfie.config import StageConfig
from fastselfie.errors import UserError

_DECAYED = (nn.Conv2d, nn.Linear)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear from peak / warmup to peak, then a cosine that would reach zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups by module type: weights of convolutions and linear maps decay, nothing else.

    The type of the owning module decides, not a substring of the name.
    """
    decayed = [m.weight for m in model.modules() if isinstance(m, _DECAYED)]
    ids = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, stage: StageConfig, backend: str = "torch"
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, in one fused kernel: torch's or NVIDIA apex's.

    Raises:
        UserError: apex is asked for and is not there, or is another package of that name.
    """
    groups: Sequence[dict[str, object]] = parameter_groups(model, stage.weight_decay)
    settings = {"lr": stage.lr, "momentum": stage.momentum, "nesterov": stage.momentum > 0}
    if backend == "apex":
        fused: torch.optim.Optimizer = _apex_sgd()(groups, **settings)
        return fused
    return torch.optim.SGD(groups, **settings, fused=True)  # type: ignore[arg-type]


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give torch's SGD its momentum, zero, before the first step.

    Where that step is left out (not finite, or fp16's scale too large) the buffers it makes itself
    would stay as the memory happened to be. 0.9 x 0 + g is the g that they begin with.
    """
    if optimizer.state or not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] > 0 else []:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _apex_sgd() -> Callable[..., Any]:
    way_out = "build it from github.com/NVIDIA/apex, or set optimizer.backend=torch"
    if importlib.util.find_spec("apex") is None:
        raise UserError(f"optimizer.backend is apex, which is not installed: {way_out}")
    try:
        from apex.optimizers import FusedSGD
    except ImportError as error:
        version = importlib.metadata.version("apex")
        raise UserError(
            f"optimizer.backend is apex, but the apex {version} that is installed is not NVIDIA's, "
            f"or was built without its CUDA code ({error}): {way_out}"
        ) from error
    sgd: Callable[..., Any] = FusedSGD
    return sgd
