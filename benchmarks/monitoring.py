"""Measure what k-NN and the linear probe cost beside training, as a share of the training time.

python benchmarks/monitoring.py --data data/fashion-mnist --json OUT

Each round takes some training steps and then evaluates P once, in one process. In the result, step
is one step; extract is the features of all images of an evaluation; knn and probe are what is done
with them. Each has wall seconds and CPU seconds; other programs do not stretch the latter. share is
the CPU seconds of an evaluation over those of the knn_every steps between two. "On all images" is
what `fastselfie evaluate` does: 10,000 features compared with all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

from support.arguments import Parser, above_zero, chosen, result_file
from support.conditions import command, environment
from support.rounds import spread
from support.script import run_script

Value = TypeVar("Value")

_SLIM = ("model.width=16", "model.blocks=[1,2,2,1]")


class Spent(NamedTuple):
    """Seconds that passed, and those of all threads."""

    seconds: float
    cpu: float


class Case(NamedTuple):
    """A config, what of it is set, training steps a round, and rounds."""

    config: str
    sets: tuple[str, ...]
    steps: int
    rounds: int


CASES = {
    "quickstart": Case("configs/quickstart.yaml", (), 20, 3),
    "slim cifar10": Case("configs/cifar10.yaml", _SLIM, 2, 2),
    "slim cifar10 on all images": Case(
        "configs/cifar10.yaml",
        (*_SLIM, "pretrain.knn_images=50000", "pretrain.knn_queries=10000"),
        2,
        1,
    ),
}


def main() -> None:
    options = _parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `fastselfie train` sets it
    began, load = time.strftime("%Y-%m-%d %H:%M:%S %z"), os.getloadavg()
    facts = environment(options.threads)
    names = chosen("--cases", options.cases, CASES) if options.cases else list(CASES)
    results = []
    for name in names:
        results.append({"case": name, **measure(CASES[name], options)})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result = {
        "results": results,
        "environment": facts
        | {"began": began, "load_average": {"start": load, "end": os.getloadavg()}},
        "protocol": {
            "command": command(),
            "threads": options.threads,
            "cases": {name: CASES[name]._asdict() for name in names},
            "notes": (__doc__ or "").split("\n\n")[-1].replace("\n", " ").strip(),
        },
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds of steps and measures."""
    from fastselfie.config.load import load_config
    from fastselfie.data.dataset import open_dataset
    from fastselfie.data.loaders import build_loader
    from fastselfie.evaluation.knn import knn_accuracy
    from fastselfie.evaluation.online import Monitor
    from fastselfie.evaluation.probes import linear_probe_accuracy
    from fastselfie.evaluation.representations import extract_features
    from fastselfie.system.accelerator import choose_accelerator
    from fastselfie.training.pretrain import build_pretraining

    sets = (f"data.train={options.data}", f"runtime.threads={options.threads}", *case.sets)
    config = load_config(case.config, sets)
    settings = config.pretrain
    accelerator, dataset = (
        choose_accelerator(config.runtime),
        open_dataset(config.data, config.seed),
    )
    built = build_pretraining(config, accelerator)
    model, pixels, step = built.model, built.pixels, built.step
    train = build_loader(dataset.train, config.data, config.seed, accelerator.device)
    monitor = Monitor(config, dataset, pixels)
    took: dict[str, list[Spent]] = {"step": [], "extract": [], "knn": [], "probe": []}
    with closing(train.stream(0, settings.batch_size)) as batches:

        def steps() -> None:
            for number in range(case.steps):
                step(number, next(batches))
            step.read()  # waits: the clock must not run ahead of a GPU

        steps()  # warms up
        for _ in range(case.rounds):
            spent, _ = _timed(steps)
            took["step"].append(Spent(spent.seconds / case.steps, spent.cpu / case.steps))
            spent, (bank, queries) = _timed(
                lambda: [
                    extract_features(model.patch_network, loader, pixels)
                    for loader in (monitor.bank, monitor.queries)
                ]
            )
            took["extract"].append(spent)
            took["knn"].append(_timed(lambda: knn_accuracy(*bank, *queries))[0])  # noqa: B023
            took["probe"].append(
                _timed(lambda: linear_probe_accuracy(*bank, *queries))[0]  # noqa: B023
            )
    found = {
        name: {
            "seconds": spread([one.seconds for one in every]),
            "cpu_seconds": spread([one.cpu for one in every]),
        }
        for name, every in took.items()
    }
    cpu = {name: each["cpu_seconds"]["median"] for name, each in found.items()}
    cost = cpu["extract"] + cpu["knn"] + cpu["probe"]
    assert settings.knn_every is not None
    return {
        "images": len(monitor.bank),
        "queries": len(monitor.queries),
        "width": config.model.embedding_width,
        "knn_every": settings.knn_every,
        "batch_size": settings.batch_size,
        **found,
        "share": float(f"{cost / settings.knn_every / cpu['step']:.3g}"),
    }


def _timed(work: Callable[[], Value]) -> tuple[Spent, Value]:
    begun, cpu = time.perf_counter(), time.process_time()
    value = work()
    return Spent(time.perf_counter() - begun, time.process_time() - cpu), value


def _parse() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--data", default="data/fashion-mnist", help="a set of 32x32 images with labels")
    add("--cases", help=f"of {'; '.join(CASES)}: one")
    add("--threads", type=int, default=2)
    add("--json", required=True, metavar="OUT")
    options = parser.parse_args()
    above_zero(options, "threads")
    options.json = result_file(options.json)
    return options


if __name__ == "__main__":
    run_script(main)
