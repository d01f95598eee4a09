"""On paper: where pretraining would bind on another machine, by its data sheet and our counts."""

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
    """tflops: dense tensor-core peak in `precision`. bandwidth: of its memory, GB/s."""

    precision: str
    tflops: float
    bandwidth: float


class Assumed(NamedTuple):
    """compute, bandwidth: shares of the peaks. passes: times that a kept byte moves."""

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

# What a step reaches of each peak, and how often a byte kept for the backward pass moves over the
# bus: written, read by statistics, normalisation and the next convolution, and about as often
# again backward, with its gradient. With these a ResNet-50 comes out at 6,778 images/s on an H100
# (MLPerf v4.0: 7,157) and 4,125 on an A100 (NVIDIA's MXNet example: 3,410).
ASSUMED = Assumed(compute=0.4, bandwidth=0.8, passes=10)

_COUNTED = 2  # images: batch norm wants more than one


class Target(NamedTuple):
    """The machine that is asked about: so many `gpus` called `name`, and CPU cores that decode."""

    gpus: int
    name: str
    cores: int


@dataclass(frozen=True)
class Roofline:
    """Images a second of all GPUs by arithmetic alone and by memory traffic alone, and of the
    loader, which is None where nothing is decoded. binds: loader, bandwidth or compute."""

    target: Target
    gflop_per_image: float
    mb_per_image: float
    compute: float
    bandwidth: float
    loader: float | None
    binds: str
    sentence: str


def parse_target(plan: str | None, cores: int | None) -> Target | None:
    """`--plan 8xH100 --cores 96`; None where neither is given.

    Raises:
        UserError: one without the other, another form, an unknown GPU, no core.
    """
    if plan is None:
        if cores is not None:
            raise UserError("--cores goes with --plan: say --plan 8xH100 --cores 96")
        return None
    form = re.fullmatch(r"(?:(\d+)x)?(.+)", plan.strip(), flags=re.IGNORECASE)
    known = {name.lower(): name for name in GPUS}
    name = known.get(re.sub(r"[ _-]", "", form[2]).lower()) if form else None
    if form is None or name is None or int(form[1] or 1) < 1:
        raise UserError(f"--plan {plan}: give COUNTxGPU with one of {', '.join(GPUS)}")
    if cores is None or cores < 1:
        said = "is missing" if cores is None else f"is {cores}"
        raise UserError(f"--cores {said}: say how many CPU cores that machine has, at least 1")
    return Target(int(form[1] or 1), name, cores)


def estimate(config: Config, target: Target, per_core: float | None) -> Roofline:
    """per_core: images a second that a decoding core of this machine gives; None: none decodes."""
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
    """Images a second by arithmetic and by memory traffic. flops: forward; the backward pass takes
    twice as many. kept: bytes an image that the forward pass keeps for the backward pass."""
    compute = ASSUMED.compute * gpu.tflops * 1e12 / (3 * flops)
    return compute, ASSUMED.bandwidth * gpu.bandwidth * 1e9 / (ASSUMED.passes * kept)


def paper_rates(config: Config, classes: int, target: Target) -> tuple[float, float]:
    """Images a second of one GPU of `target` in pretraining and in finetuning, the loader apart."""
    gpu = GPUS[target.name]
    finetuning = estimate_finetuning(config, classes, Precision(gpu.precision, "the plan's"))
    return (
        min(step_rates(gpu, forward_flops(config, gpu), _kept_bytes(config, gpu))),
        min(step_rates(gpu, finetuning_flops(config, classes, gpu), finetuning.per_image)),
    )


def forward_flops(config: Config, gpu: Gpu) -> float:
    """Of one image in pretraining, 2 a multiply-add."""
    images, side = _COUNTED, config.model.patch_size

    def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        patches = torch.empty(images, config.patches, 3, side, side, dtype=dtype)
        return patches, torch.zeros(images, config.patches, dtype=torch.int64)

    return _counted(lambda: Selfie(plain(config)), inputs, gpu)


def finetuning_flops(config: Config, classes: int, gpu: Gpu) -> float:
    """Of one whole image through the classifier, 2 a multiply-add."""
    side = config.data.image_size
    return _counted(
        lambda: build_classifier(plain(config), classes),
        lambda dtype: (torch.empty(_COUNTED, 3, side, side, dtype=dtype),),
        gpu,
    )


def _counted(
    build: Callable[[], nn.Module], inputs: Callable[[torch.dtype], tuple[Tensor, ...]], gpu: Gpu
) -> float:
    """On fake tensors by torch's counter."""
    precision = Precision(gpu.precision, "the plan's")
    with FakeTensorMode():
        model, given = build(), inputs(precision.dtype)
        with FlopCounterMode(display=False) as counter, precision.autocast(torch.device("cpu")):
            model(*given)
    return float(counter.get_total_flops()) / _COUNTED


def _kept_bytes(config: Config, gpu: Gpu) -> int:
    return estimate_pretraining(config, Precision(gpu.precision, "the plan's")).per_image


def _sentence(target: Target, rates: dict[str, float], binds: str, per_core: float | None) -> str:
    accelerator = f"{target.gpus}x{target.name} with {target.cores} cores"
    step = min(rates["compute"], rates["bandwidth"])
    if binds == "loader":
        assert per_core is not None
        more = -(-step // per_core) - target.cores
        return (
            f"on {accelerator} the loader would bind: {rates['loader']:,.0f} images/s, where the "
            f"step takes {step:,.0f}: about {more:,.0f} more cores would keep up"
        )
    what = "memory bandwidth" if binds == "bandwidth" else "arithmetic"
    text = f"on {accelerator} the step would bind, by {what}: {step:,.0f} images/s"
    if per_core is not None:
        need = -(-step // per_core)
        text += f"; about {need:,.0f} of the cores would decode as fast"
    return text
