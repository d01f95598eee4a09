"""Phases and memory of the steps in a Chrome trace of torch.profiler.

Each moment is attributed to what the device computes then; if it is idle, to what the host does. So
the shares add up to 1 on a CPU and on a GPU, which runs behind the host.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fastselfie.system.trace_ranges import PHASES

WINDOW = "profiled steps"  # name of the range around all steps
OTHER = "other"
_KERNELS, _COPIES = ("kernel",), ("gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_MAX_POINTS = 400  # of a curve


class Span(NamedTuple):
    """A range from `start` to `end`, in microseconds."""

    start: float
    end: float
    name: str


def phase_shares(trace: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the time in each phase, and in OTHER; together they are 1."""
    events = trace["traceEvents"]
    window = _window(events)
    begin, end, _ = _span(window)
    named = (e for e in events if e.get("cat") == "user_annotation" and e["name"] in PHASES)
    ranges = (_span(e) for e in named if e["tid"] == window["tid"])
    host = flattened((s for s in ranges if begin <= s.start < end), begin, end)
    seconds = dict.fromkeys((*PHASES, OTHER), 0.0)
    for span in _merged(host, _device_spans(events, host)):
        seconds[span.name] += span.end - span.start
    return {name: spent / (end - begin) for name, spent in seconds.items()}


def memory_curve(trace: Mapping[str, Any], cuda: bool) -> list[tuple[float, float]]:
    """Return (seconds, bytes that tensors hold) over the window, the maximum of each bin.

    On a CPU torch counts from the start of the profiler: the first value is near zero.

    Args:
        trace: The trace.
        cuda: Return memory of the GPU, not of the CPU.
    """
    window = _span(_window(trace["traceEvents"]))
    width = (window.end - window.start) / _MAX_POINTS
    greatest: dict[int, float] = {}
    for event in trace["traceEvents"]:
        if event.get("name") != "[memory]" or event["args"].get("Device Type") != int(cuda):
            continue
        bin_ = int((event["ts"] - window.start) // width)
        if 0 <= bin_ < _MAX_POINTS:
            held = float(event["args"]["Total Allocated"])
            greatest[bin_] = max(greatest.get(bin_, held), held)
    return [((bin_ + 0.5) * width / 1e6, held) for bin_, held in sorted(greatest.items())]


def flattened(ranges: Iterable[Span], begin: float, end: float) -> list[Span]:
    """Flatten nested ranges to consecutive ones: the innermost wins, gaps become OTHER."""
    flat: list[Span] = []
    open_, at = [Span(begin, end, OTHER)], begin
    for span in (*sorted(ranges, key=lambda s: (s.start, -s.end)), Span(end, end, OTHER)):
        while len(open_) > 1 and open_[-1].end <= span.start:
            closed = open_.pop()
            flat.append(Span(at, closed.end, closed.name))
            at = closed.end
        flat.append(Span(at, span.start, open_[-1].name))
        at = span.start
        open_.append(span._replace(end=min(span.end, open_[-1].end)))
    return [span for span in flat if span.end > span.start]


def _device_spans(events: Sequence[Mapping[str, Any]], host: Sequence[Span]) -> list[Span]:
    """Return what ran on a GPU, in order, under the phase in which the host launched it.

    A copy counts only while no kernel runs: one that kernels hide costs no time. The phase is found
    by the time of the launch, not by its thread: the backward pass launches from its own thread,
    while the training thread waits inside its range.
    """
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    starts = [span.start for span in host]

    def spans(kinds: Sequence[str]) -> list[Span]:
        found, at = [], host[0].start
        work = (event for event in events if event.get("cat") in kinds)
        for event in sorted(work, key=lambda event: float(event["ts"])):
            span = _span(event)
            begin, end = max(at, span.start), min(host[-1].end, span.end)
            launch = launched.get(event["args"].get("correlation"), span.start)
            if end > begin and launch >= starts[0]:
                found.append(Span(begin, end, host[bisect_right(starts, launch) - 1].name))
                at = end
        return found

    return sorted(_merged(spans(_COPIES), spans(_KERNELS)))


def _merged(below: Sequence[Span], above: Sequence[Span]) -> Iterator[Span]:
    """Yield the spans `above`, and the parts of those `below` in between. Both are in order."""
    yield from above
    starts = [span.start for span in below]
    first, last = Span(-math.inf, -math.inf, OTHER), Span(math.inf, math.inf, OTHER)
    for before, after in pairwise((first, *above, last)):
        for span in below[max(0, bisect_right(starts, before.end) - 1) :]:
            if span.start >= after.start:
                break
            inside = Span(max(span.start, before.end), min(span.end, after.start), span.name)
            if inside.end > inside.start:
                yield inside


def _window(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(e for e in events if e.get("cat") == "user_annotation" and e.get("name") == WINDOW)


def _span(event: Mapping[str, Any]) -> Span:
    start = float(event["ts"])
    return Span(start, start + float(event["dur"]), event["name"])
