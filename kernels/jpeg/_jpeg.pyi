"""Types of the C++ extension (bindings.cpp, bindings_batch.cpp)."""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

Box = tuple[int, int, int, int]
Size = tuple[int, int]

class JpegError(ValueError): ...

class Header:
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def sampling(self) -> list[tuple[int, int]]:
        """Horizontal and vertical factors of each component; 4:2:0 is [(2, 2), (1, 1), (1, 1)]."""
    @property
    def color(self) -> Literal["gray", "ycbcr", "rgb"]: ...
    @property
    def progressive(self) -> bool: ...
    @property
    def restart_interval(self) -> int:
        """In MCUs; 0 where there are no restart markers."""
    @property
    def can_crop(self) -> bool:
        """Whether crop() works on it: every restart interval is a rectangle."""

def read_header(data: Buffer) -> Header: ...
def transcode(data: Buffer, restart_mcus: int | None = None) -> bytes:
    """The same coefficients as a baseline JPEG with restart intervals and optimised tables.

    The interval is the largest number of MCUs up to ``restart_mcus`` that divides a row; by default
    64 pixels' worth. Metadata is dropped. What 8-bit baseline YCbCr or gray cannot hold raises.
    """

def check(data: Buffer) -> None:
    """Raises where pixels are lost, as transcode() does and at a lower cost.

    Passes a sound file that transcode() cannot hold, such as a CMYK one.
    """

def crop(
    data: Buffer, left: int, top: int, width: int, height: int
) -> tuple[bytes, int, int] | None:
    """A small JPEG that holds the box, and the box's left and top in it; None if not can_crop."""

def decode_resized(
    data: Buffer,
    box: Box,
    size: Size,
    flip: bool = False,
    engine: Literal["auto", "libjpeg"] = "auto",
) -> NDArray[np.uint8]:
    """Like Pillow's crop(box) and antialiased bilinear resize: (height, width, 3)."""

def resize_raw(
    image: NDArray[np.uint8],
    box: Box,
    size: Size,
    flip: bool = False,
    padding: Literal["none", "zero", "reflect"] = "none",
) -> NDArray[np.uint8]:
    """The same of raw pixels; with padding, the box may reach out of the image."""

def coefficients(data: Buffer) -> list[NDArray[np.int16]]:
    """Quantised DCT coefficients, an array (block rows, block columns, 8, 8) a component."""

def planes(
    data: Buffer, box: Box, block_size: int = 8, engine: Literal["auto", "libjpeg"] = "auto"
) -> list[NDArray[np.uint8]]:
    """For tests: the blocks that cover the box, a plane a component, before any resize."""

def available_kernels() -> list[str]:
    """The instruction sets that this processor has kernels for, best first."""

def selected_kernels() -> str: ...
def select_kernels(name: str) -> None:
    """One of available_kernels(), or "auto"; all give the same bytes. For tests and benchmarks."""

class BatchDecoder:
    """A pool of threads that fills batches in the background, in the order of submit().

    Not to be used across a fork: the child has none of the threads, and submit() says so.

    niceness: of the threads, 0 to 19 as nice(1) has it: they yield to threads of a smaller one.
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
        """Starts to fill ``out`` (B, H, W, 3) and returns a ticket for wait().

        ``data`` is one buffer with ``offsets`` and ``sizes`` into it, or a buffer an item.
        ``boxes`` (B, 4), ``flips`` (B,), ``kinds`` (B,) of KIND_*, ``shapes`` (B, 2): height and
        width of raw items. Everything is held until wait() returns or the decoder is closed.
        A mapped file must keep its length meanwhile: the system kills a process that reads behind
        the end of one (SIGBUS).
        """

    def wait(self, ticket: int, help: bool = False) -> list[tuple[int, str]]:
        """Blocks until the batch is full; the items that failed, their rows zeroed, and why.

        ``help``: decode on this thread too, instead of sleeping.
        """

    def close(self) -> None:
        """Ends the threads; what is left of the batches in flight fails. May be called twice."""

    def __enter__(self) -> BatchDecoder: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
