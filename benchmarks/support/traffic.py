"""Count the bytes that a computation moves, from the running program and not from a formula.

TRITON_INTERPRET=1 python -m support.traffic    # in benchmarks/: JSON, one object per SHAPES

A Triton program is counted in its interpreter, load by load and store by store. Plain torch is
counted by the operations that it dispatches: each reads its inputs and writes its outputs once.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastselfie.kernels.distractor_score import distractor_score
from fastselfie.kernels.impl import Impl
from fastselfie.kernels.query_score import query_score


class TritonTraffic:
    """Bytes of all loads and stores (`total`), and of all addresses, each once (`distinct`).

    `by_size` has those of `total` for each size of an element, in bytes.
    """

    def __init__(self) -> None:
        self.by_size: Counter[int] = Counter()
        self._addresses: dict[int, list[Any]] = {}

    @property
    def total(self) -> int:
        return self.by_size.total()

    @property
    def distinct(self) -> int:
        # Elements are aligned, and no buffer is read in two widths.
        return sum(
            size * len(np.unique(np.concatenate(found))) for size, found in self._addresses.items()
        )

    def add(self, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].ravel()
        self.by_size[size] += size * addresses.size
        self._addresses.setdefault(size, []).append(addresses)


@contextmanager
def triton_traffic() -> Iterator[TritonTraffic]:
    """Count what Triton programs load and store inside. Needs TRITON_INTERPRET=1."""
    from triton.runtime.interpreter import InterpreterBuilder

    traffic = TritonTraffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        traffic.add(pointers, mask)
        return load(self, pointers, mask, *rest, **named)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.add(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counted_store),
    ):
        yield traffic


class TorchTraffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the inputs and outputs of all torch operations that are not views (`total`).

    An expanded tensor counts with the memory that it has. Our own operations are Triton programs,
    which `triton_traffic` counts.

    Args:
        only: Name of the one operation to count.
    """

    def __init__(self, only: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.only = only
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        uncounted = ("aten::empty", "fastselfie::")
        counted = name == self.only if self.only else not name.startswith(uncounted)
        if counted and not func.is_view:
            self.total += sum(map(size_of, tree_leaves((args, kwargs, out))))
        return out


def size_of(leaf: object) -> int:
    """Return the bytes of a tensor, or of the memory that it has if it is expanded; else 0."""
    if not isinstance(leaf, Tensor):
        return 0
    return min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())


# --- the fused losses -------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of one call, in the types that training has in bfloat16.

    Attributes:
        name: For people.
        b: Images; m: masked locations; d: width.
        grid: Locations along a side; None: `query_score`, whose queries are given.
        row_column: Whether a location has two vectors.
    """

    name: str
    b: int
    m: int
    d: int
    grid: int | None
    row_column: bool = False


# The batch fills the programs (64 images of M = 4, 16 of M = 12): the bytes per image are
# final. The partial gradients of the position tables alone still shrink with the batch.
SHAPES = (
    Shape("224: M 12, rows + columns", 64, 12, 1024, 7, True),
    Shape("32: M 4, learned", 64, 4, 1024, 4),
    Shape("224: M 12, pooled", 16, 12, 1024, None),
    Shape("32: M 4, pooled", 64, 4, 1024, None),
)


def inputs(shape: Shape, device: str = "cpu") -> dict[str, Any]:
    """Return the tensors of a call by their names. All but the locations require gradients.

    u and h are bfloat16 and positions float32. A query v is float32, because autocast's layer norm
    leaves it so; u is an image's only one and matters little.
    """
    draws = torch.Generator().manual_seed(0)
    b, m, d, grid = shape.b, shape.m, shape.d, shape.grid

    def leaf(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(sizes, generator=draws).to(device, dtype).requires_grad_()

    if grid is None:
        return {"v": leaf(b, m, d), "h": leaf(b, m, d, dtype=torch.bfloat16)}
    u, h = leaf(b, d, dtype=torch.bfloat16), leaf(b, m, d, dtype=torch.bfloat16)
    positions = (leaf(grid, d), leaf(grid, d)) if shape.row_column else leaf(grid * grid, d)
    locations = torch.rand(b, grid * grid, generator=draws).argsort(1)[:, :m].to(device)
    return {"u": u, "h": h, "positions": positions, "locations": locations}


def loss_of(shape: Shape, tensors: dict[str, Any], impl: Impl) -> Tensor:
    """Compute the loss of `inputs`."""
    operation: Any = query_score if shape.grid is None else distractor_score
    loss: Tensor = operation(**tensors, scale=shape.d**-0.5, impl=impl)[0]
    return loss


def launch(shape: Shape, tensors: dict[str, Any], stored: float) -> None:
    """Launch the Triton program on `inputs`, and add up its partial results."""
    scale = shape.d**-0.5
    if shape.grid is None:
        from fastselfie.kernels import query_score_triton

        query_score_triton.score(tensors["v"], tensors["h"], scale, stored, True)
    else:
        from fastselfie.kernels import distractor_score_triton

        positions = tensors["positions"]
        rows, columns = (positions, None) if isinstance(positions, Tensor) else positions
        u, h, locations = tensors["u"], tensors["h"], tensors["locations"]
        distractor_score_triton.score(u, h, rows, columns, locations, scale, stored, True)


def model_bytes(shape: Shape) -> int:
    """Return the least bytes: read u or v, and h; write their gradients. Without the tables."""
    if shape.grid is None:
        return 2 * (4 + 2) * shape.b * shape.m * shape.d
    return 2 * 2 * shape.b * (shape.m + 1) * shape.d


def measured(shape: Shape) -> dict[str, Any]:
    """Count the bytes of the Triton program and of the reference, forward and backward.

    Returns:
        Among others "sums": what torch moves to add the partial results of the programs.
        "scaling": what the backward pass moves if the incoming gradient is not 1. "unit_scaling":
        the same if it is 1, as in a step of one micro-batch in bfloat16.
    """
    # The interpreter copies every argument: only the sums are the operation's own.
    tensors = inputs(shape)
    with torch.no_grad(), triton_traffic() as launched, TorchTraffic("aten::sum") as sums:
        launch(shape, tensors, 1.0)
    unscaled, scaling = (_backward_bytes(shape, incoming) for incoming in (1.0, 0.5))
    with TorchTraffic() as plain:
        loss_of(shape, tensors, "reference").backward()  # type: ignore[no-untyped-call]
    least = model_bytes(shape)
    found = {
        "distinct": launched.distinct,
        "launch": launched.total,
        "sums": sums.total,
        "unit_scaling": unscaled,
        "scaling": scaling,
        "reference": plain.total,
    }
    return {
        "shape": asdict(shape),
        "model_bytes": least,
        "bytes": found,
        "times_model": {name: round(count / least, 4) for name, count in found.items()},
    }


def _backward_bytes(shape: Shape, incoming: float) -> int:
    """Count the bytes of the Triton backward pass, with those of autograd around it."""
    loss = loss_of(shape, inputs(shape), "triton")
    with triton_traffic() as programs, TorchTraffic() as around:
        loss.backward(torch.tensor(incoming))  # type: ignore[no-untyped-call]
    total: int = programs.total + around.total
    return total


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("error: TRITON_INTERPRET=1 is not set: bytes are counted by interpreting")
    print(json.dumps([measured(shape) for shape in SHAPES]))
