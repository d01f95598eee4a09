"""What an exported network is, in words that travel with it: only what the run's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastselfie import __version__
from fastselfie.config import DataConfig
from fastselfie.data.loaders.crops import CENTER
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Classifier
from fastselfie.runs.folder import FINETUNED, PRETRAIN, SUMMARY, read_facts
from fastselfie.runs.load import Trained


def about(trained: Trained) -> dict[str, str]:
    """The notes for a file's metadata, where everything is a string; JSON where it is not text."""
    data, state = trained.config.data, trained.checkpoint.state
    values = {
        "classes": trained.classes(),
        "mean": data.mean,
        "std": data.std,
        "image_size": data.image_size,
        "step": trained.step,
        "metrics": trained.measures(),
        "config": _travelling_config(trained),
    }
    texts = {
        "fastselfie": __version__,
        "kind": trained.kind,
        "input": input_of(data),
        "images": state["images"],
    }
    return {**texts, **{key: json.dumps(value) for key, value in values.items()}}


def input_of(data: DataConfig) -> str:
    """How an image becomes the network's input."""
    side = data.image_size
    share = CENTER if data.crop == "resized" else 1.0
    square = "the central square" if share == 1 else f"a central square of {share:g} its side"
    return (
        f"float32 (batch, 3, {side}, {side}): RGB; of the image's short side {square}, resized to "
        f"{side}x{side} (bilinear, antialiased), divided by 255, minus mean, divided by std"
    )


def card(trained: Trained, network: Classifier, notes: dict[str, str], file: str) -> str:
    """The model card, Markdown."""
    template = Environment(
        loader=PackageLoader("fastselfie.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("card.md")
    labels = trained.run / "labels.txt"
    resnet = network if isinstance(network, ResNetV2) else network.patch_network
    return template.render(
        config=trained.config,
        data=_travelling_config(trained)["data"],
        settings=trained.config.pretrain if trained.kind == PRETRAIN else trained.config.finetune,
        kind=trained.kind,
        finetuned=trained.kind == FINETUNED,
        labels=labels.read_text(encoding="ascii").partition("\n")[0].removeprefix("# ")
        if labels.exists()
        else None,
        network=network,
        pooled=resnet is not network,
        blocks=list(trained.config.model.blocks[: len(resnet.stages)]),
        parameters=sum(p.numel() for p in network.parameters()) / 1e6,
        notes=notes,
        metrics=trained.measures(),
        summary=read_facts(trained.run / SUMMARY),
        step=trained.step,
        classes=trained.classes(),
        file=file,
        version=__version__,
    )


def _travelling_config(trained: Trained) -> dict[str, Any]:
    """The config, of its paths the names alone: the folders are one machine's."""
    values = trained.config.model_dump(mode="json")
    for key in ("train", "test"):
        path = values["data"][key]
        values["data"][key] = None if path is None else Path(path).name
    return values
