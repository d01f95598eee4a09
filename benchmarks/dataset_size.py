"""Measure a dataset of many million samples: time to open it, memory, first batch, next epoch.

python benchmarks/dataset_size.py --samples 14000000 --folder DIR --json OUT

The file is synthetic: every image is one pixel, because the tables of the samples are what grows
with their number. It is written to DIR, some 1.3 GB for 14 million, and kept. Each round is a new
process with the file in the page cache. Memory is anonymous memory, which no other process shares.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from support.arguments import Parser, above_zero, result_file
from support.conditions import command, environment
from support.rounds import spread
from support.script import run_script, say

_BATCH = 256


def main() -> None:
    options = _parse()
    if options.measure:
        print(json.dumps(_measure(options.measure)))
        return
    path = result_file(options.json)
    file = options.folder / f"samples-{options.samples}.beton"
    if not file.exists():
        say(f"writing {file}")
        _write(file, options.samples)
    rounds = []
    for number in range(options.rounds + 1):
        called = [sys.executable, __file__, "--measure", str(file)]
        found = json.loads(
            subprocess.run(called, check=True, capture_output=True, text=True).stdout
        )
        say(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        if number:  # the first one warms the page cache
            rounds.append(found)
    result = {
        "claim": f"a dataset of {options.samples:,} samples opens in seconds",
        "command": command(),
        "environment": environment(1),
        "samples": options.samples,
        "file_mb": file.stat().st_size / 1e6,
        "rounds": options.rounds,
        "figures": {name: spread([each[name] for each in rounds]) for name in rounds[0]},
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _parse() -> Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=14_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="of the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, metavar="FILE", help="one round in this process")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    above_zero(options, "samples", "rounds")
    if not (options.json or options.measure):
        parser.error("pass --json OUT")
    return options


def _write(path: Path, samples: int) -> None:
    from fastselfie.data.beton.writer import BetonWriter

    with BetonWriter(path, samples) as writer:
        for index in range(samples):
            writer.append(bytes((index % 256, 128, 64)), "raw", 1, 1, index % 1000)
        writer.finish({"classes": [f"class {k:03}" for k in range(1000)]})


def _measure(path: Path) -> dict[str, float]:
    from fastselfie import Loader

    before, began = _anonymous_mb(), time.perf_counter()
    loader = Loader(path, batch_size=_BATCH, size=32, crop="center", drop_last=True)
    found: dict[str, float] = {"open_s": time.perf_counter() - began}
    found["open_mb"] = _anonymous_mb() - before
    found["first_batch_s"] = _seconds_to(iter(loader))
    state: dict[str, Any] = loader.state_dict()
    whole = len(loader) * _BATCH
    loader.load_state_dict({**state, "samples": whole - 64 * _BATCH})
    for _ in loader:
        pass
    found["next_epoch_s"] = _seconds_to(iter(loader))
    found["all_mb"] = _anonymous_mb()
    loader.close()
    return found


def _seconds_to(batches: Any) -> float:
    """Return the seconds until the first batch."""
    began = time.perf_counter()
    images, _ = next(batches)
    assert images.shape == (_BATCH, 3, 32, 32)
    return time.perf_counter() - began


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return int(values["RssAnon"].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    run_script(main)
