"""Pretraining of tiny networks, what it logs, and how to stop it at a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.models.selfie import Selfie
from fastselfie.system.accelerator import Accelerator
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import pretrain
from fastselfie.training.step import TrainStep


class Stop(Exception):
    """Ends training in a test. KeyboardInterrupt would not wait for the checkpoint in flight."""


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Make every training inside stop before `step`, and expect that one does."""
    original = TrainStep.__call__

    def stop(self: TrainStep, at: int, batch: Any) -> None:
        if at == step:
            raise Stop
        original(self, at, batch)

    with mock.patch.object(TrainStep, "__call__", stop), pytest.raises(Stop):
        yield


def run_pretraining(
    folder: Path, out: Path, accelerator: Accelerator, **sections: Any
) -> tuple[Selfie, dict[str, float]]:
    """Pretrain with `tiny_config(**sections)` on the images in `folder`; see `pretrain`."""
    sections["data"] = {"train": str(folder), **sections.get("data", {})}
    config = tiny_config(**sections)
    return pretrain(config, open_dataset(config.data, config.seed), out, accelerator)


def losses(out: Path) -> list[float]:
    """Return the training losses in the log of a stage."""
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]
