"""`fastselfie export`: write a trained network in a format that other tools load.

May import: runs and what is below it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastselfie.export.card import about, card
from fastselfie.export.to_onnx import onnx_bytes
from fastselfie.export.to_safetensors import safetensors_bytes
from fastselfie.export.to_timm import timm_bytes
from fastselfie.runs.load import Trained
from fastselfie.system.files import NewFile, write_atomically

# Each takes the run, the network and notes for the metadata of the file, and returns the bytes of
# the file and figures of the format.
_FORMATS = {"timm": timm_bytes, "safetensors": safetensors_bytes, "onnx": onnx_bytes}


def export(trained: Trained, form: str, out: Path) -> dict[str, Any]:
    """Write a trained network to a file.

    Args:
        trained: A stage of a run.
        form: "timm", "safetensors" (with a model card beside it) or "onnx".
        out: Path of the file.

    Returns:
        Figures for a summary.

    Raises:
        UserError: The format cannot express the network, or needs a package that is missing.
        OSError: `out` cannot be written; a file that was there is unchanged.
    """
    runtime = trained.config.runtime.model_copy(update={"kernels": "reference", "device": "cpu"})
    plain = trained._replace(config=trained.config.model_copy(update={"runtime": runtime}))
    network = plain.network().eval()
    notes = about(trained)
    with NewFile(out) as file:
        data, figures = _FORMATS[form](trained, network, notes)
        file.write(data)
        if form == "safetensors":
            figures["card"] = str(out.with_name(f"{out.name}.md"))
            write_atomically(Path(figures["card"]), card(trained, network, notes, out.name))
    summary = {"file": str(out), "format": form, "stage": trained.kind, "step": trained.step}
    return {**summary, "bytes": len(data), **figures}
