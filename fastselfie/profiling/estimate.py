"""Estimate throughput on another machine from its data sheet.

Kernels run one after another, and most are bound by arithmetic or by memory: so the times of both
add up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastselfie.config import Config
from fastselfie.errors import UserError
from fastselfie.models.selfie import build_classifier, build_selfie
from fastselfie.system.accelerator import Precision
from fastselfie.training.memory import estimate_finetuning, estimate_pretraining, plain


class Gpu(NamedTuple):
    """Data sheet of a GPU.

    Attributes:
        precision: The precision that training uses on it.
        tflops: Dense tensor-core peak in that precision.
        bandwidth: Of its memory, in GB/s.
    """

    precision: Precision
    tflops: float
    bandwidth: float


class Assumed(NamedTuple):
    """Assumptions of the estimate.

    Attributes:
        compute: Share of the arithmetic peak that kernels bound by arithmetic reach.
        bandwidth: Share of the bandwidth peak that kernels bound by memory reach.
        passes: How often a byte that is kept for the backward pass is moved.
    """

    compute: float
    bandwidth: float
    passes: int


_BF16, _FP16 = (Precision(name, "the plan's") for name in ("bf16", "fp16"))
# From NVIDIA's data sheets, without sparsity.
GPUS = {
    "H200": Gpu(_BF16, 989, 4800),
    "H100": Gpu(_BF16, 989, 3350),  # SXM
    "A100": Gpu(_BF16, 312, 2039),  # SXM, 80 GB
    "L40S": Gpu(_BF16, 362, 864),
    "RTX4090": Gpu(_BF16, 165, 1008),
    "V100": Gpu(_FP16, 125, 900),
    "T4": Gpu(_FP16, 65, 320),
}

# A kept byte is written, read by statistics, normalisation and the next convolution, and moved
# about as often in the backward pass, with its gradient. The shares are from a ResNet-50 in PyTorch
# with mixed precision (NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5,
# container 21.03): 2,470 images/s on an A100 SXM 80 GB, 1,200 and 1,156 on a V100 SXM of 16 and
# 32 GB. The formula gives 2,595 and 1,104. On cards for games more of a lower peak is reached: it
# gives 0.7 of the 1,218 images/s of an RTX 3090 (huggingface/pytorch-image-models,
# results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv).
ASSUMED = Assumed(compute=0.55, bandwidth=0.8, passes=10)

_COUNTED = 2  # images; batch norm needs more than one


class Target(NamedTuple):
    """The machine to estimate for: number and name of its GPUs, and CPU cores that decode."""

    gpus: int
    name: str
    cores: int


@dataclass(frozen=True)
class Roofline:
    """Estimated limits of pretraining.

    Attributes:
        target: The machine.
        gflop_per_image: GFLOP per image, forward and backward.
        mb_per_image: MB moved per image.
        compute: Images per second of all GPUs, limited by arithmetic alone.
        bandwidth: Images per second of all GPUs, limited by memory traffic alone.
        step: Images per second of all GPUs, of which each takes the time of both.
        loader: Images per second of the loader; None if nothing is decoded.
        binds: The bottleneck: "loader", or what most of a step's time goes to, "bandwidth" or
            "compute".
        sentence: The result as text.
    """

    target: Target
    gflop_per_image: float
    mb_per_image: float
    compute: float
    bandwidth: float
    step: float
    loader: float | None
    binds: str
    sentence: str


def parse_target(plan: str | None, cores: int | None) -> Target | None:
    """Parse `--plan 8xH100 --cores 96`; return None if neither is given.

    Args:
        plan: COUNTxGPU or a GPU alone.
        cores: CPU cores of that machine.

    Raises:
        UserError: One is given without the other, or has no valid value.
    """
    if plan is None:
        if cores is not None:
            raise UserError("--cores needs --plan: for example --plan 8xH100 --cores 96")
        return None
    form = re.fullmatch(r"(?:(\d+)x)?(.+)", plan.strip(), flags=re.IGNORECASE)
    known = {name.lower(): name for name in GPUS}
    name = known.get(re.sub(r"[ _-]", "", form[2]).lower()) if form else None
    if form is None or name is None or int(form[1] or 1) < 1:
        raise UserError(f"--plan {plan}: pass COUNTxGPU with one of {', '.join(GPUS)}")
    if cores is None or cores < 1:
        said = "is missing" if cores is None else f"is {cores}"
        raise UserError(f"--cores {said}: pass the number of CPU cores of that machine")
    return Target(int(form[1] or 1), name, cores)


def estimate(config: Config, target: Target, per_core: float | None) -> Roofline:
    """Estimate pretraining on `target`.

    Args:
        config: Config of the run.
        target: The machine.
        per_core: Images per second that one core decodes, measured on this machine; None if
            nothing is decoded.
    """
    gpu = GPUS[target.name]
    flops, kept = _pretraining_cost(config, gpu)
    compute, bandwidth = (target.gpus * rate for rate in step_rates(gpu, flops, kept))
    step = _in_series(compute, bandwidth)
    loader = None if per_core is None else per_core * target.cores
    binds = "compute" if compute < bandwidth else "bandwidth"
    if loader is not None and loader < step:
        binds = "loader"
    return Roofline(
        target=target,
        gflop_per_image=3 * flops / 1e9,
        mb_per_image=ASSUMED.passes * kept / 1e6,
        compute=compute,
        bandwidth=bandwidth,
        step=step,
        loader=loader,
        binds=binds,
        sentence=_sentence(target, step, loader, binds, per_core),
    )


def step_rates(gpu: Gpu, flops: float, kept: float) -> tuple[float, float]:
    """Return images per second limited by arithmetic, and limited by memory traffic.

    Args:
        gpu: The GPU.
        flops: Of one image's forward pass; the backward pass takes twice as many.
        kept: Bytes per image that the forward pass keeps for the backward pass.
    """
    compute = ASSUMED.compute * gpu.tflops * 1e12 / (3 * flops)
    return compute, ASSUMED.bandwidth * gpu.bandwidth * 1e9 / (ASSUMED.passes * kept)


def _in_series(*rates: float) -> float:
    """Return the rate if each image takes the times of all `rates`, one after another."""
    return 1 / sum(1 / rate for rate in rates)


def paper_rates(config: Config, classes: int, target: Target) -> tuple[float, float]:
    """Return images per second of one GPU of `target` in pretraining and in finetuning.

    The loader is not counted.

    Args:
        config: Config of the run.
        classes: Number of classes in finetuning.
        target: The machine.
    """
    gpu, side = GPUS[target.name], config.data.image_size
    finetuning = _counted(
        lambda: build_classifier(plain(config), classes),
        lambda dtype: (torch.empty(_COUNTED, 3, side, side, dtype=dtype),),
        gpu,
    )
    kept = estimate_finetuning(config, classes, gpu.precision).per_image
    return (
        _in_series(*step_rates(gpu, *_pretraining_cost(config, gpu))),
        _in_series(*step_rates(gpu, finetuning, kept)),
    )


def _pretraining_cost(config: Config, gpu: Gpu) -> tuple[float, int]:
    """Return FLOPs of the forward pass, and bytes kept for the backward pass, of one image."""
    side = config.patch_window

    def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        patches = torch.empty(_COUNTED, config.patches, 3, side, side, dtype=dtype)
        return patches, torch.zeros(_COUNTED, config.patches, dtype=torch.int64)

    flops = _counted(lambda: build_selfie(plain(config)), inputs, gpu)
    return flops, estimate_pretraining(config, gpu.precision).per_image


def _counted(
    build: Callable[[], nn.Module], inputs: Callable[[torch.dtype], tuple[Tensor, ...]], gpu: Gpu
) -> float:
    """Count the FLOPs of one image's forward pass, on fake tensors; a multiply-add counts 2."""
    with FakeTensorMode():
        model, given = build(), inputs(gpu.precision.dtype)
        autocast = gpu.precision.autocast(torch.device("cpu"))
        with FlopCounterMode(display=False) as counter, autocast:
            model(*given)
    return float(counter.get_total_flops()) / _COUNTED


def _sentence(
    target: Target, step: float, loader: float | None, binds: str, per_core: float | None
) -> str:
    machine = f"{target.gpus}x{target.name} with {target.cores} cores"
    if binds == "loader":
        assert per_core is not None
        more = -(-step // per_core) - target.cores
        return (
            f"on {machine} the loader would be the bottleneck: {loader:,.0f} images/s, "
            f"where the step takes {step:,.0f}: about {more:,.0f} more cores would keep up"
        )
    limit = "memory bandwidth" if binds == "bandwidth" else "arithmetic"
    text = f"on {machine} the step would be the bottleneck, mostly by {limit}: {step:,.0f} images/s"
    if per_core is not None:
        need = -(-step // per_core)
        text += f"; about {need:,.0f} cores would decode as fast"
    return text
