"""Run a reproduction on a Ray cluster: each training is a task that survives its node.

The folder of the reproduction lies on a disk that all nodes share. A task that is lost is queued
again and goes on from its last checkpoint.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset
from fastselfie.errors import UserError
from fastselfie.reproduce import ray_tasks
from fastselfie.reproduce.progress import ProgressTable, progress_reporter
from fastselfie.reproduce.protocol import Protocol, Trial
from fastselfie.reproduce.ray_tasks import SET_PRECISION, Job
from fastselfie.reproduce.scheduler import RUNS, Scheduler
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.console import say
from fastselfie.system.ray_cluster import Cluster, Node, Resources, ray_cluster
from fastselfie.system.ray_node import TaskLost
from fastselfie.training.checkpoint import step_paths

_MARK = ".shared-"
# A task that is lost so often without a new checkpoint would be lost forever.
_MAX_LOSSES = 5
_CHECKED_WITHIN = 60.0  # seconds; a node may be busy with other people's tasks


@contextmanager
def ray_engine(
    protocol: Protocol, dataset: Dataset, out: Path, jobs: int | None, address: str | None
) -> Iterator[RayEngine]:
    """Join or start a cluster, check its nodes, and leave it at the end.

    Args:
        protocol: The protocol of the trials.
        dataset: All images.
        out: Folder of the reproduction, on a disk that all nodes share.
        jobs: Trials at a time on a node; None: one per GPU, or one without GPUs.
        address: See `ray_cluster`.

    Raises:
        UserError: See `ray_cluster`; no node can run a trial; or a node does not see the folder,
            or has other images, another precision or another version.
    """
    out = out.absolute()
    with ray_cluster(address) as cluster:
        nodes = cluster.nodes()
        trial, whole = shares(protocol.config, [node.has for node in nodes], jobs)
        job = Job(
            f"{_MARK}{uuid.uuid4().hex}", protocol, out, dataset.fingerprint(),
            ray_tasks.torch_version(),
        )  # fmt: skip
        able = [node for node in nodes if _fits(trial, node.has)]
        with _marked(job):
            precision = _check(cluster, able, job, trial)
            yield RayEngine(cluster, replace(job, precision=precision), trial, whole)


def shares(config: Config, nodes: list[Resources], jobs: int | None) -> tuple[Resources, Resources]:
    """Return what a trial takes, and what pretraining takes.

    With GPUs in the cluster, a trial takes one, and a GPU's share of its node; without, a whole
    node. With `jobs`, so many trials fit on a node. Where nodes differ, the least of each counts.
    Pretraining takes at most one GPU, and all cores of the smallest node.

    Raises:
        UserError: No node has what a trial needs.
    """
    gpu = config.runtime.device != "cpu" and any(node.gpus >= 1 for node in nodes)
    able = [node for node in nodes if node.cores >= 1 and (node.gpus >= 1 or not gpu)]
    if not able or (config.runtime.device == "cuda" and not gpu):
        what = "GPU and a core" if gpu or config.runtime.device == "cuda" else "core"
        raise UserError(
            f"--engine ray: no node of the cluster has a {what} for a trial: start nodes first "
            "(see `ray status`)"
        )
    counts = [jobs or max(1, int(node.gpus) if gpu else 1) for node in able]
    cores = min(node.cores / count for node, count in zip(able, counts, strict=True))
    gpus = min(node.gpus / count for node, count in zip(able, counts, strict=True))
    memory = min(node.memory // count for node, count in zip(able, counts, strict=True))
    trial = Resources(cores if cores < 1 else cores // 1, min(1.0, gpus) if gpu else 0.0, memory)
    whole = Resources(
        min(node.cores for node in able), 1.0 if gpu else 0.0, min(node.memory for node in able)
    )
    return trial, whole


def _fits(takes: Resources, has: Resources) -> bool:
    return has.cores >= takes.cores and has.gpus >= takes.gpus and has.memory >= takes.memory


@contextmanager
def _marked(job: Job) -> Iterator[None]:
    """Leave a file in the folder for the nodes to find; remove it, and what was made for it."""
    missing = [folder for folder in (job.out, *job.out.parents) if not folder.exists()]
    job.out.mkdir(parents=True, exist_ok=True)
    try:
        (job.out / job.mark).touch()
        yield
    finally:
        for left in job.out.glob(f"{job.mark}*"):
            left.unlink(missing_ok=True)
        for folder in missing:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def _check(cluster: Cluster, nodes: list[Node], job: Job, takes: Resources) -> str:
    """Check all nodes that are not busy, and return the precision that they agree on."""
    light = replace(takes, cores=0.0, memory=0)
    tasks = {
        cluster.submit(ray_tasks.check_node, job, takes, name="check", takes=light, node=node): node
        for node in nodes
    }
    found: dict[str, Node] = {}
    for task, node in tasks.items():
        if found and not cluster.wait([task], _CHECKED_WITHIN):
            continue  # its first trial checks it
        try:
            precision, answer = cluster.result(task)
        except TaskLost:
            continue
        ray_tasks.wait_for_mark(answer)
        found.setdefault(precision, node)
    if not found:
        raise UserError("--engine ray: every node of the cluster was lost: see `ray status`")
    if len(found) > 1:
        each = " and ".join(f"{name} on {node.host}" for name, node in found.items())
        raise UserError(f"--engine ray: the nodes compute in {each}: {SET_PRECISION}")
    return next(iter(found))


class RayEngine:
    """Runs the parts of a reproduction as tasks of a cluster. Made by `ray_engine`.

    Args:
        cluster: The cluster.
        job: The reproduction.
        trial: What a trial takes of its node.
        whole: What pretraining takes.
    """

    def __init__(self, cluster: Cluster, job: Job, trial: Resources, whole: Resources) -> None:
        self._cluster, self._job = cluster, job
        self._trial, self._whole = trial, whole
        self._losses: Counter[tuple[str, int]] = Counter()

    @property
    def precision(self) -> str:
        """Name of the precision of all trainings."""
        assert self._job.precision is not None
        return self._job.precision

    def pretrain(self) -> None:
        """Pretrain on one node."""
        say(f"pretraining on the cluster: see {self._job.out / 'report.html'}")
        self._run_whole(ray_tasks.pretrain)

    def measure_features(self) -> None:
        """Measure the features on one node."""
        say("features of P: k-NN and linear probe")
        self._run_whole(ray_tasks.measure_features)

    def run(self, scheduler: Scheduler) -> None:
        """Run all trials, as many at a time as the cluster has room for."""
        for mark in self._job.out.glob(f"{_MARK}*"):  # of commands that were killed
            if not mark.name.startswith(self._job.mark):
                mark.unlink()
        report, running = progress_reporter(scheduler), dict[Any, Trial]()
        steps = self._job.protocol.config.finetune.steps
        with ProgressTable(self._job.out, "trials on the cluster") as table:
            while True:
                while (trial := scheduler.next()) is not None:
                    running[self._submit_trial(trial)] = trial
                if not running:
                    return
                for task in self._cluster.wait(running):
                    trial = running.pop(task)
                    try:
                        scheduler.finish(trial, self._cluster.result(task))
                    except TaskLost as error:
                        self._count_loss(self._job.out / RUNS / trial.name, error)
                        running[self._submit_trial(trial)] = trial
                        continue
                    report(trial)
                names = ((f"{RUNS}/{trial.name}", steps) for trial in running.values())
                table.show(names, f"{len(scheduler.results)} of {scheduler.total} are done")

    def _submit_trial(self, trial: Trial) -> Any:
        takes, work = self._trial, ray_tasks.run_trial
        return self._cluster.submit(work, self._job, takes, trial, name=trial.name, takes=takes)

    def _run_whole(self, work: Callable[[Job, Resources], None]) -> None:
        name, folder = work.__name__, self._job.out / PRETRAIN
        steps = self._job.protocol.config.pretrain.steps
        while True:
            task = self._cluster.submit(work, self._job, self._whole, name=name, takes=self._whole)
            with ProgressTable(self._job.out, name.replace("_", " ")) as table:
                while not self._cluster.wait([task]):
                    table.show([(PRETRAIN, steps)])
            try:
                self._cluster.result(task)
                return
            except TaskLost as error:
                self._count_loss(folder, error)

    def _count_loss(self, folder: Path, lost: TaskLost) -> None:
        """Say that a task was lost, which will be queued again.

        Args:
            folder: Of its checkpoints.
            lost: Why.

        Raises:
            UserError: It was lost too often.
        """
        step = next(iter(step_paths(folder)), 0)
        name = str(folder.relative_to(self._job.out))
        self._losses[name, step] += 1
        if self._losses[name, step] >= _MAX_LOSSES:
            raise UserError(
                f"{folder}: lost {_MAX_LOSSES} times after step {step} ({lost}): look at its "
                "nodes, or give it more memory with fewer --jobs; then run the same command to "
                "resume"
            ) from lost
        say(f"{name}: lost after step {step} ({lost}): goes on")
