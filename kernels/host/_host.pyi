from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_Numbers = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

def uniform(
    seed: int,
    purpose: int,
    epochs: npt.NDArray[np.int64],
    samples: npt.NDArray[np.int64],
    count: int,
) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) for each sample, (B, count): Philox4x32-10.

    seed, purpose: the key. epochs, samples: (B,) of the counter. All below 2^32.

    Raises:
        ValueError: a wrong shape, or a number out of range.
    """

def gather_crops(
    images: npt.NDArray[np.uint8],
    samples: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    flips: npt.NDArray[np.bool_],
    out: npt.NDArray[np.uint8],
) -> None:
    """Crop i of `out` (B, S, S, 3) is at offsets[i] = (y, x) of images[samples[i]].

    images: (n, H, W, 3), contiguous. samples: (B,). offsets: (B, 2). flips: (B,), which crops are
    mirrored left to right.

    Raises:
        ValueError: a wrong shape, or a crop outside of its image.
    """

def patchify(
    images: npt.NDArray[np.uint8],
    flips: npt.NDArray[np.bool_],
    order: npt.NDArray[np.int64],
    side: int,
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    threads: int,
    out: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
) -> None:
    """out[b, k] = level x scale + offset of the patch at place order[b, k] of image b.

    images: (B, H, W, 3), contiguous. flips: (B,), mirrored before they are cut. order: (B, N).
    side: P. scale, offset: (3,). out: (B, N, P, P, 3) float32, or uint16 for bfloat16's bits.

    Raises:
        ValueError: a wrong shape or dtype, or a place outside of the grid.
    """

def norm_relu_forward(
    x: _Numbers,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    epsilon: float,
    threads: int,
    found: npt.NDArray[np.float32],
    y: _Numbers,
) -> None:
    """y = max(0, batch norm of x), and what it finds of each channel; writes its last two.

    x, y: (pixels, C), contiguous, float32 or uint16 for bfloat16's bits. weight, bias: (C,). found:
    (4, C), the mean, the biased variance, and scale and shift: normalised and weighted, x is x
    scale + shift. The result does not depend on `threads`.

    Raises:
        ValueError: a wrong shape or dtype.
    """

def norm_relu_backward(
    x: _Numbers,
    gradient: _Numbers,
    weight: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
    epsilon: float,
    threads: int,
    grad_x: _Numbers,
    grad_weight: npt.NDArray[np.float32],
    grad_bias: npt.NDArray[np.float32],
) -> None:
    """The gradients for x, weight and bias from `gradient`, that for y; writes its last three.

    Raises:
        ValueError: a wrong shape or dtype.
    """

def run_parallel(task: Callable[[int], None], count: int) -> None:
    """Call task(0) to task(count - 1), each on a thread of its own of OpenMP's pool.

    Task 0 runs on the calling thread. The GIL is released between the calls, and by whatever in
    `task` releases it.

    Raises:
        ValueError: count is below 1.
        Exception: the first that a task raised, once all tasks are done.
    """

def openmp_threads() -> int:
    """Return how many threads a parallel region of the calling thread gets by default."""

def set_openmp_threads(threads: int) -> None:
    """Set `openmp_threads` for the calling thread; inside `run_parallel` until the task ends.

    Raises:
        ValueError: threads is below 1.
    """
