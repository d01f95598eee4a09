"""`fastselfie reproduce` as a whole: its files, resuming, several processes, mistakes."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
import torch
from conftest import REPOSITORY, tiny_config
from helpers.reproductions import ARGUMENTS, make_reproduction, table

from fastselfie.errors import UserError
from fastselfie.reproduce.execute import reproduce
from fastselfie.reproduce.protocol import make_protocol
from fastselfie.reproduce.representations import FIGURES
from fastselfie.system.lock import LOCK, exclusive_lock
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.step import TrainStep

pytestmark = pytest.mark.slow

SEED_RUNS = [
    f"labels-50/{start}/seed-{seed}" for start in ("finetuned", "supervised") for seed in (0, 1)
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    before = torch.get_num_threads()
    yield make_reproduction(tmp_path_factory.mktemp("reproduce"))
    torch.set_num_threads(before)  # every run here has one: the order of a sum is another on two


def weights(out):
    return {name: load_checkpoint(out / "runs" / name / "latest.pt")["model"] for name in SEED_RUNS}


def assert_same(out, reference):
    assert table(out) == table(reference)
    for name, model in weights(reference).items():
        for key, value in weights(out)[name].items():
            assert torch.equal(value, model[key]), (name, key)


def test_it_leaves_the_table_the_runs_and_the_newest_of_the_last_checkpoints(setting):
    _, out = setting
    figures = table(out)
    assert len(figures["runs"]) == 8
    assert [(r["arm"], r["split"], r["measured_on"]) for r in figures["runs"]] == [
        (start, split, count)
        for start in ("finetuned", "supervised")
        for split, count in ((0, 2), (0, 2), (None, 12), (None, 12))
    ]
    row = figures["rows"][0]
    assert row["supervised"]["top1"] == [r["top1"] for r in figures["runs"][6:]]
    assert set(figures["features"]) == FIGURES | {"pretext_chance"}
    kept = {str(p.parent.relative_to(out / "runs")) for p in (out / "runs").rglob("*.pt")}
    assert kept == set(SEED_RUNS)
    for name in SEED_RUNS:
        assert sorted(p.name for p in (out / "runs" / name).glob("*.pt")) == [
            "latest.pt", "step-0000002.pt"]  # fmt: skip
    for name in ("table.md", "table.csv", "table.html"):
        assert (out / name).stat().st_size > 100


def test_the_same_command_again_trains_nothing_and_says_the_same(setting, cli, monkeypatch):
    config, out = setting
    monkeypatch.setattr(TrainStep, "__call__", None)  # a step would fail
    before = table(out)
    result = cli("reproduce", config, *ARGUMENTS, "--out", out)
    assert result.status == 0, result.err
    assert json.loads(result.out.splitlines()[-1])["rows"] == before["rows"]
    assert table(out) == before


@pytest.mark.parametrize("at", ["search", "seed"])
def test_left_in_the_middle_it_goes_on_to_the_same_table(setting, cli, tmp_path, monkeypatch, at):
    config, reference = setting
    # 4 steps of pretraining, then 2 per trial: in the second search trial, in the first seed run.
    kill_at = {"search": 4 + 2 + 1, "seed": 4 + 4 + 1}[at]
    count, step = [0], TrainStep.__call__

    def kills(self, *arguments):
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *arguments)

    command = ("reproduce", config, *ARGUMENTS, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", kills)
        assert cli(*command).status == 143
    assert count[0] == kill_at
    stopped = load_checkpoint(next((tmp_path / "out" / "runs").rglob("latest.pt")))
    assert stopped["step"] == 1
    assert cli(*command).status == 0
    assert_same(tmp_path / "out", reference)


def test_two_processes_give_the_same_bits_as_one(setting, tmp_path):
    """P comes from `train --stage pretrain` here."""
    config, reference = setting
    command = [sys.executable, "-m", "fastselfie"]
    out = tmp_path / "out"
    subprocess.run([*command, "train", config, "--stage", "pretrain", "--out", out],
                   check=True, capture_output=True)  # fmt: skip
    stamp = (out / "pretrain" / "latest.pt").stat().st_mtime_ns
    done = subprocess.run([*command, "reproduce", config, *ARGUMENTS, "--out", out, "--jobs", "2"],
                          check=True, capture_output=True, text=True)  # fmt: skip
    assert (out / "pretrain" / "latest.pt").stat().st_mtime_ns == stamp
    assert done.stderr.count(" of 8") == 8
    assert_same(out, reference)


LONG = ("finetune.steps=100000", "finetune.log_every=1", "finetune.save_every=100000")
HANGS = 600.0  # seconds: a process that has not ended by then never will


@contextmanager
def begun(config, out, *more):
    """Start a reproduction; yield once two workers train long trials."""
    command = [sys.executable, "-m", "fastselfie", "reproduce", str(config), *ARGUMENTS, *more,
               "--out", str(out), "--jobs", "2"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            while sum('"loss"' in log.read_text() for log in (out / "runs").rglob("log.jsonl")) < 2:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


@contextmanager
def children_of(pid):
    """Yield a file descriptor of each child process, which can be polled for its end."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], check=True, capture_output=True, text=True
    )
    with ExitStack() as stack:
        descriptors = [os.pidfd_open(int(word)) for word in listed.stdout.split()]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        yield descriptors


