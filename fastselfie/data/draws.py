"""Counter-based random numbers: each belongs to a sample, not to a worker.

Every number is a pure function of (seed, epoch, sample, purpose). So the data do not depend on the
number of threads or processes or on restarts, and loaders can be compared pixel by pixel.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011): key = (seed, purpose), counter = (sample, epoch, block, 0). It is written in C++: for
small images, NumPy took longer for the random numbers of a batch than for its images.

B is the number of samples.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from fastselfie.kernels import host

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


_ORDER_PART = 2**18  # samples whose draws `epoch_order` holds at a time
_PURPOSES = 256  # room for purposes between the keys of one view and of the next


class Purpose(IntEnum):
    """What a random number is for. Different purposes are independent; values never change."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    MASK = 3
    SUBSET = 4
    SPLIT = 5
    PROCESS = 6
    VALIDATION = 7
    WINDOW = 8
    COLOUR = 9


def uniform(
    seed: int,
    epochs: int | IntArray,
    samples: IntArray,
    purpose: Purpose,
    count: int,
    view: int = 0,
) -> FloatArray:
    """Draw `count` uniform numbers in [0, 1) for each sample.

    Args:
        seed: Below 2^32.
        epochs: One epoch for all samples, or (B,) int64.
        samples: (B,) int64 ids below 2^32.
        purpose: What the numbers are for.
        count: Numbers for each sample.
        view: Number of the view. Each view of an image has draws of its own.

    Returns:
        (B, count) float64 with 32 random bits each.
    """
    samples = np.ascontiguousarray(samples, dtype=np.int64)
    epoch = np.ascontiguousarray(np.broadcast_to(np.asarray(epochs, dtype=np.int64), samples.shape))
    return host.uniform(seed, int(purpose) + _PURPOSES * view, epoch, samples, count)


def epoch_order(seed: int, epoch: int, count: int) -> IntArray:
    """Return a random permutation of range(count), the same on every rank: (count,) int64.

    Samples are in the order of their 32-bit draws, and of their numbers where draws tie.
    """
    # NumPy sorts integers with vector instructions: 14 million take tenths of a second, where a
    # stable argsort of the draws takes seconds. Parts keep the temporary arrays small.
    keys = np.empty(count, dtype=np.uint64)
    for first in range(0, count, _ORDER_PART):
        samples = np.arange(first, min(first + _ORDER_PART, count), dtype=np.int64)
        drawn = uniform(seed, epoch, samples, Purpose.ORDER, 1)[:, 0] * 2.0**32
        part = keys[first : first + len(samples)]
        part[:] = drawn.astype(np.uint64) << np.uint64(32)
        part |= samples.view(np.uint64)
    keys.sort()
    keys &= np.uint64(2**32 - 1)
    return keys.view(np.int64)


def process_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of torch's generator (dropout) for one step and rank, below 2^32."""
    draw = uniform(seed, step, np.asarray([rank], dtype=np.int64), Purpose.PROCESS, 1)
    return int(draw[0, 0] * 2**32)


def flips(
    seed: int, epochs: int | IntArray, samples: IntArray, view: int = 0
) -> npt.NDArray[np.bool_]:
    """Choose which samples are flipped horizontally: (B,) bool."""
    return uniform(seed, epochs, samples, Purpose.FLIP, 1, view)[:, 0] < 0.5


def patch_orders(seed: int, epochs: int | IntArray, samples: IntArray, patches: int) -> IntArray:
    """Draw a random order of each image's N patches: (B, N) int64.

    The first K = N - M columns are the visible locations, the last M are the masked ones. So one
    array defines both the mask and the order of the candidates.
    """
    return np.argsort(uniform(seed, epochs, samples, Purpose.MASK, patches), axis=1, kind="stable")


