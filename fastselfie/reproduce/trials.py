"""One run of a plan: its images, its training, its result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from fastselfie.data.dataset import Dataset
from fastselfie.errors import Diverged
from fastselfie.models.selfie import Selfie
from fastselfie.reproduce.protocol import Plan, Run
from fastselfie.reproduce.scheduler import RESULT, RUNS, Result, drop_checkpoints
from fastselfie.runs.folder import read_facts
from fastselfie.runs.load import load_pretrained
from fastselfie.stage_names import FINETUNED, PRETRAIN
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically
from fastselfie.training.finetune import finetune


class Bench:
    """Where a process does run after run: the images, P and the device, each taken once."""

    def __init__(self, plan: Plan, dataset: Dataset, out: Path, accelerator: Accelerator) -> None:
        self.plan, self.dataset, self.out, self.accelerator = plan, dataset, out, accelerator

    @cached_property
    def pretrained(self) -> Selfie:
        """Raises UserError where it is not pretrained to its end."""
        return load_pretrained(self.plan.config, self.out / PRETRAIN, whole=True)

    def do(self, run: Run) -> Result:
        """Train and measure, from where it was left; leaves result.json.

        Raises:
            UserError: see `finetune`; a last run diverged. A search that did has no accuracy.
        """
        config, few = self.plan.config_for(run), self.plan.images_for(run, self.dataset)
        start = self.pretrained if run.group.arm == FINETUNED else None
        folder = self.out / RUNS / run.name
        _set_aside(folder, run.lr)
        measures: Mapping[str, float | None]
        try:
            measures = finetune(config, few, folder, self.accelerator, start)
        except Diverged as error:
            if run.split is None:
                # Its own way out is finetune.lr, which a reproduction does not read.
                raise Diverged(
                    f"{run.name}: training diverged at the rate that the search chose, {run.lr:g}: "
                    f"give reproduce.grid lower rates and another --out, with {self.out / PRETRAIN}"
                    " copied into it"
                ) from error
            measures = dict.fromkeys(("heldout_loss", "top1", "top5"))
        result: Result = {
            "labels": run.group.labels,
            "arm": run.group.arm,
            "lr": run.lr,
            "split": run.split,
            "seed": run.seed,
            "images": len(few.train),
            "measured_on": len(few.held_out),
            **measures,
        }
        write_atomically(folder / RESULT, json.dumps(result) + "\n")
        drop_checkpoints(folder, run)
        return result


def _set_aside(folder: Path, lr: float) -> None:
    """Move away a last run that was finished at another rate: its search came to another end."""
    before = read_facts(folder / RESULT).get("lr", lr)
    if before != lr:
        kept = folder.with_name(f"{folder.name}-lr-{before:g}")
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
        say(f"{folder}: is of the rate {before:g}, and the search now chose {lr:g}: kept as {kept}")
