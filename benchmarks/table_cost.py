"""Estimate what the paper's Table 1 costs on GPUs: hours, GPU-hours, and where it stops scaling.

python benchmarks/table_cost.py --json OUT

The rates are those of `fastselfie reproduce --plan`: nothing here is measured. Evaluation,
checkpoints, start-up and decoding are not counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.arguments import Parser, result_file
from support.conditions import command
from support.script import run_script

from fastselfie.config.load import load_config
from fastselfie.profiling.estimate import Target, paper_rates
from fastselfie.reproduce.forecast import ForecastRates, finetuning_rounds, seconds_each
from fastselfie.reproduce.protocol import make_protocol
from fastselfie.reproduce.scheduler import Scheduler

_GPU = "H100"
_GPUS = (8, 64, 8000)
# Shares of the labels and classes of the paper's Table 1.
_TABLES = {"cifar10": ("5,8,20,100", 10), "in32": ("5,10,20,100", 1000),
           "in224": ("5,10,20,100", 1000)}  # fmt: skip
_SEEDS = 5


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", required=True, metavar="OUT")
    path = result_file(parser.parse_args().json)
    result = {
        "claim": f"the paper's Table 1 on {_GPU}s, estimated",
        "command": command(),
        "gpu": _GPU,
        "rows": [_row(*table) for table in _TABLES.items()],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _row(name: str, table: tuple[str, int]) -> dict[str, Any]:
    labels, classes = table
    config = load_config(name)
    protocol = make_protocol(config, labels, _SEEDS, 1.0)
    pretrain, finetune = paper_rates(config, classes, Target(1, _GPU, 1))
    rates = ForecastRates(pretrain, finetune, 1, "")
    pretraining = config.pretrain.steps * config.pretrain.batch_size / pretrain / 3600
    trial = seconds_each(config, rates) / 3600
    with TemporaryDirectory() as folder:
        scheduler = Scheduler(protocol, Path(folder))
        rounds = {gpus: finetuning_rounds(scheduler, gpus) for gpus in _GPUS}
        trials = scheduler.total
    return {
        "config": name,
        "trials": trials,
        "pretraining_hours": pretraining,
        "trial_hours": trial,
        "gpu_hours": pretraining + trials * trial,
        "hours": {str(gpus): pretraining + count * trial for gpus, count in rounds.items()},
    }


if __name__ == "__main__":
    run_script(main)
