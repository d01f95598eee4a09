"""What follows from the measured rates: which part binds, and what would move it."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Of the slower one. Below the first, loader and step cost each other time; nothing but other
# programs takes both together above the second.
_TOGETHER, _IMPOSSIBLE = 0.9, 1.15


@dataclass(frozen=True)
class Facts:
    """What advice is drawn from. loader_rate, step_rate, e2e_rate: images/s.

    threads: that decode, 0 where nothing is decoded. cores: this process may use.
    long_side: mean of the stored JPEGs, pixels; None where they are not known or not JPEGs.
    phase, phase_share: the longest of the step. measured_elsewhere: a plan is part of the report.
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
    measured_elsewhere: bool


def advise(facts: Facts) -> list[str]:
    """A few sentences, the one that says which part binds first."""
    loader_binds = facts.loader_rate < facts.step_rate
    lines = _on_loader(facts) if loader_binds else _on_step(facts)
    slower = min(facts.loader_rate, facts.step_rate)
    if facts.e2e_rate < _TOGETHER * slower:
        why = (
            f"they share {facts.cores} cores"
            if facts.device == "cpu"
            else "look at copy, logging and gaps in the trace"
        )
        lines.append(
            f"loader and step together reach {facts.e2e_rate / slower:.0%} of the slower one: {why}"
        )
    if facts.e2e_rate > _IMPOSSIBLE * slower:
        lines.append(
            "loader and step together were faster than the slower one alone: other programs used "
            "this machine meanwhile, so profile again when it is quiet"
        )
    if facts.loader == "synthetic":
        lines.append("data.loader is synthetic: its rate says nothing of real images")
    return lines


def _on_loader(facts: Facts) -> list[str]:
    behind = facts.step_rate / facts.loader_rate
    first = f"the loader binds: the step alone is {_times(behind)} as fast"
    if not facts.threads:
        return [f"{first}; it decodes nothing, so more cores do not help: a larger model would "
                "cost little here"]  # fmt: skip
    more = _threads_for(facts, facts.step_rate) - facts.threads
    ways = [f"about {more} more {_plural('core', more)} (data.workers={facts.threads + more})"]
    if facts.long_side is not None:
        # The cost of decoding grows about with the pixels.
        side = int(facts.long_side / math.sqrt(behind)) // 10 * 10
        if side > facts.image_size:
            ways.append(f"about max_side {side} (fastselfie prepare --max-side, now "
                        f"{facts.long_side:.0f} in the mean)")  # fmt: skip
    lines = [f"{first}: {', or '.join(ways)} would keep up"]
    if facts.device != "cpu" and facts.threads < facts.cores:
        lines.append(
            f"this process may use {facts.cores} cores, of which {facts.threads} decode: raise "
            "data.workers first"
        )
    if facts.loader == "folder":
        lines.append(
            "images are decoded from single files by Pillow: fastselfie prepare makes a .beton "
            "file, whose loader is several times as fast"
        )
    return lines


def _on_step(facts: Facts) -> list[str]:
    ahead = facts.loader_rate / facts.step_rate
    lines = [
        f"the step binds: the loader alone is {_times(ahead)} as fast; most of a step is "
        f"{facts.phase} ({facts.phase_share:.0%})"
    ]
    enough = _threads_for(facts, facts.step_rate) if facts.threads else 0
    if 0 < enough < facts.threads:
        lines.append(
            f"{enough} decoding {_plural('thread', enough)} of {facts.threads} would be enough "
            f"(data.workers={enough})"
        )
    if not facts.compiled:
        lines.append("runtime.compile=default may make the step faster: profile it with that key")
    if facts.device == "cpu" and not facts.measured_elsewhere:
        lines.append("--plan 1xA100 --cores 16 estimates on paper what a GPU would do")
    return lines


def _threads_for(facts: Facts, rate: float) -> int:
    return math.ceil(rate * facts.threads / facts.loader_rate)


def _times(ratio: float) -> str:
    if ratio >= 10:
        return f"{ratio:,.0f} times"
    return f"{ratio:.1f} times" if ratio >= 1.1 else f"{ratio:.2f} times"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
