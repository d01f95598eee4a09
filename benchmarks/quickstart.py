"""Turn a finished quickstart run into the committed result: figures, conditions and the picture.

make quickstart && python benchmarks/quickstart.py runs/quickstart

Writes benchmarks/results/quickstart.json and quickstart.png.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from support.arguments import Parser
from support.script import run_script

from fastselfie.runs.doctor import environment
from fastselfie.runs.load import open_run
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.metrics_log import read_log

RESULTS = Path(__file__).parent / "results"
_HEAD, _GAP, _IMAGES = 44, 12, 4


def picture(run: Path) -> Image.Image:
    """The mask-prediction columns side by side under their steps, the originals last."""
    folder = run / "pretrain" / "pictures"
    accuracy = {x["step"]: x["pretext_accuracy"] for x in read_log(run / "pretrain" / "log.jsonl")
                if "pretext_accuracy" in x}  # fmt: skip
    titles = {
        path: f"step {int(path.stem)}\n{accuracy[int(path.stem)]:.0%} right"
        for path in sorted(folder.glob("[0-9]*.png"))
    }
    titles[folder / "original.png"] = "original"
    columns = [Image.open(path) for path in titles]
    width, side = columns[0].size[0], columns[0].size[0]
    height = _HEAD + _IMAGES * (side + 6) + _GAP
    canvas = Image.new("RGB", (len(columns) * (width + _GAP) + _GAP, height), (48, 54, 61))
    draw = ImageDraw.Draw(canvas)
    for index, (title, column) in enumerate(zip(titles.values(), columns, strict=True)):
        left = _GAP + index * (width + _GAP)
        draw.multiline_text((left, 8), title, fill="white", font=ImageFont.load_default(13))
        shown = column.crop((0, 0, width, _IMAGES * (side + 6) - 6))
        canvas.paste(shown, (left, _HEAD))
    return canvas


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    run = parser.parse_args().run
    config = open_run(run)
    figures = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figures.pop("report")  # a path of the machine's
    result = {
        "claim": "make quickstart: pretrain, finetune and the control, one run, seed "
        f"{config.seed}",
        "command": "make quickstart",
        "figures": figures,
        "chance": 1 / config.masked,
        "labels": config.finetune.labels,
        "environment": environment(choose_accelerator(config.runtime).device),
        "config": config.model_dump(mode="json"),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "quickstart.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    picture(run).save(RESULTS / "quickstart.png", optimize=True)


if __name__ == "__main__":
    run_script(main)
