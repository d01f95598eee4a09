"""Whether the step is compiled, in which mode, and what torch.compile lacks on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from fastselfie.config import RuntimeConfig
from fastselfie.errors import UserError
from fastselfie.kernels import impl

# Modes of torch.compile with CUDA graphs, whose outputs lie in the graphs' own memory.
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_COMPILED = 7  # major compute capability of the oldest GPUs for which torch.compile makes kernels


def choose_compile(runtime: RuntimeConfig, device: torch.device) -> tuple[str | None, str | None]:
    """Choose the mode for torch.compile.

    Returns:
        The mode, or None for eager execution; and why a GPU runs eagerly under auto, or None.

    Raises:
        UserError: CUDA graphs without a GPU, or what torch.compile needs is missing and
            runtime.compile is not auto.
    """
    if runtime.cuda_graphs and device.type != "cuda":
        raise UserError("runtime.cuda_graphs is true, which needs a GPU: set it to false")
    automatic = runtime.compile == "auto"
    if runtime.compile == "off" or (automatic and device.type != "cuda"):
        return None, None
    if automatic and runtime.activation_checkpointing:
        return None, "runtime.activation_checkpointing does not work with torch.compile"
    if fault := compile_fault(device):
        if automatic and not runtime.cuda_graphs:
            return None, fault
        key = "cuda_graphs is true" if automatic else f"compile is {runtime.compile}"
        way_out = "" if automatic else ", or set runtime.compile=off"
        raise UserError(f"runtime.{key}, but {fault}{way_out}")
    if runtime.compile == "max-autotune":
        return "max-autotune" if runtime.cuda_graphs else "max-autotune-no-cudagraphs", None
    return "reduce-overhead" if runtime.cuda_graphs else "default", None


def compile_fault(device: torch.device) -> str | None:
    """Return one line that says what torch.compile lacks on `device`, or None."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return (
            f"torch.compile needs the C++ compiler {compiler}: install it, or name another in CXX"
        )
    if device.type != "cuda":
        return None
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton: pip install 'fastselfie[triton]'"
    major, minor = torch.cuda.get_device_capability(device)
    if not torch.version.hip and major < _COMPILED:
        return f"torch.compile needs a GPU of sm_{_COMPILED}0 or newer, not sm_{major}{minor}"
    return impl.launch_fault()
