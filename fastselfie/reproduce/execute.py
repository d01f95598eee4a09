"""Run all trials of a protocol, on this machine or on a Ray cluster, and write the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastselfie.data.dataset import Dataset, open_dataset
from fastselfie.errors import UserError
from fastselfie.reproduce.control import copy_control_results
from fastselfie.reproduce.cost import write_costs
from fastselfie.reproduce.engines import Engine, LocalEngine
from fastselfie.reproduce.protocol import Protocol
from fastselfie.reproduce.provenance import check_folders, write_provenance
from fastselfie.reproduce.ray_engine import ray_engine
from fastselfie.reproduce.representations import FEATURES
from fastselfie.reproduce.scheduler import RUNS, Scheduler
from fastselfie.reproduce.statistics import summary_of
from fastselfie.reproduce.table import write_table
from fastselfie.reproduce.trials import TrialRunner, drop_checkpoints, has_features
from fastselfie.runs.folder import read_facts
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.console import say
from fastselfie.system.distributed import ranks_of
from fastselfie.system.lock import exclusive_lock

_ORPHANS = 30.0  # seconds within which Ray ends the tasks of a command that was killed


def reproduce(
    protocol: Protocol,
    out: Path,
    jobs: int | None,
    control: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> dict[str, Any]:
    """Pretrain, run every trial that has no result yet in `out`, and write the table there.

    Args:
        protocol: Which trials there are.
        out: Folder of the reproduction, new or unfinished.
        jobs: Number of processes that train on a machine; None: one per GPU, one on a CPU.
        control: Folder of another reproduction whose config differs only in pretraining; its
            supervised trials are taken.
        engine: Where to train: on this machine, or on the nodes of a Ray cluster.
        address: Of the Ray cluster, see `ray_cluster`; None: start one on this machine.

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
    if address is not None and engine != "ray":
        raise UserError(f"--address {address}: is of a Ray cluster: add --engine ray")
    dataset = open_dataset(config.data, config.seed)
    protocol.check(dataset)
    check_folders(protocol, dataset, None, out, control)  # before a cluster is asked
    opened = ray_engine(protocol, dataset, out, jobs, address)
    with opened if engine == "ray" else _local(protocol, dataset, out, jobs) as trainer:
        steps = check_folders(protocol, dataset, trainer.precision, out, control)
        if (pretrained := steps >= config.pretrain.steps) and dataset.warning:
            say(f"warning: {dataset.warning}")  # otherwise pretraining says it
        with exclusive_lock(out, wait=_ORPHANS if engine == "ray" else 0.0):
            write_provenance(protocol, dataset, trainer.precision, out)
            if control is not None:
                copy_control_results(protocol, control, out)
            if not pretrained:
                trainer.pretrain()
            if not has_features(out):
                trainer.measure_features()
            scheduler = Scheduler(protocol, out)
            for trial in scheduler.results:  # a kill may have come before this
                drop_checkpoints(out / RUNS / trial.name, trial)
            trainer.run(scheduler)
            figures = summary_of(scheduler, dataset, read_facts(out / FEATURES))
            write_table(figures, out, write_costs(scheduler, out))
            return figures


@contextmanager
def _local(protocol: Protocol, dataset: Dataset, out: Path, jobs: int | None) -> Iterator[Engine]:
    accelerator = choose_accelerator(protocol.config.runtime)
    yield LocalEngine(TrialRunner(protocol, dataset, out, accelerator), jobs)
