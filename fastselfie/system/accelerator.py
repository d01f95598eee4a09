"""Which device and precision a run uses, and why: said aloud at the start of every run."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from fastselfie.config import RuntimeConfig
from fastselfie.errors import UserError
from fastselfie.kernels.impl import unavailable
from fastselfie.system.distributed import ALONE, Ranks, mean_in_order, ranks_of

# What ONEDNN_MAX_CPU_ISA may limit oneDNN to that has no products of bf16 (oneDNN, "CPU Dispatcher
# Control").
_ISAS_WITHOUT_BF16 = {
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
}  # fmt: skip
# torch.compile's modes that replay CUDA graphs, with their outputs in the graphs' own memory.
_GRAPHED = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Precision:
    """The dtype of the matrix work. Parameters, statistics and losses stay float32.

    name: fp32, bf16 or fp16. why: for the person who reads the log.
    """

    name: str
    why: str

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    @property
    def scaled(self) -> bool:
        """Whether gradients need a scaler: fp16's smallest normal number is 6e-5."""
        return self.name == "fp16"

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.name != "fp32")


@dataclass(frozen=True)
class Accelerator:
    """Where a run computes. why: the reason for the device. compile: torch.compile's mode.

    ranks: this process among those that train together. bf16_gradients: what these send.
    """

    device: torch.device
    why: str
    precision: Precision
    channels_last: bool
    compile: str | None = None
    ranks: Ranks = ALONE
    bf16_gradients: bool = False

    def place(self, model: nn.Module) -> None:
        """Move `model` to the device, its convolutions in the configured memory format."""
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def replica(self, model: nn.Module, sync_batch_norm: bool) -> nn.Module:
        """`model`, placed already, as one of the processes' replicas: backward passes leave in each
        the mean of their gradients. The model itself where there is one process.

        sync_batch_norm: turn its batch norms into those that see all processes' images. Batch
        statistics are not sent at every pass: training does not read them, and rank 0's are given
        to all before a measurement.
        """
        if self.ranks.world == 1:
            return model
        if sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        on_gpu = self.device.type == "cuda"
        index = [self.device.index] if on_gpu else None
        with warnings.catch_warnings():
            # torch 2.13 renamed broadcast_buffers; older ones know no other name.
            warnings.simplefilter("ignore", FutureWarning)
            replica = DistributedDataParallel(
                model, device_ids=index, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        if not on_gpu:
            # Without annotations, which DDP compares with classes, not with their names.
            replica.register_comm_hook(
                None, lambda _, bucket: mean_in_order(bucket.buffer(), self.bf16_gradients)
            )
        elif self.bf16_gradients:
            replica.register_comm_hook(None, bf16_compress_hook)
        return replica

    def compiled(self, model: nn.Module) -> Callable[..., Any]:
        """What trains in place of `model`, whose weights it shares; compiled at its first call."""
        return model if self.compile is None else torch.compile(model, mode=self.compile)

    def autocast(self) -> torch.autocast:
        return self.precision.autocast(self.device)

    def check_micro_batch(self, micro_batch: int, batch: int) -> None:
        """Whether `batch` images of this process may go in passes of `micro_batch`.

        Raises:
            UserError: the second pass would replay a CUDA graph over the first one's gradients.
        """
        if self.compile in _GRAPHED and micro_batch < batch:
            raise UserError(
                f"runtime.cuda_graphs is true, which takes no micro-batches, but {batch} images go "
                f"in passes of {micro_batch}: set batch_size to that, or runtime.cuda_graphs=false"
            )


def choose_accelerator(runtime: RuntimeConfig, ranks: Ranks = ALONE) -> Accelerator:
    """As the config says or, on auto, as the machine is. Sets torch's CPU threads.

    ranks: those that `join` found, where processes train together.

    Raises:
        UserError: the machine has not what is asked for.
    """
    device, why = choose_device(runtime, ranks.local_rank)
    if runtime.kernels == "triton" and (reason := unavailable(device)):
        raise UserError(f"runtime.kernels: {reason}")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    elif ranks.world > 1:  # torchrun's choice is one
        torch.set_num_threads(usable_cores())
    precision = choose_precision(runtime, device)
    compiling = choose_compile(runtime, device)
    return Accelerator(
        device,
        why,
        precision,
        runtime.channels_last,
        compiling,
        ranks,
        runtime.bf16_gradients,
    )


def choose_device(runtime: RuntimeConfig, local_rank: int = 0) -> tuple[torch.device, str]:
    """The device and the reason. local_rank: among this machine's processes, a GPU for each.

    Raises:
        UserError: a GPU is asked for where torch sees none, or too few.
    """
    if runtime.device == "cpu":
        return torch.device("cpu"), "runtime.device: cpu"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK is {local_rank}, but torch sees {torch.cuda.device_count()} GPUs: "
                "start one process a GPU, or set runtime.device=cpu"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank), torch.cuda.get_device_name(local_rank)
    cpu_build = torch.version.cuda is None and torch.version.hip is None
    reason = "this torch is a CPU build" if cpu_build else "torch sees no GPU"
    if runtime.device == "cuda":
        raise UserError(f"runtime.device is cuda, but {reason}: see `fastselfie doctor`")
    return torch.device("cpu"), reason


