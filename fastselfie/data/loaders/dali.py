"""NVIDIA DALI's decoder and resize, fed with our order and boxes. Imports nvidia.dali."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor
from torch import Tensor

from fastselfie.data.beton.reader import IMAGE_MODES
from fastselfie.data.dataset import BetonSource, FolderSource, Source
from fastselfie.data.draws import IntArray
from fastselfie.data.loaders.backend import Backend, BackendOptions
from fastselfie.data.loaders.batch import DecodedBatch, Index
from fastselfie.data.loaders.crops import boxes, wrong_size
from fastselfie.data.loaders.view import View
from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import JpegError, crop, read_header, transcode

_Bytes = npt.NDArray[np.uint8]

# DALI's default: batches that it decodes beside the one in use.
_AHEAD = 2


class _Encoded(NamedTuple):
    """A file for DALI's decoder and the size of its picture, or why there is none."""

    data: _Bytes
    width: int
    height: int
    failure: str | None = None


class _Item(NamedTuple):
    """A file for DALI's decoder, and the box of it that is shown: top, left; height, width."""

    data: _Bytes
    start: IntArray
    shape: IntArray


class _Prepared(NamedTuple):
    asked: Index
    items: list[_Item]
    failures: list[tuple[int, str]]


class DaliBackend(Backend):
    """Every draw is ours, so it resumes exactly.

    From a .beton file DALI gets the small JPEG that kernels.jpeg.crop cuts around each box; from
    an image folder the same of what `prepare` would store, as DALI refuses some sound files and
    takes some damaged ones. What is no JPEG that DALI decodes as Pillow does (raw
    pixels, PNG, CMYK) goes in as a PNM file. On a GPU the decoder is DALI's "mixed";
    small sets (crop: pad) have nothing to decode there and stay on the CPU. The tests run the CPU's
    decoder; that of a GPU ("mixed", its pixels, the copy on torch's stream) has not run yet.
    """

    def __init__(self, source: Source, views: Sequence[View], options: BackendOptions) -> None:
        super().__init__(source, views, options)
        self.threads = options.threads
        self.on_gpu = self.device.type == "cuda" and views[0].crop != "pad"

    def load(self, plan: Iterator[Index], views: Sequence[View]) -> Generator[DecodedBatch]:
        (view,) = views
        first = next(plan, None)
        if first is None:
            return
        most = len(first.samples)
        with closing(self._prepared(chain([first], plan), view)) as rest:
            again: deque[_Prepared] = deque()  # comes before the rest

            def advance() -> _Prepared:
                return again.popleft() if again else next(rest)

            pipeline = self._pipeline(most, view.size, advance)
            while True:
                try:
                    images = pipeline.next()
                except StopIteration:
                    return
                except RuntimeError as error:
                    # It names no image and cannot go on: find the images, and begin anew.
                    if not self._mark_failures(pipeline.fed, view.size):
                        raise error from None
                    again.extendleft(reversed(pipeline.fed))
                    pipeline = self._pipeline(most, view.size, advance)
                    continue
                yield self._pixels(images, pipeline.fed.popleft(), view)

    def _prepared(self, plan: Iterator[Index], view: View) -> Generator[_Prepared]:
        """Prepare batches in a thread: else it would take the time of the one that trains."""
        with ThreadPoolExecutor(self.threads) as pool, ThreadPoolExecutor(1) as preparer:
            ahead: deque[Future[_Prepared]] = deque()
            try:
                for index in plan:
                    ahead.append(preparer.submit(self._prepare, index, view, pool))
                    if len(ahead) > _AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                preparer.shutdown(cancel_futures=True)

    def _pixels(self, images: Tensor, batch: _Prepared, view: View) -> DecodedBatch:
        if self.on_gpu:
            labels = torch.from_numpy(self.source.labels[batch.asked.samples])
            return DecodedBatch([images], labels, batch.failures)
        return self.batch(batch.asked, [images.numpy()], [view], batch.failures)

    def _pipeline(self, most: int, size: int, advance: Callable[[], _Prepared]) -> _Pipeline:
        device = self.device if self.on_gpu else torch.device("cpu")
        return _Pipeline(advance, most, size, self.threads, device)

    def _prepare(self, index: Index, view: View, pool: Executor) -> _Prepared:
        encoded = list(pool.map(self._encoded, index.samples.tolist()))
        sizes = np.asarray([(e.width, e.height) for e in encoded], dtype=np.int64)
        wanted = boxes(view, 0, self.seed, index, sizes)
        items, failures = [], []
        for row, found in enumerate(pool.map(_cut, encoded, wanted)):
            name = self.source.name(int(index.samples[row]))
            if isinstance(found, str):
                failures.append((row, f"{name}: {found}"))
            elif wrong := wrong_size(view, sizes[row], name):
                failures.append((row, wrong))
            items.append(_NOTHING if isinstance(found, str) else found)
        return _Prepared(index, items, failures)

    def _encoded(self, sample: int) -> _Encoded:
        """The stored bytes where DALI decodes them as Pillow does, else the decoded pixels."""
        data = self._stored(sample)
        if data is not None and data[:2].tobytes() == b"\xff\xd8":
            try:
                if not isinstance(self.source, BetonSource):
                    data = np.frombuffer(transcode(data.data), dtype=np.uint8)
                header = read_header(data.data)
            except JpegError:
                pass  # CMYK, or broken: Pillow decodes it or says what is wrong
            else:
                if header.color in ("gray", "ycbcr"):
                    return self._checked(sample, _Encoded(data, header.width, header.height))
        try:
            return _pnm(np.asarray(self.source.image(sample)))
        except UserError as error:
            reason = str(error).removeprefix(f"{self.source.name(sample)}: ")
            return _Encoded(_NOTHING.data, 1, 1, reason)

    def _stored(self, sample: int) -> _Bytes | None:
        """The file's bytes; None where there is none, or none that can be read."""
        if isinstance(self.source, BetonSource):
            at = int(self.source.indices[sample])
            reader = self.source.reader
            return None if reader.mode[at] == IMAGE_MODES["raw"] else reader.image(at)
        if isinstance(self.source, FolderSource):
            try:
                return np.fromfile(self.source.paths[sample], dtype=np.uint8)
            except OSError:
                return None
        return None

    def _checked(self, sample: int, found: _Encoded) -> _Encoded:
        if not isinstance(self.source, BetonSource):
            return found
        at, reader = int(self.source.indices[sample]), self.source.reader
        table = int(reader.width[at]), int(reader.height[at])
        if table == (found.width, found.height):
            return found
        size = f"{found.width}x{found.height}"
        return found._replace(failure=f"its JPEG is {size}, the table says {table[0]}x{table[1]}")

    def _mark_failures(self, batches: Iterable[_Prepared], size: int) -> bool:
        """Put a stand-in for each item that DALI cannot decode; whether there was one."""
        found = False
        for batch in batches:
            for row in self._undecodable(batch, size, 0, len(batch.items)):
                name = self.source.name(int(batch.asked.samples[row]))
                batch.failures.append((row, f"{name}: DALI cannot decode it: mend or remove it"))
                batch.failures.sort()
                batch.items[row] = _NOTHING
                found = True
        return found

    def _undecodable(self, batch: _Prepared, size: int, start: int, end: int) -> list[int]:
        """Rows in [start, end) that DALI refuses, by halving: twice a batch's time for one."""
        part = batch._replace(items=batch.items[start:end])
        try:
            self._pipeline(end - start, size, iter([part]).__next__).next()
        except RuntimeError:
            if end - start == 1:
                return [start]
            middle = (start + end) // 2
            return self._undecodable(batch, size, start, middle) + self._undecodable(
                batch, size, middle, end
            )
        return []


