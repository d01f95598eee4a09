"""Export to ONNX: graph and weights in one file, compared with torch before it is written."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import torch
from torch import Tensor

from fastselfie.errors import UserError
from fastselfie.models.selfie import Classifier
from fastselfie.runs.load import Trained
from fastselfie.system.console import say

_INSTALL = "pip install 'fastselfie[export]'"
# Relative to the largest output. Both compute in float32 but sum in different orders, which gave up
# to 3e-6; a wrong graph (other weights, another channel order) is far above.
TOLERANCE = 1e-4


def onnx_bytes(
    trained: Trained, network: Classifier, notes: dict[str, str]
) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of an ONNX model, and figures on it.

    The model maps `images`, (batch, 3, H, W) float32, to `logits` (batch, classes) or `features`
    (batch, D), for any batch.

    Args:
        trained: A stage of a run.
        network: Its network.
        notes: Metadata of the file.

    Raises:
        UserError: onnx or onnxscript is not installed, or onnxruntime computes something else.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--format onnx needs {package}, which is not installed: {_INSTALL}")
    side = trained.config.data.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    output = "features" if network.head is None else "logits"
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of missing torchvision and of its own deprecations
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model: Any = program.model_proto
    for key, value in notes.items():
        model.metadata_props.add(key=key, value=value)
    data: bytes = model.SerializeToString()
    figures = {"input": "images", "output": output, "opset": model.opset_import[0].version}
    return data, {**figures, "difference": difference(data, network, images)}


def difference(data: bytes, network: Classifier, images: Tensor) -> float | None:
    """Compare a model with torch, on `images` and on the first of them alone.

    Args:
        data: Bytes of the ONNX model.
        network: The network in torch.
        images: (B, 3, H, W) float32.

    Returns:
        The largest difference, relative to the largest output; None, with a warning, if
        onnxruntime is not installed.

    Raises:
        UserError: The difference is above TOLERANCE.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        say(f"warning: onnxruntime is not installed, so the file was not checked: {_INSTALL}")
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for part in (images, images[:1]):
        with torch.inference_mode():
            expected = network(part)
        found = torch.from_numpy(session.run(None, {"images": part.numpy()})[0])
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE:  # also NaN
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} differs from torch {torch.__version__} by "
            f"{worst:.1e} of the largest output, so nothing was written: try other versions of both"
        )
    return worst
