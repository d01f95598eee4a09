"""The metadata and the model card of an exported network, from the files of its run."""

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
from fastselfie.runs.folder import SUMMARY, read_facts
from fastselfie.runs.load import Trained


def about(trained: Trained) -> dict[str, str]:
    """Return metadata for a file, in which every value is a string: text, or else JSON."""
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
    """Return a sentence on how an image becomes the input of the network."""
    side = data.image_size
    share = CENTER if data.crop == "resized" else 1.0
    square = "the central square" if share == 1 else f"a central square of {share:g} its side"
    return (
        f"float32 (batch, 3, {side}, {side}): RGB; of the image's short side {square}, resized to "
        f"{side}x{side} (bilinear, antialiased), divided by 255, minus mean, divided by std"
    )


def card(trained: Trained, network: Classifier, notes: dict[str, str], file: str) -> str:
    """Return the model card, as Markdown.

    Args:
        trained: A stage of a run.
        network: Its network.
        notes: From `about`.
        file: Name of the exported file.
    """
    template = Environment(
        loader=PackageLoader("fastselfie.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("card.md")
    labels = trained.run / "labels.txt"
    return template.render(
        trained=trained,
        network=network,
        resnet=network if isinstance(network, ResNetV2) else network.patch_network,
        notes=notes,
        file=file,
        data=_travelling_config(trained)["data"],
        labels=labels.read_text(encoding="ascii").partition("\n")[0] if labels.exists() else "",
        parameters=sum(p.numel() for p in network.parameters()) / 1e6,
        summary=read_facts(trained.run / SUMMARY),
        version=__version__,
    )


def _travelling_config(trained: Trained) -> dict[str, Any]:
    """Return the config with the names of its paths only: the folders are of one machine."""
    values = trained.config.model_dump(mode="json")
    for key in ("train", "test"):
        path = values["data"][key]
        values["data"][key] = None if path is None else Path(path).name
    return values
