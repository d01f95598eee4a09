"""python -m support.step_forms HOOKS CONFIG BATCHES [KEY=VALUE...]    # JSON of every form

HOOKS is the library of tests/helpers/fake_cuda, BATCHES are numbers of images with commas.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from contextlib import closing, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unittest import mock

from support.traffic_groups import FORMS, INPUT, OPTIMIZER

if TYPE_CHECKING:
    from fastselfie.config import Config


def counted(name: str, form: str, batch: int, sets: list[str]) -> dict[str, Any]:
    """Count one pretraining step.

    Args:
        name: The config's name or file.
        form: Of `FORMS`.
        batch: Images.
        sets: Changes of the config.
    """
    import torch

    from fastselfie.config.load import load_config
    from support.fake_h100 import fake_h100

    # Lists the Triton programs, of which the fake GPU replaces one.
    import_module("support.step_traffic")
    kernels, compiled = FORMS[form]
    config = load_config(name, [
        "data.loader=synthetic", f"pretrain.batch_size={batch}",
        f"pretrain.micro_batch_size={batch}", "runtime.precision=bf16",
        f"runtime.kernels={kernels}", f"runtime.compile={compiled}", *sets,
    ])  # fmt: skip
    torch._dynamo.reset()
    with fake_h100():
        return {"form": form, "batch": batch, **_counted(config, batch, compiled != "off")}


def _counted(config: Config, batch: int, compiled: bool) -> dict[str, Any]:
    from fastselfie.data.dataset import open_dataset
    from fastselfie.data.loaders import build_loader
    from fastselfie.system.accelerator import choose_accelerator
    from fastselfie.training.memory import estimate_pretraining
    from fastselfie.training.optimizer import begin_momentum
    from fastselfie.training.pretrain import build_pretraining
    from support.compiled_traffic import CompiledTraffic
    from support.step_traffic import EagerTraffic
    from support.traffic import size_of

    accelerator = choose_accelerator(config.runtime)
    built = build_pretraining(config, accelerator)
    model, step = built.model, built.step
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    with closing(loader.stream(0, batch)) as batches:
        given = next(batches)
    begin_momentum(step.optimizer)
    shapes = {tuple(p.shape) for p in model.parameters()}
    traffic, plan = EagerTraffic(shapes), CompiledTraffic(shapes)
    with traffic, traffic.grouped(INPUT):
        inputs = built.pixels.patches(given)
    forward, counting = (plan.compile(model), nullcontext()) if compiled else (model, traffic)
    with counting:
        with accelerator.autocast():
            loss, correct = forward(*inputs)
        traffic.direction = "backward"
        loss.backward()
    gradients = (loss.detach(), correct, batch * config.masked)
    traffic.direction = "optimizer"
    with (
        traffic,
        traffic.grouped(OPTIMIZER),
        mock.patch.object(step, "_gradients_in_memory", return_value=gradients),
    ):
        step(0, given)
    # Weights twice, for their momenta. A graph's plan lacks its inputs.
    state = [*model.parameters(), *model.parameters(), *model.buffers(), *given.views]
    state += inputs if compiled else ()
    estimate = estimate_pretraining(config, accelerator.precision)
    return {
        "bytes": {
            direction: dict(
                traffic.bytes.get(direction, Counter()) + plan.bytes.get(direction, Counter())
            )
            for direction in ("forward", "backward", "optimizer")
        },
        "peak_bytes": sum(map(size_of, state)) + max(traffic.peak, plan.peak),
        "estimated_bytes": estimate.total(batch),
    }


def main(name: str, batches: str, sets: list[str]) -> None:
    rows = [counted(name, form, int(b), sets) for b in batches.split(",") for form in FORMS]
    print(json.dumps(rows))


if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before torch is imported
    main(sys.argv[2], sys.argv[3], sys.argv[4:])
