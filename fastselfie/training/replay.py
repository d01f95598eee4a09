"""`fastselfie replay`: the step at which a run stopped, once more, and where it is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, Source, open_dataset
from fastselfie.data.loaders import Batch, Index, build_loader
from fastselfie.errors import UserError
from fastselfie.system.accelerator import Accelerator, choose_accelerator, set_random_state
from fastselfie.training.checkpoint import load_checkpoint, load_weights
from fastselfie.training.finetune import build_finetuning, few_labels, finetuning_stage
from fastselfie.training.nonfinite import NONFINITE
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep


@dataclass
class Replay:
    """What a step did. losses, norms: of each micro-batch's loss and of the gradient after it.

    parameter, activation, gradient: the first whose values are not all finite, in the order of the
    network, or None. samples: (id, epoch, name) of the batch.
    """

    step: int
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    parameter: str | None = None
    activation: str | None = None
    gradient: str | None = None
    samples: list[tuple[int, int, str]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a person."""
        for number, (loss, norm) in enumerate(zip(self.losses, self.norms, strict=True)):
            yield f"micro-batch {number}: loss {loss:.6g}, norm of the gradient so far {norm:.6g}"
        for sample, epoch, name in self.samples:
            yield f"sample {sample} in epoch {epoch}: {name}"
        for what in ("parameter", "activation", "gradient"):
            yield f"first {what} that is not finite: {getattr(self, what) or 'none'}"

    def summary(self) -> dict[str, Any]:
        """For a program: JSON has no NaN, so figures that are not finite are text."""
        return {
            "step": self.step,
            "losses": [_plain(loss) for loss in self.losses],
            "norms": [_plain(norm) for norm in self.norms],
            "parameter": self.parameter,
            "activation": self.activation,
            "gradient": self.gradient,
            "samples": [sample for sample, _, _ in self.samples],
        }


def replay_step(path: Path) -> Replay:
    """Run the step that `path` describes from the very state that it began from.

    Not compiled, so that every activation can be looked at. The weights are not updated. Of several
    processes' batch one process runs it all: batch norm sees other parts, dropout drops others.

    Raises:
        UserError: another file, or its images are not there as they were.
    """
    record = load_checkpoint(path)
    if record.get("kind") != NONFINITE or "samples" not in record:
        raise UserError(f"{path}: holds no step to run again: give a nonfinite-STEP.pt")
    config = _uncompiled(Config.model_validate_json(record["config"]))
    accelerator = choose_accelerator(config.runtime)
    pretrains = record["stage"] == "pretrain"
    dataset = open_dataset(config.data, config.seed, labels_needed=not pretrains)
    if dataset.fingerprint() != record["images"]:
        raise UserError(f"{path}: its images ({config.data.train}) are not those of the run now")
    step, source = _build(record["stage"], config, dataset, accelerator)
    load_weights(step.model, record["model"], path)
    data = config.pretraining_data if pretrains else config.data
    loader = build_loader(source, data, config.seed, accelerator.device)
    index = Index(record["samples"].numpy(), record["epochs"].numpy())
    side = step.stage.image_size_at(record["step"])
    batch = loader.again(index).shrunk(side)
    set_random_state(record["random"], accelerator.device)
    found = Replay(record["step"] + 1)
    found.samples = [(int(s), int(e), source.name(int(s))) for s, e in zip(*index, strict=True)]
    _run(step, batch, record["micro_batch"], found)
    return found


def _uncompiled(config: Config) -> Config:
    runtime = config.runtime.model_copy(update={"compile": "off", "cuda_graphs": False})
    return config.model_copy(update={"runtime": runtime})


def _build(
    kind: str, config: Config, dataset: Dataset, accelerator: Accelerator
) -> tuple[TrainStep, Source]:
    """The step of a stage, and the images it trains on."""
    if kind == "pretrain":
        return build_pretraining(config, accelerator).step, dataset.train
    few = few_labels(config, dataset)
    stage = finetuning_stage(config, few.images, from_p=kind == "finetuned")
    built = build_finetuning(config, stage, len(few.train.classes), accelerator, None)
    return built.step, few.train


def _run(step: TrainStep, batch: Batch, micro_batch: int, found: Replay) -> None:
    """As TrainStep does, with a look at everything on the way."""
    found.parameter = _first_bad(step.model)
    with _watched(step.model, found):
        for part in batch.split(micro_batch):
            share = len(part.images) / len(batch.images)
            with step.accelerator.autocast():
                loss, _, _ = step.objective(part)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            found.losses.append(float(loss.detach()))
            gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
            found.norms.append(float(nn.utils.get_total_norm(gradients)))
    found.gradient = _first_bad(step.model, gradients=True)


def _first_bad(model: nn.Module, gradients: bool = False) -> str | None:
    for name, parameter in model.named_parameters():
        values = parameter.grad if gradients else parameter
        if values is not None and not torch.isfinite(values).all():
            return name
    return None


@contextmanager
def _watched(model: nn.Module, found: Replay) -> Iterator[None]:
    """Note the first module whose output is not finite."""

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            outputs = output if isinstance(output, tuple) else (output,)
            tensors = [o for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]
            if found.activation is None and not all(torch.isfinite(t).all() for t in tensors):
                found.activation = name or "the loss"

        return look

    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _plain(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(value)
