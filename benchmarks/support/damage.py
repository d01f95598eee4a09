"""Damage to files for reliability.py: checkpoints and images."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.loaders import SampleStream
from fastselfie.errors import UserError
from fastselfie.training.checkpoint import LATEST, load_checkpoint, newest_checkpoint, step_paths
from support.slim_run import SlimRun, result_of, stage_folder, straight_run, weights_digest

_PAGE = 4096
_BAD_SHARE = 0.05


def truncate(path: Path, draws: random.Random) -> None:
    os.truncate(path, draws.randrange(path.stat().st_size))


def flip_bits(path: Path, draws: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draws.choice((1, 1, 8))):
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)


def zero_page(path: Path, draws: random.Random) -> None:
    """Zero one page, as a disk leaves a page that it never wrote."""
    data = path.read_bytes()
    zeroed = data
    while zeroed == data:  # some pages are zero already
        begin = draws.randrange(0, len(data), _PAGE)
        page = data[begin : begin + _PAGE]
        zeroed = data[:begin] + bytes(len(page)) + data[begin + len(page) :]
    path.write_bytes(zeroed)


def remove(path: Path, draws: random.Random) -> None:
    del draws
    path.unlink()


def swap(path: Path, draws: random.Random) -> None:
    """Exchange the file with another checkpoint."""
    others = [p for p in sorted(path.parent.glob("*.pt")) if not p.samefile(path)]
    other = draws.choice(others)
    aside = path.with_suffix(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    truncate, flip_bits, zero_page, remove, swap,
)  # fmt: skip


def damaged_checkpoints(slim: SlimRun, wanted: int, seed: int) -> dict[str, Any]:
    """Damage one or more checkpoints of a stage; check that only a saved state is loaded.

    Returns:
        "recovered": an intact checkpoint was loaded; "older": that was not the newest. "refused":
        an error of one line. "loaded_bad": a state was loaded that was never saved.
    """
    source = straight_run(slim)
    good = {
        path.name: weights_digest(load_checkpoint(path)["model"])
        for path in step_paths(stage_folder(source)).values()
    }
    newest = max(good)
    counts = {"recovered": 0, "older": 0, "refused": 0, "loaded_bad": 0}
    lost = []
    for number in range(wanted):
        draws = random.Random(f"{seed}/{number}")
        folder = slim.folder / f"damaged-{number}"
        shutil.copytree(stage_folder(source), folder)
        _damage(folder, newest, draws)
        try:
            found = newest_checkpoint(folder, "pretrain", quiet=True)
        except UserError:
            counts["refused"] += 1
        else:
            step = -1 if found is None else found.state["step"]
            saved = good.get(f"step-{step:07d}.pt")
            if found is None or weights_digest(found.state["model"]) != saved:
                counts["loaded_bad"] += 1
                lost.append(f"{folder.name}: step {step} is not what was saved")
            else:
                counts["recovered"] += 1
                counts["older"] += f"step-{step:07d}.pt" != newest
        shutil.rmtree(folder)
    return {"made": wanted, **counts, "lost": lost}


def _damage(folder: Path, newest: str, draws: random.Random) -> None:
    """Damage the newest checkpoint under both of its names, and sometimes others."""
    how = DAMAGES[draws.randrange(len(DAMAGES))]
    hit = folder / newest
    how(hit, draws)
    if how is not swap:
        (folder / LATEST).unlink()
        if hit.exists():
            os.link(hit, folder / LATEST)
    for path in sorted(folder.glob("step-*.pt")):
        if path != hit and draws.random() < 0.2:
            DAMAGES[draws.randrange(3)](path, draws)


def damaged_images(slim: SlimRun, seed: int) -> dict[str, Any]:
    """Make 5% of the images unreadable. `skip` must train on, `raise` must name the first."""
    bad_set = slim.folder / "bad.beton"
    shutil.copy(slim.beton, bad_set)
    reader = BetonReader(bad_set)
    count = len(reader)
    bad = np.random.default_rng(seed).choice(count, round(_BAD_SHARE * count), replace=False)
    with open(bad_set, "r+b") as file:
        for k in bad:
            file.seek(int(reader.offset[k]))
            file.write(bytes(int(reader.size[k])))
    del reader
    # The whole set trains, so that a position in the stream names an image of the file.
    data = [f"data.train={bad_set}", f"data.test={slim.beton}"]
    out, lost = slim.folder / "skipping", []
    slim.call(*slim.train(out, *data, "data.on_error=skip"))
    config = _settings(slim)
    batch, steps = config["pretrain"]["batch_size"], config["pretrain"]["steps"]
    drawn = SampleStream(count, config["seed"]).take(0, batch * steps).samples
    expected = int(np.isin(drawn, bad).sum())
    last = [json.loads(line) for line in
            (stage_folder(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    counted = max(int(line.get("skipped", 0)) for line in last)
    if counted != expected:
        lost.append(f"counted {counted} skipped images, {expected} were drawn")
    if result_of(out)["step"] != steps:
        lost.append("did not train to the end under skip")
    first = int(drawn[np.isin(drawn, bad)][0])
    said = slim.call(*slim.train(slim.folder / "raising", *data), status=2).stderr
    if f"sample {first}:" not in said:
        lost.append(f"under raise sample {first}, the first, is not named: {said[-300:]}")
    return {"made": len(bad), "of": count, "drawn": expected, "counted": counted, "lost": lost}


def _settings(slim: SlimRun) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = yaml.safe_load(slim.config.read_text(encoding="utf-8"))
    return values
