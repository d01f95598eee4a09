"""Finds what makes the host wait for a GPU, or lets two streams race, among fake CUDA tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIES = ("_to_copy", "copy_", "_foreach_copy_")
# They bring a value, or a size that depends on values, to the host.
_READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
          "repeat_interleave")  # fmt: skip


class HostWaits(Exception):
    """The host would wait for the GPU."""


class Race(Exception):
    """A stream would use memory that another still writes, or frees too early."""


class Stream:
    """A CUDA stream: an order of work on the GPU."""

    def __init__(self, _device: object = None) -> None:
        self.waited_for: dict[Stream, int] = {}

    def wait_stream(self, other: Stream) -> None:
        self.waited_for[other] = Waits.clock

    def synchronize(self) -> None:
        raise HostWaits("Stream.synchronize")


class Waits(TorchDispatchMode):
    """Checks each operation while `watching`.

    * Nothing reads a value on the GPU.
    * A copy between host and GPU does not block, and its side on the host is pinned memory.
    * No other operation mixes devices, except for numbers, tensors without dimensions.
    * What a stream uses of another was waited for, and its memory is kept for that stream.
    """

    clock = 0  # operations so far

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.main = Stream()
        self.stream = self.main
        self.pinned: dict[int, Tensor] = {}  # kept, so that no address is used again
        self._others: dict[int, tuple[Any, Stream, int]] = {}  # storages that side streams made
        self._recorded: set[tuple[int, Stream]] = set()
        self.pinned_late = 0  # bytes that `pin_memory` copied
        self.copies = 0  # from pinned memory to the GPU, while watching
        self.operations: Counter[str] = Counter()  # by name, while watching

    @contextmanager
    def forbidden(self) -> Iterator[None]:
        """Raise HostWaits or Race inside, where an operation deserves it."""
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    @contextmanager
    def in_stream(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def record(self, tensor: Tensor, stream: Stream) -> None:
        self._recorded.add((_storage(tensor), stream))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        Waits.clock += 1
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.watching:
            self.operations[name] += 1
            self._check(name, inputs, args, kwargs)
        result = func(*args, **kwargs)
        if self.stream is not self.main:
            for made in tree_leaves(result):
                if isinstance(made, Tensor) and made.is_cuda and not func.is_view:
                    entry = (made.untyped_storage(), self.stream, Waits.clock)
                    self._others[_storage(made)] = entry
        return result

    def _check(self, name: str, inputs: list[Tensor], args: Any, kwargs: Any) -> None:
        on_gpu = [tensor for tensor in inputs if tensor.is_cuda]
        for tensor in on_gpu:
            self._check_stream(name, tensor)
        if name in _READS and on_gpu:
            raise HostWaits(f"{name} of {_text(on_gpu[0])}")
        if name in _COPIES:
            to = torch.device(kwargs.get("device") or inputs[0].device)
            sources = inputs[:1] if name == "_to_copy" else inputs[len(inputs) // 2 :]
            blocks = not (kwargs.get("non_blocking") or (name != "_to_copy" and True in args[2:]))
            for source in sources:
                self._check_copy(source, to, blocks)
        elif on_gpu and any(not t.is_cuda and t.dim() > 0 for t in inputs):
            raise HostWaits(f"{name} mixes devices: {', '.join(map(_text, inputs))}")

    def _check_copy(self, source: Tensor, to: torch.device, blocks: bool) -> None:
        if source.device.type == to.type or source.numel() == 0:
            return
        if to.type == "cpu":
            raise HostWaits(f"a copy of {_text(source)} to the host")
        if blocks or not self.is_pinned(source):
            kind = "blocking copy" if blocks else "copy from memory that is not pinned"
            raise HostWaits(f"a {kind} of {_text(source)} to the GPU")
        self.copies += 1

    def _check_stream(self, name: str, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key not in self._others:
            return
        _, stream, made = self._others[key]
        if stream is self.stream:
            return
        if self.stream.waited_for.get(stream, -1) < made:
            raise Race(f"{name} uses {_text(tensor)}, for which its stream did not wait")
        if (key, self.stream) not in self._recorded:
            raise Race(f"{name} uses {_text(tensor)}, whose memory is not kept for its stream")

    def pin(self, tensor: Tensor) -> Tensor:
        """Say that the memory of a tensor, which has values, is pinned."""
        self.pinned[tensor.data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor of the host, with values, is in pinned memory."""
        return type(tensor) is Tensor and tensor.data_ptr() in self.pinned


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _text(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
