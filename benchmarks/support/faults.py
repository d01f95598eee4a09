"""Faults of whole processes for reliability.py: kills, signals, dead ranks."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.slim_run import (
    SlimRun,
    children_of,
    kill,
    processes_naming,
    result_of,
    start,
    straight_run,
    wait_for_save,
    wait_for_training,
)

_A_CHAIN = 5  # most kills of one run
_LEAVES = 30.0  # seconds that a run asked to leave may take
# Finished before the signal; saved and left; ended at once because nothing was left to save.
_STATUSES = (0, 128 + signal.SIGTERM, -signal.SIGTERM)


class Chains:
    """Runs that are killed again and again, until `wanted` kills are made.

    `run` takes a function chain(number, draws, kills). It makes at most that many kills of a fresh
    run, lets the run end, and returns how many it made and what was lost. Two chains run at a time,
    because each has one thread.
    """

    def __init__(self, wanted: int, seed: int, at_once: int = 2) -> None:
        self.wanted, self.seed, self.at_once = wanted, seed, at_once
        self.made = self.begun = 0
        self.lost: list[str] = []
        self._lock = threading.Lock()

    def run(self, chain: Callable[[int, random.Random, int], tuple[int, list[str]]]) -> None:
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(lambda _: self._work(chain), range(self.at_once)))

    def _work(self, chain: Callable[[int, random.Random, int], tuple[int, list[str]]]) -> None:
        while True:
            with self._lock:
                missing = self.wanted - self.made
                if missing <= 0 or self.begun > 3 * self.wanted:
                    return
                number = self.begun
                self.begun += 1
                asked = min(_A_CHAIN, -(-missing // self.at_once))
                self.made += asked  # corrected below if the run ended before
            made, lost = chain(number, random.Random(f"{self.seed}/{number}"), asked)
            with self._lock:
                self.made += made - asked
                self.lost += lost


def kills(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Send SIGKILL at random moments of training, half of them while a checkpoint is written."""
    straight, span = _straight(slim)
    saving = 0

    def chain(number: int, draws: random.Random, asked: int) -> tuple[int, list[str]]:
        nonlocal saving
        out, made = slim.folder / f"kills-{number}", 0
        for _ in range(asked):
            began = time.time()
            process = start(slim.train(out), slim.folder / f"kills-{number}.txt")
            if wait_for_training(process, out, began):
                time.sleep(draws.uniform(0, span / asked))
                if draws.random() < 0.5:
                    saving += wait_for_save(process, out, span / asked)
                made += process.poll() is None
                process.kill()
            process.wait()
        return made, _ends_as(straight, slim, out, slim.train(out))

    chains = Chains(wanted, seed)
    chains.run(chain)
    return {"made": chains.made, "runs": chains.begun, "while_saving": saving, "lost": chains.lost}


