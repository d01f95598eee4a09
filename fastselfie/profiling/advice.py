"""Advice from measured rates: which part is the bottleneck, and what would help."""

from __future__ import annotations

import math
from dataclasses import dataclass

# End-to-end rate, as a share of the slower part alone. Below the first, loader and step slow each
# other down; above the second, other programs disturbed the measurement.
_SLOWED_DOWN, _IMPOSSIBLE = 0.9, 1.15


@dataclass(frozen=True)
class Facts:
    """What advice is based on.

    Attributes:
        loader: Name of the loader.
        loader_rate: Images per second of the loader alone.
        step_rate: Images per second of the step alone.
        e2e_rate: Images per second of both together.
        threads: Decoding threads; 0 if nothing is decoded.
        cores: Cores that this process may use.
        device: "cpu" or "cuda".
        compiled: Whether the step is compiled.
        image_size: Side of the network's input, in pixels.
        long_side: Mean long side of the stored JPEGs, in pixels; None if unknown or not JPEGs.
        phase: Longest phase of the step.
        phase_share: Its share of the step.
        planned: Whether the report has an estimate for another machine.
    """

    loader: str
    loader_rate: float
    step_rate: float
    e2e_rate: float
    threads: int
    cores: int
    device: str
    compiled: bool
    image_size: int
    long_side: float | None
    phase: str
    phase_share: float
    planned: bool


def advise(facts: Facts) -> list[str]:
    """Return sentences of advice; the first names the bottleneck."""
    loader_is_slower = facts.loader_rate < facts.step_rate
    lines = _on_loader(facts) if loader_is_slower else _on_step(facts)
    slower = min(facts.loader_rate, facts.step_rate)
    if facts.e2e_rate < _SLOWED_DOWN * slower:
        why = "look at copy, logging and gaps in the trace"
        if facts.device == "cpu":
            why = f"they share {facts.cores} cores"
        lines.append(
            f"loader and step together reach {facts.e2e_rate / slower:.0%} of the slower one: {why}"
        )
    if facts.e2e_rate > _IMPOSSIBLE * slower:
        lines.append(
            "loader and step together were faster than the slower one alone: other programs used "
            "this machine, so profile again when it is idle"
        )
    if facts.loader == "synthetic":
        lines.append("data.loader is synthetic: its rate says nothing about real images")
    return lines


def _on_loader(facts: Facts) -> list[str]:
    behind = facts.step_rate / facts.loader_rate
    first = f"the loader is the bottleneck: the step alone is {_times(behind)} as fast"
    if not facts.threads:
        return [f"{first}; it decodes nothing, so more cores do not help: a larger model would "
                "cost little here"]  # fmt: skip
    more = _threads_needed(facts) - facts.threads
    ways = [f"about {more} more core{'s' * (more > 1)} (data.workers={facts.threads + more})"]
    if facts.long_side is not None:
        # The cost of decoding is about proportional to the number of pixels.
        side = int(facts.long_side / math.sqrt(behind)) // 10 * 10
        if side > facts.image_size:
            ways.append(f"about max_side {side} (fastselfie prepare --max-side, now "
                        f"{facts.long_side:.0f} on average)")  # fmt: skip
    lines = [f"{first}: {', or '.join(ways)} would keep up"]
    if facts.device != "cpu" and facts.threads < facts.cores:
        lines.append(
            f"this process may use {facts.cores} cores, but only {facts.threads} decode: raise "
            "data.workers first"
        )
    if facts.loader == "folder":
        lines.append(
            "Pillow decodes single image files: `fastselfie prepare` makes a .beton file, whose "
            "loader is several times as fast"
        )
    return lines


def _on_step(facts: Facts) -> list[str]:
    ahead = facts.loader_rate / facts.step_rate
    lines = [
        f"the step is the bottleneck: the loader alone is {_times(ahead)} as fast; the longest "
        f"phase of a step is {facts.phase} ({facts.phase_share:.0%})"
    ]
    enough = _threads_needed(facts) if facts.threads else 0
    if 0 < enough < facts.threads:
        lines.append(
            f"{enough} of {facts.threads} decoding threads would be enough (data.workers={enough})"
        )
    if not facts.compiled:
        lines.append("runtime.compile=default may make the step faster: profile with it")
    if facts.device == "cpu" and not facts.planned:
        lines.append("--plan 1xA100 --cores 16 estimates the rates of a GPU")
    return lines


def _threads_needed(facts: Facts) -> int:
    """Return the number of decoding threads that keep up with the step."""
    return math.ceil(facts.step_rate * facts.threads / facts.loader_rate)


def _times(ratio: float) -> str:
    if ratio >= 10:
        return f"{ratio:,.0f} times"
    return f"{ratio:.1f} times" if ratio >= 1.1 else f"{ratio:.2f} times"
