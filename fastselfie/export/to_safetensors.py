"""safetensors: the weights, and in the file's metadata what they are of."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save

from fastselfie.models.selfie import Classifier
from fastselfie.runs.load import Trained


def safetensors_bytes(
    trained: Trained, network: Classifier, notes: dict[str, str]
) -> tuple[bytes, dict[str, Any]]:
    """Bytes of a .safetensors file. "format": "pt" is what other readers look for."""
    del trained
    return save(network.state_dict(), {"format": "pt", **notes}), {}
