"""Run the trials of a reproduction in several processes, each on a GPU or a share of the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from fastselfie.data.dataset import open_dataset
from fastselfie.reproduce.protocol import Protocol, Trial
from fastselfie.reproduce.rate_search import Result
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.reproduce.trials import TrialRunner
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.console import messages
from fastselfie.system.distributed import Ranks
from fastselfie.system.lock import helping_in
from fastselfie.system.processes import Worker, wait_for_results, worker_pool
from fastselfie.system.resources import share_machine, usable_cores
from fastselfie.system.signals import deferred_signals


def run_in_workers(scheduler: Scheduler, jobs: int, report: Callable[[Trial], None]) -> None:
    """Run every remaining trial in `jobs` processes.

    Args:
        scheduler: Says which trials remain, and takes their results.
        jobs: Number of processes.
        report: Called after each trial.

    Raises:
        UserError: A trial failed, or a worker was killed; the other workers saved and ended.
        Interrupted: A signal came; all workers saved and ended.
    """
    # The same share of the machine for the first trials and the last.
    shares = min(jobs, scheduler.total)
    works = [
        partial(_run_trials, number, shares, scheduler.protocol, scheduler.out)
        for number in range(min(jobs, scheduler.left))
    ]
    with deferred_signals() as pending, worker_pool(works, "--jobs") as idle:
        busy: dict[Worker, Trial] = {}
        while True:
            while idle and (trial := scheduler.next()) is not None:
                worker = idle.pop()
                worker.send(trial)
                busy[worker] = trial
            if not busy:
                return
            with pending.abandoning():
                ready = wait_for_results(busy)
            for worker in ready:
                trial = busy.pop(worker)
                scheduler.finish(trial, worker.receive())
                report(trial)
                idle.append(worker)


def _run_trials(
    number: int, shares: int, protocol: Protocol, out: Path, trials: Iterator[Trial]
) -> Iterator[Result]:
    """Run trials in worker `number`, which has one of `shares` equal shares of the machine.

    It holds the lock of the folder as well, so that no other command enters while it saves after
    the death of its parent.
    """
    os.setpgid(0, 0)  # a signal to the parent's group must not reach it twice
    share_machine(shares)
    with messages(shown=False), helping_in(out):
        config = protocol.config
        threads = config.runtime.threads or usable_cores()
        ranks = Ranks(local_rank=number % max(1, torch.cuda.device_count()))
        runtime = config.runtime.model_copy(update={"threads": threads})
        accelerator = choose_accelerator(runtime, ranks)
        dataset = open_dataset(config.data, config.seed)
        yield from map(TrialRunner(protocol, dataset, out, accelerator).run, trials)
