"""A run small enough to be killed a hundred times, and the result that it must have."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

IMAGES, SIDE = 240, 48
STARTS = 180.0  # seconds that a process may take until it trains
_STAGE = "pretrain"


def make_photographs(folder: Path, count: int, side: int, seed: int) -> None:
    """Write pictures with edges and grain, in four classes: folder/CLASS/N.jpg."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    for k in range(count):
        waves = sum(np.sin(f * x + g * y + p) for f, g, p in random.uniform(0, 12, (4, 3)))
        pixels = 128 + 40 * waves[..., None] * random.uniform(0.3, 1, 3)
        pixels = pixels + random.normal(0, 8, pixels.shape)
        path = folder / f"{k % 4}" / f"{k:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def fastselfie(*arguments: object, ranks: int = 1, restarts: int = 0) -> list[str]:
    """Return a command line, with torchrun if there is more than one rank."""
    words = [str(argument) for argument in arguments]
    if ranks == 1:
        return [sys.executable, "-m", "fastselfie", *words]
    options = [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "--standalone"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "fastselfie", *words]


@dataclass
class SlimRun:
    """A .beton file of small photographs, and a config that trains on it in seconds.

    Args:
        folder: Where `make` writes them.
        threads: Threads of torch in each process.
    """

    folder: Path
    threads: int = 1
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def beton(self) -> Path:
        return self.folder / "slim.beton"

    @property
    def config(self) -> Path:
        return self.folder / "slim.yaml"

    def make(self, seed: int, steps: int) -> None:
        make_photographs(self.folder / "photographs", IMAGES, SIDE, seed)
        self.call(*self.prepare(self.beton))
        values = {
            "name": "slim",
            "seed": seed % 2**32,
            "data": {"train": str(self.beton), "image_size": 32, "loader": "native", "workers": 2},
            "model": {"stem": "cifar", "width": 8, "blocks": [1, 1, 1, 1], "patch_size": 8,
                      "layers": 1, "heads": 4, "feed_forward": 64},
            "pretrain": {"steps": steps, "batch_size": 16, "warmup_steps": 5, "log_every": 10,
                         "eval_every": 50, "eval_images": 32, "save_every": 4,
                         "picture_steps": [], "knn_every": None},
            "checkpoint": {"keep": 3},
            "runtime": {"threads": self.threads, "precision": "fp32", "device": "cpu"},
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    def prepare(self, out: Path) -> list[str]:
        # Images are encoded again, which takes long enough to be killed in the middle.
        source = self.folder / "photographs"
        return fastselfie("prepare", source, "--out", out, "--max-side", SIDE - 1)

    def train(self, out: Path, *overrides: str, ranks: int = 1, restarts: int = 0) -> list[str]:
        words = ("train", self.config, *overrides, "--stage", _STAGE, "--out", out)
        return fastselfie(*words, ranks=ranks, restarts=restarts)

    def call(self, *command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600, env=environment()
        )
        if done.returncode != status:
            raise RuntimeError(f"status {done.returncode}, not {status}: {done.stderr[-2000:]}")
        return done


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in its own group; append its output to `log`."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, env=environment(), start_new_session=True
        )


def stage_folder(out: Path) -> Path:
    return out / _STAGE


def wait_for_training(process: subprocess.Popen[bytes], out: Path, began: float) -> bool:
    """Wait for a line in the log after `began`. Return False if the process ended before."""
    path = stage_folder(out) / "log.jsonl"
    deadline = time.monotonic() + STARTS
    while process.poll() is None:
        if _last_time(path) > began:
            return True
        if time.monotonic() > deadline:
            raise RuntimeError(f"{out.name}: does not train after {STARTS:g} s")
        time.sleep(0.005)
    return False


def _last_time(path: Path) -> float:
    try:
        last = path.read_text(encoding="utf-8").splitlines()[-1]
        return float(json.loads(last)["time"])
    except (OSError, IndexError, ValueError):
        return 0.0


def seconds_to_start(slim: SlimRun) -> float:
    """Measure the time from the start of a process until it trains."""
    out, began = slim.folder / "started", time.time()
    process = start(slim.train(out), slim.folder / "started.txt")
    wait_for_training(process, out, began)
    seconds = time.time() - began
    process.kill()
    process.wait()
    return round(seconds, 1)


def straight_run(slim: SlimRun, ranks: int = 1) -> Path:
    """Return the folder of the uninterrupted run, which is made if it is missing."""
    out = slim.folder / f"straight-{ranks}"
    if not out.exists():
        slim.call(*slim.train(out, ranks=ranks))
    return out


def wait_for_save(process: subprocess.Popen[bytes], out: Path, seconds: float) -> bool:
    """Wait until a checkpoint is being written: it has a new temporary file. False if none is."""
    before = _unwritten(out)  # left by a run that was killed
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if _unwritten(out) - before:
            return True
    return False


def _unwritten(out: Path) -> set[str]:
    names = {entry.name for entry in os.scandir(stage_folder(out))}
    return {name for name in names if name.startswith((".step-", ".latest"))}


def result_of(out: Path) -> dict[str, Any]:
    """Return the result of a run: digest of weights and statistics, losses, last evaluation."""
    import torch

    state = torch.load(stage_folder(out) / "latest.pt", weights_only=True)
    log = (stage_folder(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in log]
    learned = ("step", "loss", "accuracy", "heldout_loss", "pretext_accuracy")
    return {
        "step": state["step"],
        "weights": weights_digest(state["model"]),
        "log": [{k: v for k, v in line.items() if k in learned} for line in lines],
        "metrics": state["metrics"],
    }


def weights_digest(weights: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def processes_naming(path: Path) -> list[int]:
    """Return the processes with `path` in their command line."""
    named = str(path).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if named in words.split(b"\0"):
                found.append(int(entry.name))
    return found


def children_of(pid: int) -> Iterator[int]:
    """Yield the direct children that are no zombies."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                yield int(entry.name)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal. Return False if the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
