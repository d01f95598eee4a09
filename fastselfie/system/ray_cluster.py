"""A Ray cluster: join one or start one here, run tasks on its nodes, leave it without a trace.

Ray is the extra `ray`; nothing imports it before `ray_cluster` is called.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from fastselfie import __version__
from fastselfie.errors import UserError
from fastselfie.system.ray_node import TaskLost, run_on_node
from fastselfie.system.resources import usable_cores
from fastselfie.system.signals import Pending, deferred_signals

Task = TypeVar("Task")
Result = TypeVar("Result")

INSTALL = "pip install 'fastselfie[ray]'"
_PORT = 6379  # of `ray start --head`
_SECONDS = 10.0  # for the first connection; Ray itself would try for minutes
_POLL = 0.5  # seconds between looks at signals
_LEAVE = 300.0  # seconds in which tasks may finish a step and save it after a signal
_RETRIES = 20  # of a task of `map_in_order`, after the death of its worker
_AHEAD = 3  # unfinished tasks per worker: bounds the memory
# What changes the speed or the bits of a worker's arithmetic, and is read when it starts.
_PASSED_ON = ("OMP_WAIT_POLICY", "FASTSELFIE_KERNELS")


@dataclass(frozen=True)
class Resources:
    """What a task takes from its node, in Ray's units.

    Attributes:
        cores: Number of cores, or a fraction of one.
        gpus: Number of GPUs, or a fraction of one.
        memory: Bytes of main memory.
    """

    cores: float
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Node:
    """A living node, and all that Ray may hand out on it."""

    id: str
    host: str
    has: Resources


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Cluster]:
    """Join the Ray cluster at `address`, or start one on this machine.

    On exit, tasks that still run are stopped as by Ctrl-C: a training saves its last step. A
    cluster that was started here ends. Signals are deferred inside the block; `Cluster.wait`
    raises for them.

    Args:
        address: HOST or HOST:PORT of the head node; auto: the cluster that this machine is in;
            None: start one here.

    Raises:
        UserError: Ray is missing, there is no cluster at `address`, or it has another version.
    """
    try:
        import ray
        from ray import init  # a folder named ray, in the working directory, has none
    except ImportError as error:
        raise UserError(f"--engine ray: Ray is not installed ({error}): {INSTALL}") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a new cluster reports to its maker
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    where = {"address": "local", "num_cpus": usable_cores()}
    if address is not None:
        where = {"address": _reachable(address)}
    try:
        init(
            **where,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"env_vars": variables},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        # Ray compares its own version and Python's, and says both over several lines.
        text = " ".join(str(error).split())
        raise UserError(f"--engine ray: cannot use the cluster at {address}: {text}") from error
    try:
        with deferred_signals() as pending:
            cluster = Cluster(pending)
            try:
                yield cluster
            finally:
                cluster.stop()
    finally:
        ray.shutdown()


def _reachable(address: str) -> str:
    """Return HOST:PORT of a cluster's head node, once something answers there."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise UserError(
            f"--address {address}: Ray's client is not supported: run this command on a node of "
            "the cluster, with --address auto, for example by `ray job submit`"
        )
    if address != "auto" and ":" not in address:
        address = f"{address}:{_PORT}"
    try:
        found = canonicalize_bootstrap_address(address) if address == "auto" else address
    except (ConnectionError, ValueError):
        found = None
    if found is None:
        raise UserError(
            "--address auto: this machine is in no Ray cluster: run `ray start --head` here, or "
            "`ray start --address HOST:6379` to join one"
        )
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers at {found} ({error}): start its head "
            "with `ray start --head`, or pass another address"
        ) from error
    return str(found)


