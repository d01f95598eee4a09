"""What a run's folder tells: its settings, logs and figures, and how far it is. Writes nothing."""

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
CLASSES = "classes.json"  # their names, which a network only numbers
_RECENT = 40  # lines that tell how fast it goes
_QUIET = 10  # of the usual time between two lines without one, it may have stopped
_LEAST_QUIET = 60.0  # seconds


@dataclass(frozen=True)
class State:
    """How far a run is.

    stage: the one in work, or the last. done, steps: of it. last: Unix time of the newest line of
    the log. quiet_after: seconds without a line after which it may have stopped. seconds_left: of
    the stage. checkpoint: the newest, by its path in the run.
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
    """A run as its folder holds it, whether it goes on or not.

    logs: of each stage. summary, environment: empty before they are written.
    """

    path: Path
    config: Config
    logs: Mapping[str, Sequence[Mapping[str, Any]]]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]

    def last(self, stage: str, key: str) -> float | None:
        """The newest number that the stage logged under `key`."""
        values = (line[key] for line in reversed(self.logs[stage]) if key in line)
        return next(values, None)

    def first(self, stage: str, key: str) -> float | None:
        """What the stage logged under `key` at step 0, before it learned anything."""
        values = (line[key] for line in self.logs[stage] if line["step"] == 0 and key in line)
        return next(values, None)

    def state(self) -> State:
        """How far it is, as far as its files tell."""
        begun = [name for name in StageName if self.logs[name]]
        begun_last = reversed(begun)  # where two ended at one moment, the later stage
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
        """Whether every stage that was asked for is done, and the run said so in its summary."""
        asked = set(begun)
        if FINETUNED in asked and self.config.finetune.control:
            asked.add(SUPERVISED)
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
    """What lies in the folder `path` of a run by `config`; what is not there yet is empty."""
    return RunFolder(
        path=path,
        config=config,
        logs={name: _lines(path / name / "log.jsonl") for name in StageName},
        summary=read_facts(path / SUMMARY),
        environment=read_facts(path / ENVIRONMENT),
    )


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """The log's lines that say when they are from: a folder from elsewhere may hold anything."""
    numbers = int | float
    return [
        line
        for line in read_log(path)
        if all(isinstance(value, numbers) for value in (line.get("time"), *line.values()))
    ]


def read_facts(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or a kill or a full disk left half of one."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
