"""Run the fault campaign: count the faults that a run survives. Status 1 if anything was lost.

python benchmarks/reliability.py --quick                 # a seeded sample, under 10 minutes
python benchmarks/reliability.py --json benchmarks/results/reliability.json
python benchmarks/reliability.py --only kills,ranks --seed 3

With --json, a part replaces that of an earlier call with the same seed, and the others stay.

A run trains a slim network on 240 small photographs in a .beton file, on the CPU in float32. Its
result must equal that of an uninterrupted run: weights and batch statistics bit for bit, every loss
in the log, the last evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from support.conditions import command, environment
from support.damage import damaged_checkpoints, damaged_images
from support.endurance import memory_over_epochs, saving_cost
from support.faults import dead_ranks, kills, prepares, terminations
from support.ray_faults import ray_prepares, ray_reproductions
from support.scaling import PARAMETERS, estimate_ranks
from support.script import say
from support.slim_run import SlimRun, seconds_to_start

_STEPS = 120
_JOIN = 0.003  # seconds a rank at the rendezvous, assumed: three trips to torchrun's store
_QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


class Part(NamedTuple):
    """whole, quick: how many faults. run(slim, that many, seed)."""

    what: str
    whole: int
    quick: int
    run: Callable[[SlimRun, int, int], dict[str, Any]]


PARTS = {
    "kills": Part("SIGKILL in training and saving", 100, 6, kills),
    "prepare": Part("SIGKILL in `prepare`", 20, 3, prepares),
    "checkpoints": Part("damaged checkpoints", 200, 60, damaged_checkpoints),
    "terms": Part("SIGTERM", 20, 4, terminations),
    "ranks": Part("SIGKILL of a rank, of 2 and of 4", 50, 2, dead_ranks),
    "ray": Part("SIGKILL of nodes, workers and commands, `--engine ray`", 20, 2, ray_reproductions),
    "ray_prepare": Part("SIGKILL in `prepare --engine ray`", 10, 1, ray_prepares),
    "images": Part("damaged images, 5%", 1, 1, lambda slim, _, seed: damaged_images(slim, seed)),
    "memory": Part("epochs: memory and threads", 200, 60,
                   lambda slim, count, _: memory_over_epochs(slim.config, count)),
    "saving": Part("rounds: a save beside the quickstart's steps", 20, 3,
                   lambda slim, count, _: saving_cost(_QUICKSTART, slim.folder / "saves", count)),
}  # fmt: skip


def main() -> int:
    options = _parse()
    folder = Path(tempfile.mkdtemp(prefix="fastselfie-reliability-"))
    slim = SlimRun(folder)
    began = time.strftime("%Y-%m-%d %H:%M:%S %z")
    slim.make(options.seed, _STEPS)
    earlier = _earlier(options)
    found = earlier.get("parts", {})
    machine = earlier.get("environment", environment(1) | {"began": began})
    lost = 0
    for name in options.only:
        part, since = PARTS[name], time.monotonic()
        say(f"{part.what} ...")
        wanted = part.quick if options.quick else part.whole
        result = part.run(slim, wanted, options.seed)
        if result["made"] < wanted:
            result["lost"].append(f"only {result['made']} of {wanted} made")
        found[name] = {"what": part.what, **result, "seconds": round(time.monotonic() - since, 1)}
        # Parts of one file may be of several calls, and of several machines.
        found[name] |= {"command": command(), "processor": environment(1)["processor"]}
        shown = {k: v for k, v in found[name].items() if not isinstance(v, (list, dict))}
        say(f"  {shown}")
        for line in result["lost"]:
            say(f"  LOST {line}")
        lost += len(result["lost"])
        if name == "saving":
            relative = found[name].pop("relative")
            found["paper"] = estimate_ranks(_measured(slim, found[name], relative))
        if options.json:
            _write(options, found, machine)
    if lost:
        say(f"{lost} lost: what they left is in {folder}")
        return 1
    shutil.rmtree(folder)
    say("nothing lost")
    return 0


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    """What an earlier call left in the same file, if it is of the same campaign."""
    if not options.json or not os.path.exists(options.json):
        return {}
    earlier = json.loads(Path(options.json).read_text(encoding="utf-8"))
    same = (earlier["seed"], earlier["quick"]) == (options.seed, options.quick)
    result: dict[str, Any] = earlier if same else {}
    return result


def _write(options: argparse.Namespace, found: dict[str, Any], machine: dict[str, Any]) -> None:
    result = {
        "seed": options.seed,
        "quick": options.quick,
        "parts": {name: found[name] for name in (*PARTS, "paper") if name in found},
        "environment": machine,  # of the first call; each part has its own processor
        "protocol": {"notes": (__doc__ or "").split("\n\n")[-1].strip()},
    }
    Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _measured(slim: SlimRun, saving: dict[str, Any], relative: list[float]) -> dict[str, Any]:
    """The inputs of the estimate for many ranks; the step of in224 on one H100 is an estimate."""
    from fastselfie.config.load import load_config
    from fastselfie.profiling.estimate import Target, estimate

    config = load_config(_QUICKSTART.with_name("in224.yaml"))
    one = estimate(config, Target(1, "H100", 16), None)
    images = 256  # a GPU and step
    return {
        "step_s": images / min(one.compute, one.bandwidth),
        "images_a_gpu": images,
        "relative": relative,
        "start_s": seconds_to_start(slim),
        "join_s": _JOIN,
        # Weights and momentum of the paper's network, at the rate of the copy here.
        "copy_s": saving["stall_ms"] / 1e3 * 8 * PARAMETERS / (saving["mb"] * 1e6),
        "save_every": config.pretrain.save_every,
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer of each")
    add("--seed", type=int, default=0, help="of every moment and every damage")
    add("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    add("--json", metavar="OUT")
    options = parser.parse_args()
    options.only = options.only.split(",")
    for name in options.only:
        if name not in PARTS:
            parser.error(f"--only: unknown part {name!r}: one of {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
