"""Estimate throughput on another machine from its data sheet (a roofline model)."""

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
from fastselfie.models.selfie import Selfie, build_classifier
from fastselfie.system.accelerator import Precision
from fastselfie.training.memory import estimate_finetuning, estimate_pretraining, plain


class Gpu(NamedTuple):
    """Data sheet of a GPU.

    Attributes:
        precision: Name of the precision that training uses on it.
        tflops: Dense tensor-core peak in that precision.
        bandwidth: Of its memory, in GB/s.
    """

    precision: str
    tflops: float
    bandwidth: float


class Assumed(NamedTuple):
    """Assumptions of the estimate.

    Attributes:
        compute: Share of the arithmetic peak that a step reaches.
        bandwidth: Share of the bandwidth peak that a step reaches.
        passes: How often a byte that is kept for the backward pass is moved.
    """

    compute: float
    bandwidth: float
    passes: int


# From NVIDIA's data sheets, without sparsity.
GPUS = {
    "H200": Gpu("bf16", 989, 4800),
    "H100": Gpu("bf16", 989, 3350),  # SXM
    "A100": Gpu("bf16", 312, 2039),  # SXM, 80 GB
    "L40S": Gpu("bf16", 362, 864),
    "RTX4090": Gpu("bf16", 165, 1008),
    "V100": Gpu("fp16", 125, 900),
    "T4": Gpu("fp16", 65, 320),
}

# A kept byte is written, read by statistics, normalisation and the next convolution, and moved
# about as often in the backward pass, with its gradient. These values give 6,778 images/s for a
# ResNet-50 on an H100 (MLPerf v4.0: 7,157) and 4,125 on an A100 (NVIDIA's MXNet example: 3,410).
ASSUMED = Assumed(compute=0.4, bandwidth=0.8, passes=10)

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
        loader: Images per second of the loader; None if nothing is decoded.
        binds: The bottleneck: "loader", "bandwidth" or "compute".
        sentence: The result as text.
    """

    target: Target
    gflop_per_image: float
    mb_per_image: float
    compute: float
    bandwidth: float
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
        raise UserError(f"--plan {plan}: give COUNTxGPU with one of {', '.join(GPUS)}")
    if cores is None or cores < 1:
        said = "is missing" if cores is None else f"is {cores}"
        raise UserError(f"--cores {said}: give the number of CPU cores of that machine")
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
    flops, kept = forward_flops(config, gpu), _kept_bytes(config, gpu)
    compute, bandwidth = (target.gpus * rate for rate in step_rates(gpu, flops, kept))
    loader = None if per_core is None else per_core * target.cores
    rates = {"compute": compute, "bandwidth": bandwidth}
    if loader is not None:
        rates["loader"] = loader
    binds = min(rates, key=lambda name: rates[name])
    return Roofline(
        target=target,
        gflop_per_image=3 * flops / 1e9,
        mb_per_image=ASSUMED.passes * kept / 1e6,
        compute=compute,
        bandwidth=bandwidth,
        loader=loader,
        binds=binds,
        sentence=_sentence(target, rates, binds, per_core),
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


def paper_rates(config: Config, classes: int, target: Target) -> tuple[float, float]:
    """Return images per second of one GPU of `target` in pretraining and in finetuning.

    The loader is not counted.

    Args:
        config: Config of the run.
        classes: Number of classes in finetuning.
        target: The machine.
    """
    gpu = GPUS[target.name]
    finetuning = estimate_finetuning(config, classes, Precision(gpu.precision, "the plan's"))
    return (
        min(step_rates(gpu, forward_flops(config, gpu), _kept_bytes(config, gpu))),
        min(step_rates(gpu, finetuning_flops(config, classes, gpu), finetuning.per_image)),
    )


def forward_flops(config: Config, gpu: Gpu) -> float:
    """Return the FLOPs of one image's forward pass in pretraining; a multiply-add counts 2."""
    images, side = _COUNTED, config.model.patch_size

    def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        patches = torch.empty(images, config.patches, 3, side, side, dtype=dtype)
        return patches, torch.zeros(images, config.patches, dtype=torch.int64)

    return _counted(lambda: Selfie(plain(config)), inputs, gpu)


def finetuning_flops(config: Config, classes: int, gpu: Gpu) -> float:
    """Return the FLOPs of one image's forward pass in finetuning; a multiply-add counts 2."""
    side = config.data.image_size
    return _counted(
        lambda: build_classifier(plain(config), classes),
        lambda dtype: (torch.empty(_COUNTED, 3, side, side, dtype=dtype),),
        gpu,
    )


def _counted(
    build: Callable[[], nn.Module], inputs: Callable[[torch.dtype], tuple[Tensor, ...]], gpu: Gpu
) -> float:
    """Count FLOPs per image, on fake tensors."""
    precision = Precision(gpu.precision, "the plan's")
    with FakeTensorMode():
        model, given = build(), inputs(precision.dtype)
        with FlopCounterMode(display=False) as counter, precision.autocast(torch.device("cpu")):
            model(*given)
    return float(counter.get_total_flops()) / _COUNTED


def _kept_bytes(config: Config, gpu: Gpu) -> int:
    return estimate_pretraining(config, Precision(gpu.precision, "the plan's")).per_image


def _sentence(target: Target, rates: dict[str, float], binds: str, per_core: float | None) -> str:
    machine = f"{target.gpus}x{target.name} with {target.cores} cores"
    step = min(rates["compute"], rates["bandwidth"])
    if binds == "loader":
        assert per_core is not None
        more = -(-step // per_core) - target.cores
        return (
            f"on {machine} the loader would be the bottleneck: {rates['loader']:,.0f} images/s, "
            f"where the step takes {step:,.0f}: about {more:,.0f} more cores would keep up"
        )
    limit = "memory bandwidth" if binds == "bandwidth" else "arithmetic"
    text = (
        f"on {machine} the step would be the bottleneck, limited by {limit}: {step:,.0f} images/s"
    )
    if per_core is not None:
        need = -(-step // per_core)
        text += f"; about {need:,.0f} cores would decode as fast"
    return text
