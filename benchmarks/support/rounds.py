"""Measure contenders in alternating rounds, each in its own process; the others are blocked.

A round first takes as many batches as any contender keeps ready, so that nothing decoded during
the pause is counted. Then the clock runs for some seconds. The round ends when the process is idle,
so that the next contender has the machine to itself.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, Protocol

_BENCHMARKS = str(Path(__file__).resolve().parent.parent)


class Job(Protocol):
    """What one contender does. It is pickled and sent to the process of the contender."""

    @property
    def name(self) -> str: ...

    @property
    def ready(self) -> int:
        """Most batches that it keeps ready when a round begins."""

    def stream(self) -> Generator[Any]:
        """Yield batches without end."""

    def images(self, batch: Any) -> int:
        """Return the number of images in a batch. Raise TypeError if its form is wrong."""


class WorkerError(Exception):
    """A contender failed.

    Args:
        message: What happened.
        user: Whether it was a mistake of the user, for which no traceback is shown.
    """

    def __init__(self, message: str, user: bool) -> None:
        super().__init__(message)
        self.user = user


class Failure(NamedTuple):
    """What a worker sends instead of a result."""

    message: str
    user: bool


@dataclass(frozen=True)
class Round:
    """Measurements of one round, of the whole process tree.

    Args:
        images: Images given.
        seconds: Wall time.
        cpu: CPU seconds, user and system.
        idle_cpu: Cores used in the pause before the round.
        others_cpu: Cores that other programs used during the round.
        peak_mb: Sum of the largest resident sizes of the processes.
        pss_mb: Memory at the end, shared pages counted once.
        gpu_mb: Most that torch had allocated on a GPU.
    """

    images: int
    seconds: float
    cpu: float
    idle_cpu: float
    others_cpu: float
    peak_mb: float
    pss_mb: float
    gpu_mb: float

    @property
    def rate(self) -> float:
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu / self.images


class Worker:
    """The process of one contender: `python -m support.worker`.

    Args:
        job: What it does.
        python: Another interpreter to run it in, whose packages are then used.
    """

    def __init__(self, job: Job, python: str | None = None) -> None:
        self.job = job
        paths = [_BENCHMARKS, os.environ.get("PYTHONPATH", "")]
        if python:  # PYTHONPATH may hold packages of this interpreter; the other has no fastselfie
            paths[1] = os.path.dirname(_BENCHMARKS)
        self._pipe, far = multiprocessing.Pipe()
        with far:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", "support.worker", str(far.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdin=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
            )
        with suppress(OSError):  # it has ended; the first question finds out
            self._pipe.send(job)

    def round(self, seconds: float) -> Round:
        result: Round = self._ask(("round", seconds))
        return result

    def take(self, images: int) -> None:
        """Take that many images without measuring."""
        self._ask(("take", images))

    def _ask(self, question: tuple[str, float]) -> Any:
        try:
            self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            code = self._process.returncode
            answer = Failure(f"its process ended with status {code}", user=False)
        if isinstance(answer, Failure):
            raise WorkerError(f"{self.job.name}: {answer.message}", answer.user)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._pipe.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def alternate(
    workers: Sequence[Worker], rounds: int, seconds: float, said: Callable[[str], None]
) -> dict[str, list[Round]]:
    """Run one warm-up round and `rounds` measured rounds of every worker, in random order.

    Returns:
        The measured rounds of each contender. `said` is called with a line after each.
    """
    found: dict[str, list[Round]] = {worker.job.name: [] for worker in workers}
    for worker in workers:
        worker.round(seconds)
        said(f"{worker.job.name} is warm")
    draws = random.Random(0)
    for number in range(1, rounds + 1):
        for worker in draws.sample(list(workers), len(workers)):
            result = worker.round(seconds)
            found[worker.job.name].append(result)
            said(f"round {number}: {worker.job.name} {result.rate:,.0f} images/s")
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, min and max, to five digits."""
    three = {"median": median(values), "min": min(values), "max": max(values)}
    return {key: float(f"{value:.5g}") for key, value in three.items()}
