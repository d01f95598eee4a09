"""Chooses the implementation of a fused operation. `impl` changes only the speed."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "triton"]

_CAPABILITY = 8  # older GPUs have too little shared memory for the distractor score


def check_impl(impl: str) -> None:
    """Check the name of an implementation.

    Raises:
        ValueError: It is none of `Impl`.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl is {impl!r}: one of {', '.join(get_args(Impl))}")


def is_eager(tensor: Tensor) -> bool:
    """Return whether `tensor` has values: not traced by torch.compile, and not a FakeTensor."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


def uses_triton(device: torch.device, impl: Impl) -> bool:
    """Return whether `impl` is a Triton program on `device`: auto is one only on a GPU.

    Raises:
        ValueError: `impl` is triton, and Triton cannot run there.
    """
    if impl == "reference" or not (device.type == "cuda" or impl == "triton"):
        return False
    reason = unavailable(device)
    if impl == "triton" and reason:
        raise ValueError(reason)
    return reason is None


def unavailable(device: torch.device) -> str | None:
    """Return one line that says why Triton cannot run on `device`, or None if it can.

    torch.compile takes the result as a constant: to trace a search for packages is slow.
    """
    if importlib.util.find_spec("triton") is None:
        return "impl is triton, which is not installed: pip install 'fastselfie[triton]'"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"impl is triton, but the tensors are on {device}: Triton needs a GPU, or "
            "TRITON_INTERPRET=1 before the start to run in its interpreter"
        )
    from triton import language

    if not hasattr(language, "gather"):  # added in Triton 3.3
        return "impl is triton, which is too old here: pip install --upgrade 'triton>=3.3'"
    return _gpu_fault(device) if device.type == "cuda" else None


unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _gpu_fault(device: torch.device) -> str | None:
    """Return why Triton cannot run the kernels on this GPU, or None."""
    major = torch.cuda.get_device_properties(device).major
    if torch.version.hip or major < _CAPABILITY:
        return (
            "impl is triton, which needs an NVIDIA GPU of sm_80 or newer, but the tensors are on "
            f"{device}"
        )
    if lacks_products(major):
        return (
            f"impl is triton, which is too old for the GPU of {device}: "
            "pip install --upgrade 'triton>=3.3.1'"
        )
    return launch_fault()


def lacks_products(major: int) -> bool:
    """Return whether this Triton fails to compile matrix products for GPUs of sm_`major`x."""
    import triton

    return major >= 12 and str(triton.__version__) == "3.3.0"


@functools.cache
def launch_fault() -> str | None:
    """Do what Triton does before its first launch on a GPU: compile C code that calls the driver.

    Returns:
        One line that says why that failed, or None. Triton keeps what it compiled.
    """
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # of many kinds, the C compiler's among them
        first_line = str(error).partition("\n")[0]
        return (
            "Triton could not compile its launcher: install a C compiler and "
            "Python's headers, for example apt-get install gcc python3-dev "
            f"({type(error).__name__}: {first_line[:200]})"
        )
    return None
