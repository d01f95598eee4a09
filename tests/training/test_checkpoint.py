"""Checkpoints: whole or not at all, and never a way to run code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import resource

import pytest
import torch

from fastselfie.errors import UserError
from fastselfie.training import checkpoint
from fastselfie.training.checkpoint import load_checkpoint, load_weights, save_checkpoint

STATE = {"kind": "pretrain", "step": 3, "model": {"w": torch.arange(4.0)}}


def test_a_state_comes_back(tmp_path):
    save_checkpoint(tmp_path / "new" / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "new" / "a.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["model"]["w"], STATE["model"]["w"])
    assert os.listdir(tmp_path / "new") == ["a.pt"]


@pytest.mark.parametrize("fault", ["write", "sync", "rename"])
def test_a_fault_while_writing_leaves_the_one_before(tmp_path, monkeypatch, fault):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == "write":  # a real limit: no file may grow over 100 bytes (Python ignores SIGXFSZ)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    else:
        monkeypatch.setattr(os, {"sync": "fsync", "rename": "replace"}[fault], full)
    try:
        with pytest.raises(OSError, match=r"No space|too large") as caught:
            save_checkpoint(path, {**STATE, "step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 3
    assert os.listdir(tmp_path) == ["a.pt"]


def test_damage_in_any_byte_is_named(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    damaged = [b"", whole[:100], whole[:-30], b"x" * 500]
    for place in range(0, len(whole), 7):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.pt: damaged, or not a checkpoint"):
            load_checkpoint(path)
    with pytest.raises(UserError, match=r"b\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "b.pt")


def test_torch_itself_can_read_one(tmp_path):
    save_checkpoint(tmp_path / "a.pt", STATE)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 3


def sealed(path, data):
    """A file with a right digest, whatever it holds."""
    path.write_bytes(data + hashlib.sha256(data).digest())


class Evil:
    def __reduce__(self):
        return (print, ("a checkpoint ran this",))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_pickle_is_not_run(tmp_path, capsys):
    path = tmp_path / "a.pt"
    state = {"format": 1, "x": Evil()}
    for data in (pickle.dumps(state, protocol=2), saved(state)):
        sealed(path, data)
        with pytest.raises(UserError, match="not a checkpoint"):
            load_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_other_files_and_newer_formats_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    sealed(path, saved([1, 2]))
    with pytest.raises(UserError, match="not a checkpoint of fastselfie"):
        load_checkpoint(path)
    sealed(path, saved({"format": checkpoint.FORMAT + 1}))
    with pytest.raises(UserError, match="newer fastselfie"):
        load_checkpoint(path)


def test_weights_of_another_model_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.pt: its weights do not fit.*size mismatch"):
        load_weights(torch.nn.Linear(2, 3), torch.nn.Linear(2, 4).state_dict(), tmp_path / "a.pt")
