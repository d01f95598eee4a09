"""C++ operations on the CPU: random numbers, gathered crops, patches, batch norm with ReLU.

Random numbers, crops and patches are equal to fastselfie.kernels.reference and NumPy's indexing bit
for bit. Batch norm with ReLU differs from torch's two operations only by rounding.
"""

import ctypes
import importlib.util
from pathlib import Path


def _load_openmp_of_torch() -> None:
    """Load the OpenMP library of torch's wheel, so that torch and the extension share one.

    The extension needs libgomp.so.1. The dynamic loader takes a loaded library of that SONAME,
    under any file name: some wheels of torch call it libgomp-HASH.so.1. Otherwise it would look
    for the system's copy, which is a second pool of threads or does not exist. This does not import
    torch, which the worker processes of `prepare` do without.
    """
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder, "lib").glob("libgomp*.so*"):
            ctypes.CDLL(str(path))


_load_openmp_of_torch()

from fastselfie.kernels.host._host import (  # noqa: E402 - after its OpenMP library
    available_kernels,
    gather_crops,
    norm_relu_backward,
    norm_relu_forward,
    openmp_threads,
    patchify,
    run_parallel,
    select_kernels,
    selected_kernels,
    set_openmp_threads,
    uniform,
)

select_kernels("auto")  # a wrong FASTSELFIE_KERNELS is reported here, not by the first batch

__all__ = [
    "available_kernels",
    "gather_crops",
    "norm_relu_backward",
    "norm_relu_forward",
    "openmp_threads",
    "patchify",
    "run_parallel",
    "select_kernels",
    "selected_kernels",
    "set_openmp_threads",
    "uniform",
]
