"""Export a state dict for timm's `resnetv2_50`, whose parameter names are ours."""

from __future__ import annotations

import io
from typing import Any

import torch

from fastselfie.errors import UserError
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Classifier
from fastselfie.runs.load import Trained

_DIVISOR = 8  # timm rounds every width to a multiple of it (make_divisible)


def timm_bytes(
    trained: Trained, network: Classifier, notes: dict[str, str]
) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a state dict, and the arguments of timm.create_model for it.

    Args:
        trained: A stage of a run.
        network: Its network.
        notes: Not used: a state dict has no metadata.

    Raises:
        UserError: timm's ResNetV2 cannot be built like this network.
    """
    del notes
    model = trained.config.model
    way_out = "use --format safetensors or onnx"
    if not isinstance(network, ResNetV2):
        raise UserError(
            f"finetune.form is {trained.config.finetune.form}, which timm lacks: {way_out}"
        )
    if model.stem != "imagenet":
        raise UserError(
            f"model.stem is {model.stem}, a 3x3 convolution without pooling, but timm's ResNetV2 "
            f"always starts by dividing the side by 4: {way_out}"
        )
    if model.width % _DIVISOR:
        raise UserError(
            f"model.width is {model.width}, but timm rounds widths to multiples of {_DIVISOR}: "
            f"{way_out}"
        )
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    arguments = {
        "layers": list(model.blocks[: len(network.stages)]),
        "channels": [4 * model.width * 2**stage for stage in range(len(network.stages))],
        "stem_chs": model.width,
        "num_classes": 0 if network.head is None else network.head.fc.out_channels,
    }
    return file.getvalue(), {"timm": {"model": "resnetv2_50", "arguments": arguments}}
