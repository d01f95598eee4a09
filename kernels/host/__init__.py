"""What the host does for a batch in C++: draws, gathers, patches, batch norm with ReLU.

Draws, gathers and patches equal fastselfie.kernels.reference and numpy's indexing to the bit;
norm_relu equals torch's two operations but for rounding.
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
