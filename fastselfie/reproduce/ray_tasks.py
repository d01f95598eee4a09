"""The tasks of a reproduction on a Ray cluster: what each node checks and runs."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.reproduce.protocol import Protocol, Trial
from fastselfie.reproduce.rate_search import Result
from fastselfie.reproduce.scheduler import RUNS
from fastselfie.reproduce.trials import TrialRunner
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.console import messages
from fastselfie.system.lock import exclusive_lock, helping_in
from fastselfie.system.ray_cluster import Resources
from fastselfie.system.ray_node import node_address
from fastselfie.system.resources import take_share, usable_cores

# A node that Ray gave up may train on for a while. The trial's next process waits until it has
# left; Ray ends the processes of such a node within a minute.
_WAIT = 180.0
_SEEN_WITHIN = 10.0  # seconds in which a network disk shows a new file


@dataclass(frozen=True)
class Job:
    """A reproduction, as its tasks on the nodes need it. Two are equal if `mark` is.

    Attributes:
        mark: Name of a file in `out`, unique to the command.
        protocol: The protocol.
        out: Folder of the reproduction, an absolute path.
        images: Fingerprint of the images.
        torch: Version of torch on the machine of the command.
        precision: Name of the precision; None: not known yet.
    """

    mark: str
    protocol: Protocol = field(compare=False)
    out: Path = field(compare=False)
    images: str = field(compare=False)
    torch: str = field(compare=False)
    precision: str | None = field(compare=False, default=None)


def torch_version() -> str:
    """Return the version of torch, without the name of its build: +cpu, +cu130."""
    return torch.__version__.partition("+")[0]


def check_node(job: Job, takes: Resources) -> tuple[str, Path]:
    """Check that this node can run trials.

    Returns:
        The name of its precision, and a file that it left in the folder: the machine of the command
        must see it.

    Raises:
        UserError: It has another version of torch or other images, or does not see the folder.
    """
    with messages(shown=False):
        precision = _runner(job, takes).accelerator.precision.name
    answer = job.out / f"{job.mark}-{node_address()}-{os.getpid()}"
    answer.touch()
    return precision, answer


def pretrain(job: Job, takes: Resources) -> None:
    """Pretrain on this node."""
    with _working(job, takes, job.out / PRETRAIN) as runner:
        runner.pretrain()


def measure_features(job: Job, takes: Resources) -> None:
    """Measure the features of the pretrained network on this node."""
    with _working(job, takes, job.out / PRETRAIN) as runner:
        runner.measure_features()


def run_trial(job: Job, takes: Resources, trial: Trial) -> Result:
    """Run a trial on this node, unless it has a result. Raises UserError, see `TrialRunner.run`."""
    with _working(job, takes, job.out / RUNS / trial.name) as runner:
        return runner.run(trial)


@contextmanager
def _working(job: Job, takes: Resources, folder: Path) -> Iterator[TrialRunner]:
    """Yield what runs trials; no other process works in `folder` meanwhile."""
    with messages(shown=False):
        runner = _runner(job, takes)
        with helping_in(job.out), exclusive_lock(folder, wait=_WAIT):
            yield runner


@functools.lru_cache(maxsize=1)  # Ray gives a process several tasks
def _runner(job: Job, takes: Resources) -> TrialRunner:
    """Check this node, and open the images and the device.

    The nodes that join later are checked by their first trial.
    """
    try:
        wait_for_mark(job.out / job.mark)
        if torch_version() != job.torch:
            raise UserError(
                f"has torch {torch_version()}, not {job.torch}: install the same on every node"
            )
        config = job.protocol.config
        take_share(takes.cores, takes.gpus)
        threads = config.runtime.threads or usable_cores()
        accelerator = choose_accelerator(config.runtime.model_copy(update={"threads": threads}))
        precision = accelerator.precision.name
        if job.precision not in (None, precision):
            raise UserError(f"computes in {precision}, others in {job.precision}: {SET_PRECISION}")
        dataset = open_dataset(config.data, config.seed)
        if dataset.fingerprint() != job.images:
            raise UserError(
                f"{config.data.train}: other images than on the machine of the command: data.train "
                "and data.test must be the same on every node"
            )
    except UserError as error:
        raise UserError(f"node {node_address()}: {error}") from error
    return TrialRunner(job.protocol, dataset, job.out, accelerator)


SET_PRECISION = "set runtime.precision, for example to fp32"


def wait_for_mark(mark: Path) -> None:
    """Check that a file of another machine is here too.

    Raises:
        UserError: It is not: its folder is not shared.
    """
    deadline = time.monotonic() + _SEEN_WITHIN
    while not mark.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{mark.parent}: is not the folder of that name on the other machines: pass an "
                "--out on a disk that all nodes share, at the same path"
            )
        time.sleep(0.2)
