"""Named phases of a training step, which appear in torch traces."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch.profiler import record_function

# waiting: for the next batch. forward: the rest of the objective beside the phases inside it, and
# the whole network if it is compiled.
Phase = Literal[
    "waiting", "copy", "patchify", "forward", "P", "A", "scoring", "backward", "optimiser",
    "logging",
]  # fmt: skip
PHASES: tuple[Phase, ...] = get_args(Phase)


def trace_range(name: Phase) -> AbstractContextManager[object]:
    """Mark the block as `name`. Costs microseconds without a profiler; no-op in compiled code."""
    return nullcontext() if torch.compiler.is_compiling() else record_function(name)
