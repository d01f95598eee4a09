"""Stock FFCV over the same .beton file: its decoders, in our order. Imports ffcv: see INSTALL."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastselfie.data.dataset import Source
from fastselfie.data.loaders.backend import (
    Backend,
    BackendOptions,
    required_beton,
    required_one_file,
)
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import CENTER, wrong_size
from fastselfie.data.loaders.to_device import host_memory
from fastselfie.data.loaders.view import View
from fastselfie.errors import UserError

# Importing FFCV sets torch's number of threads, to 1.
_torch_threads = torch.get_num_threads()
import numba  # noqa: E402
from ffcv.fields.rgb_image import (  # noqa: E402
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader as StockLoader  # noqa: E402
from ffcv.loader import OrderOption  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402

torch.set_num_threads(_torch_threads)

_Ids = npt.NDArray[np.uint64]

# FFCV's default: batches that wait finished in its queue.
_AHEAD = 3
# Compiled code outlives its loader: numba's finalizer fails, with a traceback, on functions that
# the garbage collector found in a circle, as FFCV's are.
_compiled: list[Any] = []


class FfcvBackend(Backend):
    """FFCV as its users run it: RandomResizedCropRGBImageDecoder, CenterCropRGBImageDecoder.

    Order, labels, flips and masks are ours. Random resized crops are FFCV's own, drawn in compiled
    threads that the system seeds: neither a second run nor a resumed one repeats them. `crop: pad`
    is exact.

    FFCV drops its decoder's return code. A corrupt image gives no error whatever data.on_error
    says: its place in the batch shows what the memory held before, an earlier image or noise.
    `fastselfie prepare --check FILE` finds such images.
    """

    def __init__(self, source: Source, views: Sequence[View], options: BackendOptions) -> None:
        super().__init__(source, views, options)
        self._file = required_beton(source, "ffcv")
        self._reader = required_one_file(source, "ffcv")
        # numba refuses more threads than it counted cores.
        self.threads = min(options.threads, numba.config.NUMBA_NUM_THREADS)
        self.repeats = views[0].crop != "random_resized"
        self._stock: dict[View, Any] = {}

    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        (view,) = views
        first = next(plan, None)
        if first is None:
            return
        stream = self._open(len(first.samples), view)
        waiting: deque[Index] = deque()

        def finished() -> DecodedBatch:
            # A copy, because FFCV decodes a later batch into the same memory. The only one on the
            # host: a GPU reads it from there.
            pixels = next(stream)
            images = host_memory(pixels.shape, self.device)
            np.copyto(images, pixels)
            return self.batch(waiting.popleft(), [images], [view])

        try:
            for index in chain([first], plan):
                stream.feed(self._file.indices[index.samples].astype(np.uint64))
                waiting.append(index)
                if len(waiting) > _AHEAD + 1:  # its queue, and the one it works at
                    yield finished()
            while waiting:
                yield finished()
        finally:
            stream.stop()

    def _open(self, batch_size: int, view: View) -> _Stream:
        threads = torch.get_num_threads()
        if view not in self._stock:  # compiling takes seconds
            self._stock[view] = self._stock_loader(view)
        self._stock[view].batch_size = batch_size  # sizes what the stream allocates
        stream = _Stream(self._stock[view])
        # FFCV sets torch's threads to its own, here and in the thread just started.
        stream.begun.wait()
        torch.set_num_threads(threads)
        return stream

    def _stock_loader(self, view: View) -> Any:
        reader = self._reader
        pipelines: dict[str, list[Any] | None] = dict.fromkeys(reader.field_names)
        pipelines[reader.image_field] = [self._decoder(view)]
        loader = StockLoader(
            str(reader.path),
            batch_size=1,
            num_workers=self.threads,
            order=OrderOption.SEQUENTIAL,
            seed=0,  # else it takes one from numpy's global generator
            pipelines=pipelines,
            batches_ahead=_AHEAD,
        )
        _compiled.append(loader.code)
        return loader

    def _decoder(self, view: View) -> Any:
        reader, size = self._reader, (view.size, view.size)
        if view.crop == "random_resized":
            return RandomResizedCropRGBImageDecoder(size, scale=view.area, ratio=view.ratio)
        if view.crop == "center":
            return CenterCropRGBImageDecoder(size, ratio=CENTER)
        if np.all(reader.width == view.size) and np.all(reader.height == view.size):
            return SimpleRGBImageDecoder()
        if view.crop == "none":
            other = int(np.argmax((reader.width != view.size) | (reader.height != view.size)))
            found = (int(reader.width[other]), int(reader.height[other]))
            raise UserError(wrong_size(view, found, f"{reader.path}: image {other}"))
        return CenterCropRGBImageDecoder(size, ratio=1.0)


class _Stream(EpochIterator):  # type: ignore[misc]
    """FFCV's epoch, a thread, fed batch by batch: ours never ends, and neither does its memory.

    It hands out the batches in order, each valid until the fifth after it.
    """

    def __init__(self, loader: Any) -> None:
        self.begun = threading.Event()
        self._fed: queue.SimpleQueue[_Ids | None] = queue.SimpleQueue()
        self._fault: BaseException | None = None
        super().__init__(loader, order=())

    def feed(self, ids: _Ids) -> None:
        self._fed.put(ids)

    def start(self) -> None:
        self.iter_ixes = self._batches()
        super().start()

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            # FFCV's thread would just end, and its reader wait for ever.
            self._fault = error
            self.output_queue.put(None)
        finally:
            self.begun.set()

    def __next__(self) -> npt.NDArray[np.uint8]:
        try:
            (images,) = super().__next__()
        except StopIteration:
            raise RuntimeError("FFCV's thread ended") from self._fault
        array: npt.NDArray[np.uint8] = images
        return array

    def stop(self) -> None:
        """End the thread, also in the middle of a batch, and wait for it."""
        self.close()
        self._fed.put(None)
        while self.is_alive():
            # It may wait to hand over a batch; FFCV itself would look up each 0.5 s.
            while not self.output_queue.empty():
                self.output_queue.get_nowait()
            self.join(0.005)

    def _batches(self) -> Iterator[_Ids]:
        self.begun.set()
        while (ids := self._fed.get()) is not None and not self.terminate_event.is_set():
            yield ids
