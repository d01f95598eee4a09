"""Checkpoints: written whole or not at all, checked when read, never a way to run code.

A file is what torch.save writes followed by the SHA-256 of that, which torch.load ignores.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastselfie.atomic import write_atomically
from fastselfie.errors import UserError

FORMAT = 1  # raised when a file's meaning changes
_DIGEST_BYTES = hashlib.sha256().digest_size


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) under `path` in one step.

    Raises OSError, with the checkpoint before it untouched.
    """
    # Into memory first: on a full disk torch.save raises a RuntimeError that hides the reason.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    payload = buffer.getvalue()
    write_atomically(path, payload + hashlib.sha256(payload).digest())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`, on the CPU.

    Raises:
        UserError: missing, damaged in any byte, of another program, or of a newer format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    data = path.read_bytes()
    payload, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise UserError(f"{path}: damaged, or not a checkpoint: remove it to start anew")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes of torch's reader
        raise UserError(f"{path}: not a checkpoint: remove it to start anew") from error
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
