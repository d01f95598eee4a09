"""Several processes on this machine, over gloo: one run, as one process makes it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.draws import process_seed
from fastselfie.data.loaders import SampleStream, build_loader
from fastselfie.errors import UserError
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.distributed import Ranks, ranks_of
from fastselfie.system.rendezvous import init_distributed
from fastselfie.system.resources import share_machine, take_share, total_memory, usable_cores
from fastselfie.training.checkpoint import load_checkpoint
from fastselfie.training.memory import MemoryEstimate
from fastselfie.training.metrics_log import read_log

pytestmark = pytest.mark.slow

SCRIPT = str(REPOSITORY / "tests" / "helpers" / "ranks.py")
WORLD = 2
# Longer than any test takes here: whoever waits for ever is found.
LIMIT = 600  # seconds, of a hang: a busy machine takes its time


def environment(**more):
    """One thread each: the processes share the cores with the other tests."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def free_port():
    """Not one that the system hands out: another connection could take it before its use."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return str(port)


def start(*arguments, world=WORLD):
    """As `srun` would start them: nobody ends the others. Returns (status, out, err) of each."""
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, arguments)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        texts = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def torchrun(*arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={WORLD}", f"--max-restarts={restarts}"]  # fmt: skip
    process = subprocess.Popen(
        [*command, SCRIPT, *map(str, arguments)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.terminate()  # which ends its processes too, where a kill would leave them
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def yaml_of(tmp_path, image_folder):
    def write(**sections):
        sections["data"] = {"train": str(image_folder), **sections.get("data", {})}
        path = tmp_path / "config.yaml"
        path.write_text(tiny_config(**sections).to_yaml(), encoding="utf-8")
        return path

    return write


def test_a_step_and_a_measurement_are_those_of_one_process(tmp_path, yaml_of):
    """Batch norm frozen: it is what sees the parts. In float64, whose rounding of 1e-16 the sums
    over some 10^4 terms of a gradient make 1e-12 at most; half a batch differs in every digit."""
    path = yaml_of(model={"dropout": 0.0}, pretrain={"clip_grad_norm": 0.5})
    for world in (1, WORLD):
        (tmp_path / str(world)).mkdir()
        for status, _, err in start("figures", tmp_path / str(world), path, world=world):
            assert status == 0, err
    alone = torch.load(tmp_path / "1" / "0.pt")
    both = [torch.load(tmp_path / str(WORLD) / f"{rank}.pt") for rank in range(WORLD)]
    # Of another image of the pass, and passes differ between numbers of ranks.
    other = [x["measures"][0].pop("pretext_accuracy_other_context") for x in (alone, *both)]
    assert other[1] == other[2]
    for found in both:
        for kind in ("whole", "passes"):
            for name in ("gradients", "weights"):
                ours, theirs = found[kind][name], alone[kind][name]
                assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12), (kind, name)
            assert found[kind]["sent"] == 1  # the tiny net is one bucket
            loss, accuracy, *_ = found[kind]["means"]
            assert loss == pytest.approx(alone[kind]["means"][0], rel=1e-6)  # summed in float32
            assert accuracy == alone[kind]["means"][1]
        for ours, theirs in zip(found["measures"], alone["measures"], strict=True):
            assert ours.pop("heldout_loss") == pytest.approx(theirs["heldout_loss"], rel=1e-12)
            assert ours == {k: v for k, v in theirs.items() if k != "heldout_loss"}
        # Half a unit in bfloat16's last of 8 places, of each part.
        sent = torch.stack(found["bf16"]["parts"])
        assert sent.dtype == torch.bfloat16
        off = (found["bf16"]["gradients"] - alone["whole"]["gradients"]).abs().sort().values
        assert off[-1] > 0
        assert (off <= 2**-8 * sent.double().abs().mean(0).sort().values + 1e-12).all()
    for kind in ("passes", "bf16"):
        assert torch.equal(both[0][kind]["weights"], both[1][kind]["weights"])
    assert both[0]["threads"] == max(1, usable_cores() // WORLD)
    assert both[0]["gloo"]  # or the end of each process says nothing


@pytest.mark.parametrize("kind", ["resident", "folder"])
def test_the_parts_of_each_batch_are_the_batch(image_folder, accelerator, kind):
    """Samples, crops, flips and masks, over an epoch's end in the middle of a part."""
    data = tiny_config(data={"train": str(image_folder), "loader": kind}).data

    def batches(ranks):
        loader = build_loader(open_dataset(data).train, data, 0, accelerator.device)
        with closing(loader.stream(12, 12, ranks)) as found:
            return list(islice(found, 4))

    whole = batches(Ranks())
    for world in (2, 3):
        parts = [batches(Ranks(rank, world)) for rank in range(world)]
        for number, batch in enumerate(whole):
            for name in ("images", "labels", "flip"):
                joined = torch.cat([getattr(part[number], name) for part in parts])
                assert torch.equal(joined, getattr(batch, name)), (name, number)


