"""Several processes that do the runs of one agenda, each on a GPU or a share of the cores.

Each is a group of its own, so Ctrl-C reaches this process alone, which passes it on. One that
loses this process leaves as at SIGTERM, and holds the folder until then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from fastselfie.config import RuntimeConfig
from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Plan, Run
from fastselfie.reproduce.scheduler import Agenda, Result
from fastselfie.reproduce.trials import Bench
from fastselfie.system.accelerator import choose_accelerator, usable_cores
from fastselfie.system.console import console
from fastselfie.system.distributed import Ranks
from fastselfie.system.lock import helping_in
from fastselfie.system.signals import Interrupted, deferred_signals


class _Worker(NamedTuple):
    process: BaseProcess
    wire: Connection


def do_all(agenda: Agenda, plan: Plan, out: Path, jobs: int, tell: Callable[[Run], None]) -> None:
    """Do every run that is left. tell: called after each.

    Raises:
        UserError: of the first run that failed, or a worker was killed; the others have left.
        Interrupted: a signal came; all have left.
    """
    with (
        deferred_signals() as pending,
        _crew(plan, out, min(jobs, agenda.left), min(jobs, agenda.total)) as idle,
    ):
        busy: dict[Connection, tuple[_Worker, Run]] = {}
        while True:
            while idle and (run := agenda.next()) is not None:
                worker = idle.pop()
                with suppress(BrokenPipeError):  # it has failed: its wire says how
                    worker.wire.send(run)
                busy[worker.wire] = worker, run
            if not busy:
                return
            with pending.abandoning():
                ready = wait(list(busy))
            for wire in ready:
                assert isinstance(wire, Connection)
                worker, run = busy.pop(wire)
                agenda.finish(run, _answer(worker, run))
                tell(run)
                idle.append(worker)


def _answer(worker: _Worker, run: Run) -> Result:
    try:
        answer: Result | Exception = worker.wire.recv()
    except (EOFError, ConnectionError) as error:
        worker.process.join()
        raise UserError(
            f"{run.name}: its process ended (status {worker.process.exitcode}; -9 is often too "
            "little memory: fewer --jobs): run the same command to go on"
        ) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def _crew(plan: Plan, out: Path, count: int, jobs: int) -> Iterator[list[_Worker]]:
    """`count` workers without work, each with a share of the machine as of `jobs`: that is the
    same for the first runs and the last.

    All have ended when this is left, by an error once they have saved.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share what CUDA and OpenMP hold
    workers: list[_Worker] = []
    try:
        for number in range(count):
            mine, its = context.Pipe()
            process = context.Process(target=_work, args=(its, number, jobs, plan, out))
            _start(process)
            its.close()  # the end of its process must end the wire
            workers.append(_Worker(process, mine))
        yield list(workers)
        for worker in workers:
            with suppress(BrokenPipeError):
                worker.wire.send(None)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        try:
            for worker in workers:
                worker.process.join()
        except BaseException:  # a second Ctrl-C, which leaves at once
            for worker in workers:
                worker.process.kill()
            raise


def _start(process: BaseProcess) -> None:
    """Without SIGINT, for its whole life: before it has a group of its own, Ctrl-C reaches it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(wire: Connection, number: int, jobs: int, plan: Plan, out: Path) -> None:
    """A worker: does the runs that come over the wire, until None does."""
    os.setpgid(0, 0)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # As torchrun says it: a share of the cores for decoding and training, and of the memory.
    os.environ["LOCAL_WORLD_SIZE"] = str(jobs)
    console.quiet = True
    try:
        with helping_in(out, number):
            gpus = max(1, torch.cuda.device_count())
            config = plan.config
            accelerator = choose_accelerator(
                _share(config.runtime), Ranks(local_rank=number % gpus)
            )
            bench = Bench(plan, open_dataset(config.data, config.seed), out, accelerator)
            while (run := wire.recv()) is not None:
                wire.send(bench.do(run))
    except (UserError, OSError) as error:
        wire.send(error)
    except (Interrupted, EOFError):
        return  # the wire's end says it


def _share(runtime: RuntimeConfig) -> RuntimeConfig:
    return runtime.model_copy(update={"threads": runtime.threads or usable_cores()})


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
