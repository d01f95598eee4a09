"""The runs of a plan, one after the other or by several processes, going on from what is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.report.live import LivePage
from fastselfie.reproduce import workers as crew
from fastselfie.reproduce.control import take_control
from fastselfie.reproduce.progress import Teller
from fastselfie.reproduce.protocol import Plan
from fastselfie.reproduce.provenance import check_folders, keep_record
from fastselfie.reproduce.representations import FEATURES, FIGURES, measure_features
from fastselfie.reproduce.scheduler import Agenda
from fastselfie.reproduce.statistics import summary_of
from fastselfie.reproduce.table import write_table
from fastselfie.reproduce.trials import Bench
from fastselfie.runs.folder import read_facts
from fastselfie.runs.train import train
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.console import console, say
from fastselfie.system.distributed import ranks_of
from fastselfie.system.files import write_atomically
from fastselfie.system.lock import exclusive_lock


def reproduce(
    plan: Plan, out: Path, jobs: int | None, control: Path | None = None
) -> dict[str, Any]:
    """Pretrain, do every run that has no result yet in `out`, and write the table there.

    jobs: processes that train; None: one a GPU, else one. control: the folder of another
    reproduction, of the same config but for pretraining, whose supervised runs are taken. Returns
    the table's figures.

    Raises:
        UserError: what can be known before the first step is found before it, and leaves `out` as
            it was; of a run, see `finetune`; another process works in `out`.
        Interrupted: a signal came; every run in progress was finished to a step and saved.
    """
    config = plan.config
    if ranks_of(os.environ).world > 1:
        raise UserError(
            "reproduce starts its processes itself, see --jobs: with torchrun run only "
            "`fastselfie train CONFIG --stage pretrain --out DIR`, then reproduce with --out DIR"
        )
    accelerator = choose_accelerator(config.runtime)
    jobs = default_jobs(accelerator) if jobs is None else jobs
    dataset = open_dataset(config.data, config.seed)
    plan.check(dataset)
    precision = accelerator.precision.name
    pretrained = check_folders(plan, dataset, precision, out, control) >= config.pretrain.steps
    if pretrained and dataset.warning:  # else the pretraining says it
        say(f"warning: {dataset.warning}")
    with exclusive_lock(out):
        keep_record(plan, dataset, precision, out)
        if control is not None:
            take_control(plan, control, out)
        if not pretrained:
            train(config, PRETRAIN, "auto", out, LivePage)
        bench = Bench(plan, dataset, out, accelerator)
        features = read_facts(out / FEATURES)
        if not set(features) >= FIGURES:  # none, or an earlier version's
            say("features of P: k-NN and linear probe")
            features = measure_features(config, dataset, accelerator, bench.pretrained)
            write_atomically(out / FEATURES, json.dumps(features, indent=1) + "\n")
        agenda = Agenda(plan, out)
        agenda.tidy()
        tell = Teller(agenda)
        if jobs == 1:
            _do_all(agenda, bench, tell)
        else:
            torch.cuda.empty_cache()  # what pretraining had is a worker's now
            crew.do_all(agenda, plan, out, jobs, tell)
        figures = summary_of(agenda, dataset, features)
        write_table(figures, out)
        return figures


def default_jobs(accelerator: Accelerator) -> int:
    """A process for each GPU; on a CPU one."""
    return torch.cuda.device_count() if accelerator.device.type == "cuda" else 1


def _do_all(agenda: Agenda, bench: Bench, tell: Teller) -> None:
    quiet, console.quiet = console.quiet, not console.is_terminal  # a bar, but no line a step
    try:
        while (run := agenda.next()) is not None:
            agenda.finish(run, bench.do(run))
            tell(run)
    finally:
        console.quiet = quiet
