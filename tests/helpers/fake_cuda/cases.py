"""Steps to run on fake CUDA tensors, and some with a fault that must be found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conftest import REPOSITORY, jpeg_bytes, textured, write_beton
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from fastselfie.config import Config
from fastselfie.config.load import load_config
from fastselfie.data.dataset import Source, open_dataset
from fastselfie.data.loaders import Batch, build_loader
from fastselfie.kernels.pointwise import gains
from fastselfie.models.selfie import build_selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.checkpoint import Checkpoint
from fastselfie.training.finetune import build_finetuning, finetuning_stage
from fastselfie.training.nonfinite import Guard
from fastselfie.training.pretrain import build_pretraining, pretraining_stage
from fastselfie.training.stage_state import Progress, checkpoint_state, restore
from fastselfie.training.step import TrainStep
from helpers.fake_cuda.waits import Waits

_STEPS = 3
_CLASSES = 10


def pretrains(config: str, *sets: str, waits: Waits) -> TrainStep:
    """Take steps of pretraining; the loader's copies are part of them."""
    loaded = _config(config, *sets)
    accelerator = choose_accelerator(loaded.runtime)
    step = build_pretraining(loaded, accelerator).step
    _take(step, loaded, open_dataset(loaded.data).train, waits)
    return step


def finetunes(config: str, *sets: str, waits: Waits, from_p: bool = True) -> None:
    """Take steps of finetuning."""
    loaded = _config(config, *sets)
    accelerator = choose_accelerator(loaded.runtime)
    start = build_selfie(loaded).to(accelerator.device) if from_p else None
    stage = finetuning_stage(loaded, "images", from_p)
    built = build_finetuning(loaded, stage, _CLASSES, accelerator, start)
    _take(built.step, loaded, open_dataset(loaded.data).train, waits)


def fuses_norms(waits: Waits) -> None:
    """Pretrain with every norm of P in Triton, and the 1x1 convolutions that gain by it."""
    step = pretrains("cifar10", _BF16, waits=waits)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in step.model.modules())
    for names in (("norm_relu", "pointwise_norm_relu"), ("norm_relu_backward",)):
        assert sum(waits.operations[name] for name in names) == norms * _STEPS
    assert not waits.operations["relu"]
    products = [module for module in step.model.modules() if type(module).__name__ == "_Pointwise"]
    fused = sum(gains(m.in_channels, m.out_channels, m.out_channels > m.in_channels)
                for m in products)  # fmt: skip
    assert waits.operations["pointwise_norm_relu"] == fused * _STEPS
    assert 0 < fused < len(products)


def fuses_the_max_pool(waits: Waits) -> None:
    """Pretrain in224 with the stem's pool in Triton."""
    pretrains("in224", _BF16, waits=waits)
    for name in ("max_pool", "max_pool_backward"):
        assert waits.operations[name] == _STEPS
    assert not waits.operations["max_pool2d_with_indices"]


def resumes(saved_under: str, loaded_under: str, waits: Waits) -> None:
    """Go on from a checkpoint, whose tensors are on the host, under another key of `runtime`."""
    first = pretrains("cifar10", saved_under, waits=waits)
    loaded = _config("cifar10", loaded_under)
    dataset = open_dataset(loaded.data)
    stage, sums = pretraining_stage(loaded, dataset), [first.metric_accumulators()]
    state = checkpoint_state(stage, first, Progress(_STEPS), sums)
    saved = tree_map_only(torch.Tensor, torch.Tensor.cpu, state)
    step = build_pretraining(loaded, choose_accelerator(loaded.runtime)).step
    restore(step, Checkpoint(Path("latest.pt"), saved))
    _take(step, loaded, dataset.train, waits)


def runs_out_of_memory(waits: Waits) -> None:
    """The first step runs again in passes of half the images."""
    gradients = TrainStep._gradients

    def limited(self: TrainStep, batch: Batch) -> Any:
        found = gradients(self, batch)
        if self.micro_batch > 2:
            raise torch.OutOfMemoryError
        return found

    with mock.patch.object(TrainStep, "_gradients", limited):
        step = pretrains("cifar10", _BF16, waits=waits)
    assert step.micro_batch == 2


