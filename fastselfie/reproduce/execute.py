"""Run all trials of a protocol, in one process or several, and write the table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.report.live import LivePage
from fastselfie.reproduce.control import copy_control_results
from fastselfie.reproduce.cost import write_costs
from fastselfie.reproduce.progress import progress_reporter
from fastselfie.reproduce.protocol import Protocol, Trial
from fastselfie.reproduce.provenance import check_folders, write_provenance
from fastselfie.reproduce.representations import FEATURES, FIGURES, measure_features
from fastselfie.reproduce.scheduler import RUNS, Scheduler
from fastselfie.reproduce.statistics import summary_of
from fastselfie.reproduce.table import write_table
from fastselfie.reproduce.trials import TrialRunner, drop_checkpoints
from fastselfie.reproduce.workers import run_in_workers
from fastselfie.runs.folder import read_facts
from fastselfie.runs.train import train
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.console import console, messages, say
from fastselfie.system.distributed import ranks_of
from fastselfie.system.files import write_atomically
from fastselfie.system.lock import exclusive_lock


def reproduce(
    protocol: Protocol, out: Path, jobs: int | None, control: Path | None = None
) -> dict[str, Any]:
    """Pretrain, run every trial that has no result yet in `out`, and write the table there.

    Args:
        protocol: Which trials there are.
        out: Folder of the reproduction, new or unfinished.
        jobs: Number of processes that train; None: one per GPU, one on a CPU.
        control: Folder of another reproduction whose config differs only in pretraining; its
            supervised trials are taken.

    Returns:
        The figures of the table, see `summary_of`.

    Raises:
        UserError: An input is wrong: found before the first step where possible, with `out`
            unchanged. Or another process works in `out`, or a trial failed, see `finetune`.
        Interrupted: A signal came; every running trial finished its step and saved.
    """
    config = protocol.config
    if ranks_of(os.environ).world > 1:
        raise UserError(
            "reproduce starts its processes itself, see --jobs: use torchrun only for "
            "`fastselfie train CONFIG --stage pretrain --out DIR`, then reproduce with --out DIR"
        )
    accelerator = choose_accelerator(config.runtime)
    if jobs is None:
        jobs = torch.cuda.device_count() if accelerator.device.type == "cuda" else 1
    dataset = open_dataset(config.data, config.seed)
    protocol.check(dataset)
    precision = accelerator.precision.name
    steps = check_folders(protocol, dataset, precision, out, control)
    if (pretrained := steps >= config.pretrain.steps) and dataset.warning:
        say(f"warning: {dataset.warning}")  # otherwise pretraining says it
    with exclusive_lock(out):
        write_provenance(protocol, dataset, precision, out)
        if control is not None:
            copy_control_results(protocol, control, out)
        if not pretrained:
            train(config, PRETRAIN, "auto", out, LivePage)
        runner = TrialRunner(protocol, dataset, out, accelerator)
        features = read_facts(out / FEATURES)
        if not set(features) >= FIGURES:  # missing, or written by an earlier version
            say("features of P: k-NN and linear probe")
            features = measure_features(config, dataset, accelerator, runner.pretrained)
            write_atomically(out / FEATURES, json.dumps(features, indent=1) + "\n")
        scheduler = Scheduler(protocol, out)
        for trial in scheduler.results:  # a kill may have come before this
            drop_checkpoints(out / RUNS / trial.name, trial)
        report = progress_reporter(scheduler)
        if jobs == 1:
            _run_in_this_process(scheduler, runner, report)
        else:
            torch.cuda.empty_cache()  # the workers need the memory that pretraining used
            run_in_workers(scheduler, jobs, report)
        figures = summary_of(scheduler, dataset, features)
        write_table(figures, out, write_costs(scheduler, out))
        return figures


def _run_in_this_process(
    scheduler: Scheduler, runner: TrialRunner, report: Callable[[Trial], None]
) -> None:
    # In a terminal a trial shows its progress bar; elsewhere its lines would be too many.
    with messages(shown=console.is_terminal):
        while (trial := scheduler.next()) is not None:
            scheduler.finish(trial, runner.run(trial))
            report(trial)
