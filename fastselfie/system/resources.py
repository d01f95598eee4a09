"""The share of the machine that this process may use: CPU cores and memory.

The processes that train together on a machine share it equally. The environment variable
LOCAL_WORLD_SIZE has their number, in every process. torchrun sets it, or `share_machine`; if it is
not set, there is one process.
"""

from __future__ import annotations

import math
import os
import resource
from contextlib import suppress
from pathlib import Path

import torch

from fastselfie.system.distributed import ranks_of

_OTHER_FILES = 512  # that a process has open, beside those of a dataset
# Processes on each GPU, where a process sees no other GPU; 0 or unset: LOCAL_WORLD_SIZE decides.
_PER_GPU = "FASTSELFIE_PROCESSES_PER_GPU"


def share_machine(processes: int) -> None:
    """Set the number of processes that share the machine, for this process and its children."""
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)


def take_share(cores: float, gpus: float) -> None:
    """Limit this process to a share of its machine, where a scheduler has placed it.

    Args:
        cores: Cores that it may use.
        gpus: GPUs that it may use, of which it sees only its own: 0.5 if two processes share one.
    """
    share_machine(1)  # this process may have had another share before
    share_machine(math.ceil(usable_cores() / cores))
    os.environ[_PER_GPU] = str(max(1, round(1 / gpus))) if gpus else "0"


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, its share of them."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // _processes())


def total_memory(device: torch.device) -> int:
    """Return this process's share of the device's memory, in bytes.

    The processes on a GPU share it. On a CPU, all processes share the memory of the machine or the
    limit of the cgroup.
    """
    processes = _processes()
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory)
        on_this_gpu = int(os.environ.get(_PER_GPU, "0"))
        return memory // (on_this_gpu or math.ceil(processes / torch.cuda.device_count()))
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no cgroup, or "max": it has no limit
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")
        available = min(available, int(limit))
    return available // processes


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files for `count` more, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _processes() -> int:
    return ranks_of(os.environ).local_world
