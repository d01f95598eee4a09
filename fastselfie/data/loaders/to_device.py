"""Copies batches to the GPU, each while the one before it is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastselfie.data.loaders.batch import Batch
from fastselfie.system.trace_ranges import trace_range


def host_memory(shape: tuple[int, ...], device: torch.device) -> npt.NDArray[np.uint8]:
    """Return memory of the host for pixels that `to_device` will copy: pinned for a GPU."""
    pinned = device.type == "cuda"
    pixels: npt.NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
    return pixels


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a GPU without waiting; on a CPU, the tensor itself."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        with trace_range("copy"):
            # Does nothing to what a backend has put into pinned memory already.
            return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def prefetched(batches: Iterator[Batch], device: torch.device) -> Generator[Batch]:
    """Make each batch on a CUDA stream of its own; on a CPU, the batches as they are.

    The host runs ahead of the step, so a batch travels while the one before it trains.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    while True:
        with torch.cuda.stream(stream):
            batch = next(batches, None)
        if batch is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (*batch.views, batch.labels, *batch.flips):
            tensor.record_stream(current)  # its memory stays until the step is done with it
        yield batch
