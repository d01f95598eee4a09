"""Measure contenders in alternating rounds, each in its own process; the others are blocked.

A round first takes as many batches as any contender keeps ready, so that nothing decoded during
the pause is counted. Then the clock runs for some seconds. The round ends when the process is idle,
so that the next contender has the machine to itself.
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


class _Failure(NamedTuple):
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
    """The process of one contender."""

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
        """Take that many images without measuring."""
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


# --- in the worker ----------------------------------------------------------------------------


def _serve(pipe: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # As in a plain script; otherwise torch's workers would be spawned, as this process was.
    multiprocessing.set_start_method(None, force=True)
    os.dup2(2, 1)  # keeps the output of libraries out of the table
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
        stream.close()  # the parent has closed the pipe, and does not wait if this hangs
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
    """Return the process and all its descendants."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # it ended in between
                pids += map(int, children.read_text().split())
    return pids


def tree_cpu(pid: int) -> float:
    """Return user and system seconds of a process, its descendants and reaped children."""
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
    """Return CPU seconds of all processes of the machine, with those stolen by its host."""
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
