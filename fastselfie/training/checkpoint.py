"""Checkpoint files: written atomically, verified when read, and unable to run code.

A file is the output of torch.save followed by its SHA-256, which torch.load ignores. The folder
of a stage holds step-0001000.pt and so on, and latest.pt, another name of the newest.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastselfie.errors import UserError
from fastselfie.system.console import say
from fastselfie.system.files import write_atomically

LATEST = "latest.pt"
FORMAT = 1  # raised when a file's meaning changes
_DIGEST_BYTES = hashlib.sha256().digest_size
_STEP_NAME = re.compile(r"step-(\d+)\.pt")


class Damaged(UserError):
    """A checkpoint that cannot be used; an older one may replace it.

    Args:
        path: the file.
        fault: what is wrong with it.

    Attributes:
        fault: the same, with the path.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(path, fault)  # both, as other ranks receive it pickled
        self.fault = f"{path}: {fault}"

    def __str__(self) -> str:
        return f"{self.fault}: pass another checkpoint"


class Checkpoint(NamedTuple):
    """A checkpoint's state and the file it was read from."""

    path: Path
    state: dict[str, Any]


def step_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint after `step` whole steps."""
    return folder / f"step-{step:07d}.pt"


def step_paths(folder: Path) -> dict[int, Path]:
    """Find the checkpoints in `folder` by the step in their names, the newest first."""
    found = {int(m[1]): p for p in folder.glob("step-*.pt") if (m := _STEP_NAME.fullmatch(p.name))}
    return dict(sorted(found.items(), reverse=True))


def has_checkpoints(folder: Path) -> bool:
    """Whether `folder` holds any checkpoint, good or damaged."""
    return (folder / LATEST).exists() or bool(step_paths(folder))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file; what stood there is replaced only by a whole new file.
        state: tensors, numbers, strings, lists and dicts.

    Raises:
        OSError: the file cannot be written.
    """
    # Through memory: on a full disk torch.save raises a RuntimeError that hides the reason.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint; its tensors are on the CPU.

    Raises:
        Damaged: the file is missing, any byte is damaged, it is not a checkpoint, or its step is
            not the one in its name.
        UserError: the file is of a newer format.
    """
    if not path.is_file():
        raise Damaged(path, "no such checkpoint")
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:  # a sector that the disk cannot read
        raise Damaged(path, f"cannot be read ({error.strerror})") from error
    payload, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise Damaged(path, "damaged, or not a checkpoint")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails on foreign files in any way
        raise Damaged(path, "not a checkpoint") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise Damaged(path, "not a checkpoint of fastselfie")
    if state["format"] > FORMAT:
        raise UserError(
            f"{path}: written by a newer fastselfie (format {state['format']}): upgrade"
        )
    named = _STEP_NAME.fullmatch(path.name)
    if named and state.get("step") != int(named[1]):
        raise Damaged(path, f"holds step {state.get('step')}, not the one in its name")
    return state


def newest_checkpoint(folder: Path, kind: str, quiet: bool = False) -> Checkpoint | None:
    """Read the newest good checkpoint in `folder`.

    Args:
        folder: the stage's.
        kind: the stage's name; checkpoints of other stages count as damaged.
        quiet: do not warn of damaged checkpoints that are passed over.

    Returns:
        The checkpoint, or None if `folder` has none.

    Raises:
        UserError: there are checkpoints, but none is good, or one is of a newer format.
    """
    if not has_checkpoints(folder):
        return None
    best: Checkpoint | None = None
    faults = []
    # latest.pt first: it may be a copy that outlived the file whose other name it was.
    for step, path in [(0, folder / LATEST), *step_paths(folder).items()]:
        if best is not None and step <= best.state["step"]:
            break
        try:
            state = load_checkpoint(path)
            if state.get("kind") != kind or not isinstance(state.get("step"), int):
                raise Damaged(path, f"a checkpoint of stage {state.get('kind')}, not of {kind}")
            best = Checkpoint(path, state)
        except Damaged as damaged:
            faults.append(damaged.fault)
    if best is None:
        raise UserError(
            f"{'; '.join(faults)}: no good checkpoint is left there: restore one, or use "
            "--resume never"
        )
    for fault in [] if quiet else faults:
        say(f"warning: {fault}: resuming from {best.path.name}, step {best.state['step']}")
    return best


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load `weights`, which were read from `path`, into `model`.

    Raises:
        UserError: the weights are of another model; the message names the first difference.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        first = lines[1].strip() if len(lines) > 1 else lines[0]
        raise UserError(f"{path}: its weights do not fit the config's model: {first}") from error