def assert_ended(descriptors):
    """Wait until every process has ended, whether or not its parent has noticed."""
    assert len(descriptors) >= 2
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], HANGS)[0], "a worker goes on"


def saved_steps(out):
    return [load_checkpoint(path)["step"] for path in (out / "runs").rglob("latest.pt")]


def test_a_signal_ends_all_workers_saved_and_a_second_command_is_refused(setting, cli, tmp_path):
    config, _ = setting
    out = tmp_path / "out"
    with begun(config, out, *LONG) as process:
        for command in (("reproduce", *ARGUMENTS), ("train",)):
            refused = cli(*command, config, *LONG, "--out", out)
            assert refused.status == 2
            last = refused.err.splitlines()[-1]
            assert last.startswith(f"error: {out}: in use by another fastselfie, process ")
            assert str(process.pid) in last
        with children_of(process.pid) as workers:
            process.send_signal(signal.SIGINT)
            assert process.wait(HANGS) == 130
            assert_ended(workers)
        assert "Traceback" not in process.stderr.read()
    assert [0 < step < 100000 for step in saved_steps(out)] == [True, True]  # not at save_every


def test_workers_leave_after_a_killed_parent_and_hold_the_folder_until_then(setting, tmp_path):
    config, _ = setting
    out = tmp_path / "out"
    with begun(config, out, *LONG) as process, children_of(process.pid) as workers:
        process.kill()
        assert_ended(workers)
    with exclusive_lock(out):
        assert len(saved_steps(out)) == 2


