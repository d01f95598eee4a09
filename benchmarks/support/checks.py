"""Run checks one after another; a failed one does not stop the others."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastselfie.system.files import write_atomically
from support.conditions import command, environment

Check = Callable[[], dict[str, Any]]


class CheckError(Exception):
    """A check failed.

    Args:
        why: What does not hold.
        found: What was measured nevertheless.
    """

    def __init__(self, why: str, found: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.found = found


def within(ratios: dict[str, dict[str, float]], most: float, what: str) -> dict[str, Any]:
    """Return the ratios for the result, with NaN as text because JSON has none.

    Raises:
        CheckError: A ratio is above `most` or NaN. It holds all ratios.
    """
    found = {
        case: {name: round(r, 4) if math.isfinite(r) else str(r) for name, r in row.items()}
        for case, row in ratios.items()
    }
    # No comparison with NaN holds; max() would let one through.
    beyond = [f"{case}: {name} {ratio:.2f}" for case, row in ratios.items()
              for name, ratio in row.items() if not ratio <= most]  # fmt: skip
    if beyond:
        raise CheckError(f"{what} is above {most}: {'; '.join(beyond)}", {what: found})
    return {what: found}


def require(holds: bool, otherwise: str) -> None:
    """Raise CheckError unless something holds."""
    if not holds:
        raise CheckError(otherwise)


def run_checks(checks: Sequence[Check], path: Path, seconds: float) -> list[dict[str, Any]]:
    """Run all checks in `seconds`, and write their results to `path` after each."""
    conditions = environment(torch.get_num_threads())
    conditions["began"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
    end = time.monotonic() + seconds
    made: list[dict[str, Any]] = []
    for check in checks:
        made.append(run_check(check, end - time.monotonic()))
        result = {
            "checks": made,
            "environment": conditions,
            "protocol": {"command": command(), "seconds": seconds},
        }
        write_atomically(path, json.dumps(result, indent=1) + "\n")
    return made


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside after that many seconds."""

    def over(*_: object) -> None:
        raise TimeoutError("the time for all checks is over")

    if seconds <= 0:
        over()
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # repeated, in case the first is caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_check(check: Check, seconds: float) -> dict[str, Any]:
    """Run one check; return its name, state, seconds, and what it found or why it failed."""
    print(f"{check.__name__} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    try:
        with _time_limit(seconds):
            outcome: dict[str, Any] = {"state": "ok", "found": check()}
    except ModuleNotFoundError as error:
        outcome = {"state": "missing", "why": str(error)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"state": "FAILED", "why": f"{type(error).__name__}: {error}"[-2000:]}
        if isinstance(error, CheckError) and error.found:
            outcome["found"] = error.found
    outcome["seconds"] = round(time.perf_counter() - began, 1)
    return {"check": check.__name__, **outcome}
