"""C++ operations on the CPU: random numbers, gathered crops, patches, batch norm with ReLU.

Random numbers, crops and patches are equal to fastselfie.kernels.reference and NumPy's indexing bit
for bit. Batch norm with ReLU differs from torch's two operations only by rounding.
"""

from fastselfie.kernels.host._host import (
    gather_crops,
    norm_relu_backward,
    norm_relu_forward,
    openmp_threads,
    patchify,
    run_parallel,
    set_openmp_threads,
    uniform,
)

__all__ = [
    "gather_crops",
    "norm_relu_backward",
    "norm_relu_forward",
    "openmp_threads",
    "patchify",
    "run_parallel",
    "set_openmp_threads",
    "uniform",
]
