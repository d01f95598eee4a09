"""The sections `runtime`, `checkpoint`, `log` and `optimizer`: execution, not the method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from fastselfie.config.base import PositiveInt, Section


def _off(value: object) -> object:
    """Undo YAML 1.1, which reads a bare `off` as false."""
    return "off" if value is False else value


class RuntimeConfig(Section):
    """Execution options. They change the speed, and results only by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if torch sees one"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """dtype of matrix products; auto: bf16 on GPUs from sm_80 and on CPUs with AMX or AVX-512
    instructions for bf16, fp16 with a scaler on older GPUs, otherwise fp32"""
    channels_last: bool = True
    """NHWC memory format of the convolutions"""
    compile: Annotated[Literal["auto", "off", "default", "max-autotune"], BeforeValidator(_off)] = (
        "auto"
    )
    """mode of torch.compile for the network; takes minutes at the first start, and seconds later,
    from its cache. auto: default on a GPU, off on a CPU, with activation checkpointing or
    finetune.progressive, and where torch.compile lacks what it needs"""
    cuda_graphs: bool = False
    """run the compiled network as CUDA graphs; not with micro-batches or finetune.progressive"""
    activation_checkpointing: bool = False
    """store only the input of each block of P, and recompute the block backward"""
    threads: PositiveInt | None = None
    """CPU threads of torch per process; null: torch's default or, with several ranks on a machine,
    this rank's share of the cores"""
    bf16_gradients: bool = False
    """send gradients between ranks in bf16, half the bytes of float32"""
    timeout: PositiveInt = 1800
    """seconds that a rank waits for the others before it fails; must be longer than the slowest
    start, evaluation or checkpoint"""
    kernels: Literal["auto", "reference", "triton"] = "auto"
    """auto: fused kernels: on a GPU Triton, if installed, for the distractor score, patchify, batch
    norm with ReLU, the max pool and 1x1 convolutions that memory binds; on a CPU C++ for patchify
    and batch norm with ReLU, and weight gradients without barriers between threads. reference:
    plain torch. triton: an error if Triton cannot run"""

    @model_validator(mode="after")
    def _check(self) -> RuntimeConfig:
        if self.cuda_graphs and self.compile == "off":
            raise ValueError("runtime.cuda_graphs is true, which needs runtime.compile=default")
        if self.activation_checkpointing and self.compile not in ("auto", "off"):
            raise ValueError(
                "runtime.activation_checkpointing is true, but does not work with runtime.compile: "
                "turn one of them off"
            )
        if self.activation_checkpointing and self.cuda_graphs:
            raise ValueError(
                "runtime.activation_checkpointing is true, but does not work with "
                "runtime.cuda_graphs: turn one of them off"
            )
        return self


class CheckpointConfig(Section):
    """Which checkpoints of a stage to keep, and what to do if the disk is full."""

    keep: PositiveInt = 2
    """number of newest checkpoints to keep; one more while one is written"""
    keep_every: PositiveInt | None = None
    """also keep the checkpoint of every so many steps forever; null: none"""
    on_error: Literal["stop", "continue"] = "stop"
    """if a checkpoint, log line, picture or page cannot be written (a full or read-only disk): stop
    ends the run; continue prints a line and trains on"""


class LogConfig(Section):
    """Where to log, besides log.jsonl and TensorBoard."""

    wandb: Annotated[Literal["off", "online", "offline"], BeforeValidator(_off)] = "off"
    """Weights & Biases (pip install 'fastselfie[wandb]'), one run per stage; offline: into the
    stage's folder, for `wandb sync`. Its errors never stop a run"""
    wandb_project: str = "fastselfie"
    """the project of these runs"""


class OptimizerConfig(Section):
    """The implementation of SGD."""

    backend: Literal["torch", "apex"] = "torch"
    """torch: torch's fused SGD; apex: NVIDIA apex's, GPU only"""
