"""Checkpoints: whole or not at all, and never a way to run code."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from fastselfie import checkpoint
from fastselfie.checkpoint import load_checkpoint, load_weights, save_checkpoint
from fastselfie.errors import UserError

STATE = {"kind": "pretrain", "step": 3, "model": {"w": torch.arange(4.0)}}


def test_a_state_comes_back(tmp_path):
    save_checkpoint(tmp_path / "new" / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "new" / "a.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["model"]["w"], STATE["model"]["w"])
    assert os.listdir(tmp_path / "new") == ["a.pt"]


@pytest.mark.parametrize("fault", ["save", "sync", "rename"])
def test_a_fault_while_writing_leaves_the_one_before(tmp_path, monkeypatch, fault):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    module, name = {"save": (torch, "save"), "sync": (os, "fsync"), "rename": (os, "replace")}[
        fault
    ]
    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {**STATE, "step": 4})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 3
    assert os.listdir(tmp_path) == ["a.pt"]


def test_damage_is_named(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-30], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.pt: damaged, or not a checkpoint"):
            load_checkpoint(path)
    with pytest.raises(UserError, match=r"b\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "b.pt")


class Evil:
    def __reduce__(self):
        return (print, ("a checkpoint ran this",))


def test_a_pickle_is_not_run(tmp_path, capsys):
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps({"format": 1, "x": Evil()}))
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        load_checkpoint(path)
    torch.save({"format": 1, "x": Evil()}, path)
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        load_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_other_files_and_newer_formats_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a checkpoint of fastselfie"):
        load_checkpoint(path)
    torch.save({"format": checkpoint.FORMAT + 1}, path)
    with pytest.raises(UserError, match="newer fastselfie"):
        load_checkpoint(path)


def test_weights_of_another_model_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.pt: its weights are of another model.*size mismatch"):
        load_weights(torch.nn.Linear(2, 3), torch.nn.Linear(2, 4).state_dict(), tmp_path / "a.pt")
