"""Run the parts of a reproduction in one process: pretraining, features of P, single trials."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from fastselfie.data.dataset import Dataset
from fastselfie.errors import Diverged
from fastselfie.models.selfie import Selfie
from fastselfie.report.live import LivePage
from fastselfie.reproduce.protocol import Protocol, Trial
from fastselfie.reproduce.rate_search import Result, lower_the_rates
from fastselfie.reproduce.representations import FEATURES, FIGURES, measure_features
from fastselfie.reproduce.scheduler import RESULT, RUNS, read_result
from fastselfie.runs.folder import read_facts
from fastselfie.runs.load import load_pretrained
from fastselfie.runs.train import train
from fastselfie.stage_names import FINETUNED, PRETRAIN
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically
from fastselfie.training.checkpoint import LATEST, step_paths
from fastselfie.training.finetune import finetune


class TrialRunner:
    """Runs trials in one process: images, pretrained network and device are opened once.

    Args:
        protocol: The protocol of the trials.
        dataset: All images.
        out: Folder of the reproduction.
        accelerator: Device to train on.
    """

    def __init__(
        self, protocol: Protocol, dataset: Dataset, out: Path, accelerator: Accelerator
    ) -> None:
        self.protocol, self.dataset = protocol, dataset
        self.out, self.accelerator = out, accelerator

    @cached_property
    def pretrained(self) -> Selfie:
        """The pretrained network. Raises UserError if pretraining has not finished."""
        return load_pretrained(self.protocol.config, self.out / PRETRAIN, whole=True)

    def pretrain(self) -> None:
        """Pretrain, from the last checkpoint on. Raises UserError, see `train`."""
        train(self.protocol.config, PRETRAIN, "auto", self.out, LivePage)

    def measure_features(self) -> None:
        """Measure the features of the pretrained network; write them to `FEATURES`."""
        config = self.protocol.config
        features = measure_features(config, self.dataset, self.accelerator, self.pretrained)
        write_atomically(self.out / FEATURES, json.dumps(features, indent=1) + "\n")

    def run(self, trial: Trial) -> Result:
        """Train and measure, from the last checkpoint on; write result.json and return it.

        A trial that has finished before is not trained again. A search trial that diverges has None
        as its accuracy.

        Raises:
            UserError: See `finetune`; or a seed run diverged.
        """
        result = read_result(self.out, trial)
        if result is None:
            result = self._train(trial)
        drop_checkpoints(self.out / RUNS / trial.name, trial)
        return result

    def _train(self, trial: Trial) -> Result:
        config = self.protocol.config_for(trial)
        few = self.protocol.images_for(trial, self.dataset)
        pretrained = self.pretrained if trial.arm.start == FINETUNED else None
        folder = self.out / RUNS / trial.name
        _set_aside(folder, trial.lr)
        measures: Mapping[str, float | None]
        try:
            measures = finetune(config, few, folder, self.accelerator, pretrained)
        except Diverged as error:
            if trial.split is None:
                # The message of `finetune` names finetune.lr, which a reproduction does not read.
                raise Diverged(
                    f"{trial.name}: training diverged at the rate that the search chose, "
                    f"{trial.lr:g}: {lower_the_rates(self.out)}"
                ) from error
            measures = dict.fromkeys(("heldout_loss", "top1", "top5"))
        result: Result = {
            "labels": trial.arm.labels,
            "arm": trial.arm.start,
            "lr": trial.lr,
            "split": trial.split,
            "seed": trial.seed,
            "images": len(few.train),
            "measured_on": len(few.held_out),
            **measures,
        }
        write_atomically(folder / RESULT, json.dumps(result) + "\n")
        return result


def has_features(out: Path) -> bool:
    """Whether the features are measured in `out`, all those that this version measures."""
    return set(read_facts(out / FEATURES)) >= FIGURES


def _set_aside(folder: Path, lr: float) -> None:
    """Rename the folder of a seed run if the search no longer chooses its rate."""
    before = read_facts(folder / RESULT).get("lr", lr)
    if before != lr:
        kept = folder.with_name(f"{folder.name}-lr-{before:g}")
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
        say(f"{folder}: has the rate {before:g}, but the search now chose {lr:g}: moved to {kept}")


def drop_checkpoints(folder: Path, trial: Trial) -> None:
    """Delete the checkpoints of a finished trial; a seed run keeps its newest."""
    old = list(step_paths(folder).values())
    if trial.split is None:
        old = old[1:]
    else:
        old += [folder / LATEST, *folder.glob("nonfinite-*.pt")]
    for path in old:
        path.unlink(missing_ok=True)
