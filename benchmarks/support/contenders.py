"""The loaders that throughput.py compares, each an endless stream of (images, labels).

Peers run with their own decoders and default settings. A small dataset is listed many times over,
so that no round contains the end of an epoch. All give (B, size, size, 3) uint8. `resident` and
`ffcv-raw` pad by 4, crop and flip. The others do not flip, and crop as torchvision does: area
0.08-1, ratio 3/4-4/3; for evaluation Resize(size * 256 / 224) and CenterCrop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from support import our_loaders, peer_loaders, torch_loaders

Stream = Generator[tuple[Any, Any], None, None]

_READY = 8  # batches: more than any of the loaders keeps ready (FFCV 5, torch 2 a worker, DALI 2)


@dataclass(frozen=True)
class Spec:
    """What one worker process loads.

    Args:
        loader: Key of CONTENDERS.
        data: .beton file.
        folder: Folder with DIR/CLASS/*.jpg, for loaders that read files.
        size: Side of the output in pixels.
        train: Whether crops are random.
        batch: Images per batch.
        threads: Threads or worker processes.
        epoch: A smaller dataset is repeated until it has this many images.
    """

    loader: str
    data: str
    folder: str
    size: int
    train: bool
    batch: int
    threads: int
    epoch: int = 100_000  # more than a loader gives in all rounds

    @property
    def name(self) -> str:
        return self.loader

    @property
    def ready(self) -> int:
        return _READY

    def stream(self) -> Stream:
        return CONTENDERS[self.loader].stream(self)

    def images(self, batch: tuple[Any, Any]) -> int:
        """Return the number of images. Raise TypeError if they are not uint8 of `size`."""
        images, shape = batch[0], (self.size, self.size, 3)
        if tuple(images.shape[1:]) != shape or "uint8" not in str(images.dtype):
            raise TypeError(f"gives {images.dtype} of {tuple(images.shape)}, not uint8 of {shape}")
        return len(images)

    def repeats(self, count: int) -> int:
        """Return how often a dataset of `count` images is listed."""
        return -(-self.epoch // count)


@dataclass(frozen=True)
class Contender:
    """A loader: its stream, the field of Spec that it reads, the package that it needs."""

    stream: Callable[[Spec], Stream]
    reads: str
    package: str = "torch"


CONTENDERS = {
    "native": Contender(our_loaders.native, "data"),
    "decoder": Contender(our_loaders.decoder, "data"),
    "ffcv": Contender(peer_loaders.ffcv, "data", "ffcv"),
    "ffcv-shared": Contender(peer_loaders.ffcv, "data", "ffcv"),  # FFCV on the same file as native
    "dali-cpu": Contender(peer_loaders.dali, "folder", "nvidia.dali"),
    "folder": Contender(torch_loaders.folder, "folder"),
    "simplejpeg": Contender(torch_loaders.simplejpeg, "folder", "simplejpeg"),
    "torchvision": Contender(torch_loaders.torchvision, "folder", "torchvision"),
    "spdl": Contender(peer_loaders.spdl, "folder", "spdl"),
    "webdataset": Contender(torch_loaders.webdataset, "folder", "webdataset"),
    "resident": Contender(our_loaders.resident, "data"),
    "ffcv-raw": Contender(peer_loaders.ffcv_raw, "data", "ffcv"),
}
