"""Compare ways to pretrain by what finetuning gains, on training images alone.

python benchmarks/recipe.py --data FILE.beton --out RUNS --only paper,pooled --json OUT

Each candidate of support/recipes.py is a `fastselfie reproduce` of a slim config with some keys
changed. Every seed has its own pretraining, and one finetuning for each share of the labels.
A tenth of the training images is held out, and every figure is measured on those. The dataset must
have no part of its own for that, so that no test image is used. Finished work is kept: the same
command resumes what was stopped. OUT holds all finished candidates of RUNS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from support.arguments import Parser, above_zero, chosen, result_file
from support.conditions import command, environment
from support.recipes import CANDIDATES, PAPER_NAME
from support.script import run_script, say

from fastselfie.data.dataset import open_dataset
from fastselfie.errors import UserError
from fastselfie.report.curves import points_of
from fastselfie.reproduce.table import JSON
from fastselfie.runs.folder import read_facts
from fastselfie.stage_names import PRETRAIN
from fastselfie.training.metrics_log import read_log

_CONFIG = Path(__file__).parents[1] / "configs" / "cifar10-slim.yaml"


def main() -> None:
    options = _parse()
    path = result_file(options.json)
    names = chosen("--only", options.only, CANDIDATES) if options.only else list(CANDIDATES)
    if not open_dataset(options.data).split.startswith("10%"):
        raise UserError(
            f"--data {options.data}: has held-out images of its own: pass training ones"
        )
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    jobs = [(name, seed) for seed in range(options.seeds) for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        ended = pool.map(lambda job: _run(job[0], job[1], options), jobs)
        failed = [text for text in ended if text]
    rows = [row for name in CANDIDATES if (row := _row(name, options.out))]
    result = {
        "claim": "accuracy after finetuning, by how the network was pretrained",
        "command": command(),
        "environment": environment(1) | {"began": began},
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        say(_line(row))
    if failed:
        raise UserError("; ".join(failed))


def _parse() -> Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="training images")
    parser.add_argument("--config", type=Path, default=_CONFIG)
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--only", help=f"candidates, of {', '.join(CANDIDATES)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all of them")
    parser.add_argument("--labels", default="1,5", help="percentages")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--json", required=True, metavar="OUT")
    options = parser.parse_args()
    above_zero(options, "seeds", "jobs")
    return options


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '-')}-{seed}"


def _run(name: str, seed: int, options: Namespace) -> str | None:
    """Run what is left of a candidate with one seed. Return what went wrong."""
    folder = _folder(options.out, name, seed)
    if (folder / JSON).exists():
        return None
    say(f"{name}, seed {seed}: began")
    settings = [f"data.train={options.data}", f"seed={seed}", "runtime.threads=1", *options.set]
    arguments = [*settings, *CANDIDATES[name], "--labels", options.labels, "--seeds", "1"]
    called = [sys.executable, "-m", "fastselfie", "reproduce", str(options.config), *arguments]
    done = subprocess.run(
        [*called, "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    return f"{name}, seed {seed}: {(done.stderr.splitlines() or ['failed'])[-1]}"


def _row(name: str, out: Path) -> dict[str, Any] | None:
    """Return the figures of a candidate, as shares of 1 and one for each seed, if it has any."""
    prefix = _folder(out, name, 0).name.removesuffix("0")
    folders = sorted(f for f in out.glob(prefix + "*") if f.name.removeprefix(prefix).isdigit())
    folders = [folder for folder in folders if (folder / JSON).exists()]
    if not folders:
        return None
    tables = [read_facts(folder / JSON) for folder in folders]
    arms = ("finetuned", "supervised")
    return {
        "name": name,
        "changes": CANDIDATES[name],
        "seeds": [table["config"]["seed"] for table in tables],
        "features": {
            key: [table["features"][key] for table in tables]
            for key in (*_FEATURES, *(_CONTROLS if name == PAPER_NAME else ()))
        },
        "context": {key: [_last(folder, key) for folder in folders] for key in _CONTEXT},
        "pretext_by_images": [_pretext_by_images(folder) for folder in folders],
        "top1": {
            arm: {
                f"{row['labels']:g}": [_top1(table, row["labels"], arm) for table in tables]
                for row in tables[0]["rows"]
                if row[arm]
            }
            for arm in arms
        },
        "config": {k: tables[0]["config"][k] for k in ("model", "pretrain", "finetune")},
    }


_FEATURES = ("pretext_chance", "pretext_accuracy", "p_knn", "p_linear_probe")
# No pretraining changes these.
_CONTROLS = ("random_knn", "pixels_knn", "random_linear_probe")


# The pretext task as it is trained: with the image's own context, with another image's, with none.
_CONTEXT = tuple(f"pretext_accuracy{which}" for which in ("", "_other_context", "_no_context"))


def _last(folder: Path, key: str) -> float:
    """Return the last value in the log of pretraining."""
    return float(points_of(read_log(folder / PRETRAIN / "log.jsonl"), key)[-1][1])


def _pretext_by_images(folder: Path) -> list[tuple[int, float]]:
    """Return (images seen, pretext accuracy on held-out images) of every evaluation."""
    batch = read_facts(folder / JSON)["config"]["pretrain"]["batch_size"]
    points = points_of(read_log(folder / PRETRAIN / "log.jsonl"), "pretext_accuracy")
    return [(step * batch, accuracy) for step, accuracy in points]


def _top1(table: dict[str, Any], labels: float, arm: str) -> float:
    (row,) = (row for row in table["rows"] if row["labels"] == labels)
    return float(row[arm]["mean"])


def _line(row: dict[str, Any]) -> str:
    context = " / ".join(f"{mean(found):.1%}" for found in row["context"].values())
    parts = [f"pretext {context}, chance {row['features']['pretext_chance'][0]:.1%}"]
    parts.append(f"k-NN {mean(row['features']['p_knn']):.1%}")
    for arm, accuracies in row["top1"].items():
        parts += [f"{arm} {labels}%: {mean(found):.1%}" for labels, found in accuracies.items()]
    return f"{row['name']} (seeds {len(row['seeds'])}): {', '.join(parts)}"


if __name__ == "__main__":
    run_script(main)
