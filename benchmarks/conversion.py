"""Measure how many images one core converts in a second: `fastselfie prepare` and FFCV's writer.

python benchmarks/conversion.py PHOTOS --json OUT        # PHOTOS/CLASS/*.jpg; needs ffcv

Each conversion has its own process with one worker. The two alternate, after one round that warms
up. What counts is CPU time, user and system, with that of the worker, from the end of the imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.conditions import command, environment
from support.image_folder import files_of
from support.rounds import spread

# A pair does the same work as far as FFCV's writer can: it always encodes anew, at a quality of 90
# by its own default.
JOBS = {
    "as they are": ("ours-lossless", "ffcv-q90"),
    "long side 500, quality 90": ("ours-500", "ffcv-500"),
}


def convert(job: str, photos: str, out: str) -> None:
    """Write `out`, as `job` says, with one worker."""
    if job.startswith("ffcv"):
        from support.inputs import make_ffcv_file

        make_ffcv_file(photos, out, 500 if job == "ffcv-500" else None, workers=1)
        for worker in multiprocessing.active_children():  # its CPU time counts once it is reaped
            worker.join()
        return
    from fastselfie.data.conversion.encode import Recoding
    from fastselfie.data.conversion.prepare import Options, prepare

    small = Recoding(max_side=500, quality=90, subsampling="420")
    recoding = small if job == "ours-500" else Recoding()
    prepare(Path(photos), Path(out), Options(recoding, workers=1))


def measure(job: str, photos: str) -> dict[str, float]:
    """images_per_cpu_s and mb of one conversion, in this process."""
    count = len(files_of(photos)[0])
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "few", "class")  # imports and first calls, off the clock
        few.mkdir(parents=True)
        for k, file in enumerate(files_of(photos)[0][:4]):
            few.joinpath(f"{k}.jpg").symlink_to(Path(file).resolve())
        convert(job, str(few.parent), f"{folder}/few.beton")
        before = _cpu_seconds()
        convert(job, photos, f"{folder}/all.beton")
        spent = _cpu_seconds() - before
        size = Path(folder, "all.beton").stat().st_size
    return {"images_per_cpu_s": count / spent, "mb": size / 1e6}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _run(job: str, photos: str) -> dict[str, float]:
    command = [sys.executable, __file__, photos, "--job", job]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", help="PHOTOS/CLASS/*.jpg")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", choices=sum(JOBS.values(), ()), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        print(json.dumps(measure(asked.job, asked.photos)))
        return
    if asked.json is None:
        parser.error("--json OUT is missing")
    if not files_of(asked.photos)[0]:
        parser.error(f"{asked.photos}: holds no DIR/CLASS/*.jpg")
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    jobs = [job for pair in JOBS.values() for job in pair]
    found: dict[str, list[dict[str, float]]] = {job: [] for job in jobs}
    for number in range(asked.rounds + 1):
        for job in random.sample(jobs, len(jobs)):
            figures = _run(job, asked.photos)
            if number:  # the first is the warm-up
                found[job].append(figures)
                print(f"round {number}: {job} {figures['images_per_cpu_s']:.0f}", file=sys.stderr)
    result: dict[str, Any] = {"results": [_row(name, *pair, found) for name, pair in JOBS.items()]}
    result["environment"] = environment(1) | {"began": began}
    result["protocol"] = {
        "command": command(),
        "images": len(files_of(asked.photos)[0]),
        "rounds": asked.rounds,
        "notes": (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
    }
    asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _row(
    name: str, ours: str, peer: str, found: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    rates = {job: [f["images_per_cpu_s"] for f in found[job]] for job in (ours, peer)}
    pairs = zip(rates[ours], rates[peer], strict=True)
    return {
        "conversion": name,
        "images_per_cpu_s": {"ours": spread(rates[ours]), "ffcv": spread(rates[peer])},
        "mb": {"ours": round(found[ours][0]["mb"], 2), "ffcv": round(found[peer][0]["mb"], 2)},
        "ratio": spread([a / b for a, b in pairs]),
    }


if __name__ == "__main__":
    main()
