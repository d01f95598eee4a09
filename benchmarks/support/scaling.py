"""Estimate what many ranks cost a step, by formula and simulation from measured inputs.

All-reduce is a ring: 2 (n - 1) hops of bytes / n each, so 2 (n - 1) / n x bytes / bandwidth plus
2 (n - 1) latencies. Over several machines NCCL's rings use every GPU's own network card, so the
slowest link of the ring counts; NCCL's trees, which it uses where a ring's latency grows long,
would be faster. A step waits for its slowest rank; this is simulated from the spread of step times
measured here, on a shared CPU, where it is wider than on a GPU. The backward pass overlaps with all
of the all-reduce but its last bucket. The hosts agree twice a step, in a tree of 2 log2 n hops over
TCP, while their GPUs still work on queued steps. The start takes that of one process, one meeting
with rank 0 for each other rank, and a checkpoint that rank 0 hands down a tree of log2 n hops.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

RANKS = (8, 64, 512)
PARAMETERS = 25.08e6
# An entry's bytes: float32, as parameters are, or by runtime.bf16_gradients.
GRADIENTS = {"float32": 4, "bf16": 2}
_BUCKET = 25 * 2**20 / (4 * PARAMETERS)  # DDP's, as a share: what cannot overlap is the last one
_BACKWARD = 2 / 3  # of a step, during which gradients travel


class Link(NamedTuple):
    """A connection: all-reduce bandwidth of a GPU, and latency of a hop."""

    name: str
    gb_per_s: float
    latency_us: float


# NCCL's all-reduce bus bandwidth on H100 machines, in one and over 400 Gb/s a GPU; latencies from
# NCCL's own tuning tables, rounded up. From data sheets and reports: not measured by us.
INSIDE = Link("NVLink 4", 360.0, 3.0)
BETWEEN = Link("400 Gb/s InfiniBand", 42.0, 15.0)
_GPUS_A_MACHINE = 8
# Between hosts, over TCP: of a small message, and of a long one. Likewise not measured by us.
_HOST_HOP_S = 50e-6
_HOST_GB_PER_S = 1.25
_AGREEMENTS = 2
_CHECKPOINT = 8 * PARAMETERS  # weights and momentum


def all_reduce_s(ranks: int, size: float, link: Link) -> float:
    hops = 2 * (ranks - 1)
    return hops * (size / ranks / (link.gb_per_s * 1e9) + link.latency_us * 1e-6)


def estimate_ranks(measured: dict[str, Any]) -> dict[str, Any]:
    """Estimate the cost for each number of ranks.

    Args:
        measured: step_s of one GPU, relative step times (a list around 1), join_s per rank,
            start_s, copy_s of a checkpoint, save_every in steps.
    """
    return {
        "formula": " ".join((__doc__ or "").split("\n\n")[1].split()),
        "inputs": {
            "parameters": PARAMETERS,
            "gradient_bytes": {name: size * PARAMETERS for name, size in GRADIENTS.items()},
            "host_hop_s": _HOST_HOP_S,
            "host_gb_per_s": _HOST_GB_PER_S,
            "checkpoint_bytes": _CHECKPOINT,
            "links": [link._asdict() for link in (INSIDE, BETWEEN)],
            "bucket_share": round(_BUCKET, 4),
            **{k: v for k, v in measured.items() if k != "relative"},
            "relative_step_times": {
                f"p{p}": round(float(np.percentile(measured["relative"], p)), 3)
                for p in (1, 25, 50, 75, 99, 100)
            },
        },
        "ranks": [_row(ranks, measured) for ranks in RANKS],
    }


def _row(ranks: int, measured: dict[str, Any]) -> dict[str, Any]:
    link = INSIDE if ranks <= _GPUS_A_MACHINE else BETWEEN
    depth = math.ceil(math.log2(ranks))
    waiting = _waiting(ranks, measured["relative"]) * measured["step_s"]
    handed = depth * _CHECKPOINT / (_HOST_GB_PER_S * 1e9)
    return {
        "ranks": ranks,
        "link": link.name,
        "waiting_ms": round(waiting * 1e3, 3),
        "agreements_ms": round(_AGREEMENTS * 2 * depth * _HOST_HOP_S * 1e3, 3),
        "start_s": round(measured["start_s"] + ranks * measured["join_s"] + handed, 1),
        **{name: _exchange(ranks, link, size * PARAMETERS, measured)
           for name, size in GRADIENTS.items()},
    }  # fmt: skip


def _exchange(ranks: int, link: Link, size: float, measured: dict[str, Any]) -> dict[str, float]:
    """Estimate what gradients of `size` bytes cost a step of equally fast ranks."""
    whole = all_reduce_s(ranks, size, link)
    last = all_reduce_s(ranks, _BUCKET * size, link)
    step = measured["step_s"]
    # What of the rest does not fit beside the backward pass, and the last bucket.
    exposed = last + max(0.0, whole - last - _BACKWARD * step)
    total = step + exposed
    return {
        "all_reduce_ms": round(whole * 1e3, 3),
        "exposed_ms": round(exposed * 1e3, 3),
        "step_ms": round(total * 1e3, 3),
        "efficiency": round(step / total, 4),
        "checkpoint_share": round(measured["copy_s"] / (measured["save_every"] * total), 6),
    }


def _waiting(ranks: int, relative: list[float], steps: int = 2000, seed: int = 0) -> float:
    """Simulate how much longer than the mean step the slowest of `ranks` takes, in steps.

    Each rank's step is drawn from the measured ones.
    """
    draws = np.random.default_rng(seed).choice(np.asarray(relative), (steps, ranks))
    return float(draws.max(axis=1).mean() - np.mean(relative))
