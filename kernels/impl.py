"""Which implementation of a fused operation runs: `impl` chooses only the speed."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, get_args

import torch

Impl = Literal["auto", "reference", "triton"]

_CAPABILITY = 8  # older GPUs have too little shared memory for the distractor score


def check_impl(impl: str) -> None:
    """Raises ValueError: a misspelt one would be another, silently."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl is {impl!r}: one of {', '.join(get_args(Impl))}")


def unavailable(device: torch.device) -> str | None:
    """Why Triton does not run there, in one line; None: it does."""
    if importlib.util.find_spec("triton") is None:
        return "impl is triton, which is not installed: pip install 'fastselfie[triton]'"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"impl is triton, but the tensors are on {device}: Triton needs a GPU, or "
            "TRITON_INTERPRET=1 before the start to be interpreted"
        )
    if device.type == "cuda" and (
        torch.version.hip or torch.cuda.get_device_properties(device).major < _CAPABILITY
    ):
        return (
            "impl is triton, which needs an NVIDIA GPU of sm_80 or newer, but the tensors are on "
            f"{device}"
        )
    return None
