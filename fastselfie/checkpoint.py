"""Checkpoints: written whole or not at all, read without trusting pickle."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from fastselfie.errors import UserError

FORMAT = 1  # raised when a file's meaning changes


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) under `path` in one step.

    A temporary file is synced and renamed, then the folder is synced, so a kill or a full disk
    leaves the file before it untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`, on the CPU.

    Raises:
        UserError: missing, damaged, of another program, or of a newer format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, BadZipFile, ValueError) as error:
        raise UserError(f"{path}: damaged, or not a checkpoint: remove it to start anew") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path}: not a checkpoint of fastselfie")
    if state["format"] > FORMAT:
        raise UserError(
            f"{path}: written by a newer fastselfie (format {state['format']}): upgrade"
        )
    return state


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put `weights`, read from `path`, into `model`.

    Raises:
        UserError: they are of another model, with the first difference.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        first = lines[1].strip() if len(lines) > 1 else lines[0]
        raise UserError(
            f"{path}: its weights are of another model than the config's: {first}"
        ) from error