def test_a_lock_of_a_helper_holds_the_folder_too(tmp_path):
    """The process that took the lock has ended; its helper has not."""
    with exclusive_lock(tmp_path):
        pass
    code = (
        "import sys; from pathlib import Path; from fastselfie.system.lock import helping_in\n"
        "with helping_in(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as helper:  # fmt: skip
        helper.stdout.readline()
        with pytest.raises(UserError, match="another fastselfie"), exclusive_lock(tmp_path):
            pass
        helper.stdin.close()
        helper.wait()
    with exclusive_lock(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def mistakes():
    return {
        "labels_zero": (["--labels", "0"], "--labels 0: '0' is not a share"),
        "labels_text": (["--labels", "5,x"], "--labels 5,x: 'x' is not a share"),
        "labels_many": (["--labels", "150"], "--labels 150: '150' is not a share"),
        "labels_few": (["--labels", "5"], "--labels 5: class 'cat' has one labelled image"),
        "seeds": (["--seeds", "0"], "Invalid value for '--seeds'"),
        "budget": (["--budget", "0"], "--budget 0: pass a factor for the steps"),
        "jobs": (["--jobs", "0"], "Invalid value for '--jobs'"),
        "budget_large": (["--budget", "1e308"], "--budget 1e+308: pass a factor"),
        "grid": (["reproduce.grid=[]"], "reproduce.grid is [] (command line)"),
        "key": (["reproduce.gird=[1]"], "did you mean 'reproduce.grid'?"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_a_mistake_is_one_line_and_touches_nothing(setting, cli, tmp_path, name):
    config, _ = setting
    arguments, words = mistakes()[name]
    result = cli("reproduce", config, *arguments, "--out", tmp_path / "out")
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_without_test_images_the_held_out_split_is_measured_and_said(setting, tmp_path):
    config, _ = setting
    train = config.parent / "images" / "train"
    settings = tiny_config(data={"train": str(train), "held_out": 0.2}, runtime={"threads": 1},
                           reproduce={"grid": [0.1]}, finetune={"control": False})  # fmt: skip
    figures = reproduce(make_protocol(settings, "100", 1, 1.0), tmp_path, jobs=1)
    assert f"measured on 8 images, 20% of {train}" in " ".join(figures["notes"])
    assert figures["rows"][0]["images"] == 32
    assert figures["rows"][0]["supervised"] is None


def test_a_table_that_is_measured_on_training_images_says_so(setting, cli, tmp_path):
    config, _ = setting
    train = config.parent / "images" / "train"
    settings = tiny_config(data={"train": str(train), "test": str(train)}, runtime={"threads": 1},
                           reproduce={"grid": [0.1, 0.2]}, finetune={"control": False})  # fmt: skip
    notes = " ".join(reproduce(make_protocol(settings, "50", 1, 1.0), tmp_path, jobs=1)["notes"])
    assert f"Warning: {train}: the held-out images are the training images" in notes
    assert "never on the images" not in notes


def test_a_rate_that_diverges_loses_and_the_search_goes_on(setting, tmp_path):
    config, _ = setting
    settings = tiny_config(data={"train": str(config.parent / "images")}, runtime={"threads": 1},
                           reproduce={"grid": [0.05, 1e30]},
                           finetune={"control": False, "steps": 4})  # fmt: skip
    figures = reproduce(make_protocol(settings, "50", 1, 1.0), tmp_path, jobs=1)
    assert figures["rows"][0]["finetuned"]["lr"] == 0.05
    assert figures["rows"][0]["finetuned"]["search"]["1e+30"] is None
    assert "50%, finetuned: training diverged at 1e+30." in figures["notes"]
    assert not list((tmp_path / "runs").rglob("nonfinite-*.pt"))


def test_a_seed_run_that_diverges_says_how_to_keep_the_pretraining(setting, tmp_path, cli):
    config, _ = setting
    result = cli("reproduce", config, "reproduce.grid=[1e30]", "--labels", "50", "--seeds", "1",
                 "--out", tmp_path / "out")  # fmt: skip
    assert result.status == 2
    last = result.err.splitlines()[-1]
    for words in ("error: labels-50/finetuned/seed-0", "1e+30", "reproduce.grid", "out/pretrain"):
        assert words in last


def test_the_committed_result_has_the_tables_and_no_path_of_this_machine(setting, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    made = importlib.import_module("reproduce")
    _, out = setting
    result = made.result_of([out, out], "the command")
    text = json.dumps(result)
    assert str(out.parent) not in text
    assert "the test part of DATA/images" in text
    assert result["table"]["rows"][0][:3] == ["50%", "20", "2"]
    assert len(result["main"]["runs"]) == 8
    assert result["ablations"][0]["changes"] == []
    reproductions = [result["main"], *result["ablations"]]
    image = made.stacked(made.curves([out, out], reproductions), made.picture(out))
    assert image.size >= (1100, 320)
    tables = importlib.import_module("support.training_tables")
    assert "| 50% | 20 | 2 |" in tables.padding(result)
