"""`fastselfie features`: write the features of a set of images as a .npy file."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.data.dataset import Source, find_place, open_part
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.evaluation.representations import feature_batches
from fastselfie.inference.evaluate_run import measuring_pixels
from fastselfie.runs.load import Trained
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.files import NewFile


def write_features(
    trained: Trained, data: Path, part: str, out: Path, labels: Path | None
) -> dict[str, Any]:
    """Write features, (n, D) float32, a row for each image.

    Rows are in the order of `fastselfie prepare`: that of a file, or in a folder by class, then by
    path. Images are cropped as in `fastselfie evaluate`.

    Args:
        trained: A stage of a run.
        data: The images.
        part: "train" or "test".
        out: Path of the .npy file for the features.
        labels: Path of a .npy file for the labels, (n,) int64, numbers of the classes of `data`;
            None: not written.

    Returns:
        Figures for a summary.

    Raises:
        UserError: There are no images, or one cannot be read (data.on_error has no effect, as every
            image needs a row); or a path does not end in .npy, or both are the same.
    """
    source = open_part(find_place(data), "train" if part == "train" else "held_out").source
    for option, path in (("--out", out), ("--labels", labels)):
        if path is not None and path.suffix != ".npy":
            raise UserError(f"{option} {path}: is written as .npy: pass a name that ends in .npy")
    if labels is not None and labels.resolve() == out.resolve():
        raise UserError(f"--labels {labels}: is also --out: pass another file")
    with ExitStack() as files:  # open all before computing anything
        file = files.enter_context(NewFile(out))
        if labels is not None:
            named = files.enter_context(NewFile(labels))
            _write_header(named, np.dtype(np.int64), source.labels.shape)
            named.write(np.ascontiguousarray(source.labels, dtype=np.int64).data)
        width = _write_rows(file, trained, source)
    figures: dict[str, Any] = {"n": len(source), "D": width, "path": str(out)}
    if labels is not None:
        figures |= {"labels": str(labels), "classes": len(source.classes)}
    return figures | {"stage": trained.kind, "step": trained.step}


def _write_rows(file: NewFile, trained: Trained, source: Source) -> int:
    """Write the features; return D."""
    # Any loader will do, but none may replace an unreadable image by another.
    changes = {"loader": "auto", "on_error": "raise"}
    data = trained.config.data.model_copy(update=changes)
    config = trained.config.model_copy(update={"data": data})
    accelerator = choose_accelerator(config.runtime)
    network = trained.network()
    accelerator.place(network)
    loader = build_loader(source, config.data, config.seed, accelerator.device)
    pixels = measuring_pixels(config, accelerator)
    _write_header(file, np.dtype(np.float32), (len(source), network.width))
    # Appended, not memory-mapped: with a map, a full disk would kill the process.
    with closing(feature_batches(network, loader, pixels)) as batches:
        for features, _ in batches:
            file.write(np.ascontiguousarray(features.cpu().numpy()).data)
    return network.width


def _write_header(file: NewFile, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
