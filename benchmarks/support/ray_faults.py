"""Faults of a Ray cluster for reliability.py: lost nodes, killed workers, killed commands.

Each run has a cluster of three nodes on this machine, one core each.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from support.ray_nodes import local_cluster, lose_node, workers_of
from support.slim_run import SlimRun, fastselfie, kill, processes_naming, start

_NODES = 3
_A_RUN = 7  # most kills of one run
_KINDS = ("node", "worker", "command")
_LABELS = ("--labels", "50", "--seeds", "2")
_HANGS = 600.0  # seconds


def ray_reproductions(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Kill nodes, workers and the command of a reproduction; compare with --engine local.

    A finished trial must not be trained again: its result stays the same file.
    """
    config = slim.folder / "ray.yaml"
    values = yaml.safe_load(slim.config.read_text(encoding="utf-8"))
    values["pretrain"] |= {"steps": 24, "eval_every": 24}
    values["finetune"] = {"steps": 60, "batch_size": 16, "warmup_steps": 1, "log_every": 1,
                          "eval_every": 60, "save_every": 4}  # fmt: skip
    values["reproduce"] = {"grid": [0.05, 0.1]}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    straight = slim.folder / "ray-straight"
    slim.call(*fastselfie("reproduce", config, *_LABELS, "--out", straight))
    made: Counter[str] = Counter()
    runs, lost = 0, list[str]()
    while made.total() < wanted and runs < wanted:
        out = slim.folder / f"ray-{runs}"
        draws = random.Random(f"{seed}/{runs}")
        asked = min(_A_RUN, wanted - made.total())
        lost += _killed_reproduction(config, out, draws, asked, made)
        if not lost and _table(out) != _table(straight):
            lost.append(f"{out.name}: another table")
        if not lost:
            shutil.rmtree(out)
        runs += 1
    return {"made": made.total(), "runs": runs, **{f"{k}s": made[k] for k in _KINDS}, "lost": lost}


def _killed_reproduction(
    config: Path, out: Path, draws: random.Random, asked: int, made: Counter[str]
) -> list[str]:
    """Run a reproduction to its end, with `asked` kills if it lasts. Return what is lost."""
    results: dict[Path, tuple[int, int]] = {}
    twice: set[str] = set()
    with local_cluster(_NODES) as cluster:
        command = fastselfie("reproduce", config, *_LABELS, "--out", out, "--engine", "ray",
                             "--address", cluster.address)  # fmt: skip
        process = start(command, out.with_suffix(".txt"))
        began, deadline = time.time(), time.monotonic() + _HANGS
        due = time.monotonic() + draws.uniform(5, 12)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                if not _gave_up(out):
                    break
                process = start(command, out.with_suffix(".txt"))
            twice |= _trained_again(out, results)
            workers = [pid for pid in workers_of(out) if pid != process.pid]
            if asked and time.monotonic() >= due and workers and _trains(out, began):
                kind = draws.choice(_KINDS)
                if kind == "node":
                    lose_node(cluster)
                elif kind == "worker":
                    kill(draws.choice(workers), signal.SIGKILL)
                else:
                    process.kill()
                    process.wait()
                    process = start(command, out.with_suffix(".txt"))
                made[kind] += 1
                asked, began = asked - 1, time.time()
                due = time.monotonic() + draws.uniform(0, 3)
            time.sleep(0.05)
        status = process.poll()
        process.kill()
        process.wait()
        twice |= _trained_again(out, results)
    lost = [f"{out.name}: {name} was trained again" for name in sorted(twice)]
    if status != 0:
        lost.append(f"{out.name}: status {status}")
    if left := [*workers_of(out), *processes_naming(out)]:
        lost.append(f"{out.name}: {len(left)} processes left behind")
    return lost


def _gave_up(out: Path) -> bool:
    """Return whether the command ended because of one training that was killed again and again.

    It says so, and asks to be run again. A kill may come before a training's first checkpoint.
    """
    lines = out.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    return bool(lines) and lines[-1].startswith("error:") and " times after step " in lines[-1]


def _trained_again(out: Path, results: dict[Path, tuple[int, int]]) -> set[str]:
    """Return the finished trials whose result is another file than at an earlier call."""
    twice = set()
    for path in (out / "runs").rglob("result.json"):
        found = os.stat(path)
        if results.setdefault(path, (found.st_ino, found.st_mtime_ns)) != (
            found.st_ino, found.st_mtime_ns):  # fmt: skip
            twice.add(path.parent.name)
    return twice


def _trains(out: Path, since: float) -> bool:
    return any(path.stat().st_mtime > since for path in out.rglob("log.jsonl"))


def _table(out: Path) -> bytes | None:
    path = out / "table.json"
    return path.read_bytes() if path.exists() else None


def ray_prepares(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Kill nodes and the command in the middle of `prepare`. The file must have the same bytes."""
    whole = slim.beton.read_bytes()
    made: Counter[str] = Counter()
    runs, lost = 0, list[str]()
    with local_cluster(_NODES) as cluster:
        while made.total() < wanted and runs < 3 * wanted:
            out, log = slim.folder / f"ray-{runs}.beton", slim.folder / "ray-prepare.txt"
            draws = random.Random(f"{seed}/{runs}")
            command = [*slim.prepare(out), "--engine", "ray", "--address", cluster.address]
            process = start(command, log)
            began = time.monotonic()
            while process.poll() is None and not out.with_name(f"{out.name}.partial").exists():
                time.sleep(0.002)
            time.sleep(draws.uniform(0, 1.0))
            if process.poll() is None:
                if draws.random() < 0.5:
                    lose_node(cluster)
                    made["node"] += 1
                else:
                    process.kill()
                    process.wait()
                    made["command"] += 1
                    process = start(command, log)
            try:
                status = process.wait(max(1.0, began + _HANGS - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            if status != 0 or out.read_bytes() != whole:
                lost.append(f"{out.name}: status {status}, or other bytes")
            runs += 1
    return {"made": made.total(), "runs": runs, "nodes": made["node"],
            "commands": made["command"], "lost": lost}  # fmt: skip
