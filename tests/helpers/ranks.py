"""What the processes of test_distributed.py run, each for itself: `python ranks.py SCENARIO ...`.

figures OUT CONFIG   measures of a step and of evaluations, to OUT/RANK.pt
FAULT ARGS           `fastselfie ARGS`; kill:R:S and term:R:S send rank R that signal in step S,
                     the first time it is started; agent:R:S has it kill torchrun; seeds:OUT notes
                     the steps' seeds in OUT/RANK; whole does nothing

A process that ends in order must have waited for gloo's threads; one of them that goes on aborts it
now and then while the interpreter ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import torch

from fastselfie.cli import main
from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform, draw_masks
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.metrics import classification_accuracy, pretext_accuracy
from fastselfie.kernels.reference import patchify
from fastselfie.models.selfie import build_classifier, build_selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.rendezvous import init_distributed
from fastselfie.training.step import TrainStep

FLOAT64 = torch.float64


def one_step(config, accelerator, micro_batch):
    """Train in float64 with batch norm frozen; return what the ranks must agree on."""
    torch.manual_seed(0)
    model = build_selfie(config).double().eval()
    replica = accelerator.replica(model, False)
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    sent, seen = [], {}

    def objective(batch):
        order = draw_masks(batch, 0, config.patches)
        patches = patchify(batch.images, batch.flip, order, 8, mean, std, FLOAT64)
        return *replica(patches, order), len(batch.images) * model.masked

    step = TrainStep(replica, objective, config.pretrain, accelerator, micro_batch)
    gather = torch.distributed.all_gather

    def counting(parts, *arguments, **named):
        sent.append(1)
        seen["parts"] = parts
        return gather(parts, *arguments, **named)

    torch.distributed.all_gather = counting

    def keep(*_):
        seen["gradients"] = torch.cat([p.grad.flatten().clone() for p in model.parameters()])

    step.optimizer.register_step_pre_hook(keep)
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    size = config.pretrain.batch_size
    with closing(loader.stream(0, size, accelerator.ranks)) as batches:
        step(0, next(batches))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    means = tuple(step.read())
    torch.distributed.all_gather = gather
    return {**seen, "weights": weights, "means": means, "sent": len(sent)}


def measures(config, accelerator):
    """Evaluate fresh networks whose batch statistics are right only on rank 0."""
    torch.manual_seed(0)
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    pixels = InputTransform(config, accelerator, batch=3)  # 16 images: six batches, the last of one
    selfie, classifier = build_selfie(config), build_classifier(config, 2)
    for model in (selfie, classifier):
        for buffer in model.buffers():
            buffer.add_(accelerator.ranks.rank)
    pretext = pretext_accuracy(selfie, loader, pixels, limit=13)
    return pretext, classification_accuracy(classifier, loader, pixels)


def figures(out, path):
    config = load_config(Path(path))
    ranks = init_distributed(config.runtime)
    accelerator = choose_accelerator(config.runtime, ranks)
    found = {
        "whole": one_step(config, accelerator, 8 // ranks.world),
        "passes": one_step(config, accelerator, 3),
        "bf16": one_step(config, replace(accelerator, bf16_gradients=True), 3),
        "measures": measures(config, accelerator),
        "threads": torch.get_num_threads(),
        "gloo": gloo_runs(),
    }
    torch.save(found, Path(out) / f"{ranks.rank}.pt")


def note_seeds(out):
    """Append the seed of torch's generator in each step to OUT/RANK."""
    original = TrainStep.__call__

    def call(self, step, batch):
        with open(Path(out) / os.environ["RANK"], "a", encoding="ascii") as file:
            file.write(f"{torch.initial_seed()}\n")
        original(self, step, batch)

    TrainStep.__call__ = call


def hurt(kind, rank, at):
    """Send this process a signal in the middle of a step."""
    if os.environ["RANK"] != rank or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return
    original = TrainStep.__call__

    def call(self, step, batch):
        if step == int(at):
            victim = os.getppid() if kind == "agent" else os.getpid()
            os.kill(victim, signal.SIGTERM if kind == "term" else signal.SIGKILL)
        original(self, step, batch)

    TrainStep.__call__ = call


def gloo_runs():
    """Return whether gloo has a thread in this process."""
    names = []
    for file in Path("/proc/self/task").glob("*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
            names.append(file.read_text().strip())
    return "gloo_tcp_loop" in names


def require_parted():
    if gloo_runs():
        print("gloo's threads outlive the group", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    atexit.register(require_parted)  # before `join` has its own: it is called after it
    scenario, *rest = sys.argv[1:]
    if scenario == "figures":
        figures(*rest)
    else:
        if scenario.startswith("seeds:"):
            note_seeds(scenario.removeprefix("seeds:"))
        elif scenario != "whole":
            hurt(*scenario.split(":"))
        sys.argv[1:] = rest
        main()
