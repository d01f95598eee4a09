"""What a loader's backend must do: turn indices into pixels.

Which samples come when, and how each is cut and mirrored, is decided outside of it, from
counter-based draws. So all backends give the same pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastselfie.data import draws
from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.dataset import BetonSource, Source
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import shift
from fastselfie.data.loaders.failures import FailurePolicy, Failures
from fastselfie.data.loaders.view import View
from fastselfie.errors import UserError
from fastselfie.system.resources import usable_cores


@dataclass(frozen=True)
class BackendOptions:
    """What every backend is told.

    Attributes:
        seed: Of all random draws.
        device: Where the batches go.
        workers: Decoding threads or processes; None: one a core.
        mirror: Whether to mirror the images where that costs nothing. Else whoever takes the
            batch does it.
        failures: What to do about images that cannot be decoded.
    """

    seed: int
    device: torch.device
    workers: int | None
    mirror: bool
    failures: FailurePolicy

    @property
    def threads(self) -> int:
        """Threads that decode, at least one."""
        return decoder_count(self.workers)


class Backend(ABC):
    """Reads, decodes and cuts images.

    Args:
        source: The images.
        views: The augmented views that it will be asked for; a backend may prepare them.
        options: See `BackendOptions`.

    Attributes:
        repeats: Whether the same samples come with the same pixels again, as a resumed run needs.
        takes_several_views: Whether it makes several views of one read.
    """

    repeats = True
    takes_several_views = False

    def __init__(self, source: Source, views: Sequence[View], options: BackendOptions) -> None:
        self.source = source
        self.views = views
        self.options = options
        self.seed = options.seed
        self.device = options.device

    def batch(
        self,
        index: Index,
        images: Sequence[npt.NDArray[np.uint8]],
        views: Sequence[View],
        failures: Failures = (),
        flipped: bool = False,
    ) -> DecodedBatch:
        """Make a batch of decoded pixels: shift them as crop `pad` asks, and add the labels.

        Args:
            index: The samples.
            images: For each view (B, H, W, 3), which the batch keeps.
            views: The views.
            failures: Rows that could not be decoded, see `DecodedBatch`.
            flipped: Whether the images are mirrored already, see `DecodedBatch`.
        """
        for number, (view, pixels) in enumerate(zip(views, images, strict=True)):
            shift(pixels, view, number, self.seed, index)
        labels = torch.from_numpy(self.source.labels[index.samples])
        return DecodedBatch(list(map(torch.from_numpy, images)), labels, failures, flipped)

    @abstractmethod
    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        """Decode each index of `plan`, in order, in each of `views`.

        No index of a plan is longer than its first: a backend may size its buffers by that one.
        Closing the generator frees what it holds.
        """


def decoder_count(workers: int | None) -> int:
    """Threads that decode, at least one; None: one a core."""
    return max(1, usable_cores() if workers is None else workers)


def flips_of(view: View, number: int, seed: int, index: Index) -> npt.NDArray[np.bool_]:
    """Which images of view `number` are drawn to be mirrored, (B,) bool."""
    if view.flips:
        return draws.flips(seed, index.epochs, index.samples, number)
    return np.zeros(len(index.samples), dtype=np.bool_)


def required_beton(source: Source, backend: str) -> BetonSource:
    """`source`, which `backend` can only read from a .beton file.

    Raises:
        UserError: It is of another kind.
    """
    if isinstance(source, BetonSource):
        return source
    raise UserError(
        f"the {backend} loader reads .beton files alone: make one with `fastselfie prepare DIR "
        "--out FILE.beton` and pass it as the dataset"
    )


def required_one_file(source: Source, backend: str) -> BetonReader:
    """The one .beton file of `source`, for a `backend` that reads no set of files.

    Raises:
        UserError: It is of several files, or of another kind.
    """
    reader = required_beton(source, backend).reader
    if isinstance(reader, BetonReader):
        return reader
    raise UserError(
        f"the {backend} loader reads one .beton file, and the dataset has {len(reader.paths)}: use "
        "the native loader, or merge the shards of one dataset with `fastselfie join`"
    )
