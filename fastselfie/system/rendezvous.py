"""The start of distributed training: all ranks connect, and end with torchrun."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import signal
import sys
import time
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastselfie.config import RuntimeConfig
from fastselfie.errors import UserError
from fastselfie.system.distributed import Ranks, destroy_process_group, ranks_of

_PR_SET_PDEATHSIG = 1  # an option of Linux's prctl


def restarted() -> bool:
    """Return whether torchrun restarted this process after the loss of a rank."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def init_distributed(runtime: RuntimeConfig) -> Ranks:
    """Initialize distributed training as torchrun's environment describes it.

    The process group is destroyed at exit. With one rank, this does nothing.

    Args:
        runtime: Its `device` chooses the backend, its `timeout` limits the wait for other ranks.

    Raises:
        UserError: The environment is incomplete, or the other ranks do not connect in time.
    """
    ranks = ranks_of(os.environ)
    if ranks.world == 1:
        return ranks
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"WORLD_SIZE={ranks.world}, but {name} is not set: use torchrun")
    # Import it before there is a group: its functions keep the present group as a default argument
    # forever, so gloo's threads would outlive `destroy_process_group`. DDP imports it later.
    importlib.import_module("torch.distributed.nn")
    gpus = runtime.device != "cpu" and torch.cuda.is_available() and dist.is_nccl_available()
    limit = timedelta(seconds=runtime.timeout)
    try:
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world, timeout=limit))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=_store_of_this_start(store, ranks, runtime.timeout),
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=limit,
        )
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {ranks.rank} of {ranks.world}: cannot connect to the other ranks at {where} "
            f"({reason}): check that all are started, or increase runtime.timeout"
        ) from error
    # At exit, not before: to the others, a closed connection means that this process has ended.
    atexit.register(destroy_process_group)
    _terminate_with_torchrun()
    return ranks


def _terminate_with_torchrun() -> None:
    """Send this process SIGTERM when torchrun is killed, since nothing else would end it.

    Linux sends the signal once per thread of torchrun, and a second SIGTERM would end the process
    without a checkpoint. So it sends another signal, whose handler sends one SIGTERM.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        if not terminated:
            terminated = True  # before the kill: another signal may arrive during it
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGRTMIN, terminate)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGRTMIN))


def _store_of_this_start(store: Store, ranks: Ranks, timeout: float) -> Store:
    """Return a prefix of `store` that only the processes of this start use.

    torchrun keeps its store over a restart, and gloo would take the addresses of dead processes in
    it for those of living ones: both would hang. So each process stores a new random name, and rank
    0 answers every name until all living ranks have confirmed its own.

    Raises:
        DistStoreError: A rank did not confirm in time.
    """
    name, deadline = uuid4().hex, time.monotonic() + timeout
    store.set(f"process/{ranks.rank}", name)
    if not ranks.is_main:
        main = store.get(f"main/{name}").decode()
        store.set(f"confirmed/{main}/{ranks.rank}", "")
        return PrefixStore(main, store)
    for rank in range(1, ranks.world):
        while not store.check([f"confirmed/{name}/{rank}"]):
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"rank {rank} did not answer")
            store.set(f"main/{store.get(f'process/{rank}').decode()}", name)
            time.sleep(0.01)
    return PrefixStore(name, store)
