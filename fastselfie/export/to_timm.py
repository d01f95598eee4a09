"""timm's `resnetv2_50`: a state dict under its parameter names, which are ours."""

from __future__ import annotations

import io
from typing import Any

import torch

from fastselfie.errors import UserError
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import Classifier
from fastselfie.runs.load import Trained

_DIVISOR = 8  # timm rounds every width to a multiple (make_divisible)


def timm_bytes(
    trained: Trained, network: Classifier, notes: dict[str, str]
) -> tuple[bytes, dict[str, Any]]:
    """Bytes of torch.save, tensors alone; and the arguments of timm.create_model.

    Raises:
        UserError: what timm's ResNetV2 has not.
    """
    del notes  # a plain state dict has no place for them
    model = trained.config.model
    way_out = "--format safetensors and onnx take any"
    if not isinstance(network, ResNetV2):
        raise UserError(
            f"finetune.form is {trained.config.finetune.form}, which timm has not: {way_out}"
        )
    if network.norm is None:
        raise UserError(f"model.end_norm is false, but timm's ResNetV2 ends with it: {way_out}")
    if model.stem != "imagenet":
        raise UserError(
            f"model.stem is {model.stem}, a 3x3 convolution without pooling, but timm's ResNetV2 "
            f"always begins by a quarter of the side: {way_out}"
        )
    if model.width % _DIVISOR:
        raise UserError(
            f"model.width is {model.width}, but timm makes widths multiples of {_DIVISOR}: "
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
