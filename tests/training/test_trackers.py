"""TensorBoard and W&B: what they are shown, and that they never stop a run."""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import tiny_config

from fastselfie.training.metrics_log import RunLog, picture_path
from fastselfie.training.trackers import WANDB_ID


class FakeWandb(SimpleNamespace):
    """What of the package is used. inits: the arguments of each run; fails: a method's name."""

    def __init__(self, fails=None):
        super().__init__(inits=[], logged=[], finished=[], fails=fails, url="https://a.run")
        self.Settings = self.Image = lambda *values, **named: values or named

    def _fail(self, method):
        if self.fails == method:
            raise RuntimeError("the server is gone\nand more")

    def init(self, **named):
        self.inits.append(named)
        self._fail("init")
        return self

    def log(self, values, step):
        self._fail("log")
        self.logged.append((step, values))

    def finish(self, exit_code):
        self._fail("finish")
        self.finished.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    def install(fails=None):
        fake = FakeWandb(fails)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def train(cli, tiny_yaml, image_folder, out, *more):
    return cli("train", tiny_yaml, f"data.train={image_folder}", "log.wandb=offline",
               "log.wandb_project=mine", "--out", out, *more)  # fmt: skip


def test_each_stage_is_a_run_that_goes_on_under_its_id(
    cli, tiny_yaml, image_folder, tmp_path, wandb
):
    fake, out = wandb(), tmp_path / "run"
    stages = ["pretrain", "finetuned", "supervised"]
    result = train(cli, tiny_yaml, image_folder, out)
    assert result.status == 0, result.err
    assert [run["job_type"] for run in fake.inits] == stages
    assert {(r["project"], r["group"], r["mode"]) for r in fake.inits} == {
        ("mine", "tiny", "offline")
    }
    ids = [run["id"] for run in fake.inits]
    assert len(set(ids)) == 3
    assert fake.finished == [0, 0, 0]
    names = {name for step, values in fake.logged for name in values}
    assert {"loss", "grad_norm", "knn", "top1", "mask_prediction"} <= names
    steps = [step for step, values in fake.logged if "mask_prediction" in values]
    assert steps == [0, 4]
    # As after a kill.
    for path in (out / "pretrain").glob("*.pt"):
        if path.name != "step-0000002.pt":
            path.unlink()
    train(cli, tiny_yaml, image_folder, out, "--stage", "pretrain")
    assert fake.inits[-1]["id"] == ids[0]
    assert fake.inits[-1]["resume"] == "allow"
    # A run that starts from a copy is another one.
    train(cli, tiny_yaml, image_folder, tmp_path / "copy", "--resume", out, "--stage", "pretrain")
    assert not (tmp_path / "copy" / "pretrain" / WANDB_ID).exists()


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_what_fails_there_is_one_line_and_stops_nothing(
    cli, tiny_yaml, image_folder, tmp_path, wandb, method
):
    fake = wandb(fails=method)
    result = train(cli, tiny_yaml, image_folder, tmp_path / "run", "--stage", "pretrain")
    assert result.status == 0, result.err
    said = result.err.replace("\n", " ")
    assert said.count("warning: log.wandb: RuntimeError: the server is gone:") == 1
    assert len(fake.inits) == 1
    assert json.loads(result.out.splitlines()[-1])["knn"] >= 0


@pytest.mark.parametrize("there", [None, SimpleNamespace()])  # missing; a folder called wandb
def test_without_the_package_it_is_said_before_the_start(
    cli, tiny_yaml, image_folder, tmp_path, monkeypatch, there
):
    monkeypatch.setitem(sys.modules, "wandb", there)
    result = train(cli, tiny_yaml, image_folder, tmp_path / "run")
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("error: log.wandb is offline, but wandb is not")
    assert "pip install 'fastselfie[wandb]'" in result.err
    assert not (tmp_path / "run").exists()
    if there is not None:
        return
    planned = train(cli, tiny_yaml, image_folder, tmp_path / "run", "--dry-run")
    assert "missing log.wandb is offline" in planned.out


def test_tensorboard_has_the_numbers_and_the_picture(cli, tiny_yaml, image_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    cli("train", tiny_yaml, f"data.train={image_folder}", "--stage", "pretrain", "--out", out)
    events = EventAccumulator(str(out / "pretrain" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "grad_norm", "grad_norm_max", "waiting", "knn"} <= set(tags["scalars"])
    (picture,) = {event.step for event in events.Images("mask_prediction")} - {0}
    assert picture == 4
    assert picture_path(out / "pretrain", 4).exists()


def test_a_disk_that_is_full_is_told_once_and_without_a_traceback(tmp_path, capsys, monkeypatch):
    """TensorBoard's thread raises it too, to nobody. What other threads raise is still heard."""
    heard = []
    monkeypatch.setattr(threading, "excepthook", lambda fault: heard.append(fault.exc_type))
    outside = threading.excepthook
    config = tiny_config(checkpoint={"on_error": "continue"})
    with RunLog(tmp_path, "t", 10, 0, config=config) as log:
        (tracker,) = log._trackers
        writer = tracker._writer._get_file_writer().event_writer._async_writer
        writer.flush()
        monkeypatch.setattr(writer._writer, "write", refused)
        log.write(1, loss=1.0)
        writer._worker.join(10)
        log.write(2, loss=1.0)
        other = threading.Thread(target=refused)
        other.start()
        other.join()
    assert heard == [OSError]
    assert capsys.readouterr().err.count("lines are missing") == 1
    assert threading.excepthook is outside


def refused(*_):
    raise OSError(28, "No space left on device")