def choose_precision(runtime: RuntimeConfig, device: torch.device) -> Precision:
    """What the config says, else the fastest that trains as fp32 does.

    On a GPU bf16 from sm_80 on, fp16 with a scaler below; on a CPU bf16 where it has instructions
    for it, torch can tell and ONEDNN_MAX_CPU_ISA allows them, else fp32.
    """
    if runtime.precision != "auto":
        if device.type == "cpu" and runtime.precision == "fp16":
            raise UserError("runtime.precision is fp16, which needs a GPU: use fp32 or bf16")
        return Precision(runtime.precision, f"runtime.precision: {runtime.precision}")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = "bf16" if major >= 8 else "fp16"
        return Precision(name, f"sm_{major}{minor}")
    # Emulated, bf16 is slower than fp32. Older torch does not say what a CPU has.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in _ISAS_WITHOUT_BF16:
        return Precision("fp32", f"oneDNN is limited to {limit}, without bf16 instructions")
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return Precision("bf16", f"a CPU with {name}")
    return Precision("fp32", "a CPU without bf16 instructions")


def choose_compile(runtime: RuntimeConfig, device: torch.device) -> str | None:
    """The mode for torch.compile, None where it is off.

    Raises:
        UserError: CUDA graphs without a GPU; no compiler for what it generates.
    """
    if runtime.cuda_graphs and device.type != "cuda":
        raise UserError("runtime.cuda_graphs is true, which needs a GPU: set it to false")
    if runtime.compile == "off":
        return None
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"runtime.compile is {runtime.compile}, which needs the C++ compiler {compiler}: "
            "install it, name another in CXX, or set runtime.compile=off"
        )
    if runtime.compile == "default":
        return "reduce-overhead" if runtime.cuda_graphs else "default"
    return "max-autotune" if runtime.cuda_graphs else "max-autotune-no-cudagraphs"


def usable_cores() -> int:
    """This process's share of the cores: a container makes them fewer, torchrun's others too."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // ranks_of(os.environ).local_world)


def total_memory(device: torch.device) -> int:
    """Bytes that this process may have of the device's memory.

    Its share of a GPU's where there are more processes than GPUs; on a CPU of what the machine or
    the cgroup allows.
    """
    processes = ranks_of(os.environ).local_world
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory)
        return memory // math.ceil(processes / torch.cuda.device_count())
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        limit = "max"
    if limit.isdigit():
        available = min(available, int(limit))
    return available // processes


def random_state(device: torch.device) -> dict[str, Any]:
    """Torch's own generators, of the host and of `device`: dropout draws from them."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` gave, on this machine or one without its GPU."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
