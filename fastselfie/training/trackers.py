"""Where a run's curves and pictures are watched: TensorBoard and Weights & Biases.

log.jsonl has every number; a board only shows them.
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
from fastselfie.system.files import write_atomically

WANDB_ID = "wandb-id.txt"


class Tracker(Protocol):
    """Shows what one stage logs."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, path: Path, step: int) -> None:
        """An image file."""

    def close(self, failed: bool) -> None:
        """The stage is over; failed: by an error or a signal."""


class TensorBoard:
    """Event files in `folder`, of a run that goes on at `start`.

    Its thread writes; what the disk refuses is raised, as OSError, with the next call.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = self._without_a_traceback
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

    def _without_a_traceback(self, fault: threading.ExceptHookArgs) -> None:
        """The writer's thread raises a full disk a second time, to nobody."""
        writers = type(fault.thread).__module__.startswith("tensorboard.")
        if not (writers and issubclass(fault.exc_type, OSError)):
            self._hook(fault)


class Wandb:
    """A run of W&B for one stage, grouped with the run's other stages; goes on under its id.

    The id stands in `folder`. The first thing that fails is told by `say`, and the rest is left
    undone.
    """

    def __init__(
        self, folder: Path, stage: str, config: Config, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._run: Any = None
        with self._bearing():
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
                # Its own lines would break the progress bar.
                settings=wandb.Settings(silent=True, console="off"),
            )
        if self._run is not None and self._run.url:
            say(f"{stage}: {self._run.url}")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._bearing():
            if self._run is not None:
                self._run.log(dict(values), step=step)

    def picture(self, path: Path, step: int) -> None:
        with self._bearing():
            if self._run is not None:
                self._run.log({"mask_prediction": self._picture(str(path))}, step=step)

    def close(self, failed: bool) -> None:
        with self._bearing():
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    @contextmanager
    def _bearing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a network or a server, of any kind
            self._run = None
            lines = str(error).splitlines() or [""]
            self._say(
                f"warning: log.wandb: {type(error).__name__}: {lines[0]}: W&B gets no more of this "
                "stage, log.jsonl does"
            )


def require_wandb(settings: LogConfig) -> None:
    """Whether wandb is there if it is asked for.

    Raises:
        UserError: it is not.
    """
    if settings.wandb == "off":
        return
    try:
        # Its own folder of that name, of earlier runs, imports too, as a package of nothing.
        from wandb import init  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"log.wandb is {settings.wandb}, but wandb is not installed here ({error}): pip "
            "install 'fastselfie[wandb]', or set log.wandb=off"
        ) from error


def open_trackers(
    folder: Path, stage: str, start: int, config: Config | None, say: Callable[[str], None]
) -> list[Tracker]:
    """TensorBoard where it is installed, and W&B where `config` asks for it."""
    boards: list[Tracker] = []
    with suppress(ImportError):
        boards.append(TensorBoard(folder / "tensorboard", start))
    if config is not None and config.log.wandb != "off":
        boards.append(Wandb(folder, stage, config, say))
    return boards
