"""Turn finished `fastselfie reproduce` folders into a committed result: table, curves, picture.

python benchmarks/reproduce.py MAIN [ABLATION ...] --name reproduce-cifar10

MAIN is the folder whose table is shown. An ABLATION differs from it in some keys, for example
pretrain.pad_mode=zero, and was made with --control MAIN or finetune.control=false. Writes
results/NAME.json, and NAME.png with the curves. With --picture it also writes the mask prediction;
use that only for images that may be published.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image
from quickstart import RESULTS, picture
from support.arguments import Parser

from fastselfie.config import differing_keys
from fastselfie.config.load import recorded_config
from fastselfie.errors import UserError
from fastselfie.report.curves import points_of
from fastselfie.reproduce.provenance import SECTIONS
from fastselfie.reproduce.scheduler import RUNS
from fastselfie.reproduce.table import (
    FEATURES_HEAD,
    HEAD,
    JSON,
    cells,
    feature_cells,
    pretext_line,
)
from fastselfie.runs.doctor import environment
from fastselfie.stage_names import FINETUNED, SUPERVISED
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.metrics_log import read_log

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")  # Okabe and Ito's
_PANELS = (
    ("loss", "training loss, nats"),
    ("heldout_loss", "test loss, nats"),
    ("top1", "test top-1"),
)


def result_of(folders: Sequence[Path], command: str) -> dict[str, Any]:
    """Return the table of the first folder and all trials of all folders, without local paths.

    Args:
        folders: Folders of reproductions, the main one first.
        command: The command that makes this result.

    Raises:
        UserError: A folder has no table yet.
    """
    tables = [_table(folder) for folder in folders]
    main = tables[0]
    config = recorded_config(json.dumps(main["config"]), folders[0] / JSON)
    rows = main["rows"]
    several = f"{len(main['seeds'])} seeds" if len(main["seeds"]) > 1 else "one seed"
    shares = ", ".join(f"{row['labels']:g}%" for row in rows)
    return {
        "claim": f"{main['name']}: P finetuned and the same network from scratch at "
        f"{shares} of the labels, {several}, as in the "
        "paper's Table 1",
        "command": command,
        "environment": environment(choose_accelerator(config.runtime).device),
        **_shown(main),
        "notes": main["notes"],
        "main": main,
        "ablations": [
            {
                "changes": differing_keys(main["config"], table["config"], SECTIONS),
                **_shown(table),
                **table,
            }
            for table in tables[1:]
        ],
    }


def _shown(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a table that the README shows."""
    return {
        "table": {"head": list(HEAD), "rows": [cells(row) for row in table["rows"]]},
        "pretext": pretext_line(dict(table)),
        "learned": {"head": list(FEATURES_HEAD), "rows": feature_cells(dict(table))},
    }


def _table(folder: Path) -> dict[str, Any]:
    path = folder / JSON
    if not path.is_file():
        raise UserError(f"{folder}: has no {JSON}: finish `fastselfie reproduce --out {folder}`")
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)["config"]["data"]
    for key in ("train", "test"):
        if data[key]:
            text = text.replace(json.dumps(data[key])[1:-1], f"DATA/{Path(data[key]).name}")
    table: dict[str, Any] = json.loads(text)
    return table


def curves(folders: Sequence[Path], tables: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Plot loss, test loss and test accuracy at the fewest labels, mean over seeds.

    Args:
        folders: Folders of reproductions, the one with the supervised runs first. Each gives a
            line, with its own name if there are several.
        tables: Their tables.
    """
    from matplotlib.figure import Figure

    labels = min(row["labels"] for row in tables[0]["rows"])
    names = [folder.name for folder in folders] if len(folders) > 1 else [FINETUNED]
    pairs = list(zip(folders, tables, strict=True))
    lines: list[tuple[Path, Mapping[str, Any], str, str]]
    lines = [(*pairs[0], SUPERVISED, SUPERVISED)]
    lines += [(*each, FINETUNED, name) for each, name in zip(pairs, names, strict=True)]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for (folder, table, start, name), colour in zip(lines, cycle(_COLOURS), strict=False):
            logs = [
                dict(points_of(read_log(folder / RUNS / run / "log.jsonl"), key))
                for run in (f"labels-{labels:g}/{start}/seed-{seed}" for seed in table["seeds"])
            ]
            steps = sorted(set.intersection(*(set(log) for log in logs)))
            if steps:
                values = [mean(log[step] for log in logs) for step in steps]
                axes.plot(steps, values, color=colour, label=name)
        axes.set_xlabel("step")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    name = tables[0]["name"]
    figure.suptitle(f"{name}, {labels:g}% of the labels, mean over seeds", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")


def stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Stack two images on a white background."""
    width = max(upper.width, lower.width)
    canvas = Image.new("RGB", (width, upper.height + lower.height), "white")
    canvas.paste(upper, ((width - upper.width) // 2, 0))
    canvas.paste(lower, ((width - lower.width) // 2, upper.height))
    return canvas


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--name", required=True)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args(arguments)
    names = " ".join(folder.name for folder in options.folders)
    command = f"python benchmarks/reproduce.py {names} --name {options.name}"
    command += " --picture" if options.picture else ""
    result = result_of(options.folders, command)
    path = RESULTS / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    image = curves(options.folders, [result["main"], *result["ablations"]])
    if options.picture:
        image = stacked(image, picture(options.folders[0]))
    image.save(RESULTS / f"{options.name}.png", optimize=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
