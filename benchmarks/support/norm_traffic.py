"""Count how often batch norm with ReLU reads and writes its tensor, from the running program.

TRITON_INTERPRET=1 python -m support.norm_traffic    # in benchmarks/: JSON, one object per NORMS
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastselfie.kernels.impl import Impl
from fastselfie.kernels.norm_relu import add_norm_relu
from support.traffic import TorchTraffic, triton_traffic


@dataclass(frozen=True)
class Norm:
    """Sizes of one call of `norm_relu` in bfloat16, for an image of in224.

    Attributes:
        name: For people.
        channels: C.
        side: Height and width of a map.
        summed: Whether a shortcut is added.
    """

    name: str
    channels: int
    side: int
    summed: bool


NORMS = (
    Norm("stage 1, inside a block", 64, 8, False),
    Norm("stage 1, behind a block", 256, 8, True),
    Norm("stage 3, inside a block", 256, 2, False),
    Norm("stage 3, behind a block", 1024, 2, True),
)
_PATCHES = 49


def passes(norm: Norm) -> dict[str, Any]:
    """Count how often an activation is read or written, forward and backward.

    Returns:
        "forward" and "backward": passes of the Triton kernels over the tensor. "vectors": what they
        load and store in float32 besides, in passes; most of it is in a cache. "reference": passes
        of plain torch, where each operation reads its inputs and writes its outputs once. Batch
        norm reads three of them twice: x forward, x and its gradient backward.
    """
    draws = torch.Generator().manual_seed(0)
    shape = (_PATCHES, norm.channels, norm.side, norm.side)

    def leaf() -> Tensor:
        values = torch.randn(shape, generator=draws).to(torch.bfloat16)
        return values.contiguous(memory_format=torch.channels_last).requires_grad_()

    x, shortcut, *gradients = (leaf() for _ in range(4))
    size, module = x.nbytes, torch.nn.BatchNorm2d(norm.channels)
    others = [*module.parameters(), *([shortcut] if norm.summed else [])]
    found: dict[str, float] = {}
    impls: tuple[Impl, ...] = ("triton", "reference")
    for impl in impls:
        overwritten = x * 1
        with triton_traffic() as programs, TorchTraffic() as plain:
            given = shortcut if norm.summed else None
            total, y = add_norm_relu(module, overwritten, given, impl)
        results = [y, total] if norm.summed else [y]
        with triton_traffic() as backward, TorchTraffic() as plain_backward:
            incoming = [g.detach() for g in gradients[: len(results)]]
            torch.autograd.grad(results, [overwritten, *others], incoming)
        if impl == "triton":
            found["forward"] = programs.by_size[2] / size
            found["backward"] = backward.by_size[2] / size
            found["vectors"] = (programs.by_size[4] + backward.by_size[4]) / size
        else:
            found["reference"] = (plain.total + plain_backward.total) / size
    return {"norm": asdict(norm), "passes": {k: round(v, 3) for k, v in found.items()}}


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("error: TRITON_INTERPRET=1 is not set: bytes are counted by interpreting")
    print(json.dumps([passes(norm) for norm in NORMS]))