class _Pipeline:
    """Decode, cut, antialiased bilinear resize. `fed` are the batches it took and has not returned.

    Its threads end with the last reference to it, also in the middle of a batch.
    """

    def __init__(
        self,
        advance: Callable[[], _Prepared],
        most: int,
        size: int,
        threads: int,
        device: torch.device,
    ) -> None:
        fed: deque[_Prepared] = deque()

        def take() -> tuple[list[_Bytes], list[IntArray], list[IntArray]]:
            batch = advance()  # its StopIteration is DALI's end too
            fed.append(batch)
            data, start, shape = zip(*batch.items, strict=True)
            return list(data), list(start), list(shape)

        # Neither closes over self: a circle would keep the threads until the next collection.
        self.fed = fed
        self._device = device
        on_gpu = device.type == "cuda"
        gpu = (device.index or 0) if on_gpu else None
        self._pipeline = Pipeline(most, threads, device_id=gpu, prefetch_queue_depth=_AHEAD)
        with self._pipeline:
            kinds = [types.UINT8, types.INT64, types.INT64]
            data, start, shape = fn.external_source(take, num_outputs=3, dtype=kinds, ndim=1)
            # As torchvision and Pillow: EXIF orientation is not applied.
            image = fn.decoders.image(
                data,
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # on a GPU too, as libjpeg-turbo does
            )
            # Cut first: fn.resize(roi_start=...) would let the filter see pixels outside the box.
            image = fn.slice(image, start, shape, axes=[0, 1])
            self._pipeline.set_outputs(fn.resize(image, size=(size, size)))
        self._pipeline.build()

    def next(self) -> Tensor:
        """(B, size, size, 3) uint8, of the first of `fed`, in memory of its own."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (images,) = self._pipeline.run(stream)
        tensor: Tensor = to_torch_tensor(images.as_tensor(), copy=True)
        return tensor


def _pnm(pixels: _Bytes) -> _Encoded:
    height, width = pixels.shape[:2]
    file = b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()
    return _Encoded(np.frombuffer(file, dtype=np.uint8), width, height)


def _cut(found: _Encoded, box: IntArray) -> _Item | str:
    """The item for DALI, or why there is none."""
    if found.failure is not None:
        return found.failure
    left, top, width, height = (int(v) for v in box)
    data = found.data
    if data[0] == 0xFF:
        try:
            small = crop(data.data, left, top, width, height)
        except JpegError as error:
            return str(error)
        if small is not None:
            data = np.frombuffer(small[0], dtype=np.uint8)
            left, top = small[1:]
    return _Item(data, np.asarray([top, left]), np.asarray([height, width]))


_NOTHING = _Item(
    _pnm(np.zeros((1, 1, 3), dtype=np.uint8)).data, np.asarray([0, 0]), np.asarray([1, 1])
)
