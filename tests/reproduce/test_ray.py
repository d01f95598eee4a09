"""`fastselfie reproduce --engine ray` on a real cluster of several nodes on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import yaml
from conftest import REPOSITORY, refused, tiny_config
from helpers.reproductions import ARGUMENTS, make_reproduction, table
from support.ray_nodes import local_cluster, lose_node, workers_of

from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.reproduce import ray_engine, ray_tasks
from fastselfie.reproduce.progress import ProgressTable, last_step
from fastselfie.reproduce.protocol import Arm, Trial, make_protocol
from fastselfie.reproduce.ray_engine import shares
from fastselfie.reproduce.scheduler import Scheduler
from fastselfie.system import ray_node
from fastselfie.system.lock import exclusive_lock
from fastselfie.system.ray_cluster import Resources
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.step import TrainStep

pytestmark = [pytest.mark.slow, pytest.mark.extra]

STEPS = ("finetune.steps=60", "finetune.save_every=5", "finetune.log_every=1")
LONG = ("finetune.steps=100000", "finetune.save_every=100000", "finetune.log_every=1")
HANGS = 300.0  # seconds: what has not happened by then never will


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_reproduction(tmp_path_factory.mktemp("reproduce"))


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as started:
        yield started


def command(config, out, *more):
    return [sys.executable, "-m", "fastselfie", "reproduce", str(config), *ARGUMENTS, *more,
            "--out", str(out), "--engine", "ray"]  # fmt: skip


def start(config, out, *more):
    log = out.with_suffix(".txt")
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(
            command(config, out, *more), stderr=file, stdout=file, cwd=REPOSITORY,
            start_new_session=True,
        )  # fmt: skip


def wait_until(happened, process=None):
    deadline = time.monotonic() + HANGS
    while not happened():
        assert process is None or process.poll() is None, "the command has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _processes_of(session):
    """The processes of a session, a line each."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(session)],
                            capture_output=True, text=True, check=False)  # fmt: skip
    return listed.stdout


def trains(out, since, result_of):
    """A trial has trained since then, and is far from its end. Finished ones are noted."""
    for path in (out / "runs").rglob("result.json"):
        found = path.stat()
        assert result_of.setdefault(path, (found.st_ino, found.st_mtime_ns)) == (
            found.st_ino, found.st_mtime_ns), f"{path.parent} was trained twice"  # fmt: skip
    logs = [path for path in (out / "runs").rglob("log.jsonl") if path.stat().st_mtime > since]
    return any(7 < (last_step(log.parent) or 0) < 50 for log in logs)


