"""Measure which crops of pretraining reveal the place of a patch.

python benchmarks/shortcut.py RUN ... --json benchmarks/results/shortcut.json

Each RUN is a `fastselfie train CONFIG --stage pretrain` with a crop of its own, at any step. Every
network answers the same masks of the same held-out images, in four versions: as they are; shifted
and flipped with zero padding, and with reflect padding, as in training; and with the central square
enlarged, where patches do not coincide with the blocks of JPEG. A network that is right far more
often in one version than in the others uses the border or the blocks of that version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.arguments import Parser, result_file
from support.conditions import command
from support.script import run_script

from fastselfie.config import DataConfig
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.evaluation.metrics import pretext_accuracy
from fastselfie.inference.evaluate_run import measuring_pixels
from fastselfie.runs.doctor import environment
from fastselfie.runs.load import open_run, pretrained_of
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.checkpoint import newest_checkpoint

# What data has in place of its own, and whether images are then cropped as for training.
_CROPS: dict[str, tuple[dict[str, str], bool]] = {
    "as they are": ({"crop": "pad"}, False),
    "shifted, zeros": ({"crop": "pad", "pad_mode": "zero"}, True),
    "shifted, mirrored": ({"crop": "pad", "pad_mode": "reflect"}, True),
    "centre enlarged": ({"crop": "resized"}, False),
}


def measure(run: Path) -> dict[str, Any]:
    """Pretext accuracy of a run's newest network on all held-out images, cropped in each way.

    Raises:
        UserError: not a run, or one without a checkpoint of pretraining.
    """
    config = open_run(run)
    found = newest_checkpoint(run / PRETRAIN, PRETRAIN)
    if found is None:
        raise UserError(f"{run}: has no checkpoint of pretraining")
    accelerator, dataset = (
        choose_accelerator(config.runtime),
        open_dataset(config.data, config.seed),
    )
    network = pretrained_of(config, found)
    accelerator.place(network)
    pixels = measuring_pixels(config, accelerator, len(dataset.train.classes))
    accuracy = {}
    for name, (changes, augment) in _CROPS.items():
        data = config.data.model_copy(update={"loader": "auto", **changes})
        held_out = build_loader(dataset.held_out, data, config.seed, accelerator.device)
        measured = pretext_accuracy(network, held_out, pixels, len(held_out.source), augment)
        accuracy[name] = measured["pretext_accuracy"]
    elsewhere = config.data.model_copy(update={"train": None, "test": None})
    return {
        "crop": _crop_of(config.pretraining_data),
        "step": found.state["step"],
        "of_steps": config.pretrain.steps,
        "images": len(dataset.held_out),
        "chance": 1 / config.masked,
        "accuracy": accuracy,
        "config": config.model_copy(update={"data": elsewhere}).model_dump(mode="json"),
        "environment": environment(accelerator.device),
    }


def _crop_of(data: DataConfig) -> str:
    if data.crop == "resized":
        return f"random resized crop, area {data.area[0]:g} to {data.area[1]:g}"
    how = {"zero": "zeros", "reflect": "mirrored", "none": "no shift"}[data.pad_mode]
    return how if data.pad_mode == "none" else f"shifted by {data.pad}, {how}"


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--json", required=True, metavar="OUT")
    options = parser.parse_args()
    path = result_file(options.json)
    results = [measure(run) for run in options.runs]
    result = {
        "claim": "pretext accuracy of the same held-out images and masks, by the crop that a "
        "network was pretrained with and by how the images are cropped",
        "command": command(),
        "results": results,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
