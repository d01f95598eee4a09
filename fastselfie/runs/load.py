"""What a run learned, taken from its folder by the commands that use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastselfie.config import Config
from fastselfie.config.load import load_config
from fastselfie.errors import UserError
from fastselfie.models.selfie import Classifier, Selfie, build_classifier
from fastselfie.runs.folder import CLASSES, CONFIG
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED, StageName
from fastselfie.training.checkpoint import (
    Checkpoint,
    has_checkpoints,
    load_weights,
    newest_checkpoint,
)
from fastselfie.training.metrics_log import read_log

# The best for use comes first: it is taken where no stage is named.
_PREFERENCE = FINETUNED, SUPERVISED, PRETRAIN
_ANEW = "the run's `fastselfie train` writes it anew"


class Trained(NamedTuple):
    """A stage of a run as its newest good checkpoint has it. kind: the stage's name."""

    run: Path
    config: Config
    kind: StageName
    checkpoint: Checkpoint

    @property
    def step(self) -> int:
        return int(self.checkpoint.state["step"])

    def network(self, classes: int | None = None) -> Classifier:
        """P of pretraining, else the classifier; on the CPU, in training mode as any new network.

        classes: how many it must tell apart; None: as many as it does.

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
        """P, A and the positions, of pretraining."""
        return pretrained_of(self.config, self.checkpoint)

    def classes(self) -> list[str]:
        """Their names in the order of the logits; none of P, which was told none.

        Numbers, where the run is of a version that kept no names.
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
            raise UserError(f"{path}: is damaged: {_ANEW}") from error
        if len(names) != count:
            raise UserError(
                f"{path}: names {len(names)} classes, {self.checkpoint.path} tells {count} apart: "
                f"{_ANEW}"
            )
        return names

    def measures(self) -> dict[str, Any]:
        """The log's last measurement up to this checkpoint, with its step; empty where none is."""
        lines = read_log(self.run / self.kind / "log.jsonl")
        found = [x for x in lines if "heldout_loss" in x and x["step"] <= self.step]
        return {key: value for key, value in found[-1].items() if key != "time"} if found else {}


def stages_of(run: Path) -> Sequence[StageName]:
    """The stages that have checkpoints in `run`, at least one; the best for use comes first.

    Raises:
        UserError: there is none.
    """
    found = [name for name in _PREFERENCE if has_checkpoints(run / name)]
    if not found:
        raise UserError(f"{run}: holds no checkpoint yet: `fastselfie train` makes them")
    return found


def open_trained(run: Path, stage: str | None = None, allow_unfinished: bool = False) -> Trained:
    """The network that the stage left; None: finetuned, else supervised, else pretrain.

    allow_unfinished: take it also before its last step. Its learning rate had not come down yet,
    so it is worth less than the same steps under a shorter schedule, and nothing in its weights
    tells: hence only where it is asked for.

    Raises:
        UserError: not a run, no (good) checkpoint, an unfinished stage.
    """
    config = open_run(run)
    found = stages_of(run)
    kind = found[0] if stage is None else StageName(stage)
    checkpoint = newest_checkpoint(run / kind, kind)
    if checkpoint is None:
        raise UserError(
            f"{run}: holds no checkpoint of {kind}, but of {', '.join(found)}: give another --stage"
        )
    trained = Trained(run, config, kind, checkpoint)
    steps = config.stage_settings(kind).steps
    if trained.step < steps and not allow_unfinished:
        raise UserError(
            f"{checkpoint.path}: {kind} is at step {trained.step} of {steps}: let `fastselfie "
            "train` go on to its end, or take it as it is with --allow-unfinished"
        )
    return trained


def load_pretrained(config: Config, folder: Path, whole: bool = False) -> Selfie:
    """What a pretraining stage's folder holds to go on from: its moving average if it kept one.

    whole: only if it reached its last step.

    Raises:
        UserError: no good checkpoint, one of another model, or of an unfinished stage.
    """
    found = newest_checkpoint(folder, PRETRAIN)
    if found is None:
        raise UserError(f"{folder}: nothing is pretrained there: run --stage pretrain or all first")
    path, state = found
    if whole and state["step"] < config.pretrain.steps:
        raise UserError(
            f"{path}: pretraining stopped at step {state['step']} of {config.pretrain.steps}: go "
            "on with --stage pretrain or all"
        )
    return pretrained_of(config, found)


def pretrained_of(config: Config, found: Checkpoint) -> Selfie:
    """P, A and the positions of a checkpoint of pretraining: their moving average if it kept one.

    Raises:
        UserError: it is of another model.
    """
    network = Selfie(config)
    # A checkpoint of an earlier version knows of no average.
    load_weights(network, found.state.get("average") or found.state["model"], found.path)
    return network


def open_run(run: Path) -> Config:
    """The configuration of a run's folder.

    Raises:
        UserError: not a folder of a run.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not a run: it has no {CONFIG}")
    return load_config(run / CONFIG)