def test_lost_nodes_workers_and_commands_lose_nothing(setting, cluster, tmp_path):
    """The table is that of one machine, bit for bit, and no finished trial is trained again."""
    config, _ = setting
    out, results = tmp_path / "out", {}
    address = ("--address", cluster.address)
    process, since = start(config, out, *STEPS, *address), 0.0
    for loss in ("node", "worker", "command"):
        wait_until(partial(trains, out, since, results), process)
        if loss == "node":
            lose_node(cluster)
        elif loss == "worker":
            os.kill(max(set(workers_of(out)) - {process.pid}), signal.SIGKILL)
        else:
            process.kill()
            process.wait()
            process = start(config, out, *STEPS, *address)
        since = time.time()
    assert process.wait(HANGS) == 0, out.with_suffix(".txt").read_text()
    trains(out, 0.0, results)
    assert len(results) == 8
    said = out.with_suffix(".txt").read_text()
    assert re.search(r"lost after step [1-9]\d* \(.*\): goes on", said), said
    assert workers_of(out) == []
    subprocess.run(
        [*command(config, tmp_path / "one", *STEPS)[:-2]], check=True, capture_output=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert table(out) == table(tmp_path / "one")
    assert not list(out.rglob(".shared-*"))


def test_ctrl_c_saves_the_steps_and_leaves_no_process(setting, tmp_path):
    """In a cluster of its own, and a whole group of processes gets the signal, as in a terminal."""
    config, _ = setting
    out = tmp_path / "out"
    process = start(config, out, *LONG, "--jobs", "2")
    wait_until(lambda: sum((last_step(p.parent) or 0) > 2 for p in
                           (out / "runs").rglob("log.jsonl")) == 2, process)  # fmt: skip
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(HANGS) == 130
    wait_until(lambda: not _processes_of(process.pid))  # Ray's own may end just after the command
    assert "Traceback" not in out.with_suffix(".txt").read_text()
    saved = [load_checkpoint(path)["step"] for path in (out / "runs").rglob("latest.pt")]
    assert [0 < step < 100000 for step in saved] == [True, True]


def test_a_trial_that_was_lost_after_its_end_is_not_trained_again(setting, monkeypatch):
    """Its process may die after the result is written, and before the command has it."""
    config, out = setting
    settings = load_config(str(config), ())
    protocol, dataset = make_protocol(settings, "50", 2, 1.0), open_dataset(settings.data, 0)
    results = Scheduler(protocol, out).results
    monkeypatch.setattr(TrainStep, "__call__", None)  # a step would fail
    for name in ("LOCAL_WORLD_SIZE", "FASTSELFIE_PROCESSES_PER_GPU"):
        monkeypatch.setenv(name, "")  # a trial sets them for its process: restored after the test
    takes = Resources(1.0)
    (out / "again").touch()
    job = ray_tasks.Job("again", protocol, out, dataset.fingerprint(), ray_tasks.torch_version())
    with exclusive_lock(out):
        pass
    for trial in results:
        assert ray_tasks.run_trial(job, takes, trial) == results[trial]
    (out / "again").unlink()


def test_a_folder_that_the_nodes_do_not_share_is_found(
    setting, cluster, cli, tmp_path, monkeypatch
):
    """Here no node sees the mark, as none is made."""
    config, _ = setting
    monkeypatch.setattr(ray_engine.Path, "touch", lambda self: None)
    result = cli("reproduce", config, *ARGUMENTS, "--out", tmp_path / "new" / "out", "--engine",
                 "ray", "--address", cluster.address)  # fmt: skip
    refused(result, "node ", "out: is not the folder of that name on the other machines")
    assert not (tmp_path / "new").exists()


def test_a_node_that_differs_is_named(setting, tmp_path):
    config, _ = setting
    settings = tiny_config(data={"train": str(config.parent / "images")}, runtime={"threads": 1})
    images = open_dataset(settings.data, settings.seed).fingerprint()
    (tmp_path / "mark").touch()
    known = (make_protocol(settings, "50", 1, 1.0), tmp_path, images, ray_tasks.torch_version())
    takes = Resources(1.0)
    for job, words in (
        (ray_tasks.Job("mark", *known[:3], "0.9"), "not 0.9: install the same"),
        (ray_tasks.Job("mark", *known[:2], "other", known[3]), "images: other images than on"),
        (ray_tasks.Job("mark", *known, "bf16"), "computes in fp32, others in bf16"),
    ):
        with pytest.raises(UserError, match=rf"^node .*{words}"):
            ray_tasks.check_node(job, takes)
    with pytest.raises(UserError, match=r"^node .*: has fastselfie .*, not 0.0.1: install"):
        ray_node.run_on_node("0.0.1", "/", print, ())


def test_ray_is_asked_for_only_where_it_is_needed(setting, cli, tmp_path, monkeypatch):
    config, out = setting
    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = ("reproduce", config, *ARGUMENTS, "--out")
    assert cli(*wanted, out).status == 0
    refused(cli(*wanted, tmp_path / "out", "--engine", "ray"), "pip install 'fastselfie[ray]'")
    refused(cli(*wanted, tmp_path / "out", "--address", "auto"), "add --engine ray")
    refused(cli(*wanted, tmp_path / "out", "--engine", "ray", "--dry-run"), "--plan")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost:9", "no Ray cluster answers at localhost:9"),
        ("auto", "this machine is in no Ray cluster: run `ray start --head`"),
        ("ray://head:10001", "Ray's client is not supported"),
    ],
)
def test_a_wrong_address_is_said_at_once(setting, cli, tmp_path, monkeypatch, address, words):
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)  # not those of other tests
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    result = cli("reproduce", setting[0], *ARGUMENTS, "--out", tmp_path / "out", "--engine", "ray",
                 "--address", address)  # fmt: skip
    refused(result, words)


