"""Estimates of a step's memory, without running it, and the micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastselfie.config import Config, StageConfig
from fastselfie.models.selfie import build_classifier, build_selfie
from fastselfie.system.accelerator import Precision

# Weights, gradients and momentum, float32 each.
_BYTES_A_PARAMETER = 12
# The rest is for fragmentation, the convolutions' workspace and the data.
_USABLE = 0.6


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a training step.

    Attributes:
        parameters: of the network.
        fixed: bytes of weights, gradients and momentum.
        per_image: bytes of activations that an image's forward pass keeps for the backward pass.
    """

    parameters: int
    fixed: int
    per_image: int

    def total(self, images: int) -> int:
        """Bytes of a step with `images` in a forward pass."""
        return self.fixed + images * self.per_image

    def micro_batch(self, stage: StageConfig, memory: int, processes: int = 1) -> int:
        """Choose the images in a forward pass of one rank.

        Args:
            stage: its `micro_batch_size` is taken if it is set.
            memory: of the device, bytes.
            processes: number of ranks that share a batch.

        Returns:
            The configured number, or the largest divisor of the rank's share of a batch that fits.
        """
        part = stage.batch_size // processes
        if stage.micro_batch_size is not None:
            return min(stage.micro_batch_size, part)
        divisors = [d for d in range(1, part + 1) if part % d == 0]
        fitting = [d for d in divisors if self.total(d) <= _USABLE * memory]
        return max(fitting, default=1)

    def shortage(self, memory: int) -> str | None:
        """Return one line if `memory` bytes are less than a pass of one image needs."""
        need = self.total(1)
        if need <= memory:
            return None
        return (
            f"a pass of one image needs about {need / 2**30:,.1f} GiB of memory, but there are "
            f"{memory / 2**30:,.1f}: use a smaller network or smaller images"
        )


def smaller_micro_batch(micro_batch: int, batch: int) -> int | None:
    """Return the largest divisor of `batch` that is at most half of `micro_batch`, None below 1."""
    half = min(micro_batch, batch) // 2
    return next((size for size in range(half, 0, -1) if batch % size == 0), None)


def estimate_pretraining(config: Config, precision: Precision) -> MemoryEstimate:
    """Estimate the memory of Selfie on patches."""

    def inputs(images: int) -> tuple[Tensor, ...]:
        side = config.patch_window
        patches = torch.empty(images, config.patches, 3, side, side, dtype=precision.dtype)
        order = torch.zeros(images, config.patches, dtype=torch.int64)
        return patches, order

    return _estimate(lambda: build_selfie(plain(config)), inputs, precision)


def estimate_finetuning(config: Config, classes: int, precision: Precision) -> MemoryEstimate:
    """Estimate the memory of the classifier on whole images."""

    def inputs(images: int) -> tuple[Tensor, ...]:
        side = config.data.image_size
        return (torch.empty(images, 3, side, side, dtype=precision.dtype),)

    return _estimate(lambda: build_classifier(config, classes), inputs, precision)


def plain(config: Config) -> Config:
    """Copy `config` with the reference kernels: Triton's refuse fake tensors, which have no GPU."""
    runtime = config.runtime.model_copy(update={"kernels": "reference"})
    return config.model_copy(update={"runtime": runtime})


def _estimate(
    build: Callable[[], nn.Module],
    inputs: Callable[[int], tuple[Tensor, ...]],
    precision: Precision,
) -> MemoryEstimate:
    """Run the forward pass on fake tensors, which have shapes but no memory."""
    with FakeTensorMode():
        model = build()
        parameters = sum(p.numel() for p in model.parameters())
        few, more = (_saved_bytes(model, inputs(n), precision) for n in (2, 4))
    return MemoryEstimate(parameters, _BYTES_A_PARAMETER * parameters, (more - few) // 2)


def _saved_bytes(model: nn.Module, inputs: tuple[Tensor, ...], precision: Precision) -> int:
    """Count the bytes of the distinct storages that autograd keeps for the backward pass."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, precision.autocast(torch.device("cpu")):
        output = model(*inputs)
        del output
    return sum(t.untyped_storage().nbytes() for t in kept.values())
