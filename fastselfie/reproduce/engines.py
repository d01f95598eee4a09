"""Where the trainings of a reproduction run: the interface, and the engine for one machine."""

from __future__ import annotations

from typing import Protocol as Interface

import torch

from fastselfie.reproduce.progress import progress_reporter
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.reproduce.trials import TrialRunner
from fastselfie.reproduce.workers import run_in_workers
from fastselfie.system.console import console, messages, say


class Engine(Interface):
    """Runs the parts of a reproduction, each from its last checkpoint on.

    Every method raises UserError if a part fails, and Interrupted after a signal, when all parts
    that ran have saved.
    """

    @property
    def precision(self) -> str:
        """Name of the precision of all trainings."""

    def pretrain(self) -> None:
        """Pretrain, from the last checkpoint on."""

    def measure_features(self) -> None:
        """Measure the features of the pretrained network, and write them."""

    def run(self, scheduler: Scheduler) -> None:
        """Run all trials that have no result yet."""


class LocalEngine:
    """Runs everything on this machine.

    Args:
        runner: Runs trials in this process.
        jobs: Number of processes that train; None: one per GPU, one on a CPU.
    """

    def __init__(self, runner: TrialRunner, jobs: int | None) -> None:
        self._runner = runner
        if jobs is None:
            jobs = torch.cuda.device_count() if runner.accelerator.device.type == "cuda" else 1
        self._jobs = jobs

    @property
    def precision(self) -> str:
        """Name of the precision of all trainings."""
        return self._runner.accelerator.precision.name

    def pretrain(self) -> None:
        """Pretrain in this process."""
        self._runner.pretrain()

    def measure_features(self) -> None:
        """Measure the features in this process."""
        say("features of P: k-NN and linear probe")
        self._runner.measure_features()

    def run(self, scheduler: Scheduler) -> None:
        """Run the trials in this process, or in several that share the machine."""
        report = progress_reporter(scheduler)
        if self._jobs > 1:
            torch.cuda.empty_cache()  # the workers need the memory that pretraining used
            run_in_workers(scheduler, self._jobs, report)
            return
        # In a terminal a trial shows its progress bar; elsewhere its lines would be too many.
        with messages(shown=console.is_terminal):
            while (trial := scheduler.next()) is not None:
                scheduler.finish(trial, self._runner.run(trial))
                report(trial)