def test_a_cluster_of_another_version_is_one_line(setting, cli, tmp_path, monkeypatch):
    import ray

    def mismatch(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.9.1\n")

    monkeypatch.setattr(ray, "init", mismatch)
    refused(cli("reproduce", setting[0], *ARGUMENTS, "--out", tmp_path / "out", "--engine", "ray"),
            "Version mismatch: The cluster was started with: Python: 3.9.1")  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "jobs", "trial"),
    [
        ([(8, 0, 100), (16, 0, 300)], None, (8, 0, 100)),
        ([(8, 0, 100), (16, 0, 300)], 3, (2, 0, 33)),
        ([(2, 0, 100)], 4, (0.5, 0, 25)),
        ([(4, 0, 100), (96, 8, 800), (64, 8, 800)], None, (8, 1, 100)),
        ([(32, 1, 200), (64, 8, 800)], None, (8, 1, 100)),
        ([(96, 8, 800)], 16, (6, 0.5, 50)),
        ([(96, 8, 800)], 2, (48, 1, 400)),
    ],
)
def test_a_trial_takes_a_gpu_or_a_node_or_its_share(nodes, jobs, trial):
    found, whole = shares(tiny_config(), [Resources(*node) for node in nodes], jobs)
    assert found == Resources(*trial)
    assert whole.gpus == (trial[1] > 0)


@pytest.mark.parametrize(
    ("device", "nodes", "what"),
    [
        ("auto", [], "core"),
        ("auto", [(0.5, 0, 1)], "core"),
        ("cuda", [(8, 0, 1)], "GPU and a core"),
    ],
)
def test_a_cluster_without_room_is_said(device, nodes, what):
    config = tiny_config(runtime={"device": device})
    with pytest.raises(UserError, match=f"no node of the cluster has a {what} for a trial"):
        shares(config, [Resources(*node) for node in nodes], None)


def test_what_is_lost_again_and_again_ends_the_command(tmp_path):
    class Loses:
        def submit(self, *arguments, **options):
            return object()

        def wait(self, tasks):
            return list(tasks)

        def result(self, task):
            raise ray_node.TaskLost("out of memory")

    job = ray_tasks.Job("mark", make_protocol(tiny_config(), "50", 1, 1.0), tmp_path, "", "")
    engine = ray_engine.RayEngine(Loses(), job, Resources(1.0), Resources(1.0))
    with pytest.raises(UserError, match=r"pretrain: lost 5 times after step 0 \(out of memory\)"):
        engine.pretrain()


def test_the_table_of_progress_has_the_steps_and_the_time_left(tmp_path, monkeypatch):
    from rich.console import Console

    from fastselfie.reproduce import progress

    shown = Console(force_terminal=True, width=80, record=True)
    clock = [0.0]
    monkeypatch.setattr(progress, "console", shown)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    name = f"runs/{Trial(Arm(5.0, 'finetuned'), 0.1, 0, None).name}"
    log = tmp_path / name / "log.jsonl"
    log.parent.mkdir(parents=True)
    with ProgressTable(tmp_path, "trials") as shows:
        for step in (10, 20):
            log.write_text(f'{{"step": {step}}}\n')
            shows.show([(name, 100), ("runs/waits", 100)], "3 of 8 are done")
            clock[0] += 10.0
    text = shown.export_text()
    assert re.search(r"runs/labels-5/finetuned/seed-0\W+20\W+100\W+80 s", text), text
    assert "3 of 8 are done" in text
    assert "waits" not in text


def test_the_job_for_kubernetes_is_one_that_the_command_line_takes(cli, tmp_path, monkeypatch):
    spec = yaml.safe_load((REPOSITORY / "examples" / "rayjob.yaml").read_text())["spec"]
    monkeypatch.chdir(tmp_path)
    program, *arguments = spec["entrypoint"].split()
    assert program == "fastselfie"
    result = cli(*arguments, "--dry-run", "--plan", "32xH100")
    assert result.status == 0, result.err
    pods = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (each["template"]["spec"] for each in pods):
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert spec["rayClusterSpec"]["rayVersion"] in (REPOSITORY / "constraints.txt").read_text()
