"""The steps that step.py compares; built in the process that runs them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastselfie.config import Config
from fastselfie.config.load import load_config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import draw_masks
from fastselfie.data.loaders import Batch, build_loader
from fastselfie.errors import UserError
from fastselfie.models.selfie import Selfie, build_selfie
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.training.optimizer import learning_rate
from fastselfie.training.pretrain import build_pretraining
from support.straightforward import Shape, StraightforwardSelfie, normalised, their_names


class Matmul(NamedTuple):
    """Products of two side x side matrices, `in_a_row` before a wait for the device."""

    side: int
    in_a_row: int


# An H100 computes a product of side 2048 in 25 us, which is less than a launch and a wait take.
MATMULS = {"cpu": Matmul(2048, 1), "cuda": Matmul(8192, 20)}


def build_ours(config: Config) -> Callable[[], None]:
    """Return a function that takes one of our training steps and waits for it."""
    accelerator = choose_accelerator(config.runtime)
    step = build_pretraining(config, accelerator).step
    numbered = zip(itertools.count(), _batches(config, accelerator.device), strict=False)

    def take() -> None:
        step(*next(numbered))
        step.read()  # waits: the clock must not run ahead of a GPU

    return take


def build_straightforward(config: Config) -> Callable[[], None]:
    """Return a function that takes one step of the straightforward code and waits for it."""
    device = choose_accelerator(config.runtime).device
    torch.manual_seed(config.seed)
    model = StraightforwardSelfie(shape_of(config)).to(device)
    settings = config.pretrain
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum,
                                weight_decay=settings.weight_decay, nesterov=True)  # fmt: skip
    mean, std = (torch.tensor(v, device=device) for v in (config.data.mean, config.data.std))
    numbered = zip(itertools.count(), _batches(config, device), strict=False)

    def take() -> None:
        number, batch = next(numbered)
        rate = learning_rate(number, settings.steps, settings.lr, settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = normalised(batch.images, batch.flip, mean, std)
        loss = model(images, draw_masks(batch, config.seed, config.patches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return take


def _batches(config: Config, device: torch.device) -> Any:
    source = open_dataset(config.data, config.seed).train
    data = config.data.model_copy(update={"loader": "synthetic"})
    loader = build_loader(source, data, config.seed, device)
    return loader.stream(0, config.pretrain.batch_size)


def shape_of(config: Config) -> Shape:
    """Return the sizes of the straightforward network for a config.

    Raises:
        UserError: Pretraining changes the patches, which the straightforward code does not.
    """
    model, task = config.model, config.pretrain
    changed = ("patch_gap", "patch_grey", "patch_contrast", "patch_brightness")
    for key in changed:
        if value := getattr(task, key):
            raise UserError(f"pretrain.{key} is {value}: the straightforward code needs it to be 0")
    return Shape(
        stem=model.stem,
        width=model.width,
        blocks=model.blocks,
        patch_size=model.patch_size,
        patches=config.patches,
        masked=config.masked,
        layers=model.layers,
        heads=model.heads,
        feed_forward=model.feed_forward,
        dropout=model.dropout,
        row_column=model.positions == "row_column",
        scale=build_selfie(config).scale,
    )


def facts(path: str, overrides: Sequence[str], matmul: Matmul | None = None) -> dict[str, Any]:
    """Measure what holds for all contenders.

    Args:
        path: Of the config.
        overrides: Of its keys.
        matmul: What to measure the machine's own rate with; None: MATMULS has it.

    Returns:
        "gflop_per_image": forward and backward by torch's counter, 2 per multiply-add.
        "matmul_gflops_per_s": rate of matrix products in the config's precision. "losses": of ours,
        of ours in fp32 and of the straightforward code, without dropout, with the same weights and
        the same batch.
    """
    overrides = [*overrides, "model.dropout=0.0"]
    accelerator = choose_accelerator(load_config(path, overrides).runtime)
    flops, losses = _one_batch(path, overrides)
    side, count = matmul or MATMULS[accelerator.device.type]
    found = {
        "precision": accelerator.precision.name,
        "gflop_per_image": round(flops / 1e9, 3),
        "matmul_gflops_per_s": round(_matmul_rate(accelerator, side, count) / 1e9, 1),
        "losses": losses,
    }
    torch.cuda.empty_cache()  # the contenders are other processes, and need the room
    return found


def _one_batch(path: str, overrides: list[str]) -> tuple[float, dict[str, float]]:
    """Return the FLOP per image, forward and backward, and the losses of one batch."""
    config = load_config(path, overrides)
    with FlopCounterMode(display=False) as counter:
        # Our kernels compute weight gradients on several threads; the counter sees only one.
        counted = _loss(load_config(path, [*overrides, "runtime.kernels=reference"]))[0]
        counted.backward()  # type: ignore[no-untyped-call]
    del counted
    with torch.no_grad():  # the graphs of two networks in fp32 may not fit beside each other
        ours, model, batch = _loss(config)
        in_fp32 = _loss(load_config(path, [*overrides, "runtime.precision=fp32"]))[0]
        device = batch.images.device
        theirs = StraightforwardSelfie(shape_of(config)).to(device)
        names = their_names(model.state_dict(), theirs)
        theirs.load_state_dict({names[name]: value for name, value in model.state_dict().items()})
        mean, std = (torch.tensor(v, device=device) for v in (config.data.mean, config.data.std))
        order = draw_masks(batch, config.seed, config.patches)
        plain = theirs(normalised(batch.images, batch.flip, mean, std), order)
    losses = {"ours": ours, "ours in fp32": in_fp32, "straightforward": plain}
    flops = counter.get_total_flops() / len(batch.images)
    return flops, {name: float(loss.detach()) for name, loss in losses.items()}


def _loss(config: Config) -> tuple[Tensor, Selfie, Batch]:
    """Return the loss of a fresh network, the network, and its first batch."""
    accelerator = choose_accelerator(config.runtime)
    pretraining = build_pretraining(config, accelerator)
    batch: Batch = next(_batches(config, accelerator.device))
    with accelerator.autocast():
        loss, _ = pretraining.model(*pretraining.pixels.patches(batch))
    return loss, pretraining.model, batch


def _matmul_rate(accelerator: Accelerator, side: int, count: int) -> float:
    """Return the FLOP/s of `count` products in a row, the best of ten rows."""
    a, b = torch.randn(2, side, side, device=accelerator.device, dtype=accelerator.precision.dtype)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        for _ in range(count):
            product: Tensor = a @ b
        product[0, 0].item()  # waits
        best = min(best, time.perf_counter() - begun)
    return count * 2 * side**3 / best
