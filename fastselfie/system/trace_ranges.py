"""The phases of a training step, named where they happen, so that every torch trace shows them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch.profiler import record_function

# waiting: for the next batch. forward: what of the objective is none of the phases inside it, and
# all of the network where it is compiled as one.
Phase = Literal[
    "waiting",
    "copy",
    "patchify",
    "forward",
    "P",
    "A",
    "scoring",
    "backward",
    "optimiser",
    "logging",
]
PHASES: tuple[Phase, ...] = get_args(Phase)


def trace_range(name: Phase) -> AbstractContextManager[object]:
    """Mark what runs inside. Microseconds where nobody profiles; nothing in compiled code."""
    return nullcontext() if torch.compiler.is_compiling() else record_function(name)