def test_every_image_is_measured_once(image_folder, accelerator):
    """Also where there are fewer batches than processes."""
    data = tiny_config(data={"train": str(image_folder)}).data
    loader = build_loader(open_dataset(data).train, data, 0, accelerator.device)
    for world, size, limit in ((1, 5, None), (2, 5, None), (3, 2, 9), (4, 10, None)):
        parts = [loader.in_order(size, limit, Ranks(r, world)) for r in range(world)]
        samples = [batch.index.samples for part in parts for batch in part]
        count = limit or 16
        assert sorted(np.concatenate(samples)) == [i * 16 // count for i in range(count)]


def test_one_that_loses_another_ends_in_order(tmp_path, yaml_of):
    """Without torchrun, which would end it: by the error of its connection, and no abort on top."""
    (status, _, err), (killed, *_) = start(
        "kill:1:2", "train", yaml_of(), "--out", tmp_path / "out"
    )
    assert killed == -signal.SIGKILL
    assert status == 1
    assert "RuntimeError" in err
    assert "outlive the group" not in err


def test_a_killed_process_costs_only_time(tmp_path, yaml_of):
    """torchrun starts all again, they resume at step 2 of 6, and the weights are the same bits;
    dropout, another on each rank, is drawn again."""
    path = yaml_of(pretrain={"steps": 6})
    ended = {}
    for name, fault, restarts in (("straight", f"seeds:{tmp_path}", 0), ("killed", "kill:1:3", 3)):
        ended[name] = torchrun(
            fault, "train", path, "--stage", "pretrain", "--out", tmp_path / name,
            restarts=restarts,
        )  # fmt: skip
        assert ended[name].returncode == 0, ended[name].stderr
    seeds = [(tmp_path / str(rank)).read_text(encoding="ascii").split() for rank in range(WORLD)]
    assert len(set(seeds[0] + seeds[1])) == WORLD * 6  # each process and step drops other units
    assert "exitcode: -9" in ended["killed"].stderr
    states = [load_checkpoint(tmp_path / name / "pretrain" / "latest.pt") for name in ended]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    lines = [read_log(tmp_path / name / "pretrain" / "log.jsonl") for name in ended]
    assert [x.get("loss") for x in lines[0]] == [x.get("loss") for x in lines[1]]
    assert len(lines[0]) == 10  # one process writes
    for name in ("grad_norm", "knn", "linear_probe", "knn_pixels"):
        seen = [x.get(name) for x in lines[0]]
        assert any(value is not None for value in seen), name
        assert seen == [x.get(name) for x in lines[1]]
    assert [x["step"] for x in lines[0] if "knn" in x] == [0, 6]
    figures = json.loads(ended["killed"].stdout.splitlines()[-1])
    assert figures["pretext_accuracy"] == lines[0][-1]["pretext_accuracy"]
    assert ended["straight"].stdout.count("pretext_accuracy") == 1


def test_a_killed_torchrun_takes_its_processes_with_it(tmp_path, yaml_of):
    """They save and leave, where they would train on unseen beside the next start."""
    path = yaml_of(pretrain={"steps": 4_000, "save_every": 4_000, "eval_every": 4_000})
    out = tmp_path / "run"
    ended = torchrun("agent:0:3", "train", path, "--stage", "pretrain", "--out", out)
    # Its pipes are the processes' too, so it ended only with the last of them.
    assert ended.returncode == -signal.SIGKILL
    assert "left after step" in ended.stderr.replace("\n", "")
    assert 3 < load_checkpoint(out / "pretrain" / "latest.pt")["step"] < 4_000


def test_the_end_of_torchrun_is_told_once():
    """Linux tells it for each of torchrun's threads, some of them while the first is handled."""
    script = """
import signal
from fastselfie.system.rendezvous import _terminate_with_torchrun
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
_terminate_with_torchrun()
handler = signal.getsignal(signal.SIGRTMIN)
for _ in range(3):
    handler(signal.SIGRTMIN, None)
print(told)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True,
                           text=True, env=environment(TORCHELASTIC_RUN_ID="x"))  # fmt: skip
    assert ended.stdout == "[1]\n", ended.stderr


def test_the_recipe_and_the_second_form_go_with_several_processes(tmp_path, yaml_of):
    path = yaml_of(
        model={"query": "pooled", "logit_scale": "cosine", "mask_fraction": 0.5},
        pretrain={"patch_gap": 2, "patch_grey": 0.5, "patch_contrast": 0.4},
        finetune={"form": "attention_pooling", "progressive": [20]},
    )
    ended = torchrun("whole", "train", path, "--out", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    assert "supervised_accuracy" in ended.stdout


def test_a_signal_to_one_process_ends_all_at_the_same_step(tmp_path, yaml_of):
    path = yaml_of(pretrain={"steps": 6, "save_every": 6})
    out = tmp_path / "run"
    ended = start("term:1:2", "train", path, "--stage", "pretrain", "--out", out)
    assert [status for status, _, _ in ended] == [128 + signal.SIGTERM] * WORLD, ended
    state = load_checkpoint(out / "pretrain" / "latest.pt")
    assert state["step"] == 3
    assert "left after step 3, saved up to step 3" in ended[0][2].replace("\n", "")
    assert ended[1][1:] == ("", ""), ended
    # With another number of processes: the same samples, and it is said.
    (again,) = start("whole", "train", path, "--stage", "pretrain", "--out", out, world=1)
    assert again[0] == 0, again[2]
    assert "was trained by 2 processes, resumes with 1" in again[2]
    assert [x["step"] for x in read_log(out / "pretrain" / "log.jsonl")][-1] == 6


@pytest.mark.parametrize("where", ["training", "held out", "resident"])
def test_a_bad_image_of_one_process_ends_all_in_one_line(tmp_path, yaml_of, image_folder, where):
    kind = "resident" if where == "resident" else "folder"
    path = yaml_of(data={"loader": kind}, pretrain={"knn_every": None})  # rank 0 would find it
    dataset = open_dataset(tiny_config(data={"train": str(image_folder)}).data)
    if where == "held out":
        bad = dataset.held_out.paths[5]  # batches of four: the second process measures it
    else:
        bad = dataset.train.paths[SampleStream(16, 0).take(8, 8).samples[6]]
    (image_folder / bad).write_bytes(b"\x89PNG cut")
    out = tmp_path / "run"
    ended = start("whole", "train", path, "--stage", "pretrain", "--out", out)
    assert [status for status, _, _ in ended] == [2] * WORLD, ended
    errors = [line for _, _, err in ended for line in err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert f"{bad}: unreadable image" in errors[0]
    assert ended[1][1:] == ("", "")


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        (
            {"pretrain": {"batch_size": 9}},
            "pretrain.batch_size is 9: not a multiple",
        ),
        ({"pretrain": {"batch_size": 12, "micro_batch_size": 4}}, "micro_batch_size is 4: it must"),
        ({"model": {"sync_batch_norm": True}}, "model.sync_batch_norm is true"),
    ],
)
def test_what_processes_cannot_share_is_said_before_the_start(sections, named):
    from fastselfie.runs.train import _check_processes
    from fastselfie.stage_names import stages_to_run

    config = tiny_config(**sections)
    accelerator = choose_accelerator(config.runtime, Ranks(world=2))
    with pytest.raises(UserError, match=named):
        _check_processes(config, stages_to_run("all"), accelerator)
    _check_processes(
        config,
        stages_to_run("finetune" if "pretrain" in sections else "all"),
        choose_accelerator(config.runtime, Ranks(world=1 + ("pretrain" in sections))),
    )


def test_who_is_who_is_read_from_the_environment(monkeypatch):
    assert ranks_of({}) == Ranks()
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert ranks_of(said) == Ranks(5, 8, 1, 4)
    for broken in ({"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}):
        with pytest.raises(UserError):
            ranks_of(broken)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR is not set: use torchrun"):
        init_distributed(tiny_config().runtime)


def test_processes_share_cores_and_memory(monkeypatch):
    monkeypatch.setenv("FASTSELFIE_PROCESSES_PER_GPU", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # restores it after the test
    cores, memory = usable_cores(), total_memory(torch.device("cpu"))
    share_machine(2)
    assert usable_cores() == max(1, cores // 2)
    assert total_memory(torch.device("cpu")) == memory // 2
    for taken in (0.5, 1, cores):  # where a scheduler gave this process so many cores
        take_share(taken, 0)
        assert usable_cores() == max(1, int(taken))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    assert usable_cores() == 1
    part = MemoryEstimate(0, 1000, 20)
    stage = tiny_config(pretrain={"batch_size": 96}).pretrain
    assert part.micro_batch(stage, 10**9, processes=4) == 24
    assert part.micro_batch(stage.model_copy(update={"micro_batch_size": 48}), 1, 4) == 24


def test_every_process_and_step_draws_another_dropout():
    seeds = {process_seed(0, step, rank) for step in range(100) for rank in range(16)}
    assert len(seeds) == 1600
    assert process_seed(0, 7, 3) != process_seed(1, 7, 3)
