"""Whether the crop of pretraining gives the place of a patch away: one task, cropped in three ways.

    python benchmarks/shortcut.py RUN ... --step 1000 --json benchmarks/results/shortcut.json

Each RUN is of `fastselfie train CONFIG --stage pretrain pretrain.pad_mode=MODE`, and has a
checkpoint of that step. Every network is asked for the patches of the same held-out images, with
the same masks: as they are, and shifted and flipped as each mode's training does. One that is far
more often right under its own crop has learned the crop's edge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from arguments import Parser, above_zero, result_file
from conditions import command

from fastselfie.checkpoint import Checkpoint, load_checkpoint, step_paths
from fastselfie.data.loaders import build_loader
from fastselfie.data.sources import open_dataset
from fastselfie.device import choose_machine
from fastselfie.doctor import environment
from fastselfie.errors import UserError
from fastselfie.evaluate import pretext_accuracy
from fastselfie.measure import measuring_pixels
from fastselfie.run import PRETRAIN, open_run, pretrained_of

_CROPS = {"as they are": None, "zero": "zero", "reflect": "reflect"}


def measure(run: Path, step: int) -> dict[str, Any]:
    """Pretext accuracy of a run's network on all held-out images, under each crop.

    Raises:
        UserError: not a run, or one without a checkpoint of that step.
    """
    config = open_run(run)
    path = step_paths(run / PRETRAIN).get(step)
    if path is None:
        raise UserError(f"{run}: has no checkpoint of step {step}: give another --step")
    machine, dataset = choose_machine(config.runtime), open_dataset(config.data, config.seed)
    network = pretrained_of(config, Checkpoint(path, load_checkpoint(path)))
    machine.place(network)
    pixels = measuring_pixels(config, machine, len(dataset.train.classes))
    found = {}
    for name, mode in _CROPS.items():
        data = config.data.model_copy(update={"pad_mode": mode or "none"})
        loader = build_loader(dataset.held_out, data, config.seed, machine.device)
        augment = mode is not None
        measured = pretext_accuracy(
            network, loader, pixels, machine, config.patches, len(loader), augment
        )
        found[name] = measured["pretext_accuracy"]
    return {
        "pad_mode": config.pretraining_data.pad_mode,
        "step": step,
        "of_steps": config.pretrain.steps,
        "images": len(dataset.held_out),
        "chance": 1 / config.masked,
        "accuracy": found,
        "config": config.model_copy(
            update={"data": config.data.model_copy(update={"train": None, "test": None})}
        ).model_dump(mode="json"),
        "environment": environment(machine.device),
    }


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--json", required=True, metavar="OUT")
    options = parser.parse_args()
    above_zero(options, "step")
    path = result_file(options.json)
    results = [measure(run, options.step) for run in options.runs]
    result = {
        "claim": "pretext accuracy of the same held-out images and masks, by the padding that a "
        "network was pretrained with and by how the images are cropped",
        "command": command(),
        "results": results,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
