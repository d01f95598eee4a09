"""Export to safetensors: the weights, with notes in the metadata."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save

from fastselfie.models.selfie import Classifier
from fastselfie.runs.load import Trained


def safetensors_bytes(
    trained: Trained, network: Classifier, notes: dict[str, str]
) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a .safetensors file; it has no figures.

    Args:
        trained: Not used.
        network: The network.
        notes: Metadata of the file.
    """
    del trained
    # Other readers look for the format.
    return save(network.state_dict(), {"format": "pt", **notes}), {}