def patch_corners(
    seed: int, epochs: int | IntArray, samples: IntArray, patches: int, gap: int
) -> IntArray:
    """Draw where the window of each patch lies in its cell: (B, N, 2) int64, (y, x) in [0, gap].

    Entry [b, n] belongs to place n of the grid, like those of `patch_colours`.
    """
    draws = uniform(seed, epochs, samples, Purpose.WINDOW, 2 * patches)
    return (draws * (gap + 1)).astype(np.int64).reshape(-1, patches, 2)


def patch_colours(
    seed: int,
    epochs: int | IntArray,
    samples: IntArray,
    patches: int,
    grey: float,
    contrast: float,
    brightness: float,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Draw how the colours of each patch change.

    Args:
        seed: As in `uniform`.
        epochs: As in `uniform`.
        samples: As in `uniform`.
        patches: N.
        grey: Probability that a patch loses its colour.
        contrast: Largest distance of the contrast from 1.
        brightness: Largest distance of the brightness from 0.

    Returns:
        Which patches lose their colour, (B, N); and contrast and brightness, (B, N, 2).
    """
    draws = uniform(seed, epochs, samples, Purpose.COLOUR, 3 * patches).reshape(-1, patches, 3)
    tone = (2 * draws[..., 1:] - 1) * (contrast, brightness) + (1, 0)
    return draws[..., 0] < grey, tone.astype(np.float32)


def shifts(
    seed: int, epochs: int | IntArray, samples: IntArray, pad: int, view: int = 0
) -> IntArray:
    """Draw the crop's offsets in the padded image: (B, 2) int64, (y, x) in [0, 2 * pad]."""
    draws = uniform(seed, epochs, samples, Purpose.CROP, 2, view)
    return (draws * (2 * pad + 1)).astype(np.int64)


def resized_crops(
    seed: int,
    epochs: int | IntArray,
    samples: IntArray,
    sizes: IntArray,
    area: tuple[float, float],
    ratio: tuple[float, float],
    view: int = 0,
) -> IntArray:
    """Draw the boxes of random resized crops.

    As torchvision's RandomResizedCrop: uniform area, uniform log of the aspect ratio, ten tries,
    else the largest central box with an allowed ratio.

    Args:
        seed: As in `uniform`.
        epochs: As in `uniform`.
        samples: As in `uniform`.
        sizes: (B, 2) int64 image sizes, (width, height) in pixels.
        area: Smallest and largest area, as a fraction of the image.
        ratio: Smallest and largest width / height.
        view: As in `uniform`.

    Returns:
        (B, 4) int64, (left, top, width, height) in pixels.
    """
    tries = 10
    draws = uniform(seed, epochs, samples, Purpose.CROP, 4 * tries, view).reshape(-1, tries, 4)
    width, height = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    target = width * height * (area[0] + draws[..., 0] * (area[1] - area[0]))
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(log_low + draws[..., 1] * (log_high - log_low))
    w, h = np.rint(np.sqrt(target * aspect)), np.rint(np.sqrt(target / aspect))
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    rows = np.arange(len(sizes))
    first = fits.argmax(axis=1)
    w, h = w[rows, first], h[rows, first]
    left = np.floor(draws[rows, first, 2] * (width[:, 0] - w + 1))
    top = np.floor(draws[rows, first, 3] * (height[:, 0] - h + 1))
    boxes = np.stack([left, top, w, h], axis=1).astype(np.int64)
    none = ~fits.any(axis=1)
    boxes[none] = _central_boxes(sizes[none], ratio)
    return boxes


def _central_boxes(sizes: IntArray, ratio: tuple[float, float]) -> IntArray:
    """Return the largest central box with an allowed ratio: (B, 4) int64."""
    width, height = sizes[:, 0], sizes[:, 1]
    w = np.clip(np.rint(height * ratio[1]).astype(np.int64), 1, width)
    h = np.clip(np.rint(width / ratio[0]).astype(np.int64), 1, height)
    return np.stack([(width - w) // 2, (height - h) // 2, w, h], axis=1)
