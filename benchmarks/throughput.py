"""Measure the images/s of our loaders and of other libraries, in alternating rounds.

python benchmarks/throughput.py --data FILE.beton --folder DIR \\
    --loaders native,ffcv,dali-cpu,folder --threads 2 --json OUT
python benchmarks/throughput.py --raw FILE.beton --threads 2 --json OUT    # small raw images
python benchmarks/throughput.py --data FILE.beton --loaders native,decoder --json OUT

Prints a table and the ratios, writes OUT and a plot beside it. --end-to-end CONFIG also measures
the loader, the training step and both together, which shows the bottleneck. run_all.sh makes every
table. The last line above compares `Loader` with its C++ engine driven by hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from support.arguments import Parser, above_zero, chosen, result_file
from support.conditions import command, environment, named
from support.contenders import CONTENDERS, Spec
from support.image_folder import shards_of
from support.peers import look_up
from support.rounds import Round, Worker, alternate, spread
from support.script import run_script, say
from support.showing import plot, print_table

from fastselfie.errors import UserError

if TYPE_CHECKING:
    from fastselfie.config import Config

_FILE_LOADERS = "native,ffcv,dali-cpu,folder"
_RAW_LOADERS = "resident,ffcv-raw"


def main(arguments: list[str]) -> None:
    options = _parse(arguments)
    specs = _specs(options)
    load = os.getloadavg()
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(spec, options)) for spec in specs]
        found = alternate(workers, options.rounds, options.seconds, say)
    read = {spec.loader: _cold_read(spec, options) for spec in specs} if options.cold else {}
    result = _result(found, specs, read)
    if options.end_to_end:
        result["end_to_end"] = _end_to_end(options)
    result["environment"] = environment(options.threads) | {
        "began": began,
        "load_average": {"start": load, "end": os.getloadavg()},
    }
    if "torchvision" in found:
        versions = look_up("torchvision", ["torchvision", "torch"], options.torchvision).versions
        result["environment"]["torchvision"] = versions
    result["protocol"] = _protocol(options, specs)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_table(result)
    if _installed("matplotlib"):
        plot(result, options.json.with_suffix(".png"))
    else:
        say("no plot: pip install matplotlib")


# --- what to run ------------------------------------------------------------------------------


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", help=".beton file with JPEGs, for native and ffcv")
    add("--ffcv-data", help="another .beton file for ffcv, say of its own writer; default: --data")
    add("--folder", help="DIR/CLASS/*.jpg for the other peers; made of the .beton where missing")
    add("--raw", help=".beton file with raw images; made of noise where missing")
    add("--loaders", help=f"of {', '.join(CONTENDERS)}; the ratios are of the first to the others")
    add("--mode", choices=["train", "eval"], default="train", help="random or central crop")
    add("--size", type=int, help="pixels, default 224; with --raw the images' own")
    add("--batch", type=int, help="default 100; with --raw 512")
    add("--threads", type=int, default=2, help="of each loader, or worker processes")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=3.0, help="the least of a round")
    add("--torchvision", metavar="PYTHON", help="the interpreter that has torchvision")
    add("--cold", action="store_true", help="also measure MB read an image, from a cold cache")
    add("--end-to-end", metavar="CONFIG", help="also loader, step and both on --data")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="of the config")
    add("--title", default="", help="for the plot and the README's table")
    add("--json", required=True, metavar="OUT")
    options = parser.parse_args(arguments)
    above_zero(options, "threads", "rounds", "seconds")
    options.json = result_file(options.json)
    if bool(options.data) == bool(options.raw):
        raise UserError("give either --data FILE.beton or --raw FILE.beton")
    if options.end_to_end and not options.data:
        raise UserError("--end-to-end needs --data FILE.beton")
    return options


def _specs(options: argparse.Namespace) -> list[Spec]:
    """A Spec for each loader, its inputs checked and made where they can be."""
    asked = options.loaders or (_RAW_LOADERS if options.raw else _FILE_LOADERS)
    names = chosen("--loaders", asked, CONTENDERS)
    for name in names:
        if (name in _RAW_LOADERS.split(",")) != bool(options.raw):
            raise UserError(f"--loaders: {name} does not go with {'--raw' if options.raw else ''}"
                            f"{'--data' if options.data else ''}")  # fmt: skip
        package = CONTENDERS[name].package
        there = _installed(package)
        if name == "torchvision" and options.torchvision:
            there = not look_up(package, [], options.torchvision).problem
        if not there:
            raise UserError(f"{name}: the package {package} is not installed: "
                            "see benchmarks/README.md, or leave it out of --loaders")  # fmt: skip
    from support import inputs

    from fastselfie.data.beton.reader import BetonReader

    if options.raw and not Path(options.raw).exists():
        say(f"making {options.raw}: 50,000 images of noise")
        inputs.make_noise(options.raw)
    data = options.raw or options.data
    reader = BetonReader(data)  # a missing or damaged file is told here
    needs_folder = any(CONTENDERS[name].reads == "folder" for name in names)
    stock = options.ffcv_data or data
    BetonReader(stock)
    if needs_folder and not options.folder:
        raise UserError("--folder DIR is missing: the peers other than ffcv read image files")
    if needs_folder and not Path(options.folder).exists():
        say(f"making {options.folder}: the JPEGs of {stock}")
        inputs.make_folder(stock, options.folder)
    if needs_folder and not any(Path(options.folder).glob("*/*")):
        raise UserError(f"--folder {options.folder}: holds no DIR/CLASS/*.jpg")
    if "webdataset" in names and not Path(shards_of(options.folder)).exists():
        say(f"making {shards_of(options.folder)}: tar shards of {options.folder}")
        inputs.make_shards(options.folder)
    size = options.size or (int(reader.width[0]) if options.raw else 224)
    batch = options.batch or (512 if options.raw else 100)
    train = options.mode == "train"
    base = Spec("", data, options.folder or "", size, train, batch, options.threads)
    return [replace(base, loader=n, data=stock if n == "ffcv" else data) for n in names]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _worker(spec: Spec, options: argparse.Namespace) -> Worker:
    return Worker(spec, options.torchvision if spec.loader == "torchvision" else None)


def _cold_read(spec: Spec, options: argparse.Namespace) -> float:
    """MB an image that a first pass brings from the disk into the page cache.

    After the rounds, when nobody maps the files any more.
    """
    from support import cache

    from fastselfie.data.beton.reader import BetonReader

    paths = [Path(spec.data)]
    if CONTENDERS[spec.loader].reads == "folder":
        root = shards_of(spec.folder) if spec.loader == "webdataset" else spec.folder
        paths = [p for p in Path(root).rglob("*") if p.is_file()]
    images = len(BetonReader(spec.data))
    cache.forget(paths)
    before = cache.resident(paths)
    with _worker(replace(spec, epoch=1), options) as worker:
        worker.take(images)
    return round((cache.resident(paths) - before) / 1e6 / images, 5)


# --- what to say ------------------------------------------------------------------------------


def _result(
    found: dict[str, list[Round]], specs: list[Spec], read: dict[str, float]
) -> dict[str, Any]:
    results = [
        {
            "loader": name,
            "images_per_s": spread([r.rate for r in rounds]),
            "cpu_ms_per_image": float(f"{median(r.cpu_ms for r in rounds):.5g}"),
            "peak_rss_mb": round(max(r.peak_mb for r in rounds), 1),
            "pss_mb": round(max(r.pss_mb for r in rounds), 1),
            "mb_read_per_image": read.get(name),
            "idle_cpu": round(max(r.idle_cpu for r in rounds), 4),
            "others_cpu": round(median(r.others_cpu for r in rounds), 3),
            "rounds": [round(r.rate, 2) for r in rounds],
        }
        for name, rounds in found.items()
    ]
    first, *others = [spec.loader for spec in specs]
    ratios, cpu_ratios = {}, {}
    for other in others:
        pairs = list(zip(found[first], found[other], strict=True))
        ratios[f"{first}/{other}"] = spread([a.rate / b.rate for a, b in pairs])
        cpu_ratios[f"{other}/{first}"] = spread([b.cpu_ms / a.cpu_ms for a, b in pairs])
    return {"results": results, "ratios": ratios, "cpu_ratios": cpu_ratios}


def measure_training(config: Config, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure the loader alone, the step alone on random pixels, and both together.

    Returns:
        Images/s of each over alternating rounds, and "binding", the slower of loader and step.
    """
    from fastselfie.data.dataset import open_dataset
    from fastselfie.data.loaders import build_loader
    from fastselfie.profiling.rates import measure_rates
    from fastselfie.system.accelerator import choose_accelerator
    from fastselfie.training.pretrain import build_pretraining

    accelerator = choose_accelerator(config.runtime)
    source = open_dataset(config.data, config.seed).train
    step = build_pretraining(config, accelerator).step
    loader = build_loader(source, config.data, config.seed, accelerator.device)
    found = measure_rates(config, source, loader, step, rounds, seconds)
    return {
        "config": config.name,
        "batch_size": config.pretrain.batch_size,
        "image_size": config.data.image_size,
        **found.pop("rates"),
        **found,
    }


