import numpy as np
import numpy.typing as npt

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
