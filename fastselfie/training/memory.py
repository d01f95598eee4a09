"""How much memory a step takes, counted without running it, and how many images fit in a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastselfie.config import Config, StageConfig
from fastselfie.models.selfie import Selfie, build_classifier
from fastselfie.system.accelerator import Precision

# Weights, gradients and momentum, float32 each.
_BYTES_A_PARAMETER = 12
# The moving average, and for a moment its way to the weights.
_BYTES_AVERAGED = 8
# The rest is for the allocator's waste, the convolutions' scratch space and the data.
_USABLE = 0.6


@dataclass(frozen=True)
class MemoryEstimate:
    """parameters: of the model. fixed: bytes of weights, gradients, momentum. per_image: bytes
    that one image's forward pass keeps for its backward pass."""

    parameters: int
    fixed: int
    per_image: int

    def total(self, images: int) -> int:
        return self.fixed + images * self.per_image

    def micro_batch(self, stage: StageConfig, memory: int, processes: int = 1) -> int:
        """The images a forward pass of one process: as configured, else the largest divisor of its
        part of a batch that fits."""
        part = stage.batch_size // processes
        if stage.micro_batch_size is not None:
            return min(stage.micro_batch_size, part)
        divisors = [d for d in range(1, part + 1) if part % d == 0]
        fitting = [d for d in divisors if self.total(d) <= _USABLE * memory]
        return max(fitting, default=1)


def estimate_pretraining(config: Config, precision: Precision) -> MemoryEstimate:
    """Of the Selfie network on patches."""

    def inputs(images: int) -> tuple[Tensor, ...]:
        side = config.model.patch_size
        patches = torch.empty(images, config.patches, 3, side, side, dtype=precision.dtype)
        order = torch.zeros(images, config.patches, dtype=torch.int64)
        return patches, order

    found = _estimate(lambda: Selfie(plain(config)), inputs, precision)
    if config.pretrain.ema is None:
        return found
    return replace(found, fixed=found.fixed + _BYTES_AVERAGED * found.parameters)


def estimate_finetuning(config: Config, classes: int, precision: Precision) -> MemoryEstimate:
    """Of the classifier on whole images."""

    def inputs(images: int) -> tuple[Tensor, ...]:
        side = config.data.image_size
        return (torch.empty(images, 3, side, side, dtype=precision.dtype),)

    return _estimate(lambda: build_classifier(config, classes), inputs, precision)


def plain(config: Config) -> Config:
    """For fake tensors: they are on no GPU, and runtime.kernels: triton refuses them."""
    runtime = config.runtime.model_copy(update={"kernels": "reference"})
    return config.model_copy(update={"runtime": runtime})


def _estimate(
    build: Callable[[], nn.Module],
    inputs: Callable[[int], tuple[Tensor, ...]],
    precision: Precision,
) -> MemoryEstimate:
    """Runs the forward pass on fake tensors, which have shapes and no memory."""
    with FakeTensorMode():
        model = build()
        parameters = sum(p.numel() for p in model.parameters())
        few, more = (_saved_bytes(model, inputs(n), precision) for n in (2, 4))
    return MemoryEstimate(parameters, _BYTES_A_PARAMETER * parameters, (more - few) // 2)


def _saved_bytes(model: nn.Module, inputs: tuple[Tensor, ...], precision: Precision) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, precision.autocast(torch.device("cpu")):
        output = model(*inputs)
        del output
    return sum(t.untyped_storage().nbytes() for t in kept.values())
