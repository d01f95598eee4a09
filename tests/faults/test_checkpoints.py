"""Damaged checkpoints: each is named, and the newest good one before it is gone on from."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from fastselfie.config import CheckpointConfig
from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.system.files import link_atomically, write_atomically
from fastselfie.training import checkpoint_writer as saver
from fastselfie.training.checkpoint import (
    Damaged,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from fastselfie.training.checkpoint_writer import CheckpointWriter
from fastselfie.training.pretrain import pretrain

CASES = 40  # of damage drawn by chance; each takes milliseconds


def state(step, kind="pretrain"):
    return {"kind": kind, "step": step, "model": {"w": torch.full((3000,), float(step))}}


def write(folder, steps, **settings):
    with CheckpointWriter(folder, CheckpointConfig(**settings)) as writer:
        for step in steps:
            writer.save(state(step))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def stage(tmp_path):
    """Checkpoints of steps 1 to 4, as a run leaves them."""
    write(tmp_path / "pretrain", range(1, 5), keep=4)
    return tmp_path / "pretrain"


def flipped(data, draw):
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def zeroed(data, draw):
    place = draw.randrange(0, len(data), 4096)
    page = data[place : place + 4096]
    return data[:place] + bytes(len(page)) + data[place + len(page) :]


DAMAGES = {
    "truncated": lambda data, draw: data[: draw.randrange(1, len(data))],
    "flipped": flipped,
    "zeroed": zeroed,
    "empty": lambda data, draw: b"",
}


@pytest.mark.parametrize("seed", range(CASES))
def test_damage_falls_back_to_the_newest_that_is_good(stage, capsys, seed):
    """The newest files are hit, some of them in their copies under both names."""
    draw = random.Random(seed)
    hit = draw.randint(1, 3)
    damage = DAMAGES[draw.choice(sorted(DAMAGES))]
    for step in range(4, 4 - hit, -1):
        path = stage / f"step-{step:07d}.pt"
        path.write_bytes(damage(path.read_bytes(), draw))  # latest.pt is the same file
    found = newest_checkpoint(stage, "pretrain")
    assert found.state["step"] == 4 - hit
    assert torch.equal(found.state["model"]["w"], torch.full((3000,), 4.0 - hit))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == hit + 1
    assert all(f"resuming from step-000000{4 - hit}.pt" in line for line in said)
    for name in ("latest.pt", *(f"step-000000{s}.pt" for s in range(4, 4 - hit, -1))):
        assert any(f"{stage / name}: damaged" in line for line in said)


def test_a_missing_or_older_latest_hides_nothing(stage, capsys):
    (stage / "latest.pt").unlink()
    assert newest_checkpoint(stage, "pretrain").state["step"] == 4
    assert "latest.pt: no such checkpoint" in capsys.readouterr().err
    shutil.copy(stage / "step-0000002.pt", stage / "latest.pt")
    assert newest_checkpoint(stage, "pretrain").state["step"] == 4


def test_a_latest_that_is_a_copy_stands_in_for_its_file(stage):
    shutil.copy(stage / "latest.pt", stage / "copy")
    (stage / "step-0000004.pt").write_bytes(b"")
    os.replace(stage / "copy", stage / "latest.pt")
    assert newest_checkpoint(stage, "pretrain").path.name == "latest.pt"


def test_swapped_names_are_caught(stage, capsys):
    (stage / "latest.pt").unlink()
    os.rename(stage / "step-0000004.pt", stage / "aside")
    os.rename(stage / "step-0000002.pt", stage / "step-0000004.pt")
    os.rename(stage / "aside", stage / "step-0000002.pt")
    assert newest_checkpoint(stage, "pretrain").state["step"] == 3
    said = capsys.readouterr().err
    assert "step-0000004.pt: holds step 2, not the one in its name: resuming from" in said


def test_a_checkpoint_of_another_stage_is_caught(stage, capsys):
    save_checkpoint(stage / "step-0000005.pt", state(5, "finetuned"))
    assert newest_checkpoint(stage, "pretrain").state["step"] == 4
    assert "a checkpoint of stage finetuned, not of pretrain" in capsys.readouterr().err


def test_none_that_is_good_is_one_line(stage):
    for path in stage.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"step-0000004\.pt: damaged.*no good checkpoint") as caught:
        newest_checkpoint(stage, "pretrain")
    assert "\n" not in str(caught.value)
    assert newest_checkpoint(stage / "nowhere", "pretrain") is None


def test_a_newer_format_is_refused_and_not_passed_over(stage):
    save_checkpoint(stage / "step-0000005.pt", {**state(5), "format": 99})
    with pytest.raises(UserError, match="newer fastselfie"):
        newest_checkpoint(stage, "pretrain")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep": 1}, [9]),
        ({"keep": 2}, [8, 9]),
        ({"keep": 2, "keep_every": 3}, [3, 6, 8, 9]),
        ({"keep": 20}, list(range(1, 10))),
    ],
)
def test_what_is_kept(tmp_path, settings, kept):
    write(tmp_path, range(1, 10), **settings)
    assert names(tmp_path) == ["latest.pt", *(f"step-{s:07d}.pt" for s in kept)]
    assert (tmp_path / "latest.pt").samefile(tmp_path / "step-0000009.pt")  # written once
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 9


def test_damaged_later_ones_do_not_push_out_good_ones(tmp_path):
    write(tmp_path, [7, 8, 9], keep=2)
    for step in (8, 9):
        (tmp_path / f"step-{step:07d}.pt").write_bytes(b"")
    (tmp_path / "latest.pt").unlink()
    write(tmp_path, [5, 6], keep=2)
    assert newest_checkpoint(tmp_path, "pretrain").state["step"] == 6
    assert {"step-0000005.pt", "step-0000006.pt"} < set(names(tmp_path))


def test_without_hard_links_latest_is_a_copy(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    write(tmp_path, [1, 2])
    assert names(tmp_path) == ["latest.pt", "step-0000001.pt", "step-0000002.pt"]
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 2


def test_a_second_link_leaves_no_temporary_file(tmp_path):
    write_atomically(tmp_path / "a", "x")
    for _ in range(2):
        link_atomically(tmp_path / "b", tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


def test_what_a_killed_run_left_is_swept_away(tmp_path):
    left = (".latest.pt.123", ".log.jsonl.123", ".step-0000003.pt.123")
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.pt").write_bytes(b"the user's")
    with CheckpointWriter(tmp_path, CheckpointConfig(), is_main=False):
        assert names(tmp_path) == [*left, "notes.pt"]  # they may be of rank 0, which is faster
    write(tmp_path, [1])
    assert names(tmp_path) == ["latest.pt", "notes.pt", "step-0000001.pt"]


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_spoil_the_new_one(
    tmp_path, monkeypatch, capsys
):
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name.startswith("step-"):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    write(tmp_path, [1, 2], keep=1)
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 2
    assert (
        "step-0000001.pt: Operation not permitted: this old file is not deleted"
        in capsys.readouterr().err
    )


def test_the_state_is_that_of_its_step(tmp_path, monkeypatch):
    """The thread is held up while training goes on with the very tensors that were given."""
    go = threading.Event()
    original = saver.save_checkpoint

    def slow(path, given):
        assert go.wait(10)
        original(path, given)

    monkeypatch.setattr(saver, "save_checkpoint", slow)
    mine = state(1)
    mine["momentum"] = [mine["model"]["w"].clone()]
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.save(mine)
        mine["model"]["w"].zero_()
        mine["momentum"][0].zero_()
        assert not names(tmp_path)
        go.set()
    found = load_checkpoint(tmp_path / "latest.pt")
    assert torch.equal(found["model"]["w"], torch.ones(3000))
    assert torch.equal(found["momentum"][0], torch.ones(3000))


def test_one_write_at_a_time_and_none_outlives_the_run(tmp_path, monkeypatch):
    running = []

    def slow(path, given):
        running.append(threading.active_count())
        time.sleep(0.05)
        save_checkpoint(path, given)

    monkeypatch.setattr(saver, "save_checkpoint", slow)
    before = threading.active_count()
    write(tmp_path, range(1, 5))
    assert running == [before + 1] * 4
    assert threading.active_count() == before
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 4


def test_a_run_goes_on_from_before_the_damage_to_the_same_end(
    image_folder, tmp_path, accelerator, capsys
):
    """A checkpoint of another experiment is refused all the same, good ones beside it or not."""
    config = tiny_config(data={"train": str(image_folder)}, pretrain={"save_every": 1})
    dataset = open_dataset(config.data, config.seed)
    network, final = pretrain(config, dataset, tmp_path, accelerator)
    whole = (tmp_path / "step-0000004.pt").read_bytes()
    (tmp_path / "step-0000004.pt").write_bytes(whole[: len(whole) // 2])
    other = tiny_config(data={"train": str(image_folder)}, pretrain={"save_every": 1, "lr": 0.3})
    with pytest.raises(UserError, match=r"step-0000003\.pt: was trained with another config"):
        pretrain(other, dataset, tmp_path, accelerator)
    again, measured = pretrain(config, dataset, tmp_path, accelerator)
    assert "resuming from step-0000003.pt, step 3" in capsys.readouterr().err
    assert measured == final
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 4


def test_a_fault_can_travel_to_other_processes():
    fault = pickle.loads(pickle.dumps(Damaged(Path("a.pt"), "cut short")))
    assert (str(fault), fault.fault) == (str(Damaged(Path("a.pt"), "cut short")), "a.pt: cut short")