def terminations(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Send SIGTERM at random moments. Measure how long a run takes to leave; check its result."""
    straight, span = _straight(slim)
    took: list[float] = []

    def chain(number: int, draws: random.Random, asked: int) -> tuple[int, list[str]]:
        out, made, lost = slim.folder / f"terms-{number}", 0, []
        for _ in range(asked):
            began = time.time()
            process = start(slim.train(out), slim.folder / f"terms-{number}.txt")
            if wait_for_training(process, out, began):
                time.sleep(draws.uniform(0, span / asked))
                sent = time.monotonic()
                if process.poll() is None:
                    process.terminate()
                    status = _left(process)
                    took.append(time.monotonic() - sent)
                    made += 1
                    if status not in _STATUSES or took[-1] > _LEAVES:
                        lost.append(f"{out.name}: left with {status} after {took[-1]:.1f} s")
            process.wait()
        return made, lost + _ends_as(straight, slim, out, slim.train(out))

    chains = Chains(wanted, seed)
    chains.run(chain)
    slowest = round(max(took, default=0.0), 2)
    return {"made": chains.made, "runs": chains.begun, "slowest_s": slowest, "lost": chains.lost}


def _left(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit status of a process. If it does not leave, kill it and return None."""
    try:
        return process.wait(timeout=2 * _LEAVES)
    except subprocess.TimeoutExpired:
        process.kill()
        return None


def prepares(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Send SIGKILL in the middle of `prepare`. The final file must have the same bytes."""
    whole = slim.beton.read_bytes()

    def chain(number: int, draws: random.Random, asked: int) -> tuple[int, list[str]]:
        out, made = slim.folder / f"prepared-{number}.beton", 0
        partial = Path(f"{out}.partial")
        for _ in range(asked):
            size = partial.stat().st_size if partial.exists() else 0
            process = start(slim.prepare(out), slim.folder / "prepared.txt")
            while process.poll() is None and not _grown(partial, size):
                time.sleep(0.002)
            time.sleep(draws.uniform(0, 0.1))
            made += process.poll() is None
            process.kill()
            process.wait()
        if not out.exists():
            slim.call(*slim.prepare(out))
        lost = [] if out.read_bytes() == whole else [f"{out.name}: other bytes"]
        return made, lost + _left_behind(out)

    chains = Chains(wanted, seed, at_once=1)
    chains.run(chain)
    return {"made": chains.made, "runs": chains.begun, "lost": chains.lost}


def _grown(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size > size


def dead_ranks(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Send SIGKILL to one rank of 2 or 4 under torchrun, which restarts all of them."""
    straight: dict[int, Any] = {}
    spans = {}
    for ranks in (2, 4):
        straight[ranks], spans[ranks] = _straight(slim, ranks)

    def chain(number: int, draws: random.Random, asked: int) -> tuple[int, list[str]]:
        ranks = 2 if number % 2 == 0 else 4
        out, made = slim.folder / f"ranks-{number}", 0
        command = slim.train(out, ranks=ranks, restarts=asked)
        process = start(command, slim.folder / f"ranks-{number}.txt")
        before: set[int] = set()
        for _ in range(asked):
            if not _wait_for_others(process, before) or not wait_for_training(
                process, out, time.time()
            ):
                break
            time.sleep(draws.uniform(0, spans[ranks] / asked))
            before = set(children_of(process.pid))
            made += bool(before) and kill(draws.choice(sorted(before)))
        try:
            status = process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            return made, [f"{out.name}: hangs", *_left_behind(out)]
        lost = [f"{out.name}: torchrun's status is {status}"] if status else []
        return made, lost + _differs(straight[ranks], out) + _left_behind(out)

    chains = Chains(wanted, seed, at_once=1)
    chains.run(chain)
    return {"made": chains.made, "runs": chains.begun, "ranks": [2, 4], "lost": chains.lost}


def _wait_for_others(process: subprocess.Popen[bytes], before: set[int]) -> bool:
    """Wait until torchrun has new children. Return False if it ended before."""
    while process.poll() is None:
        living = set(children_of(process.pid))
        if living and not living & before:
            return True
        time.sleep(0.05)
    return False


def _straight(slim: SlimRun, ranks: int = 1) -> tuple[dict[str, Any], float]:
    """Return the result of the uninterrupted run, and its seconds of training."""
    out = straight_run(slim, ranks)
    log = (out / "pretrain" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    times = [float(line.partition('"time": ')[2].partition(",")[0]) for line in (log[0], log[-1])]
    return result_of(out), times[1] - times[0]


def _ends_as(straight: dict[str, Any], slim: SlimRun, out: Path, command: list[str]) -> list[str]:
    """Let the run end. Return what is lost, compared with the uninterrupted run."""
    try:
        slim.call(*command)
    except RuntimeError as error:
        return [f"{out.name}: {error}"]
    return _differs(straight, out) + _left_behind(out)


def _differs(straight: dict[str, Any], out: Path) -> list[str]:
    try:
        found = result_of(out)
    except (OSError, ValueError, RuntimeError) as error:
        return [f"{out.name}: {error}"]
    lost = [f"{out.name}: another {key}" for key in straight if found[key] != straight[key]]
    if not lost:
        shutil.rmtree(out)
    return lost


def _left_behind(out: Path, seconds: float = 10.0) -> list[str]:
    """Kill and report processes of the run that are left after its end."""
    deadline = time.monotonic() + seconds
    while (left := processes_naming(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        kill(pid, signal.SIGKILL)
    return [f"{out.name}: {len(left)} processes left behind"] if left else []
