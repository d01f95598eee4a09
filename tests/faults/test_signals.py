"""A run that is told to leave: at a whole step, soon, with nothing left behind, to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, thread_count, tiny_config

from fastselfie.data.dataset import FolderSource, open_dataset
from fastselfie.system.lock import LOCK
from fastselfie.system.signals import SIGNALS, Interrupted, deferred_signals
from fastselfie.training import checkpoint_writer as saver
from fastselfie.training import pretrain as pretraining
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import pretrain
from fastselfie.training.step import TrainStep

pytestmark = pytest.mark.slow

HANGS = 60  # seconds; a run that waits for what hangs comes to its end, which is counted
TRAINING = {"steps": 6, "save_every": 4, "log_every": 4, "eval_every": 3, "batch_size": 6}


def children():
    """Processes that this one has started and that still run, from /proc."""
    mine = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            mine.append(entry.name)
    return mine


def run(folder, out, accelerator, loader="resident", workers=0):
    data = {"train": str(folder), "loader": loader, "workers": workers}
    config = tiny_config(data=data, pretrain=TRAINING)
    return pretrain(config, open_dataset(config.data, config.seed), out, accelerator)


def logged(out):
    """All that was logged but the clock."""
    clock = ("time", "images_per_s", "waiting")
    lines = read_log(out / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def same(one, other):
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@contextmanager
def signalled_in(monkeypatch, owner, name, number, at, hangs):
    """The call `at` (0 is the first) of owner.name sends a signal, and then may hang.

    Yields a list of the hangs that nobody cut short.
    """
    original, calls, waited_for = getattr(owner, name), [], []

    def call(*arguments, **named):
        calls.append(0)
        if len(calls) == at + 1:
            threading.Timer(0.2 if hangs else 0, os.kill, (os.getpid(), number)).start()
            time.sleep(HANGS if hangs else 0.2)
            if hangs:
                waited_for.append(at)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        yield waited_for


@pytest.mark.parametrize(
    ("number", "what", "at", "left_at"),
    [(signal.SIGINT, "step", 1, 2), (signal.SIGTERM, "step", 5, 6),
     (signal.SIGUSR1, "evaluation", 0, 0), (signal.SIGTERM, "evaluation", 1, 3),
     (signal.SIGINT, "evaluation", 2, 6)],
)  # fmt: skip
def test_a_run_that_left_ends_as_a_straight_one(
    image_folder, tmp_path, accelerator, monkeypatch, number, what, at, left_at
):
    """In a step, the last one too, it is finished; an evaluation that hangs is made again."""
    network, final = run(image_folder, tmp_path / "straight", accelerator)
    owner, name = (TrainStep, "__call__") if what == "step" else (pretraining, "pretext_accuracy")
    with (
        signalled_in(monkeypatch, owner, name, number, at, what == "evaluation") as waited_for,
        pytest.raises(Interrupted) as caught,
    ):
        run(image_folder, tmp_path / "left", accelerator)
    assert not waited_for
    assert caught.value.number == number
    if left_at:
        assert load_checkpoint(tmp_path / "left" / "latest.pt")["step"] == left_at
    else:
        assert not list((tmp_path / "left").glob("*.pt"))
    again, measured = run(image_folder, tmp_path / "left", accelerator)
    assert measured == final
    assert same(network, again)
    assert logged(tmp_path / "left") == logged(tmp_path / "straight")
    assert load_checkpoint(tmp_path / "left" / "latest.pt")["metrics"] == final
    assert load_checkpoint(tmp_path / "left" / "latest.pt")["owed"] is False


def test_a_signal_in_the_last_write_is_not_lost(image_folder, tmp_path, accelerator, monkeypatch):
    """The stage is done by then; the one after it must not begin."""
    original = saver.save_checkpoint

    def signalled(path, state):
        if state["step"] == TRAINING["steps"]:
            os.kill(os.getpid(), signal.SIGTERM)
        original(path, state)

    monkeypatch.setattr(saver, "save_checkpoint", signalled)
    with pytest.raises(Interrupted):
        run(image_folder, tmp_path, accelerator)
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == TRAINING["steps"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_does_not_come_is_not_waited_for(
    image_folder, tmp_path, accelerator, monkeypatch, workers
):
    """Neither here nor in worker processes, which end with the run however they hang."""
    before, threads, original = children(), thread_count(), FolderSource.image
    network, _ = run(image_folder, tmp_path / "straight", accelerator, "folder", workers)
    first = open_dataset(tiny_config(data={"train": str(image_folder)}).data).train.paths
    count = tmp_path / "count"
    count.write_bytes(b"")
    me = os.getpid()

    def slow(self, index):
        if self.paths == first:
            with open(count, "ab") as file:
                file.write(b".")
            if count.stat().st_size > 15:  # the third batch of six
                with suppress(FileExistsError), open(tmp_path / "sent", "x"):
                    os.kill(me, signal.SIGTERM)
                time.sleep(HANGS)
                (tmp_path / "waited for").touch()
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "image", slow)
        with pytest.raises(Interrupted):
            run(image_folder, tmp_path / "left", accelerator, "folder", workers)
    assert children() == before
    assert not (tmp_path / "waited for").exists()
    assert thread_count() <= threads + 1  # torch's own pool may have grown
    again, _ = run(image_folder, tmp_path / "left", accelerator, "folder", workers)
    assert same(network, again)


def test_a_signal_to_every_process_of_the_job_is_answered_once(
    image_folder, tmp_path, accelerator, monkeypatch
):
    """As scancel sends it. A worker that died of it would fail the run in the middle of a step."""
    original = TrainStep.__call__

    def signalled(self, step, batch):
        if step == 2:
            time.sleep(0.3)  # the workers have come to their work
            for child in children():
                os.kill(int(child), signal.SIGTERM)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, batch)

    monkeypatch.setattr(TrainStep, "__call__", signalled)
    with pytest.raises(Interrupted):
        run(image_folder, tmp_path, accelerator, "folder", 2)
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 3


def test_what_need_not_be_whole_ends_at_once_and_what_must_does_not():
    handlers = [signal.getsignal(n) for n in SIGNALS]
    reached = []
    with deferred_signals() as pending:
        os.kill(os.getpid(), signal.SIGUSR1)
        reached.append("whole")
        with pytest.raises(Interrupted), pending.abandoning():
            reached.append("never")
    with deferred_signals() as pending:
        with pytest.raises(Interrupted), pending.abandoning():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("never")
        assert pending.number == signal.SIGTERM
    assert reached == ["whole"]
    assert [signal.getsignal(n) for n in SIGNALS] == handlers


PROGRAM = """
import os, sys, time
from fastselfie.training import step
from fastselfie.cli import main

original = step.TrainStep.__call__

def call(self, number, batch):
    if number == 2:
        print("in step", flush=True)
        time.sleep({seconds})
    original(self, number, batch)

step.TrainStep.__call__ = call
sys.argv = ["fastselfie", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("numbers", "seconds"), [((signal.SIGUSR1,), 1), ((signal.SIGTERM,) * 2, HANGS)]
)
def test_the_exit_status_is_that_of_the_signal(image_folder, tmp_path, tiny_yaml, numbers, seconds):
    """One lets the step end; the second one acts at once."""
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(seconds=seconds), "train", tiny_yaml,
         f"data.train={image_folder}", "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout.readline() == "in step\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    _, said = process.communicate(timeout=2 * HANGS)
    if len(numbers) == 1:
        assert process.returncode == 128 + signal.SIGUSR1
        assert "left after step 3, saved up to step 3" in said
        assert load_checkpoint(out / "pretrain" / "latest.pt")["step"] == 3
    else:
        assert process.returncode == -signal.SIGTERM
        assert load_checkpoint(out / "pretrain" / "latest.pt")["step"] == 2
    assert [p.name for p in out.rglob(".*")] == [LOCK]
    assert "Traceback" not in said
