"""Reading of a run's folder: settings, logs, figures and progress. It writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fastselfie.config import Config
from fastselfie.stage_names import FINETUNED, PRETRAIN, SUPERVISED, StageName
from fastselfie.training.checkpoint import step_paths
from fastselfie.training.metrics_log import read_log

CONFIG, SUMMARY, ENVIRONMENT, PAGE = (
    "config.yaml", "summary.json", "environment.json", "report.html",
)  # fmt: skip
CLASSES = "classes.json"  # names of the classes, which a checkpoint lacks
_RECENT = 40  # lines of the log from which the speed is estimated
_QUIET = 10  # usual intervals without a line, after which the run may have stopped
_LEAST_QUIET = 60.0  # seconds


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        stage: the current one, or the last.
        done: its whole steps.
        steps: all of its steps.
        finished: whether the run has ended.
        last: Unix time of the newest line of the log.
        quiet_after: seconds without a line after which the run may have stopped.
        seconds_left: estimate for the stage.
        checkpoint: path of the newest one, relative to the run's folder.
    """

    stage: StageName
    done: int
    steps: int
    finished: bool
    last: float | None
    quiet_after: float
    seconds_left: float | None
    checkpoint: str | None


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run's folder, of a finished run or of one in training.

    Attributes:
        path: the folder.
        config: the run's.
        logs: lines of log.jsonl of each stage.
        summary: of summary.json; empty before it is written.
        environment: of environment.json; empty before it is written.
    """

    path: Path
    config: Config
    logs: Mapping[str, Sequence[Mapping[str, Any]]]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]

    def last(self, stage: str, key: str) -> float | None:
        """Return the newest number that the stage logged under `key`."""
        values = (line[key] for line in reversed(self.logs[stage]) if key in line)
        return next(values, None)

    def first(self, stage: str, key: str) -> float | None:
        """Return the number that the stage logged under `key` at step 0, before training."""
        values = (line[key] for line in self.logs[stage] if line["step"] == 0 and key in line)
        return next(values, None)

    def state(self) -> State:
        """Derive the run's progress from its files."""
        begun = [name for name in StageName if self.logs[name]]
        begun_last = reversed(begun)  # of two that ended at the same time, the later stage
        stage = max(begun_last, key=lambda name: self.logs[name][-1]["time"], default=PRETRAIN)
        log, steps = self.logs[stage], self.config.stage_settings(stage).steps
        done = log[-1]["step"] if log else 0
        recent = log[-_RECENT:]
        pairs = list(pairwise(recent))
        between = [b["time"] - a["time"] for a, b in pairs]
        a_step = [t / (b["step"] - a["step"]) for t, (a, b) in zip(between, pairs, strict=True)
                  if b["step"] > a["step"]]  # fmt: skip
        usual = median(between) if between else 0.0
        return State(
            stage=stage,
            done=done,
            steps=steps,
            finished=self._finished(begun),
            last=log[-1]["time"] if log else None,
            quiet_after=max(_LEAST_QUIET, _QUIET * usual),
            seconds_left=median(a_step) * (steps - done) if a_step and done < steps else None,
            checkpoint=self._checkpoint(stage),
        )

    def _finished(self, begun: Sequence[StageName]) -> bool:
        """Whether all requested stages are done and the summary is written."""
        control = FINETUNED in begun and self.config.finetune.control
        asked = {*begun, SUPERVISED} if control else set(begun)
        done = all(
            self.logs[name]
            and self.logs[name][-1]["step"] >= self.config.stage_settings(name).steps
            for name in asked
        )
        return bool(asked) and done and "seconds" in self.summary

    def _checkpoint(self, stage: StageName) -> str | None:
        stages = list(StageName)
        for name in reversed(stages[: stages.index(stage) + 1]):
            for path in step_paths(self.path / name).values():
                return f"{name}/{path.name}"
        return None


def read_run(path: Path, config: Config) -> RunFolder:
    """Read the folder `path` of a run; what is not there yet is empty."""
    return RunFolder(
        path=path,
        config=config,
        logs={name: _lines(path / name / "log.jsonl") for name in StageName},
        summary=read_facts(path / SUMMARY),
        environment=read_facts(path / ENVIRONMENT),
    )


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """Read the valid lines of a log: a folder from elsewhere may hold anything."""
    numbers = int | float
    return [
        line
        for line in read_log(path)
        if all(isinstance(value, numbers) for value in (line.get("time"), *line.values()))
    ]


def read_facts(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or was cut short."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