def _end_to_end(options: argparse.Namespace) -> dict[str, Any]:
    from fastselfie.config.load import load_config

    sets = [f"data.train={options.data}", "data.loader=native",
            f"data.workers={options.threads}"]  # fmt: skip
    config = load_config(options.end_to_end, [*sets, *options.set])
    say(f"end to end: {config.name}")
    # As `fastselfie train` sets it. OpenMP reads it once, where torch is imported: hence a process
    # of its own, and after the peers have run as their own users run them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        result = alone.submit(measure_training, config, options.rounds, options.seconds).result()
    words = ["--end-to-end", named(options.end_to_end), *options.set]
    return result | {"command": " ".join(words)}


def _protocol(options: argparse.Namespace, specs: list[Spec]) -> dict[str, Any]:
    return {
        "title": options.title,
        "command": command(),
        "rounds": options.rounds,
        "seconds_a_round": options.seconds,
        "loaders": {
            spec.loader: asdict(replace(spec, data=named(spec.data), folder=named(spec.folder)))
            for spec in specs
        },
        "notes": [
            "Each loader has a process of its own, made once. Rounds alternate, in an order drawn "
            "anew each time; the other processes are blocked meanwhile (idle_cpu: cores they used "
            "while blocked, at the most; others_cpu: cores that programs other than the "
            "benchmarked loader used during its rounds, in the median).",
            "A round: 8 batches off the clock, then whole batches for at least seconds_a_round. "
            "One round warms up and is not counted.",
            "Ratios are medians of paired rounds. CPU is user + system of the process tree. Peak "
            "memory is the greatest resident size of each process of the tree, summed.",
            "Peers run with stock decoders and shipped defaults, threads equal. A small set is "
            "listed many times over, so that no round has an epoch's end in it (ffcv-raw has: its "
            "epochs are CIFAR-10's). ffcv reads --ffcv-data, ffcv-shared the file that native "
            "reads. Everything gives uint8 batches; nobody flips, but resident and ffcv-raw do.",
            "mb_read_per_image: what a first pass brings into a page cache without the files, "
            "the kernel's read-ahead included.",
        ],
    }


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
