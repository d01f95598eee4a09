"""Types of the C++ extension (bindings.cpp, bindings_batch.cpp)."""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

Box = tuple[int, int, int, int]
Size = tuple[int, int]

class JpegError(ValueError):
    """The data is no JPEG, is damaged, or is of a kind that the function does not support."""

class Header:
    """What the header of a JPEG says."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def sampling(self) -> list[tuple[int, int]]:
        """(horizontal, vertical) factors per component; 4:2:0 is [(2, 2), (1, 1), (1, 1)]."""
    @property
    def color(self) -> Literal["gray", "ycbcr", "rgb"]: ...
    @property
    def progressive(self) -> bool: ...
    @property
    def restart_interval(self) -> int:
        """Number of MCUs between restart markers; 0 without markers."""
    @property
    def can_crop(self) -> bool:
        """Whether crop() works: every restart interval is a rectangle."""

def read_header(data: Buffer) -> Header:
    """Read the header without decoding. Raises JpegError."""

def transcode(data: Buffer, restart_mcus: int | None = None) -> bytes:
    """Rewrite a JPEG as baseline with restart markers and optimised Huffman tables.

    All coefficients stay the same. Metadata is dropped.

    Args:
        data: The JPEG.
        restart_mcus: Upper limit of the restart interval; the interval is the largest number of
            MCUs that divides a row. By default the MCUs of 64 pixels.

    Raises:
        JpegError: Pixels are lost, or 8-bit baseline YCbCr or gray cannot hold the image.
    """

def check(data: Buffer) -> None:
    """Raise JpegError if pixels are lost. Cheaper than transcode().

    An intact file that transcode() cannot hold, for example a CMYK one, passes.
    """

def crop(
    data: Buffer, left: int, top: int, width: int, height: int
) -> tuple[bytes, int, int] | None:
    """Cut out the restart intervals that a box touches, without decoding them.

    Returns:
        A JPEG, and the left and top of the box in it. None if not `Header.can_crop`.
    """

def decode_resized(
    data: Buffer,
    box: Box | None = None,
    size: Size | None = None,
    flip: bool = False,
    engine: Literal["auto", "libjpeg"] = "auto",
) -> NDArray[np.uint8]:
    """Decode a box and resize it, as Pillow's crop and antialiased bilinear resize do.

    Args:
        data: The JPEG.
        box: (left, top, width, height) in pixels. By default the whole image.
        size: (height, width) of the result. By default that of the box.
        flip: Whether to mirror the result left to right.
        engine: "auto" uses our decoder if it supports the file; "libjpeg" is the reference.

    Returns:
        (height, width, 3).
    """

def resize_raw(
    image: NDArray[np.uint8],
    box: Box,
    size: Size,
    flip: bool = False,
    padding: Literal["none", "zero", "reflect"] = "none",
) -> NDArray[np.uint8]:
    """As decode_resized(), for raw pixels. With padding, the box may reach outside of the image."""

def coefficients(data: Buffer) -> list[NDArray[np.int16]]:
    """Return the quantised DCT coefficients: per component (block rows, block columns, 8, 8)."""

def planes(
    data: Buffer, box: Box, block_size: int = 8, engine: Literal["auto", "libjpeg"] = "auto"
) -> list[NDArray[np.uint8]]:
    """Return the blocks that cover the box, one plane per component, not resized. For tests."""

def available_kernels() -> list[str]:
    """Return the instruction sets of the kernels that this processor can run, best first."""

def selected_kernels() -> str:
    """Return the instruction set in use."""

def select_kernels(name: str) -> None:
    """Select the instruction set. All give the same bytes. For tests and benchmarks.

    Args:
        name: One of `available_kernels()`, or "auto": the set that the environment variable
            FASTSELFIE_KERNELS named when this module was imported, else the best.

    Raises:
        ValueError: This processor has no such set.
    """

class BatchDecoder:
    """A pool of threads that fills batches in the background, in the order of submit().

    It does not survive a fork: the child has none of the threads, so submit() raises there.

    Args:
        threads: Number of threads.
        niceness: Niceness of the threads, 0 to 19 as for nice(1).
    """

    def __init__(self, threads: int, niceness: int = 0) -> None: ...
    @property
    def threads(self) -> int: ...
    def submit(
        self,
        data: Buffer | Sequence[Buffer],
        boxes: NDArray[np.int32],
        flips: NDArray[np.uint8] | None = None,
        *,
        out: NDArray[np.uint8],
        offsets: NDArray[np.uint64] | None = None,
        sizes: NDArray[np.uint64] | None = None,
        kinds: NDArray[np.uint8] | None = None,
        shapes: NDArray[np.int32] | None = None,
    ) -> int:
        """Start to fill a batch. All arguments are kept until wait() returns or close().

        A mapped file must keep its length meanwhile: the system kills a process that reads behind
        the end of one (SIGBUS).

        Args:
            data: One buffer with `offsets` and `sizes` into it, or one buffer per item.
            boxes: (B, 4), left, top, width and height of each crop.
            flips: (B,), whether an item is mirrored.
            out: (B, H, W, 3); receives the crops, resized to (H, W).
            offsets: (B,), start of each item in `data`.
            sizes: (B,), bytes of each item.
            kinds: (B,), one of KIND_* per item.
            shapes: (B, 2), height and width of raw items.

        Returns:
            A ticket for wait().
        """

    def wait(self, ticket: int, help: bool = False) -> list[tuple[int, str]]:
        """Wait until a batch is full.

        Args:
            ticket: What submit() returned.
            help: Decode on this thread too, instead of sleeping.

        Returns:
            The items that failed, and why. Their pixels are zero.
        """

    def close(self) -> None:
        """End the threads. The unfinished items of all batches fail. A second call does nothing."""

    def __enter__(self) -> BatchDecoder: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
