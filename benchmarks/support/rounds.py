"""Contenders in processes of their own, asked in turns: one works while the others are blocked.

A round first takes as many batches as any of them has ready, so that what was decoded during the
pause is not counted; then the clock runs for some seconds. Afterwards it waits until the process
is idle, so that the next one has the machine to itself.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, Protocol

_TICK = os.sysconf("SC_CLK_TCK")
_PATIENCE = 3.0  # seconds for a loader to become idle


class Job(Protocol):
    """What one contender does, in a process of its own; travels there pickled."""

    @property
    def name(self) -> str: ...

    @property
    def ready(self) -> int:
        """Batches that it may have ready when a round begins."""

    def stream(self) -> Generator[Any]:
        """An endless stream of batches, made in the process."""

    def images(self, batch: Any) -> int:
        """How many a batch has. Raises TypeError where it is not what all contenders give."""


class WorkerError(Exception):
    """A contender failed. user: the message is for the user, and a traceback would only hide it."""

    def __init__(self, message: str, user: bool) -> None:
        super().__init__(message)
        self.user = user


class _Failure(NamedTuple):
    """What a worker sends instead of a result."""

    message: str
    user: bool


@dataclass(frozen=True)
class Round:
    """cpu: seconds, of the whole process tree. idle_cpu: what it used of a core in the pause
    before. others_cpu: cores that the rest of the machine used meanwhile. peak_mb: the greatest
    resident size of each process, summed; pss_mb: now, shared pages counted once; gpu_mb: the most
    that torch had allocated on a GPU."""

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
    """A process with one contender in it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, job), name=job.name)
        self._process.start()
        far.close()

    def round(self, seconds: float) -> Round:
        result: Round = self._ask(("round", seconds))
        return result

    def take(self, images: int) -> None:
        """Have it give so many images, unmeasured."""
        self._ask(("take", images))

    def _ask(self, question: tuple[str, float]) -> Any:
        try:
            self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            code = self._process.exitcode
            answer = _Failure(f"its process ended with status {code}", user=False)
        if isinstance(answer, _Failure):
            raise WorkerError(f"{self.job.name}: {answer.message}", answer.user)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def alternate(
    workers: Sequence[Worker], rounds: int, seconds: float, said: Callable[[str], None]
) -> dict[str, list[Round]]:
    """`rounds` rounds of every worker, in an order drawn anew each time, after one to warm up."""
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
    """Median, min and max, to five digits."""
    three = {"median": median(values), "min": min(values), "max": max(values)}
    return {key: float(f"{value:.5g}") for key, value in three.items()}


# --- in the worker ----------------------------------------------------------------------------


def _serve(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent
    # What a plain script has; otherwise torch's workers would be spawned as this process was.
    multiprocessing.set_start_method(None, force=True)
    os.dup2(2, 1)  # a library that prints does not mix with the table
    from fastselfie.errors import UserError

    try:
        stream = job.stream()
        paused = (time.perf_counter(), tree_cpu(os.getpid()))
        while True:
            question, amount = pipe.recv()
            if question == "take":
                while amount > 0:
                    amount -= job.images(next(stream))
                pipe.send(None)
                continue
            result = _round(stream, job, amount, paused)
            paused = _settle()
            pipe.send(result)
    except EOFError:
        stream.close()  # the parent has what it wants; where this hangs, it does not wait
    except UserError as error:
        pipe.send(_Failure(str(error), user=True))
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        pipe.send(_Failure(f"{type(error).__name__}: {error}", user=False))
    os._exit(0)  # threads of FFCV and DALI may otherwise keep the interpreter


def _round(stream: Generator[Any], job: Job, seconds: float, paused: tuple[float, float]) -> Round:
    pid = os.getpid()
    now = (time.perf_counter(), tree_cpu(pid))
    idle_cpu = (now[1] - paused[1]) / max(now[0] - paused[0], 1e-3)
    for _ in range(job.ready):
        job.images(next(stream))
    count, spent = 0, 0.0
    accelerator, cpu, begun = _machine_cpu(), tree_cpu(pid), time.perf_counter()
    while spent < seconds:
        count += job.images(next(stream))
        spent = time.perf_counter() - begun
    cpu = tree_cpu(pid) - cpu
    others = max(0.0, _machine_cpu() - accelerator - cpu) / spent
    return Round(count, spent, cpu, idle_cpu, others, *_memory_mb(pid), _gpu_mb())


def _settle() -> tuple[float, float]:
    """Wait until the read-ahead is full and every thread sleeps; return when, and CPU so far."""
    deadline, used = time.perf_counter() + _PATIENCE, tree_cpu(os.getpid())
    while time.perf_counter() < deadline:
        time.sleep(0.1)
        before, used = used, tree_cpu(os.getpid())
        if used == before:
            break
    return time.perf_counter(), used


# --- /proc ------------------------------------------------------------------------------------


def _tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # it ended in between
                pids += map(int, children.read_text().split())
    return pids


def tree_cpu(pid: int) -> float:
    """User and system seconds of the process, its descendants and those it has reaped."""
    ticks = 0
    for process in _tree(pid):
        try:
            text = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            continue
        # utime, stime, cutime, cstime; the name before them may hold spaces.
        ticks += sum(map(int, text.rpartition(")")[2].split()[11:15]))
    return ticks / _TICK


def _machine_cpu() -> float:
    """Seconds that all processes of the machine have used, and those its host took away."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK


def _memory_mb(pid: int) -> tuple[float, float]:
    peak = pss = 0
    for process in _tree(pid):
        try:
            peak += _field(Path(f"/proc/{process}/status"), "VmHWM:")
            pss += _field(Path(f"/proc/{process}/smaps_rollup"), "Pss:")
        except OSError:
            continue
    return peak / 1024, pss / 1024


def _gpu_mb() -> float:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    return float(torch.cuda.max_memory_allocated()) / 1e6


def _field(path: Path, name: str) -> int:
    lines = [line.split() for line in path.read_text().splitlines()]
    return next((int(line[1]) for line in lines if line[0] == name), 0)