def loads(loader: str, crop: str, waits: Waits) -> None:
    """Pretrain on files: the batches are decoded here, and copied from pinned memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.beton"
        with _disable_current_modes():
            write_beton(path, [jpeg_bytes(textured(i, 48, 40)) for i in range(16)],
                        [i % 2 for i in range(16)])  # fmt: skip
        sets = (f"data.train={path}", f"data.loader={loader}", f"data.crop={crop}")
        pretrains("cifar10", *sets, "data.workers=1", waits=waits)
    assert waits.copies >= 3 * _STEPS  # at least labels, flips and the order of the patches
    assert waits.pinned_late < 32 * 32 * 3  # not the images: they are decoded into pinned memory


def _config(name: str, *sets: str) -> Config:
    shared = ("data.loader=synthetic", "pretrain.batch_size=4", "finetune.batch_size=4",
              "runtime.compile=off")  # fmt: skip
    return load_config(REPOSITORY / "configs" / f"{name}.yaml", [*shared, *sets])


def _take(step: TrainStep, config: Config, source: Source, waits: Waits) -> None:
    device, size = step.accelerator.device, step.stage.batch_size
    assert device.type == "cuda"
    loader = build_loader(source, config.data, 0, device)
    before = [p.stride() for p in step.model.parameters()]
    with closing(loader.stream(0, size)) as batches, waits.forbidden():
        for number in range(_STEPS):
            step(number, next(batches))
    assert torch.backends.cudnn.benchmark
    assert all(p.is_cuda for p in step.model.parameters())
    assert [p.stride() for p in step.model.parameters()] == before
    for state in step.optimizer.state.values():
        assert state["momentum_buffer"].is_cuda


# --- faults that must be found --------------------------------------------------------------------


def _fault(target: Any, name: str, change: Callable[..., Any], waits: Waits) -> None:
    with mock.patch.object(target, name, change):
        pretrains("cifar10", waits=waits)


def asks_whether_applied(waits: Waits) -> None:
    judge = Guard.judge

    def asking(self: Guard, *arguments: Any) -> Any:
        applied = judge(self, *arguments)
        return applied if applied else torch.zeros_like(applied)

    _fault(Guard, "judge", asking, waits)


def reads_the_loss(waits: Waits) -> None:
    judge = Guard.judge

    def reading(self: Guard, step: int, loss: Any, norm: Any) -> Any:
        return judge(self, step, loss * (float(loss) > 0), norm)

    _fault(Guard, "judge", reading, waits)


def leaves_a_tensor_on_the_host(waits: Waits) -> None:
    def undo(self: Guard, applied: Any) -> None:
        self._figures = self._figures + torch.zeros(2)

    _fault(Guard, "undo_statistics", undo, waits)


def copies_to_the_host(waits: Waits) -> None:
    def undo(self: Guard, applied: Any) -> None:
        self._figures.cpu()

    _fault(Guard, "undo_statistics", undo, waits)


def copies_with_a_wait(waits: Waits) -> None:
    with mock.patch("fastselfie.data.loaders.streams.to_device", lambda t, device: t.to(device)):
        loads("native", "resized", waits=waits)


def copies_what_is_not_pinned(waits: Waits) -> None:
    copy = partial(torch.Tensor.to, non_blocking=True)
    with mock.patch("fastselfie.data.loaders.streams.to_device", copy):
        loads("native", "resized", waits=waits)


def does_not_wait_for_the_copies(waits: Waits) -> None:
    with mock.patch("helpers.fake_cuda.waits.Stream.wait_stream"):
        loads("native", "resized", waits=waits)


def frees_the_batch_too_early(waits: Waits) -> None:
    with mock.patch("torch.Tensor.record_stream"):
        loads("native", "resized", waits=waits)


def keeps_momentum_in_another_layout(waits: Waits) -> None:
    def begin(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                buffer = torch.zeros(p.shape, device=p.device)
                optimizer.state[p].setdefault("momentum_buffer", buffer)

    with mock.patch("fastselfie.training.step.begin_momentum", begin):
        pretrains("cifar10", waits=waits)


_BF16, _FP16 = "runtime.precision=bf16", "runtime.precision=fp16"
_MICRO, _CLIP = "pretrain.micro_batch_size=2", "pretrain.clip_grad_norm=1.0"

# What passes: each needs a step whose host runs ahead of the GPU.
STEPS: dict[str, Callable[..., Any]] = {
    "cifar10 bf16": partial(pretrains, "cifar10", _BF16),
    "norms in Triton": fuses_norms,
    "cifar10 fp16": partial(pretrains, "cifar10", _FP16),
    "in224 bf16, max pool in Triton": fuses_the_max_pool,
    "in224 fp16": partial(pretrains, "in224", _FP16),
    "fp32": partial(pretrains, "cifar10", "runtime.precision=fp32"),
    "NCHW": partial(pretrains, "cifar10", _BF16, "runtime.channels_last=false"),
    "reference kernels": partial(pretrains, "cifar10", _BF16, "runtime.kernels=reference"),
    "micro-batches and clipping, bf16": partial(pretrains, "cifar10", _BF16, _MICRO, _CLIP),
    "micro-batches and clipping, fp16": partial(pretrains, "cifar10", _FP16, _MICRO, _CLIP),
    "nonfinite steps are skipped": partial(pretrains, "cifar10", "pretrain.on_nonfinite=skip"),
    "activation checkpointing": partial(
        pretrains, "cifar10", _BF16, "runtime.activation_checkpointing=true"
    ),
    "out of memory in the first step": runs_out_of_memory,
    "finetuning from P": partial(finetunes, "cifar10", _BF16),
    "finetuning from P, fp16": partial(finetunes, "cifar10", _FP16, "finetune.clip_grad_norm=1.0"),
    "finetuning from scratch": partial(finetunes, "cifar10", _BF16, from_p=False),
    "finetuning with attention pooling": partial(
        finetunes, "cifar10", _BF16, "finetune.form=attention_pooling"
    ),
    "finetuning with progressive sizes": partial(
        finetunes, "cifar10", "finetune.progressive=[16, 24]", "finetune.steps=4"
    ),
    "finetuning on in224": partial(finetunes, "in224", _BF16),
    "resumed with channels last": partial(resumes, "runtime.channels_last=false", _BF16),
    "resumed without channels last": partial(resumes, _BF16, "runtime.channels_last=false"),
    "native loader, resized": partial(loads, "native", "resized"),
    "native loader, padded": partial(loads, "native", "pad"),
    "resident loader": partial(loads, "resident", "pad"),
}

# What fails, and a part of what is said then.
FAULTS: dict[str, tuple[Callable[[Waits], None], str]] = {
    "if applied": (asks_whether_applied, "HostWaits: _local_scalar_dense of torch.bool"),
    "float(loss)": (reads_the_loss, "HostWaits: _local_scalar_dense of torch.float32"),
    "a tensor on the CPU": (leaves_a_tensor_on_the_host, "HostWaits: add mixes devices"),
    "a copy to the host": (copies_to_the_host, "HostWaits: a copy of torch.float32 (2,)"),
    "a blocking copy": (copies_with_a_wait, "HostWaits: a blocking copy"),
    "pageable memory": (copies_what_is_not_pinned, "HostWaits: a copy from memory that is not"),
    "no wait for the copies": (does_not_wait_for_the_copies, "for which its stream did not wait"),
    "memory freed too early": (frees_the_batch_too_early, "whose memory is not kept"),
    "another layout": (keeps_momentum_in_another_layout, "_fused_sgd_ mixes layouts"),
}

CASES = {**STEPS, **{name: run for name, (run, _) in FAULTS.items()}}  # called with `waits=`
