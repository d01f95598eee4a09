"""Many processes that train one network: who they are, and the few things they tell each other.

torchrun starts them and says in the environment who is who. Rank 0 leads: it alone writes and
speaks. What is agreed on travels between the hosts (gloo), so no agreement waits for a GPU;
gradients travel between the devices (NCCL, or gloo on CPUs). On one process nothing is sent.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastselfie.config import RuntimeConfig
from fastselfie.errors import UserError

Value = TypeVar("Value")

_PR_SET_PDEATHSIG = 1  # of Linux's prctl

_SINGLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@dataclass(frozen=True)
class Ranks:
    """One process among `world`. local_rank, local_world: among those of its machine.

    Every process must call the same collectives in the same order.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share_of(self, batch_size: int, key: str) -> int:
        """Images of each batch that a process takes.

        Raises:
            UserError: they cannot all take as many; `key` is where the batch size is from.
        """
        if batch_size % self.world:
            raise UserError(
                f"{key} is {batch_size}: {self.world} processes must divide it: start another "
                "number of them, or set another size"
            )
        return batch_size // self.world

    def summed(self, *numbers: float) -> tuple[float, ...]:
        """Each number, summed over the processes; whole ones are exact below 2^53."""
        return tuple(self._reduced(numbers, dist.ReduceOp.SUM))

    def mean_on_device(self, value: Tensor) -> Tensor:
        """The processes' mean of `value`; the host does not wait for it."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def gathered(self, value: Value) -> list[Value]:
        """Every process's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return int(self._reduced((number,), dist.ReduceOp.MAX)[0])

    def broadcast_from_main(self, read: Callable[[], Value]) -> Value:
        """What `read` returns on rank 0, alike on all: only rank 0 need see the run's folder.

        Raises:
            UserError: see `raise_together`.
        """
        told: list[Any] = [None]
        with self.raise_together():
            if self.is_main:
                told = [read()]
        if self.world > 1:
            dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        value: Value = told[0]
        return value

    def require_same(self, text: str, complaint: str) -> None:
        """Make sure that all processes hold the same `text`.

        Raises:
            UserError: `complaint`, where one holds another.
        """
        leaders = self.broadcast_from_main(lambda: text)
        with self.raise_together():
            if text != leaders:
                raise UserError(complaint)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process rank 0's buffers: the batch statistics that a network is judged by."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """A mistake of the user's on one process inside ends them all, where else they would wait.

        Inside stands no collective: a process that fails would miss it. Rank 0 raises the mistake,
        its own or the first of another's; the others leave with status 2 after it, in silence.
        """
        fault: Exception | None = None
        try:
            yield
        except (UserError, OSError) as error:
            if self.world == 1:
                raise
            fault = error
        if not self.largest(fault is not None):
            return
        faults: list[Exception | None] = [None] * self.world
        dist.all_gather_object(faults, fault)
        if self.is_main:
            _leave_without_the_others()
            raise fault or next(error for error in faults if error is not None)
        self.leave_after_the_leader(2)

    def leave_after_the_leader(self, status: int) -> None:
        """Called by all at one place: the others leave with `status` once rank 0 is gone.

        torchrun ends every process once one has left with an error, and rank 0 may still have a
        line to say or a file to write.
        """
        if self.is_main:
            _leave_without_the_others()
            return
        with suppress(RuntimeError):  # which is how the end of its connection is told
            dist.all_reduce(torch.zeros(1))
        # Not by way of the interpreter's end: gloo, cut off in the middle, now and then aborts
        # there. Worker processes see the end of their pipes.
        os._exit(status)

    def _reduced(self, numbers: tuple[float, ...], how: Any) -> list[float]:
        if self.world == 1:
            return [float(number) for number in numbers]
        values: Tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, op=how)
        reduced: list[float] = values.tolist()
        return reduced


ALONE = Ranks()


def mean_in_order(mine: Tensor, bf16: bool) -> torch.futures.Future[Tensor]:
    """For DDP on CPUs: the mean of all processes' `mine`, gradients, added up from rank 0 on.

    bf16: they are sent so; the sum has their own precision.

    gloo's own sum starts elsewhere in each part of a bucket, and DDP lays its buckets out anew
    after its first step: from three processes on a resumed run would differ in the last bits.
    """
    own = mine.bfloat16() if bf16 else mine
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]

    def mean(_: object) -> Tensor:
        total = parts[0].to(mine.dtype)
        for part in parts[1:]:
            total.add_(part)
        return total.div_(len(parts))

    sent: torch.futures.Future[Any] = dist.all_gather(parts, own, async_op=True).get_future()
    return sent.then(mean)


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """As torchrun says there; a single process where it says nothing.

    Raises:
        UserError: what stands there makes no sense.
    """
    found = {name: environment.get(name, default) for name, default in _SINGLE.items()}
    if not all(text.isdigit() for text in found.values()):
        said = ", ".join(f"{name}={text}" for name, text in found.items())
        raise UserError(f"{said}: not as torchrun sets them: unset them, or use torchrun")
    ranks = Ranks(*(int(text) for text in found.values()))
    if ranks.rank >= ranks.world:
        raise UserError(f"RANK={ranks.rank}: must be below WORLD_SIZE={ranks.world}")
    return ranks


def _leave_without_the_others() -> None:
    """Where they wait for this process's end, NCCL's orderly one would wait for them."""
    if dist.is_initialized() and "nccl" in dist.get_backend_config():
        atexit.unregister(_part)


def _part() -> None:
    """Leave the group and wait for gloo's threads: they may still have a tensor to let go of, and
    one that does so while the interpreter ends aborts the process (pytorch PR 179291)."""
    # What holds the group beyond its last use: DDP's networks, by a circle or by the traceback of
    # the error that ended the process.
    for name in ("last_exc", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    gc.collect()
    dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun started this process again, after one of its group was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def init_distributed(runtime: RuntimeConfig) -> Ranks:
    """Meet the other processes; they part when this one ends.

    Raises:
        UserError: the environment is incomplete; the others do not come in time.
    """
    ranks = ranks_of(os.environ)
    if ranks.world == 1:
        return ranks
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"WORLD_SIZE={ranks.world}, but {name} is not set: use torchrun")
    # Its functions keep the group that is there at their import as a default, for ever; DDP imports
    # it, and gloo's threads would outlive `_part`.
    importlib.import_module("torch.distributed.nn")
    gpus = runtime.device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    limit = timedelta(seconds=runtime.timeout)
    try:
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world, timeout=limit))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=_meet(store, ranks, runtime.timeout),
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=limit,
        )
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {ranks.rank} of {ranks.world}: the others cannot be met at {where} ({reason}): "
            "check that all are started, and runtime.timeout"
        ) from error
    # At the very end: the others take the end of the connection for that of this process.
    atexit.register(_part)
    _leave_with_torchrun()
    return ranks


def _leave_with_torchrun() -> None:
    """Where torchrun itself is killed, nobody else would end what it started: then take a SIGTERM.

    By way of another signal: Linux sends it once for each of torchrun's threads, and a second
    SIGTERM would end the process without a checkpoint.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return

    left = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal left
        del number, frame
        if not left:  # one more may come while this one is handled
            left = True
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGRTMIN, leave)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGRTMIN))


def _meet(store: Store, ranks: Ranks, timeout: float) -> Store:
    """A part of `store` for the processes of this start alone.

    torchrun keeps its store over a restart, and gloo takes the addresses that the dead left there
    for those of the living: both wait for ever. So each process has a name that is new, and rank 0
    answers to names until all that live have heard its own.
    """
    mine, deadline = uuid4().hex, time.monotonic() + timeout
    store.set(f"process/{ranks.rank}", mine)
    if not ranks.is_main:
        leader = store.get(f"leader/{mine}").decode()
        store.set(f"met/{leader}/{ranks.rank}", "")
        return PrefixStore(leader, store)
    for rank in range(1, ranks.world):
        while not store.check([f"met/{mine}/{rank}"]):
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"rank {rank} did not answer")
            store.set(f"leader/{store.get(f'process/{rank}').decode()}", mine)
            time.sleep(0.01)
    return PrefixStore(mine, store)
