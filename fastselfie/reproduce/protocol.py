"""The paper's protocol: which trials there are, and the images that each trains and measures on.

For each share of the labels and each start of the network: every learning rate of a grid on 90/10
splits of the labelled training images (search trials), then the best rate on all of them, once per
seed (seed runs). Only seed runs are measured on the test images (paper, section 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastselfie.config import Config, StageConfig
from fastselfie.data.dataset import Dataset
from fastselfie.data.draws import IntArray
from fastselfie.data.splits import validation_split
from fastselfie.errors import UserError
from fastselfie.stage_names import FINETUNED, SUPERVISED
from fastselfie.training.finetune import FewLabels, labelled

STARTS = (FINETUNED, SUPERVISED)
_MAX_BUDGET = 1000  # more is a typo: the paper's stages have 120,000 steps


class Arm(NamedTuple):
    """An arm of the comparison, which has one learning rate.

    Attributes:
        labels: Share of the labels, in percent.
        start: One of STARTS: FINETUNED from the pretrained weights, SUPERVISED from random ones.
    """

    labels: float
    start: str


class Trial(NamedTuple):
    """One training.

    Attributes:
        arm: The arm that it belongs to.
        lr: Maximum learning rate.
        seed: Of weights, order and crops.
        split: For a search trial, the number of its split; None for a seed run, on all labels.
    """

    arm: Arm
    lr: float
    seed: int
    split: int | None

    @property
    def name(self) -> str:
        """Folder of the trial, inside the folder of all trials."""
        kind = f"seed-{self.seed}"
        if self.split is not None:
            kind = f"lr-{self.lr:g}-split-{self.split}"
        return f"labels-{self.arm.labels:g}/{self.arm.start}/{kind}"


@dataclass(frozen=True)
class Protocol:
    """All trials of a reproduction.

    Attributes:
        config: With steps already multiplied by `budget`.
        budget: Factor of the steps of both stages.
        labels: Shares of the labels, in percent.
        seeds: Of the seed runs.
    """

    config: Config
    budget: float
    labels: tuple[float, ...]
    seeds: tuple[int, ...]

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """Learning rates of the search, in ascending order."""
        return tuple(sorted(set(self.config.reproduce.grid)))

    @property
    def arms(self) -> list[Arm]:
        """All arms, by share of the labels."""
        starts = STARTS if self.config.finetune.control else (FINETUNED,)
        return [Arm(labels, start) for labels in self.labels for start in starts]

    def search_trials(self, arm: Arm, rates: Sequence[float]) -> list[Trial]:
        """Return the search trials: every rate on every split. A single rate needs no search."""
        splits = range(self.config.reproduce.splits if len(rates) > 1 else 0)
        return [Trial(arm, lr, self.config.seed, split) for lr in rates for split in splits]

    def seed_runs(self, arm: Arm, lr: float) -> list[Trial]:
        """Return the seed runs at the rate `lr`."""
        return [Trial(arm, lr, seed, None) for seed in self.seeds]

    def config_for(self, trial: Trial) -> Config:
        """Return the config of a trial. A search trial is measured only at its end."""
        finetune = self.config.finetune
        changes = {
            "labels": trial.arm.labels / 100,
            "labels_per_class": None,
            "lr": trial.lr,
            "scratch_lr": None,
            "eval_every": finetune.eval_every if trial.split is None else finetune.steps,
        }
        settings = finetune.model_copy(update=changes)
        return self.config.model_copy(update={"seed": trial.seed, "finetune": settings})

    def labelled(self, dataset: Dataset, labels: float) -> IntArray:
        """Return the indices of the labelled training images, the same for all arms and seeds."""
        arm = Arm(labels, FINETUNED)
        return labelled(self.config_for(Trial(arm, 1.0, self.config.seed, None)), dataset)

    def images_for(self, trial: Trial, dataset: Dataset) -> FewLabels:
        """Return the images of a trial. A search trial never gets the test images."""
        chosen = self.labelled(dataset, trial.arm.labels)
        held_out, measured = dataset.held_out, chosen[:0]
        if trial.split is not None:
            kept, taken = validation_split(
                dataset.train.labels[chosen], self.config.seed, trial.split, dataset.train.classes
            )
            chosen, measured = chosen[kept], chosen[taken]
            held_out = dataset.train.select(measured)
        digest = hashlib.sha256(dataset.fingerprint().encode())
        digest.update(chosen.tobytes() + b"measured on" + measured.tobytes())
        return FewLabels(dataset.train.select(chosen), held_out, digest.hexdigest())

    def check(self, dataset: Dataset) -> None:
        """Check that every trial has images.

        Raises:
            UserError: The dataset has one class, or a class has too few images for a split.
        """
        for arm in self.arms:
            first = (self.search_trials(arm, self.grid) or self.seed_runs(arm, 1.0))[0]
            try:
                self.images_for(first, dataset)
            except UserError as error:
                raise UserError(f"--labels {arm.labels:g}: {error}") from error


def make_protocol(config: Config, labels: str, seeds: int, budget: float) -> Protocol:
    """Build the protocol from the options of the command line.

    Args:
        config: Before `budget` is applied.
        labels: Shares of the labels, in percent, separated by commas.
        seeds: Number of seed runs of each arm, at least 1; their seeds count up from the config's.
        budget: Factor of the steps of both stages.

    Raises:
        UserError: An option is out of range.
    """
    if config.seed + seeds > 2**32:
        raise UserError(
            f"--seeds {seeds}: they count up from seed={config.seed} and must stay below 2^32: "
            "set a lower seed"
        )
    if not 0 < budget <= _MAX_BUDGET:
        raise UserError(
            f"--budget {budget:g}: pass a factor for the steps of both stages, above 0 and at "
            f"most {_MAX_BUDGET}"
        )
    scaled = {name: _scaled(getattr(config, name), budget) for name in ("pretrain", "finetune")}
    shares = tuple(dict.fromkeys(_percents(labels)))
    seeds_up = tuple(range(config.seed, config.seed + seeds))
    return Protocol(config.model_copy(update=scaled), budget, shares, seeds_up)


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
        yield float(f"{percent:g}")  # as in the name of its folder


def _scaled(stage: StageConfig, factor: float) -> StageConfig:
    steps = max(1, round(factor * stage.steps))
    warmup = round(factor * stage.warmup_steps)
    return stage.model_copy(update={"steps": steps, "warmup_steps": warmup})
