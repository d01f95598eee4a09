"""`fastselfie replay`: repeat the step at which a run stopped, and find what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from fastselfie.config.load import recorded_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import Batch, Index, build_loader
from fastselfie.errors import UserError
from fastselfie.stage_names import FINETUNED, PRETRAIN
from fastselfie.system.accelerator import choose_accelerator, set_random_state
from fastselfie.training.checkpoint import load_checkpoint, load_weights
from fastselfie.training.finetune import build_finetuning, few_labels, finetuning_stage
from fastselfie.training.nonfinite import NONFINITE
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep


@dataclass
class Replay:
    """What happened in a step.

    Attributes:
        step: its number; 1 is the first.
        losses: of each micro-batch.
        norms: of the gradient after each micro-batch.
        parameter: the first one, in the order of the network, with a value that is not finite.
        activation: the first module whose output is not finite.
        gradient: the first parameter whose gradient is not finite.
        samples: (id, epoch, name) of each image of the batch.
    """

    step: int
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    parameter: str | None = None
    activation: str | None = None
    gradient: str | None = None
    samples: list[tuple[int, int, str]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Describe the step for a person, line by line."""
        for number, (loss, norm) in enumerate(zip(self.losses, self.norms, strict=True)):
            yield f"micro-batch {number}: loss {loss:.6g}, norm of the gradient so far {norm:.6g}"
        for sample, epoch, name in self.samples:
            yield f"sample {sample} in epoch {epoch}: {name}"
        for what in ("parameter", "activation", "gradient"):
            yield f"first {what} that is not finite: {getattr(self, what) or 'none'}"

    def summary(self) -> dict[str, Any]:
        """Describe the step for a program. JSON has no NaN: such numbers are text."""
        numbers = {
            name: [value if math.isfinite(value) else str(value) for value in values]
            for name, values in (("losses", self.losses), ("norms", self.norms))
        }
        return {**vars(self), **numbers, "samples": [sample for sample, _, _ in self.samples]}


def replay_step(path: Path) -> Replay:
    """Repeat the step in `path` from the state that it started from, without updating the weights.

    The network is not compiled, so that every activation can be checked. One process runs the whole
    batch: if several ranks shared it, batch norm and dropout differ from the run's.

    Args:
        path: a nonfinite-STEP.pt, see `dump_step`.

    Raises:
        UserError: `path` is another file, or the run's images have changed.
    """
    record = load_checkpoint(path)
    if record.get("kind") != NONFINITE or "samples" not in record:
        raise UserError(f"{path}: holds no step to run again: pass a nonfinite-STEP.pt")
    config = recorded_config(record["config"], path)
    runtime = config.runtime.model_copy(update={"compile": "off", "cuda_graphs": False})
    config = config.model_copy(update={"runtime": runtime})
    accelerator = choose_accelerator(config.runtime)
    pretrains = record["stage"] == PRETRAIN
    dataset = open_dataset(config.data, config.seed, labels_needed=not pretrains)
    if dataset.fingerprint() != record["images"]:
        raise UserError(f"{path}: its images ({config.data.train}) are not those of the run now")
    source = dataset.train
    if pretrains:
        step = build_pretraining(config, accelerator).step
    else:
        source, _, images = few_labels(config, dataset)
        stage = finetuning_stage(config, images, from_p=record["stage"] == FINETUNED)
        step = build_finetuning(config, stage, len(source.classes), accelerator, None).step
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


def _run(step: TrainStep, batch: Batch, micro_batch: int, found: Replay) -> None:
    """Run forward and backward as TrainStep does, and record everything."""
    names = {module: name or "the loss" for name, module in step.model.named_modules()}

    def check(module: nn.Module, _: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = ((names.get(module), o) for o in outputs if isinstance(o, Tensor))
        found.activation = found.activation or _first_nonfinite(values)

    found.parameter = _first_nonfinite(step.model.named_parameters())
    with register_module_forward_hook(check):
        for part in batch.split(micro_batch):
            share = len(part.images) / len(batch.images)
            with step.accelerator.autocast():
                loss, _, _ = step.objective(part)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            found.losses.append(float(loss.detach()))
            gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
            found.norms.append(float(nn.utils.get_total_norm(gradients)))
    found.gradient = _first_nonfinite((n, p.grad) for n, p in step.model.named_parameters())


def _first_nonfinite(values: Iterable[tuple[str | None, Tensor | None]]) -> str | None:
    """Return the name of the first tensor with a value that is not finite."""
    return next((n for n, v in values if v is not None and not torch.isfinite(v).all()), None)
