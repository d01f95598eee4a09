"""Checkpoints of a run, written beside training by a thread: which there are, and what may fail.

A state is copied at its step; the thread serialises, hashes, syncs and renames the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastselfie.config import CheckpointConfig
from fastselfie.errors import UserError
from fastselfie.system.console import say
from fastselfie.system.files import link_atomically
from fastselfie.training.checkpoint import LATEST, save_checkpoint, step_path, step_paths
from fastselfie.training.disk_errors import DiskErrors


class CheckpointWriter:
    """Writes the checkpoints of one stage to `folder`, one at a time; a context manager.

    written: the step of the newest. leads: whether this process writes. Leaving it waits for the
    one in flight: the thread does not outlive the run.
    """

    def __init__(
        self, folder: Path, settings: CheckpointConfig, written: int = 0, is_main: bool = True
    ) -> None:
        self.folder = folder
        self.is_main = is_main
        self.settings = settings
        self.written = written
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        if self.is_main:  # another's may be in the middle of a file by now
            for pattern in (".step-*.pt.*", f".{LATEST}.*", ".log.jsonl.*"):  # of a killed run
                for path in self.folder.glob(pattern):
                    _delete(path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
        elif not isinstance(error, KeyboardInterrupt):  # a second Ctrl-C, which leaves at once
            self._join()
            if self._fault is not None:  # the error on its way is not to be hidden by this one
                say(f"warning: {self._fault}")

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write `state`, whose tensors may change as soon as this returns.

        Waits for the checkpoint before it. Raises what `wait` does.
        """
        self.wait()
        copy, ready = _copied(state), None
        if any(value.is_cuda for value in state["model"].values()):
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        # A daemon, so that a second Ctrl-C need not wait for a disk.
        self._thread = threading.Thread(
            target=self._write, args=(copy, ready), name="checkpoint", daemon=True
        )
        self._thread.start()

    def poll(self) -> None:
        """Raise what went wrong, if the write in flight has ended; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint in flight.

        Raises:
            UserError: it could not be written, under on_error: stop. The one before it is whole.
        """
        self._join()
        fault, self._fault = self._fault, None
        if fault is None:
            return
        path = Path(getattr(fault, "filename", None) or self.folder)
        try:
            with DiskErrors(self.settings.on_error, path, "this checkpoint is not written"):
                raise fault
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}: make room or check its permissions, and run the same "
                "command to go on from the checkpoint before"
            ) from fault

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Any], ready: torch.cuda.Event | None) -> None:
        try:
            if ready is not None:
                ready.synchronize()
            path = step_path(self.folder, state["step"])
            save_checkpoint(path, state)
            link_atomically(self.folder / LATEST, path)
            self.written = state["step"]
            self._delete_old(state["step"])
        except BaseException as fault:
            self._fault = fault  # `wait` raises it where the run can answer

    def _delete_old(self, step: int) -> None:
        """Keep what the settings say of the checkpoints up to `step`.

        One of a later step is damaged, or the run had gone on from it: it does not count.
        """
        every = self.settings.keep_every
        old = [(at, path) for at, path in step_paths(self.folder).items() if at <= step]
        for at, path in old[self.settings.keep :]:
            if every is None or at % every:
                _delete(path)


def _delete(path: Path) -> None:
    """Without it, or in spite of it, what was just written is as good."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say(f"warning: {path}: {error.strerror}: this old file stays")


def _copied(value: Any) -> Any:
    """`value` with copies of its tensors on the host.

    From a GPU into pinned memory, in the stream's order: the host does not wait, and the updates
    that follow do not touch the copy.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        pinned = torch.empty_like(value, device="cpu", pin_memory=True)
        return pinned.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
