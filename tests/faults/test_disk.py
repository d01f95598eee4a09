"""A disk that is full, or may not be written: what was saved stays whole, nothing half is left."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from contextlib import contextmanager, nullcontext, suppress

import pytest
import torch
from conftest import tiny_config

from fastselfie.config import CheckpointConfig
from fastselfie.errors import UserError
from fastselfie.training.checkpoint import load_checkpoint, newest_checkpoint
from fastselfie.training.checkpoint_writer import CheckpointWriter
from fastselfie.training.metrics_log import RunLog, read_log

SIZE = 400_000  # bytes of a checkpoint
ROOM = 1_000_000  # of the disk: two fit, and not a third beside them


def state(step):
    weights = {"w": torch.full((SIZE // 4,), float(step))}
    return {"kind": "pretrain", "step": step, "model": weights}


@contextmanager
def small_disk(folder):
    """A real file system of ROOM bytes where root may mount one; skips nothing: else a limit."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder],
        check=False, capture_output=True,
    )  # fmt: skip
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill(folder, mounted):
    """Leave less room than one more checkpoint takes."""
    if mounted:
        (folder / "other").write_bytes(bytes(ROOM - 2 * SIZE - 100_000))
    else:  # no file may grow over a quarter of one (Python ignores SIGXFSZ)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 4, resource.RLIM_INFINITY))


def checkpoints(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "other")


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk(tmp_path, capsys, policy):
    """Under continue, what fits again after room is made is saved again."""
    folder = tmp_path / "disk"
    with small_disk(folder) as mounted:
        with CheckpointWriter(folder, CheckpointConfig(on_error=policy)) as writer:
            writer.save(state(1))
            writer.save(state(2))
            writer.wait()
            fill(folder, mounted)
            writer.save(state(3))
            if policy == "stop":
                with pytest.raises(UserError, match=r"step-0000003\.pt: .*make room") as caught:
                    writer.wait()
                assert "\n" not in str(caught.value)
            else:
                writer.save(state(4))
                writer.wait()
                said = capsys.readouterr().err
                assert said.count("warning: ") == 2
                assert "step-0000003.pt" in said
                assert "step-0000004.pt" in said
            assert writer.written == 2
            assert checkpoints(folder) == ["latest.pt", "step-0000001.pt", "step-0000002.pt"]
            assert newest_checkpoint(folder, "pretrain").state["step"] == 2
            assert load_checkpoint(folder / "step-0000001.pt")["step"] == 1
            (folder / "step-0000001.pt").unlink()
            (folder / "other").unlink(missing_ok=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            writer.save(state(5))
        assert load_checkpoint(folder / "latest.pt")["step"] == 5


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_log_on_a_full_disk(tmp_path, capsys, policy):
    line = {f"v{i}": 1.0 for i in range(1000)}  # longer than what is left of a page
    folder = tmp_path / "disk"
    with small_disk(folder) as mounted:
        log = RunLog(folder, "t", 10, 0, config=tiny_config(checkpoint={"on_error": policy}))
        # Leaving the log closes files, which the disk may refuse as well.
        with pytest.raises(OSError, match="log") if policy == "stop" else nullcontext(), log:
            log.write(1, **line)
            if mounted:
                with suppress(OSError), open(folder / "other", "wb", buffering=0) as other:
                    while True:
                        other.write(bytes(4096))
            else:
                size = (folder / "log.jsonl").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            log.write(2, **line)
            log.write(3, **line)
            (folder / "other").unlink(missing_ok=True)
        steps = [each["step"] for each in read_log(folder / "log.jsonl")]
    said = capsys.readouterr().err
    assert steps[0] == 1
    assert said.count("lines are missing") == (policy == "continue")


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "link"])
def test_a_fault_of_any_call_leaves_what_was_there(tmp_path, monkeypatch, call):
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.save(state(1))
    original = getattr(os, call) if call != "open" else open

    def refused(path, *arguments, **named):
        if call in {"fsync", "link"} or ".step-0000002" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(*(("builtins.open", refused) if call == "open" else (os, call, refused)))
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.save(state(2))
        if call == "link":  # a copy stands in
            writer.wait()
            return
        with pytest.raises(UserError, match=r"step-0000002\.pt: Read-only file system"):
            writer.wait()
    monkeypatch.undo()
    assert checkpoints(tmp_path) == ["latest.pt", "step-0000001.pt"]
    assert newest_checkpoint(tmp_path, "pretrain").state["step"] == 1


def test_a_fault_of_ours_is_not_taken_for_a_full_disk(tmp_path):
    with CheckpointWriter(tmp_path, CheckpointConfig(on_error="continue")) as writer:
        writer.save({**state(1), "what": lambda: 0})
        with pytest.raises(Exception, match=r"lambda"):
            writer.wait()


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_run_stops_or_trains_on(cli, tiny_yaml, image_folder, tmp_path, monkeypatch, policy):
    """And ends well where the disk has room again."""
    out = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", fails_for("step-0000002", os.fsync))
    command = ("train", tiny_yaml, f"data.train={image_folder}", f"checkpoint.on_error={policy}",
               "--stage", "pretrain", "--out", out)  # fmt: skip
    result = cli(*command)
    assert "Traceback" not in result.err
    assert result.err.count("step-0000002.pt: No space left on device") == 1
    if policy == "stop":
        assert result.status == 2
        assert not list((out / "pretrain").glob("*.pt"))
    else:
        assert result.status == 0
        assert checkpoints_of(out) == ["latest.pt", "step-0000004.pt"]
    assert not list((out / "pretrain").glob(".*"))


def checkpoints_of(out):
    return sorted(p.name for p in (out / "pretrain").glob("*.pt"))


def fails_for(name, original):
    def fsync(descriptor):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    return fsync
