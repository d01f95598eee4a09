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
    """Draw random numbers in [0, 1) with Philox4x32-10.

    Args:
        seed: First half of the key, below 2^32.
        purpose: Second half of the key, below 2^32.
        epochs: (B,) part of the counter, below 2^32.
        samples: (B,) part of the counter, below 2^32.
        count: Numbers per sample.

    Returns:
        (B, count).

    Raises:
        ValueError: A shape is wrong, or a number is out of range.
    """

def gather_crops(
    images: npt.NDArray[np.uint8],
    samples: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    flips: npt.NDArray[np.bool_],
    out: npt.NDArray[np.uint8],
) -> None:
    """Copy square crops of images.

    Args:
        images: (n, H, W, 3), contiguous.
        samples: (B,), the image of each crop.
        offsets: (B, 2), top and left of each crop.
        flips: (B,), whether a crop is mirrored left to right.
        out: (B, S, S, 3), contiguous; receives the crops.

    Raises:
        ValueError: A shape is wrong, or a crop leaves its image.
    """

def patchify(
    images: npt.NDArray[np.uint8],
    flips: npt.NDArray[np.bool_],
    order: npt.NDArray[np.int64],
    side: int,
    window: int,
    corners: npt.NDArray[np.int64] | None,
    grey: npt.NDArray[np.bool_] | None,
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    threads: int,
    out: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
) -> None:
    """Cut images into normalised patches, in a given order.

    Args:
        images: (B, H, W, 3), contiguous.
        flips: (B,), whether an image is mirrored before it is cut.
        order: (B, N), the place of each patch, counted row by row over the grid.
        side: P, side of a cell of the grid in pixels.
        window: W, side of the part of a cell that is kept.
        corners: (B, G, 2), top and left of that part, for each of the G places of the grid; None:
            in the centre.
        grey: (B, G), whether a patch loses its colour; None: no patch does.
        scale: (3,) or (B, G, 3), factor of each channel.
        offset: As scale, added to level * scale.
        threads: Number of threads.
        out: (B, N, W, W, 3), float32 or uint16 for the bits of bfloat16; receives the patches.

    Raises:
        ValueError: A shape or dtype is wrong, a place is outside of the grid, or a window is
            outside of its cell.
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
    """Compute y = max(0, batch_norm(x)) in training mode. The result does not depend on `threads`.

    Args:
        x: (pixels, C), contiguous, float32 or uint16 for the bits of bfloat16.
        weight: (C,).
        bias: (C,).
        epsilon: Added to the variance.
        threads: Number of threads.
        found: (4, C); receives mean, biased variance, scale and shift. The normalised and weighted
            x is x * scale + shift.
        y: As x; receives the output.

    Raises:
        ValueError: A shape or dtype is wrong.
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
    """Compute the gradients of `norm_relu_forward`.

    Args:
        x: As in the forward pass.
        gradient: Gradient of y, as x.
        weight: As in the forward pass.
        found: What the forward pass found.
        epsilon: As in the forward pass.
        threads: Number of threads.
        grad_x: As x; receives the gradient of x.
        grad_weight: (C,); receives the gradient of weight.
        grad_bias: (C,); receives the gradient of bias.

    Raises:
        ValueError: A shape or dtype is wrong.
    """

def run_parallel(task: Callable[[int], None], count: int) -> None:
    """Call task(0) to task(count - 1), each on its own thread of OpenMP's pool.

    Task 0 runs on the calling thread. A call holds the GIL unless `task` releases it.

    Raises:
        ValueError: `count` is below 1.
        Exception: The first that a task raised, after all tasks have ended.
    """

def openmp_threads() -> int:
    """Return the default number of threads of a parallel region of the calling thread."""

def set_openmp_threads(threads: int) -> None:
    """Set `openmp_threads` for the calling thread; in `run_parallel`, until the task ends.

    Raises:
        ValueError: `threads` is below 1.
    """

def available_kernels() -> list[str]:
    """Return the instruction sets that this processor can run, best first."""

def selected_kernels() -> str:
    """Return the instruction set in use."""

def select_kernels(name: str) -> None:
    """Select the instruction set. All give the same bits. For tests and benchmarks.

    Args:
        name: One of `available_kernels()`, or "auto": the set that the environment variable
            FASTSELFIE_KERNELS named when this module was imported, else the best.

    Raises:
        ValueError: This processor has no such set.
    """
