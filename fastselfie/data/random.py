"""Counter-based random draws: randomness belongs to the sample, not to the worker.

Every draw is a pure function of (seed, epoch, sample, purpose), so any number of threads,
processes or restarts sees the same data, and loaders can be compared pixel by pixel.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011): key = (seed, purpose), counter = (sample, epoch, block, 0). It runs in C++: in numpy the
draws of a batch of small images took longer than the images.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from fastselfie.kernels import host

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


_PURPOSES = 256  # room for purposes between the keys of one view and of the next


class Purpose(IntEnum):
    """What a draw is for. Streams of different purposes are independent; values never change."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    MASK = 3
    SUBSET = 4
    SPLIT = 5
    PROCESS = 6
    VALIDATION = 7


def uniform(
    seed: int,
    epochs: int | IntArray,
    samples: IntArray,
    purpose: Purpose,
    count: int,
    view: int = 0,
) -> FloatArray:
    """`count` numbers in [0, 1) for each sample: (B, count) float64, 32 random bits each.

    epochs: one for all, or (B,). samples: (B,) ids below 2^32. seed: below 2^32. view: of several
    views of an image each has draws of its own.
    """
    samples = np.ascontiguousarray(samples, dtype=np.int64)
    epoch = np.ascontiguousarray(np.broadcast_to(np.asarray(epochs, dtype=np.int64), samples.shape))
    return host.uniform(seed, int(purpose) + _PURPOSES * view, epoch, samples, count)


def epoch_order(seed: int, epoch: int, count: int) -> IntArray:
    """A permutation of range(count), the same on every process: (count,) int64."""
    draws = uniform(seed, epoch, np.arange(count, dtype=np.int64), Purpose.ORDER, 1)[:, 0]
    return np.argsort(draws, kind="stable")  # stable: 32-bit draws tie in large sets


def process_seed(seed: int, step: int, rank: int) -> int:
    """For torch's own generators, dropout's: another one each step and process, below 2^32."""
    draw = uniform(seed, step, np.asarray([rank], dtype=np.int64), Purpose.PROCESS, 1)
    return int(draw[0, 0] * 2**32)


def flips(
    seed: int, epochs: int | IntArray, samples: IntArray, view: int = 0
) -> npt.NDArray[np.bool_]:
    """Which samples are flipped horizontally: (B,) bool."""
    return uniform(seed, epochs, samples, Purpose.FLIP, 1, view)[:, 0] < 0.5


def patch_orders(seed: int, epochs: int | IntArray, samples: IntArray, patches: int) -> IntArray:
    """A random order of each image's patches, (B, N) int64: visible first, masked last.

    The first K = N - M columns are the visible locations and the last M the masked ones, so one
    array says both which are masked and in which order the candidates stand.
    """
    return np.argsort(uniform(seed, epochs, samples, Purpose.MASK, patches), axis=1, kind="stable")


def shifts(
    seed: int, epochs: int | IntArray, samples: IntArray, pad: int, view: int = 0
) -> IntArray:
    """Offsets of the crop in the padded image, (B, 2) int64 as (y, x) in [0, 2 pad]."""
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
    """Boxes of random resized crops, (B, 4) int64 as (left, top, width, height).

    sizes: (B, 2) as (width, height). Drawn as in torchvision's RandomResizedCrop: area uniform,
    log of the ratio uniform, ten tries, else the largest central box of an allowed ratio.
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
    """The largest central box whose ratio is allowed: (B, 4) int64."""
    width, height = sizes[:, 0], sizes[:, 1]
    w = np.clip(np.rint(height * ratio[1]).astype(np.int64), 1, width)
    h = np.clip(np.rint(width / ratio[0]).astype(np.int64), 1, height)
    return np.stack([(width - w) // 2, (height - h) // 2, w, h], axis=1)
