"""Measure JPEG decoders called from Python on whole images, in alternating rounds.

python benchmarks/decode.py --data PHOTOS --torchvision PYTHON --json OUT

The photographs are decoded as they are and after a lossless transcoding. First one thread decodes
in a plain loop, by CPU time. Then each decoder runs inside a torch DataLoader with 0, 1 and 2
workers, by wall clock: figures of one thread misrank decoders there (arXiv 2605.08731). A decoder
that cannot be imported is left out and named. torchvision may need an interpreter of its own, whose
torch fits it: --torchvision. See benchmarks/README.md for the packages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.arguments import Parser, above_zero, chosen, result_file
from support.conditions import command, environment
from support.decode_tables import print_decode_tables
from support.decoders import BATCH, DECODERS, DecodeJob
from support.peers import look_up
from support.rounds import Round, Worker, alternate, spread
from support.script import run_script, say

from fastselfie.errors import UserError

BASELINE = "simplejpeg"
_SUFFIXES = {".jpg", ".jpeg"}
_NOTES = [
    "Each decoder has a process of its own, started the same way; torchvision's may be another "
    "interpreter. Rounds alternate in a random order; the other processes are blocked meanwhile. "
    "A process reads all files into memory first. A round decodes whole passes over the files for "
    "at least seconds_a_round, after one pass or more off the clock. One round warms up and is not "
    "counted.",
    "workers null: a plain loop on one thread; images_per_s is by CPU time, user and system, from "
    "the clock of the process. workers 0, 1, 2: a torch DataLoader that gives lists of arrays, "
    "through pickle and a pipe where workers is above 0; images_per_s is by wall clock.",
    "Every decoder gives an array (H, W, 3), uint8, RGB, by its default settings. A ratio is the "
    "median of paired rounds.",
]


def main(arguments: list[str]) -> None:
    options = _parse(arguments)
    load, began = os.getloadavg(), time.strftime("%Y-%m-%d %H:%M:%S %z")
    versions, left_out = _find(options)
    if not versions:
        raise UserError(f"--decoders {options.decoders}: none can be imported")
    measurements = []
    with TemporaryDirectory() as folder:
        inputs, files = _read_inputs(options, Path(folder))
        for name, paths in inputs.items():
            for workers in (None, *options.workers):
                found = _measure(options, list(versions), paths, files["shapes"], workers)
                measurements.append({"input": name, "workers": workers, **_summary(found, workers)})
    result = {
        "measurements": measurements,
        "versions": versions,
        "left_out": left_out,
        "files": {key: value for key, value in files.items() if key != "shapes"},
        "environment": environment(1)
        | {"began": began, "load_average": {"start": load, "end": os.getloadavg()}},
        "protocol": {
            "command": command(),
            "rounds": options.rounds,
            "seconds_a_round": options.seconds,
            "batch": BATCH,
            "notes": _NOTES,
        },
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_decode_tables(result)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder of photographs, with any subfolders")
    add("--images", type=int, default=400, help="how many of them, evenly spaced by name")
    add("--decoders", default=",".join(DECODERS), help=f"default: {','.join(DECODERS)}")
    add("--torchvision", metavar="PYTHON", help="the interpreter that has torchvision")
    add("--workers", default="0,1,2", help="of the DataLoader, one measurement each; '' for none")
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=2.0, help="the least of a round")
    add("--json", required=True, metavar="OUT")
    options = parser.parse_args(arguments)
    above_zero(options, "images", "rounds", "seconds")
    options.decoders = chosen("--decoders", options.decoders, DECODERS)
    if not all(word.isdecimal() for word in filter(None, options.workers.split(","))):
        raise UserError(f"--workers {options.workers}: give numbers, for example 0,1,2")
    options.workers = [int(word) for word in filter(None, options.workers.split(","))]
    options.json = result_file(options.json)
    return options


def _python(options: argparse.Namespace, name: str) -> str | None:
    """Return the interpreter of a decoder if it is not this one."""
    return options.torchvision if name == "torchvision" else None


def _find(options: argparse.Namespace) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the versions of what each decoder uses, and why the others are left out."""
    versions, left_out = {}, {}
    for name in options.decoders:
        decoder = DECODERS[name]
        peer = look_up(decoder.module, [decoder.package, "torch"], _python(options, name))
        if peer.problem:
            left_out[name] = peer.problem
            say(f"{name} is left out: {peer.problem}")
        else:
            versions[name] = peer.versions
    return versions, left_out


def _read_inputs(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    """Choose the photographs, and transcode them into `folder`.

    Returns:
        Paths by the name of the input, and facts about the files.
    """
    from fastselfie.kernels import jpeg

    every = sorted(p for p in Path(options.data).rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not every:
        raise UserError(f"--data {options.data}: holds no .jpg or .jpeg file")
    count = min(options.images, len(every))
    paths = [every[k * len(every) // count] for k in range(count)]
    originals, transcoded, shapes, refused = [], [], [], 0
    for k, path in enumerate(paths):
        data = path.read_bytes()
        try:
            rewritten = jpeg.transcode(data)
        except jpeg.JpegError:  # CMYK or damaged: not what a decoder is chosen for
            refused += 1
            continue
        header = jpeg.read_header(data)
        shapes.append((header.height, header.width, 3))
        originals.append(path)
        transcoded.append(folder / f"{k:06}.jpg")
        transcoded[-1].write_bytes(rewritten)
    if not originals:
        raise UserError(f"--data {options.data}: no file can be transcoded: give photographs")
    facts = {
        "photographs": len(originals),
        "not_transcodable": refused,
        "megapixels": round(sum(h * w for h, w, _ in shapes) / 1e6, 3),
        "megabytes": {
            "originals": round(sum(p.stat().st_size for p in originals) / 1e6, 3),
            "transcoded": round(sum(p.stat().st_size for p in transcoded) / 1e6, 3),
        },
        "shapes": tuple(shapes),
    }
    inputs = {"originals": originals, "transcoded": transcoded}
    return {name: tuple(map(str, some)) for name, some in inputs.items()}, facts


def _measure(
    options: argparse.Namespace,
    names: list[str],
    paths: tuple[str, ...],
    shapes: tuple[tuple[int, int, int], ...],
    workers: int | None,
) -> dict[str, list[Round]]:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                Worker(DecodeJob(name, paths, shapes, workers), _python(options, name))
            )
            for name in names
        ]
        return alternate(processes, options.rounds, options.seconds, say)


def _summary(found: dict[str, list[Round]], workers: int | None) -> dict[str, Any]:
    """Rates of every decoder, and their ratios to simplejpeg where that was measured."""
    rates = {
        name: [r.images / r.cpu if workers is None else r.rate for r in rounds]
        for name, rounds in found.items()
    }
    results = [
        {
            "decoder": name,
            "images_per_s": spread(rates[name]),
            "cpu_ms_per_image": spread([r.cpu_ms for r in rounds]),
            "peak_rss_mb": round(max(r.peak_mb for r in rounds), 1),
            "idle_cpu": round(max(r.idle_cpu for r in rounds), 4),
            "others_cpu": spread([r.others_cpu for r in rounds])["median"],
            "rounds": [round(rate, 2) for rate in rates[name]],
        }
        for name, rounds in found.items()
    ]
    ratios = {
        f"{name}/{BASELINE}": spread(
            [a / b for a, b in zip(rates[name], rates[BASELINE], strict=True)]
        )
        for name in rates
        if name != BASELINE and BASELINE in rates
    }
    return {"clock": "CPU" if workers is None else "wall", "results": results, "ratios": ratios}


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
