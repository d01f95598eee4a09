"""Loading of trained networks from a run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastselfie.config import Config
from fastselfie.config.load import load_config, refuse_removed
from fastselfie.errors import UserError
from fastselfie.models.selfie import Classifier, Selfie, build_classifier, build_selfie
from fastselfie.runs.folder import CLASSES, CONFIG
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED, StageName
from fastselfie.training.checkpoint import (
    Checkpoint,
    has_checkpoints,
    load_weights,
    newest_checkpoint,
)
from fastselfie.training.metrics_log import read_log

# The first one with a checkpoint is used if no stage is named.
_PREFERENCE = FINETUNED, SUPERVISED, PRETRAIN
_REMEDY = "run the run's `fastselfie train` again to write it"


class Trained(NamedTuple):
    """A trained stage of a run.

    Attributes:
        run: the run's folder.
        config: the run's.
        kind: the stage's name.
        checkpoint: its newest good one.
    """

    run: Path
    config: Config
    kind: StageName
    checkpoint: Checkpoint

    @property
    def step(self) -> int:
        """Whole steps of training."""
        return int(self.checkpoint.state["step"])

    def network(self, classes: int | None = None) -> Classifier:
        """Load P after pretraining, else the classifier; on the CPU and in training mode.

        Args:
            classes: outputs that the classifier must have; None: any number.

        Raises:
            UserError: the weights are of another network than the config's.
        """
        if self.kind == PRETRAIN:
            return self.selfie().patch_network
        weights = self.checkpoint.state["model"]
        network = build_classifier(self.config, classes or len(weights["head.fc.bias"]))
        load_weights(network, weights, self.checkpoint.path)
        return network

    def selfie(self) -> Selfie:
        """Load P, A and the positions, after pretraining. Raises UserError as `network` does."""
        return pretrained_of(self.config, self.checkpoint)

    def classes(self) -> list[str]:
        """Names of the classes in the order of the logits; empty after pretraining.

        A run of an older version kept no names: then they are numbers.

        Raises:
            UserError: the file of the names is damaged, or of another number of classes.
        """
        if self.kind == PRETRAIN:
            return []
        count = len(self.checkpoint.state["model"]["head.fc.bias"])
        path = self.run / CLASSES
        if not path.exists():
            return [str(number) for number in range(count)]
        try:
            names: list[str] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: is damaged: {_REMEDY}") from error
        if len(names) != count:
            raise UserError(
                f"{path}: has {len(names)} classes, but {self.checkpoint.path} has {count}: "
                f"{_REMEDY}"
            )
        return names

    def measures(self) -> dict[str, Any]:
        """The last metrics in the log up to this checkpoint, with their step; empty if none."""
        lines = read_log(self.run / self.kind / "log.jsonl")
        found = [x for x in lines if "heldout_loss" in x and x["step"] <= self.step]
        return {key: value for key, value in found[-1].items() if key != "time"} if found else {}


def stages_of(run: Path) -> Sequence[StageName]:
    """Find the stages that have checkpoints in `run`, in the order in which they are preferred.

    Raises:
        UserError: there is none.
    """
    found = [name for name in _PREFERENCE if has_checkpoints(run / name)]
    if not found:
        raise UserError(f"{run}: holds no checkpoint yet: run `fastselfie train` first")
    return found


def load_run(run: Path, stage: str | None = None, allow_unfinished: bool = False) -> Trained:
    """Open a trained stage of a run.

    Args:
        run: the run's folder.
        stage: its name; None: finetuned, else supervised, else pretrain.
        allow_unfinished: accept a checkpoint before the last step. Its learning rate has not
            decayed, so it is worse than one of a shorter schedule, and nothing in it shows that.

    Raises:
        ValueError: `stage` is no stage.
        UserError: `run` is not a run, has no good checkpoint, or the stage is not finished.
    """
    config = open_run(run)
    found = stages_of(run)
    kind = found[0] if stage is None else StageName(stage)
    checkpoint = newest_checkpoint(run / kind, kind)
    if checkpoint is None:
        raise UserError(
            f"{run}: holds no checkpoint of {kind}, but of {', '.join(found)}: pass another --stage"
        )
    trained = Trained(run, config, kind, checkpoint)
    steps = config.stage_settings(kind).steps
    if trained.step < steps and not allow_unfinished:
        raise UserError(
            f"{checkpoint.path}: {kind} is at step {trained.step} of {steps}: finish it by "
            "`fastselfie train`, or use it as it is with --allow-unfinished"
        )
    return trained


def load_pretrained(config: Config, folder: Path, whole: bool = False) -> Selfie:
    """Load the pretrained network.

    Args:
        config: the run's.
        folder: of the pretraining stage.
        whole: refuse a checkpoint before the last step.

    Raises:
        UserError: there is no good checkpoint, it is of another model, or it is not finished.
    """
    found = newest_checkpoint(folder, PRETRAIN)
    if found is None:
        raise UserError(f"{folder}: has no pretrained network: run --stage pretrain or all first")
    path, state = found
    if whole and state["step"] < config.pretrain.steps:
        raise UserError(
            f"{path}: pretraining stopped at step {state['step']} of {config.pretrain.steps}: "
            "finish it with --stage pretrain or all"
        )
    return pretrained_of(config, found)


def pretrained_of(config: Config, found: Checkpoint) -> Selfie:
    """Load the network of a pretraining checkpoint.

    Raises:
        UserError: the checkpoint is of another model or of another `model.query`, whose weights
            have the same shapes; or it was made with a key that was removed.
    """
    recorded = json.loads(found.state["config"])
    refuse_removed({name: recorded[name] for name in ("model", PRETRAIN)}, found.path)
    query = recorded["model"].get("query", "summed")  # a checkpoint of an older version lacks it
    if query != config.model.query:
        raise UserError(
            f"{found.path}: was pretrained with model.query={query}, but the config has "
            f"{config.model.query}: set model.query={query}, or pretrain in another folder"
        )
    network = build_selfie(config)
    load_weights(network, found.state["model"], found.path)
    return network


def open_run(run: Path) -> Config:
    """Load the config of a run's folder.

    Raises:
        UserError: `run` is not a run's folder.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not a run: it has no {CONFIG}")
    return load_config(run / CONFIG)