class Cluster:
    """Runs tasks on the nodes of a Ray cluster. Made by `ray_cluster`.

    Args:
        pending: Has the signal that has arrived, if any.
    """

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._unfinished: set[Any] = set()

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        import ray

        return [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                Resources(
                    node["Resources"].get("CPU", 0.0),
                    node["Resources"].get("GPU", 0.0),
                    int(node["Resources"].get("memory", 0)),
                ),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def submit(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        name: str,
        takes: Resources,
        node: Node | None = None,
        retries: int = 0,
    ) -> Any:
        """Queue a task and return its reference, for `wait` and `result`.

        Args:
            work: A function of an importable module.
            arguments: Its arguments, sent pickled.
            name: Shown by `ray list tasks` and the dashboard.
            takes: The resources of the task.
            node: Where it must run; None: wherever the resources are.
            retries: How often Ray itself repeats the task after the death of its process or node.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # A process that has used a GPU keeps its memory, so it takes no second task.
        task = ray.remote(num_gpus=takes.gpus, max_calls=1 if takes.gpus else 0)(run_on_node)
        options: dict[str, Any] = {"name": name, "num_cpus": takes.cores, "max_retries": retries}
        if takes.memory:
            options["memory"] = takes.memory
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node.id, soft=False)
        reference = task.options(**options).remote(__version__, os.getcwd(), work, arguments)
        self._unfinished.add(reference)
        return reference

    def wait(self, tasks: Iterable[Any], seconds: float = _POLL) -> list[Any]:
        """Wait until a task has ended, at most `seconds`; return those that have.

        Raises:
            Interrupted: A signal came.
        """
        import ray

        self._pending.raise_if_signalled()
        ended, _ = ray.wait(list(tasks), timeout=seconds)
        return list(ended)

    def result(self, task: Any) -> Any:
        """Wait for the result of a task and return it.

        Raises:
            TaskLost: Its process or node died.
            UserError: The work raised it, or the node has another version of fastselfie.
            OSError: The work raised it.
            RuntimeError: The work raised something else; the message holds its traceback.
            Interrupted: A signal came.
        """
        import ray

        while not self.wait([task]):
            pass
        self._unfinished.discard(task)
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TaskLost | UserError | OSError):
                raise cause from None
            if "failed to import" in str(cause):
                last = str(cause).strip().splitlines()[-1]
                raise UserError(
                    f"node {error.ip}: fastselfie does not run there ({last}): install fastselfie "
                    f"{__version__} on every node"
                ) from error
            raise RuntimeError(f"in a task on node {error.ip}:\n{error}") from error
        except ray.exceptions.RayError as error:
            raise TaskLost(str(error).strip().splitlines()[0]) from error

    def map_in_order(
        self, work: Callable[[Task], Result], tasks: Iterable[Task], workers: int | None
    ) -> Generator[tuple[Task, Result]]:
        """Yield each task and work(task), in order, computed on one core of some node each.

        Args:
            work: Sent to the nodes pickled.
            tasks: Drawn only as they are needed, and sent pickled.
            workers: Number of tasks at a time; None: one per core of the cluster.

        Raises:
            UserError: A task lost its process or node again and again.
        """
        if workers is None:
            workers = max(1, int(sum(node.has.cores for node in self.nodes())))
        left, pending = iter(tasks), deque[tuple[Task, Any]]()
        while True:
            for task in islice(left, _AHEAD * workers - len(pending)):
                reference = self.submit(
                    work, task, name="prepare", takes=Resources(1.0), retries=_RETRIES
                )
                pending.append((task, reference))
            if not pending:
                return
            task, reference = pending.popleft()
            try:
                yield task, self.result(reference)
            except TaskLost as error:
                raise UserError(
                    f"a part was lost on {_RETRIES + 1} nodes ({error}): run the same command to "
                    "resume, with fewer --workers if memory is short"
                ) from error

    def stop(self) -> None:
        """Stop all tasks as by Ctrl-C, and wait until they have saved and left.

        A second signal stops the wait.
        """
        import ray

        for task in self._unfinished:
            ray.cancel(task)
        if self._unfinished:
            tasks = list(self._unfinished)
            ray.wait(tasks, num_returns=len(tasks), timeout=_LEAVE)
