"""The loader alone, the step alone (on random pixels) and both together: which one binds."""

from __future__ import annotations

from typing import Any

from fastselfie.config import Config
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader
from fastselfie.profiling.rates import measure_rates
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.pretrain import build_pretraining


def end_to_end(config: Config, rounds: int, seconds: float) -> dict[str, Any]:
    """Images/s of each over alternating rounds. binding: the slower of loader and step."""
    accelerator = choose_accelerator(config.runtime)
    source = open_dataset(config.data, config.seed).train
    step = build_pretraining(config, accelerator).step
    loader = build_loader(source, config.data, config.seed, accelerator.device)
    found = measure_rates(config, source, loader, step, rounds, seconds)
    return {
        "config": config.name,
        "batch_size": config.pretrain.batch_size,
        "image_size": config.data.image_size,
        **found.pop("rates"),
        **found,
    }
