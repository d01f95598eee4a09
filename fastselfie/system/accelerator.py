"""The device and precision of a run, and the reasons, which every run prints at its start."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from fastselfie.config import RuntimeConfig, StageConfig
from fastselfie.errors import UserError
from fastselfie.kernels.impl import unavailable
from fastselfie.system.compilation import CUDA_GRAPH_MODES, choose_compile
from fastselfie.system.console import say_once
from fastselfie.system.distributed import ALONE, Ranks, mean_in_order
from fastselfie.system.resources import usable_cores

# Values of ONEDNN_MAX_CPU_ISA without bf16 matrix products (oneDNN, "CPU Dispatcher Control").
_ISAS_WITHOUT_BF16 = {
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products. Parameters, statistics and losses stay float32.

    Attributes:
        name: fp32, bf16 or fp16.
        why: The reason for it, for the log.
    """

    name: str
    why: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    @property
    def scaled(self) -> bool:
        """Whether gradients need a scaler, as in fp16: its smallest normal number is 6e-5."""
        return self.name == "fp16"

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the autocast context for `device`; it does nothing for fp32."""
        return torch.autocast(device.type, self.dtype, enabled=self.name != "fp32")


@dataclass(frozen=True)
class Accelerator:
    """The device of a run and how it computes there.

    Attributes:
        device: The device.
        why: The reason for it, for the log.
        precision: The dtype of matrix products.
        channels_last: Whether convolutions use the NHWC memory format.
        compile: Mode of torch.compile, or None for eager execution.
        why_eager: Why a GPU runs eagerly under runtime.compile: auto; None: it does not.
        ranks: The position of this process in distributed training.
        bf16_gradients: Whether ranks send each other gradients in bf16.
    """

    device: torch.device
    why: str
    precision: Precision
    channels_last: bool
    compile: str | None = None
    why_eager: str | None = None
    ranks: Ranks = ALONE
    bf16_gradients: bool = False

    def place(self, model: nn.Module) -> None:
        """Move `model` to the device and to the configured memory format."""
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def replica(self, model: nn.Module, sync_batch_norm: bool) -> nn.Module:
        """Wrap `model` for distributed training.

        Backward passes average the gradients over the ranks. Running statistics are not sent at
        every pass: training does not read them, and `Ranks.broadcast_buffers` sends those of rank 0
        before an evaluation.

        Args:
            model: The network, after `place`.
            sync_batch_norm: Compute batch statistics over the images of all ranks.

        Returns:
            The wrapped model, or `model` itself if there is one rank.
        """
        if self.ranks.world == 1:
            return model
        if sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        on_gpu = self.device.type == "cuda"
        index = [self.device.index] if on_gpu else None
        with warnings.catch_warnings():
            # torch 2.13 renamed broadcast_buffers; older versions have only this name.
            warnings.simplefilter("ignore", FutureWarning)
            replica = DistributedDataParallel(
                model, device_ids=index, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        if not on_gpu:
            # A lambda, since DDP compares annotations with classes, and ours are strings.
            replica.register_comm_hook(
                None, lambda _, bucket: mean_in_order(bucket.buffer(), self.bf16_gradients)
            )
        elif self.bf16_gradients:
            replica.register_comm_hook(None, bf16_compress_hook)
        return replica

    def compiled(self, model: nn.Module) -> Callable[..., Any]:
        """Return `model`, or a compiled module that shares its weights, as configured."""
        return model if self.compile is None else torch.compile(model, mode=self.compile)

    def for_stage(self, stage: StageConfig) -> Accelerator:
        """Return how it computes in `stage`: eagerly if the images of the stage change their size.

        A config with `finetune.progressive` has runtime.compile: auto or off, so no choice is
        overruled.
        """
        if self.compile is None or stage.image_size_at(0) is None:
            return self
        why = "each image size of finetune.progressive would be compiled"
        return replace(self, compile=None, why_eager=why)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of this device and precision."""
        return self.precision.autocast(self.device)

    def check_micro_batch(self, micro_batch: int, batch: int) -> None:
        """Check that this rank can split `batch` images into passes of `micro_batch`.

        Raises:
            UserError: With CUDA graphs, the second pass would overwrite the gradients of the first.
        """
        if self.compile in CUDA_GRAPH_MODES and micro_batch < batch:
            raise UserError(
                f"runtime.cuda_graphs does not work with micro-batches, but {batch} images run in "
                f"passes of {micro_batch}: set batch_size to that, or runtime.cuda_graphs=false"
            )


def choose_accelerator(runtime: RuntimeConfig, ranks: Ranks = ALONE) -> Accelerator:
    """Choose the device and precision, and set torch's number of CPU threads.

    Args:
        runtime: The configuration; "auto" chooses by the machine.
        ranks: The result of `init_distributed` in distributed training.

    Raises:
        UserError: The machine does not support the configuration.
    """
    device, why = choose_device(runtime, ranks.local_rank)
    if runtime.kernels == "triton" and (reason := unavailable(device)):
        raise UserError(f"runtime.kernels: {reason}")
    if runtime.kernels == "auto" and device.type == "cuda" and (reason := unavailable(device)):
        say_once(f"warning: runtime.kernels is auto, and plain torch replaces Triton: {reason}")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    elif ranks.world > 1:  # torchrun sets one
        torch.set_num_threads(usable_cores())
    precision = choose_precision(runtime, device)
    mode, why_eager = choose_compile(runtime, device)
    return Accelerator(
        device, why, precision, runtime.channels_last, mode, why_eager, ranks,
        runtime.bf16_gradients,
    )  # fmt: skip


def choose_device(runtime: RuntimeConfig, local_rank: int = 0) -> tuple[torch.device, str]:
    """Choose the device.

    Args:
        runtime: The configuration.
        local_rank: The rank on this machine; each has one GPU.

    Returns:
        The device and the reason for it.

    Raises:
        UserError: torch sees no GPU or too few.
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
    """Choose the precision: as configured, or the fastest one that trains as well as fp32.

    On a GPU this is bf16 from sm_80, and fp16 with a scaler on older ones. On a CPU it is bf16 if
    torch reports bf16 instructions and ONEDNN_MAX_CPU_ISA allows them, otherwise fp32.

    Raises:
        UserError: fp16 on a CPU.
    """
    if runtime.precision != "auto":
        if device.type == "cpu" and runtime.precision == "fp16":
            raise UserError("runtime.precision is fp16, which needs a GPU: use fp32 or bf16")
        return Precision(runtime.precision, f"runtime.precision: {runtime.precision}")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = "bf16" if major >= 8 else "fp16"
        return Precision(name, f"sm_{major}{minor}")
    # Emulated bf16 is slower than fp32. Older versions of torch do not report CPU capabilities.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in _ISAS_WITHOUT_BF16:
        return Precision("fp32", f"oneDNN is limited to {limit}, without bf16 instructions")
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return Precision("bf16", f"a CPU with {name}")
    return Precision("fp32", "a CPU without bf16 instructions")


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of torch's generators on the host and on `device`, which dropout uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the result of `random_state`, also on a machine without a GPU."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
