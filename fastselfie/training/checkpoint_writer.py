"""Writing of checkpoints in a thread, while training continues.

The state is copied at its step; the thread serialises, hashes, syncs and renames the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
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
    """Writes the checkpoints of one stage, one at a time; a context manager.

    Leaving it waits for the checkpoint in flight: the thread does not outlive the run.

    Args:
        folder: the stage's.
        settings: which checkpoints to keep, and what an error of the disk does.
        written: step of the newest checkpoint.
        is_main: whether this rank writes.
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
        if self.is_main:  # rank 0 may be writing such a file by now
            for pattern in (".step-*.pt.*", f".{LATEST}.*", ".log.jsonl.*"):  # left by a killed run
                for path in self.folder.glob(pattern):
                    _delete(path)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.wait()
        elif not isinstance(error, KeyboardInterrupt):  # a second Ctrl-C, which leaves at once
            self._join()
            if self._fault is not None:  # must not hide the error being raised
                say(f"warning: {self._fault}")

    def save(self, state: dict[str, Any]) -> None:
        """Start to write a checkpoint, after waiting for the one before it.

        Args:
            state: see `save_checkpoint`; its tensors may change as soon as this returns.

        Raises:
            UserError: see `wait`.
        """
        self.wait()
        copy, ready = _copied(state), None
        if any(value.is_cuda for value in state["model"].values()):
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        # A daemon, so that a second Ctrl-C need not wait for the disk.
        self._thread = threading.Thread(
            target=self._write, args=(copy, ready), name="checkpoint", daemon=True
        )
        self._thread.start()

    def poll(self) -> None:
        """Raise the error of the write in flight if it has ended. Does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint in flight.

        Raises:
            UserError: it could not be written and `checkpoint.on_error` is stop. The checkpoint
                before it is intact.
        """
        self._join()
        fault, self._fault = self._fault, None
        if fault is None:
            return
        try:
            with DiskErrors(self.settings.on_error, self.folder, "this checkpoint is not written"):
                raise fault
        except OSError as error:
            raise UserError(
                f"{error.filename or self.folder}: {error.strerror}: make room or check its "
                "permissions, then run the same command to resume from the previous checkpoint"
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
            self._fault = fault  # `wait` raises it in the main thread

    def _delete_old(self, step: int) -> None:
        """Delete checkpoints up to `step` as `keep` and `keep_every` say.

        Those of later steps do not count: the run resumed before them, so they are damaged.
        """
        every = self.settings.keep_every
        old = [(at, path) for at, path in step_paths(self.folder).items() if at <= step]
        for at, path in old[self.settings.keep :]:
            if every is None or at % every:
                _delete(path)


def _delete(path: Path) -> None:
    """Delete an old file. A failure is harmless, so it is only a warning."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say(f"warning: {path}: {error.strerror}: this old file is not deleted")


def _copied(value: Any) -> Any:
    """Copy the tensors in `value` to the host.

    A GPU copies into pinned memory in stream order: the host does not wait, and later updates do
    not change the copy.
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
