"""The process of one contender: answer the questions of `support.rounds.Worker`.

python -m support.worker FD    # FD: the inherited end of its pipe; the job is the first message
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastselfie.errors import UserError
from support.rounds import Failure, Job, Round

_TICK = os.sysconf("SC_CLK_TCK")
_PATIENCE = 3.0  # seconds for a loader to become idle


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.dup2(2, 1)  # keeps the output of libraries out of the table
    job: Job = pipe.recv()
    try:
        stream = job.stream()
        paused = (time.perf_counter(), _tree_cpu(os.getpid()))
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
        pipe.send(Failure(str(error), user=True))
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        pipe.send(Failure(f"{type(error).__name__}: {error}", user=False))
    os._exit(0)  # threads of FFCV and DALI may otherwise keep the interpreter


def _round(stream: Generator[Any], job: Job, seconds: float, paused: tuple[float, float]) -> Round:
    pid = os.getpid()
    now = (time.perf_counter(), _tree_cpu(pid))
    idle_cpu = (now[1] - paused[1]) / max(now[0] - paused[0], 1e-3)
    for _ in range(job.ready):
        job.images(next(stream))
    count, spent = 0, 0.0
    machine, cpu, begun = _machine_cpu(), _tree_cpu(pid, exact=True), time.perf_counter()
    while spent < seconds:
        count += job.images(next(stream))
        spent = time.perf_counter() - begun
    cpu = _tree_cpu(pid, exact=True) - cpu
    others = max(0.0, _machine_cpu() - machine - cpu) / spent
    return Round(count, spent, cpu, idle_cpu, others, *_memory_mb(pid), _gpu_mb())


def _settle() -> tuple[float, float]:
    """Wait until the read-ahead is full and every thread sleeps; return when, and CPU so far."""
    deadline, used = time.perf_counter() + _PATIENCE, _tree_cpu(os.getpid())
    while time.perf_counter() < deadline:
        time.sleep(0.1)
        before, used = used, _tree_cpu(os.getpid())
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


def _tree_cpu(pid: int, *, exact: bool = False) -> float:
    """Return user and system seconds of a process, its descendants and reaped children.

    Args:
        pid: The process.
        exact: `pid` is this process: read its own time from its clock, not in ticks of 10 ms.
    """
    ticks = 0
    for process in _tree(pid):
        try:
            text = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            continue
        # utime, stime, cutime, cstime; the name before them may hold spaces.
        first = 13 if exact and process == pid else 11
        ticks += sum(map(int, text.rpartition(")")[2].split()[first:15]))
    return ticks / _TICK + (time.process_time() if exact else 0.0)


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


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
