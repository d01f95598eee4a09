"""Count the bytes that eager torch and our Triton programs move in a training step.

Each kernel reads its inputs once and writes its outputs once. What a kernel must read twice counts
twice: batch norm's input in the forward pass, and its input and gradient in the backward pass,
because the statistics need all of them. A convolution's backward pass is two kernels that read the
incoming gradient. A Triton program counts with the tensors that it is given. What it loads
repeatedly, such as vectors and tables, is small and comes from a cache.
"""

from __future__ import annotations

import importlib
import weakref
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import KernelInterface

from support.traffic import size_of
from support.traffic_groups import (
    ATTENTION,
    CASTS,
    CONVOLUTIONS,
    INPUT,
    NORMS,
    OPTIMIZER,
    POOL,
    READ_AGAIN,
    SCORE,
)

_PHASES = {"patchify": INPUT, "P": NORMS, "A": ATTENTION, "scoring": SCORE}
# They do not read the tensor that they fill, or that they take the shape from.
_FILL = ("copy_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "new_zeros",
         "new_ones", "new_full", "_foreach_copy_", "_foreach_zero_")  # fmt: skip
_PROGRAMS = [
    (module, name)
    for module in (
        importlib.import_module(f"fastselfie.kernels.{name}_triton")
        for name in (
            "patchify",
            "norm_relu",
            "max_pool",
            "pointwise",
            "distractor_score",
            "query_score",
            "fused_loss",
        )
    )
    for name, value in vars(module).items()
    if isinstance(value, KernelInterface)
]


class EagerTraffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of torch's operations and of the Triton programs that are launched.

    Args:
        shapes: Of the parameters: a conversion of such a tensor is a cast.

    Attributes:
        bytes: By direction and group.
        direction: What the next operations belong to.
        group: The same; None: found from the operation and the phase of the step.
        programs: Bytes of each of our Triton programs, by name.
        live: Bytes of the tensors that were made and not freed, and `peak`, their maximum.
    """

    def __init__(self, shapes: set[tuple[int, ...]] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes = shapes
        self.bytes: dict[str, Counter[str]] = {}
        self.programs: Counter[str] = Counter()
        self.direction = "forward"
        self.group: str | None = None
        self.live = self.peak = 0
        self._phases: list[tuple[int, str]] = []  # autograd's number of the first node, its group
        self._patches = ExitStack()

    @property
    def total(self) -> int:
        return sum(counter.total() for counter in self.bytes.values())

    def __enter__(self) -> EagerTraffic:
        for module, name in _PROGRAMS:
            self._patches.enter_context(mock.patch.object(module, name, _Program(self, name)))
        phases = mock.patch("fastselfie.models.selfie.trace_range", self.phase)
        self._patches.enter_context(phases)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()

    @contextmanager
    def grouped(self, group: str) -> Iterator[None]:
        """Count everything inside for `group`."""
        self.group = group
        yield
        self.group = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Stand in for `trace_range`: what is inside, and its backward pass, belongs to a group."""
        before = self._phases[-1][1] if self._phases else OPTIMIZER
        self._begin(_PHASES.get(name, before))
        yield
        self._begin(before)

    def _begin(self, group: str) -> None:
        self._phases.append((torch.autograd._get_sequence_nr(), group))  # type: ignore[attr-defined]

    def add(self, group: str, *tensors: object) -> None:
        """Count tensors that are read or written once."""
        counter = self.bytes.setdefault(self.direction, Counter())
        counter[self.group or group] += sum(map(size_of, tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        memory = {t.untyped_storage()._cdata for t in given}
        made = [
            t for t in tree_leaves(out)
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in memory
        ]  # fmt: skip
        for tensor in made:
            self._track(tensor)
        name = func.overloadpacket.__name__
        written = _written(func, args, kwargs)
        if name.startswith(("empty", "new_empty")) or not (made or written):
            return out
        group = self._group(name, made, written)
        if name in _FILL:
            filled = {id(t) for t in (written or given[:1])}
            given = [t for t in given if id(t) not in filled]
        self.add(group, *{id(t): t for t in given}.values(), *made, *written)
        if "batch_norm" in name:
            self.add(group, *(args[:2] if "backward" in name else args[:1]))
        if name == "convolution_backward":
            self.add(READ_AGAIN, args[0])
        return out

    def _group(self, name: str, made: list[Tensor], written: list[Tensor]) -> str:
        if "convolution" in name:
            return CONVOLUTIONS
        if "max_pool" in name:
            return POOL
        if name == "_to_copy" and tuple(made[0].shape) in self.shapes:
            return CASTS
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if self.direction == "backward":
            node = torch._C._current_autograd_node()
            if (made or written)[0].dim() == 4 or node is None:
                return NORMS  # sums of gradients in front of a fork: autograd's own
            number = node._sequence_nr()
        at = bisect(self._phases, number, key=lambda phase: phase[0])
        return self._phases[max(0, at - 1)][1] if self._phases else OPTIMIZER

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments that an operation changes."""
    values = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    changed = [
        values.get(a.name)
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return [t for t in tree_leaves(changed) if isinstance(t, Tensor)]


class _Program:
    """A Triton program that computes nothing and is counted."""

    def __init__(self, traffic: EagerTraffic, name: str) -> None:
        self.traffic, self.name = traffic, name

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: Any, **_: Any) -> None:
        self.traffic.add(OPTIMIZER, *arguments)
        self.traffic.programs[self.name] += sum(map(size_of, arguments))
