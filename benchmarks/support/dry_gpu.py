"""A dry run of the checks that need a GPU: every line runs on the CPU, with tiny sizes.

It finds lines that fail wherever they run, and nothing about a GPU. Tensors stay on the CPU, Triton
interprets its programs, torch.compile runs the traced graph eagerly, gloo takes NCCL's place, and
what would wait for a GPU does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from fastselfie.config import RuntimeConfig
from fastselfie.system.accelerator import Precision, choose_precision

T = TypeVar("T")

_dry = False


def sized(full: T, dry: T) -> T:
    """Return the value for a GPU, or the one for a dry run inside `dry_gpu`."""
    return dry if _dry else full


def device() -> torch.device:
    """Return the device of the checks."""
    return sized(torch.device("cuda"), torch.device("cpu"))


def variables() -> dict[str, str]:
    """Return the environment of programs that a check starts."""
    kept = {k: v for k, v in os.environ.items() if not (_dry and k == "TRITON_INTERPRET")}
    return kept | sized({}, {"TORCH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""})


@contextmanager
def dry_gpu() -> Iterator[None]:
    """Make the checks inside run dry. Needs TRITON_INTERPRET=1 from the start of the process."""
    global _dry  # noqa: PLW0603 # checks take no arguments, and a process runs one kind
    replaced: dict[str, Any] = {
        "torch.Tensor.cuda": _stays,
        "torch.cuda.synchronize": lambda: None,
        "torch.cuda.set_sync_debug_mode": lambda _: None,
        "torch.cuda.device_count": lambda: 2,
        "torch.cuda.reset_peak_memory_stats": lambda: None,
        "torch.cuda.max_memory_allocated": lambda: 2**20,
        "torch.compile": partial(torch.compile, backend="eager"),
        "fastselfie.system.accelerator.choose_precision": _precision,
        "fastselfie.system.accelerator.choose_compile": _compile,
        "fastselfie.profiling.run._ROUNDS": 1,
        "fastselfie.profiling.run._SECONDS": 0.1,
    }
    _dry = True
    try:
        with ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(mock.patch(name, value))
            yield
    finally:
        _dry = False


def _stays(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _precision(runtime: RuntimeConfig, device: torch.device) -> Precision:
    """Allow fp16 on a CPU, which is slow there."""
    if runtime.precision == "fp16":
        return Precision("fp16", "a dry run")
    return choose_precision(runtime, device)


def _compile(runtime: RuntimeConfig, device: torch.device) -> tuple[str | None, str | None]:
    """Allow the mode for CUDA graphs on a CPU, where it has none."""
    if runtime.compile in ("auto", "off"):
        return None, None
    return ("reduce-overhead" if runtime.cuda_graphs else "default"), None
