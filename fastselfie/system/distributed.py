"""The ranks of distributed training and their collectives.

torchrun starts the processes and describes them in the environment. Only rank 0 writes and prints.
Decisions are exchanged between hosts (gloo), so none waits for a GPU; gradients are exchanged
between devices (NCCL, or gloo on CPUs). With one process nothing is sent.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastselfie.errors import UserError

Value = TypeVar("Value")

_SINGLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    All ranks must call the same collectives in the same order.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
        local_rank: Number of this process among those of its machine.
        local_world: Number of processes on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints for all."""
        return self.rank == 0

    def summed(self, *numbers: float) -> tuple[float, ...]:
        """Return the sum of each number over all ranks. Integers are exact below 2^53."""
        return tuple(self._reduced(numbers, dist.ReduceOp.SUM))

    def mean_on_device(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all ranks, without a host synchronization."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def gathered(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, number: int) -> int:
        """Return the maximum of `number` over all ranks."""
        return int(self._reduced((number,), dist.ReduceOp.MAX)[0])

    def broadcast_from_main(self, read: Callable[[], Value]) -> Value:
        """Call `read` on rank 0 and return its result on all ranks.

        So only rank 0 needs access to the run's folder.

        Raises:
            UserError: `read` raised it; see `raise_together`.
        """
        values: list[Any] = [None]
        with self.raise_together():
            if self.is_main:
                values = [read()]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        value: Value = values[0]
        return value

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Send the buffers of rank 0, such as running statistics, to all ranks."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """If any rank raises UserError or OSError in the block, end all ranks.

        Otherwise the others would wait for it. The block must not contain collectives, since a rank
        that fails would miss them.

        Raises:
            UserError: On rank 0: its own error or the first of another rank; OSError alike. The
                other ranks exit after it with status 2, without output.
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
        faults = self.gathered(fault)
        if self.is_main:
            _skip_process_group_shutdown()
            raise fault or next(error for error in faults if error is not None)
        self.exit_after_main(2)

    def exit_after_main(self, status: int) -> None:
        """Wait until rank 0 has ended, then exit with `status`; on rank 0 return at once.

        All ranks must call it together. torchrun ends all processes once one exits with an error,
        and rank 0 may still have to print a message or write a file.
        """
        if self.is_main:
            _skip_process_group_shutdown()
            return
        with suppress(RuntimeError):  # raised when rank 0 closes the connection
            dist.all_reduce(torch.zeros(1))
        # Skip the interpreter's shutdown, where an interrupted gloo sometimes aborts. Worker
        # processes end when their pipes close.
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
    """Average gradients over the ranks, adding them in order of rank, for DDP on CPUs.

    gloo's own all-reduce adds in another order in each part of a bucket, and DDP rebuilds its
    buckets after the first step. With three or more ranks, a resumed run would differ in the last
    bits.

    Args:
        mine: The gradients of this rank.
        bf16: Send them in bf16. The sum has their own precision.

    Returns:
        A future of the mean.
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
    """Read the ranks from the environment variables of torchrun.

    Args:
        environment: For example os.environ. Without torchrun's variables there is one rank.

    Raises:
        UserError: The variables are invalid.
    """
    found = {name: environment.get(name, default) for name, default in _SINGLE.items()}
    if not all(text.isdigit() for text in found.values()):
        values = ", ".join(f"{name}={text}" for name, text in found.items())
        raise UserError(f"{values}: not numbers as torchrun sets them: unset them, or use torchrun")
    ranks = Ranks(*(int(text) for text in found.values()))
    if ranks.rank >= ranks.world:
        raise UserError(f"RANK={ranks.rank}: must be below WORLD_SIZE={ranks.world}")
    return ranks


def _skip_process_group_shutdown() -> None:
    """Skip NCCL's shutdown at exit: it would wait for ranks that wait for this process to end."""
    if dist.is_initialized() and "nccl" in dist.get_backend_config():
        atexit.unregister(destroy_process_group)


def destroy_process_group() -> None:
    """Destroy the process group at exit, and wait for gloo's threads.

    A thread that frees a tensor during the interpreter's shutdown aborts the process (pytorch PR
    179291).
    """
    # DDP networks may keep the group alive, by a reference cycle or the traceback of an error.
    for name in ("last_exc", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    gc.collect()
    dist.destroy_process_group()
