"""How the machine is used: nothing here is part of what is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fastselfie.config.base import PositiveInt, Section


def _off(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


class RuntimeConfig(Section):
    """How the machine is used. Nothing here changes what is computed, only how fast."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if one is seen")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the matrix work; auto: bf16 on sm_80 and newer and on CPUs with AMX or "
        "AVX-512 instructions for it, fp16 with a scaler on older GPUs, else fp32",
    )
    channels_last: bool = Field(True, description="NHWC memory format of the convolutions")
    compile: Annotated[Literal["off", "default", "max-autotune"], BeforeValidator(_off)] = Field(
        "off",
        description="torch.compile of the training step's network: minutes at the first start, "
        "seconds afterwards, from its cache",
    )
    cuda_graphs: bool = Field(
        False, description="replay the compiled network as CUDA graphs; not with micro-batches"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only each block's input of P, and compute the block again backward"
    )
    threads: PositiveInt | None = Field(
        None,
        description="CPU threads of torch in each process; null: its choice, or with several "
        "processes on a machine as many as share its cores",
    )
    bf16_gradients: bool = Field(
        False,
        description="processes send each other their gradients in bf16, half of float32's bytes",
    )
    timeout: PositiveInt = Field(
        1800,
        description="seconds that a process of several waits for the others before it fails. "
        "Longer than the slowest start, evaluation and checkpoint",
    )
    kernels: Literal["auto", "reference", "triton"] = Field(
        "auto",
        description="auto: the fused ones: Triton for the distractor score and patchify on a GPU "
        "where it is installed; on a CPU C++ for patchify and batch norm with ReLU, and matrix "
        "products for weight gradients in bf16; reference: plain torch; triton: an error where it "
        "does not run",
    )

    @model_validator(mode="after")
    def _check(self) -> RuntimeConfig:
        if self.cuda_graphs and self.compile == "off":
            raise ValueError("runtime.cuda_graphs is true, which needs runtime.compile: default")
        if self.activation_checkpointing and self.compile != "off":
            raise ValueError(
                "runtime.activation_checkpointing is true, which runtime.compile does not go with: "
                "set one of them off"
            )
        return self


class CheckpointConfig(Section):
    """Which checkpoints of a stage stay on the disk, and what a full disk means."""

    keep: PositiveInt = Field(
        2, description="the newest so many; one more while a new one is written"
    )
    keep_every: PositiveInt | None = Field(
        None, description="and those of every so many steps, which nothing deletes; null: none"
    )
    on_error: Literal["stop", "continue"] = Field(
        "stop",
        description="a checkpoint, log line, picture or page that cannot be written (a full or "
        "read-only disk): stop ends the run; continue says so in a line and trains on",
    )


class LogConfig(Section):
    """Where the log goes beside log.jsonl and TensorBoard's files."""

    wandb: Annotated[Literal["off", "online", "offline"], BeforeValidator(_off)] = Field(
        "off",
        description="Weights & Biases (pip install 'fastselfie[wandb]'), a run a stage; offline: "
        "into the stage's folder, for `wandb sync`. What fails there never stops a run",
    )
    wandb_project: str = Field("fastselfie", description="the project that the runs are put in")


class OptimizerConfig(Section):
    """Whose implementation of SGD."""

    backend: Literal["torch", "apex"] = Field(
        "torch", description="torch: its fused SGD; apex: that of NVIDIA's apex, GPU only"
    )
