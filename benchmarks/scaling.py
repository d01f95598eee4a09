"""On paper and by simulation: what many ranks cost a step, by formula and measured inputs.

All-reduce: a ring, 2 (n - 1) hops of bytes / n each, so 2 (n - 1) / n x bytes / bandwidth plus
2 (n - 1) latencies; over several machines NCCL's rings use every GPU's own network card, so the
slowest link of the ring counts. A step waits for its slowest rank: simulated from the spread of
step times measured here, on a shared CPU, which is wider than that of a GPU. Backward overlaps with
all of the all-reduce but its last bucket.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

RANKS = (8, 64, 512)
PARAMETERS = 25.08e6
BYTES = 4 * PARAMETERS  # gradients are float32, as parameters are
_BUCKET = 25 * 2**20  # DDP's default: what cannot overlap is the last
_BACKWARD = 2 / 3  # of a step, during which gradients travel


class Link(NamedTuple):
    """gb_per_s: of a GPU, as all-reduce benchmarks report it. latency_us: a hop's."""

    name: str
    gb_per_s: float
    latency_us: float


# NCCL's all-reduce bus bandwidth on H100 machines, in one and over 400 Gb/s a GPU; latencies from
# NCCL's own tuning tables, rounded up. From data sheets and reports: not measured by us.
INSIDE = Link("NVLink 4", 360.0, 3.0)
BETWEEN = Link("400 Gb/s InfiniBand", 42.0, 15.0)
_GPUS_A_MACHINE = 8


def all_reduce_s(ranks: int, size: float, link: Link) -> float:
    hops = 2 * (ranks - 1)
    return hops * (size / ranks / (link.gb_per_s * 1e9) + link.latency_us * 1e-6)


def on_paper(measured: dict[str, Any]) -> dict[str, Any]:
    """measured: step_s of one GPU, relative step times (a list around 1), join_s a rank, start_s,
    copy_s and save_s of a checkpoint, save_every in steps."""
    return {
        "formula": " ".join((__doc__ or "").split("\n\n")[1].split()),
        "inputs": {
            "parameters": PARAMETERS,
            "gradient_bytes": BYTES,
            "links": [link._asdict() for link in (INSIDE, BETWEEN)],
            "bucket_bytes": _BUCKET,
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
    whole = all_reduce_s(ranks, BYTES, link)
    last = all_reduce_s(ranks, min(_BUCKET, BYTES), link)
    step = measured["step_s"]
    # What of the rest does not fit beside the backward pass, and the last bucket.
    exposed = last + max(0.0, whole - last - _BACKWARD * step)
    waiting = _waiting(ranks, measured["relative"]) * step
    total = step + exposed + waiting
    return {
        "ranks": ranks,
        "link": link.name,
        "all_reduce_ms": round(whole * 1e3, 3),
        "exposed_ms": round(exposed * 1e3, 3),
        "waiting_ms": round(waiting * 1e3, 3),
        "step_ms": round(total * 1e3, 3),
        "efficiency": round(step / total, 4),
        "start_s": round(measured["start_s"] + ranks * measured["join_s"], 1),
        "checkpoint_share": round(measured["copy_s"] / (measured["save_every"] * total), 6),
    }


def _waiting(ranks: int, relative: list[float], steps: int = 2000, seed: int = 0) -> float:
    """How much longer than the mean step the slowest of `ranks` takes, in steps: simulated.

    Each rank's step is drawn from the measured ones; all wait for the slowest.
    """
    draws = np.random.default_rng(seed).choice(np.asarray(relative), (steps, ranks))
    return float(draws.max(axis=1).mean() - np.mean(relative))
