"""`fastselfie export`: a trained network in a form that other tools load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastselfie.export.card import about, card
from fastselfie.export.to_onnx import onnx_bytes
from fastselfie.export.to_safetensors import safetensors_bytes
from fastselfie.export.to_timm import timm_bytes
from fastselfie.models.selfie import Classifier
from fastselfie.runs.load import Trained
from fastselfie.system.files import NewFile, write_atomically

# What makes a file's bytes, and what is to be said of them beside what is said of every export.
# about: for formats that hold such notes.
_Made = tuple[bytes, dict[str, Any]]
_FORMATS: dict[str, Callable[[Trained, Classifier, dict[str, str]], _Made]] = {
    "timm": timm_bytes,
    "safetensors": safetensors_bytes,
    "onnx": onnx_bytes,
}


def export(trained: Trained, form: str, out: Path) -> dict[str, Any]:
    """Write the network as timm, safetensors (a model card beside it) or onnx; return figures.

    Raises:
        UserError: what the format cannot express, or what it needs and is not installed.
        OSError: `out` cannot be written; what stood there still does.
    """
    runtime = trained.config.runtime.model_copy(update={"kernels": "reference", "device": "cpu"})
    plain = trained._replace(config=trained.config.model_copy(update={"runtime": runtime}))
    network = plain.network().eval()
    notes = about(trained)
    with NewFile(out) as file:
        data, said = _FORMATS[form](trained, network, notes)
        file.write(data)
        if form == "safetensors":
            said["card"] = str(out.with_name(f"{out.name}.md"))
            write_atomically(Path(said["card"]), card(trained, network, notes, out.name))
    figures = {"file": str(out), "format": form, "stage": trained.kind, "step": trained.step}
    return {**figures, "bytes": len(data), **said}
