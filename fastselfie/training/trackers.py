"""Experiment trackers: TensorBoard and Weights & Biases.

log.jsonl has every number; a tracker only shows them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from fastselfie.config import Config, LogConfig
from fastselfie.errors import UserError
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically

WANDB_ID = "wandb-id.txt"


class Tracker(Protocol):
    """Shows the numbers and pictures of one stage."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by their names."""

    def picture(self, path: Path, step: int) -> None:
        """Record an image file."""

    def close(self, failed: bool) -> None:
        """End the stage; `failed` if an error or a signal ended it."""


class TensorBoard:
    """Writes event files to `folder`, see `Tracker`.

    A thread writes them: an OSError is raised by the next call.

    Args:
        folder: for the event files.
        start: whole steps done; events of later steps are dropped.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = self._silence_disk_errors
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, path: Path, step: int) -> None:
        pixels = np.asarray(Image.open(path))
        self._writer.add_image("mask_prediction", pixels, step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        del failed
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _silence_disk_errors(self, fault: threading.ExceptHookArgs) -> None:
        """Drop an OSError of the writer's thread: the next call raises it as well."""
        writers = type(fault.thread).__module__.startswith("tensorboard.")
        if not (writers and issubclass(fault.exc_type, OSError)):
            self._hook(fault)


class Wandb:
    """A W&B run of one stage, grouped with the run's other stages, see `Tracker`.

    The first error is a warning; after it nothing more is sent.

    Args:
        folder: keeps the W&B id, under which a resumed stage continues.
        stage: the stage's name.
        config: the run's.
    """

    def __init__(self, folder: Path, stage: str, config: Config) -> None:
        self._run: Any = None
        with self._tolerate_errors():
            import wandb

            self._picture = wandb.Image
            path = folder / WANDB_ID
            if not path.exists():
                write_atomically(path, uuid4().hex)
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=f"{config.name} {stage}",
                group=config.name,
                job_type=stage,
                id=path.read_text(encoding="ascii"),
                resume="allow",
                mode=config.log.wandb,
                dir=str(folder),
                config=config.model_dump(mode="json"),
                # W&B's own lines would break the progress bar.
                settings=wandb.Settings(silent=True, console="off"),
            )
        if self._run is not None and self._run.url:
            say(f"{stage}: {self._run.url}")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._send(lambda run: run.log(dict(values), step=step))

    def picture(self, path: Path, step: int) -> None:
        self._send(lambda run: run.log({"mask_prediction": self._picture(str(path))}, step=step))

    def close(self, failed: bool) -> None:
        self._send(lambda run: run.finish(exit_code=int(failed)))

    def _send(self, send: Callable[[Any], object]) -> None:
        with self._tolerate_errors():
            if self._run is not None:
                send(self._run)

    @contextmanager
    def _tolerate_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a network or a server can fail in any way
            self._run = None
            lines = str(error).splitlines() or [""]
            say(
                f"warning: log.wandb: {type(error).__name__}: {lines[0]}: W&B gets nothing more of "
                "this stage, log.jsonl does"
            )


def require_wandb(settings: LogConfig) -> None:
    """Check that wandb is installed if `settings` asks for it.

    Raises:
        UserError: it is not installed.
    """
    if settings.wandb == "off":
        return
    try:
        # `import wandb` alone would find the folder wandb/ that earlier runs left here.
        from wandb import init  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"log.wandb is {settings.wandb}, but wandb is not installed here ({error}): pip "
            "install 'fastselfie[wandb]', or set log.wandb=off"
        ) from error


def open_trackers(folder: Path, stage: str, start: int, config: Config | None) -> list[Tracker]:
    """Open TensorBoard if it is installed, and W&B if `config` asks for it.

    Args:
        folder: the stage's.
        stage: its name.
        start: whole steps done.
        config: the run's; None: no W&B.
    """
    trackers: list[Tracker] = []
    with suppress(ImportError):
        trackers.append(TensorBoard(folder / "tensorboard", start))
    if config is not None and config.log.wandb != "off":
        trackers.append(Wandb(folder, stage, config))
    return trackers
