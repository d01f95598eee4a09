"""Which runs the paper's protocol is made of, and what each is trained and measured on.

For each share of the labels and each arm: every learning rate of a grid on 90/10 splits of the
labelled training images, then the best one on all of them, once for each seed. Only these last
runs are measured on the test images (paper, section 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from fastselfie.config import Config, StageConfig
from fastselfie.data.dataset import Dataset
from fastselfie.data.random import IntArray
from fastselfie.data.splits import validation_split
from fastselfie.errors import UserError
from fastselfie.stage_names import FINETUNED, SUPERVISED
from fastselfie.training.finetune import FewLabels, labelled

_MOST_BUDGET = 1000  # more is a slip: the paper's stages have 120,000 steps

Settings = TypeVar("Settings", bound=StageConfig)


class Group(NamedTuple):
    """An arm at a share of the labels, in percent: one learning rate is found for it."""

    labels: float
    arm: str


class Run(NamedTuple):
    """One network. split: of the search that it belongs to; None: a last run, on all labels."""

    group: Group
    lr: float
    seed: int
    split: int | None

    @property
    def name(self) -> str:
        """Its folder below those of all runs."""
        kind = f"seed-{self.seed}"
        if self.split is not None:
            kind = f"lr-{self.lr:g}-split-{self.split}"
        return f"labels-{self.group.labels:g}/{self.group.arm}/{kind}"


@dataclass(frozen=True)
class Plan:
    """config: with the budget's steps. labels: shares in percent. seeds: of the last runs."""

    config: Config
    budget: float
    labels: tuple[float, ...]
    seeds: tuple[int, ...]

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """The rates of the search, the lowest first."""
        return tuple(sorted(set(self.config.reproduce.grid)))

    @property
    def groups(self) -> list[Group]:
        arms = (FINETUNED, SUPERVISED) if self.config.finetune.control else (FINETUNED,)
        return [Group(labels, arm) for labels in self.labels for arm in arms]

    def grid_searches(self, group: Group) -> list[Run]:
        """Those of the whole grid; empty where there is no rate to choose."""
        if len(self.grid) == 1:
            return []
        return [run for lr in self.grid for run in self.search(group, lr)]

    def search(self, group: Group, lr: float) -> list[Run]:
        """One rate on every split, with the config's seed."""
        splits = range(self.config.reproduce.splits)
        return [Run(group, lr, self.config.seed, split) for split in splits]

    def finals(self, group: Group, lr: float) -> list[Run]:
        return [Run(group, lr, seed, None) for seed in self.seeds]

    def config_for(self, run: Run) -> Config:
        """A search is measured at its end alone: nothing is chosen before it."""
        finetune = self.config.finetune
        changes = {
            "labels": run.group.labels / 100,
            "labels_per_class": None,
            "lr": run.lr,
            "scratch_lr": None,
            "eval_every": finetune.eval_every if run.split is None else finetune.steps,
        }
        settings = finetune.model_copy(update=changes)
        return self.config.model_copy(update={"seed": run.seed, "finetune": settings})

    def labelled(self, dataset: Dataset, labels: float) -> IntArray:
        """Indices of the training images with labels, for both arms and all seeds the same."""
        group = Group(labels, FINETUNED)
        return labelled(self.config_for(Run(group, 1.0, self.config.seed, None)), dataset)

    def images_for(self, run: Run, dataset: Dataset) -> FewLabels:
        """What `run` is trained and measured on. A search never has the test images."""
        chosen = self.labelled(dataset, run.group.labels)
        held_out, measured = dataset.held_out, chosen[:0]
        if run.split is not None:
            kept, taken = validation_split(
                dataset.train.labels[chosen], self.config.seed, run.split, dataset.train.classes
            )
            chosen, measured = chosen[kept], chosen[taken]
            held_out = dataset.train.select(measured)
        digest = hashlib.sha256(dataset.fingerprint().encode())
        digest.update(chosen.tobytes() + b"measured on" + measured.tobytes())
        return FewLabels(dataset.train.select(chosen), held_out, digest.hexdigest())

    def check(self, dataset: Dataset) -> None:
        """Whether every run has images.

        Raises:
            UserError: one class, or too few images of one for a split.
        """
        for group in self.groups:
            try:
                for run in [*self.grid_searches(group), *self.finals(group, 1.0)][:1]:
                    self.images_for(run, dataset)
            except UserError as error:
                raise UserError(f"--labels {group.labels:g}: {error}") from error


def make_plan(config: Config, labels: str, seeds: int, budget: float | None) -> Plan:
    """The command line's words. labels: percents with commas. budget: factor of both stages' steps.

    Raises:
        UserError: one of them makes no sense.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: at least 1; the paper has 5")
    if config.seed + seeds > 2**32:
        raise UserError(f"--seeds {seeds}: seed is {config.seed}, and the last must be below 2^32")
    if budget is not None and not 0 < budget <= _MOST_BUDGET:
        raise UserError(
            f"--budget {budget:g}: a factor of both stages' steps, above 0 and at most "
            f"{_MOST_BUDGET}"
        )
    shares = tuple(dict.fromkeys(_percents(labels)))
    factor = 1.0 if budget is None else budget
    updates = {
        "pretrain": _scaled(config.pretrain, factor),
        "finetune": _scaled(config.finetune, factor),
    }
    plan_config = config.model_copy(update=updates)
    return Plan(plan_config, factor, shares, tuple(range(config.seed, config.seed + seeds)))


def _percents(text: str) -> Iterator[float]:
    for part in text.split(","):
        try:
            percent = float(part)
        except ValueError:
            percent = float("nan")
        if not 0 < percent <= 100:
            raise UserError(
                f"--labels {text}: '{part}' is not a share of the labels in percent, above 0 and "
                "at most 100: for example --labels 5,8,20,100"
            )
        yield float(f"{percent:g}")  # as its folder is called


def _scaled(stage: Settings, factor: float) -> Settings:
    steps = max(1, round(factor * stage.steps))
    warmup = round(factor * stage.warmup_steps)
    return stage.model_copy(update={"steps": steps, "warmup_steps": warmup})
