"""`fastselfie features`: a network's features of any set of images, into a file of numpy's."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from fastselfie.config import Config
from fastselfie.data.dataset import Source, expanded, open_part
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
    """Write (n, D) float32 to `out`, a row an image in the set's order; return figures.

    The order is that of `fastselfie prepare`: a file's own, of a folder by class, then by path.
    labels: a file for the (n,) int64 labels, numbers of the set's own classes. Images are cropped
    and computed on as `fastselfie evaluate` does, a batch at a time.

    Raises:
        UserError: nothing to read there, or an image that cannot be: a row for every image, so
            data.on_error does not count here; one file for both, or none that ends in .npy.
    """
    found = open_part(expanded(data), part)
    if found is None:
        raise UserError(f"{data}: holds no {part} images: give another --part or --data")
    for option, path in (("--out", out), ("--labels", labels)):
        if path is not None and path.suffix != ".npy":
            raise UserError(f"{option} {path}: is written as .npy: give it that ending")
    if labels is not None and labels.resolve() == out.resolve():
        raise UserError(f"--labels {labels}: is --out too: give another file")
    with ExitStack() as files:  # all are open before anything is computed
        file = files.enter_context(NewFile(out))
        if labels is not None:
            named = files.enter_context(NewFile(labels))
            _write_header(named, np.dtype(np.int64), found[0].labels.shape)
            named.write(np.ascontiguousarray(found[0].labels, dtype=np.int64).data)
        width = _write_rows(file, trained, found[0])
    figures: dict[str, Any] = {"n": len(found[0]), "D": width, "path": str(out)}
    if labels is not None:
        figures |= {"labels": str(labels), "classes": len(found[0].classes)}
    return figures | {"stage": trained.kind, "step": trained.step}


def _write_rows(file: NewFile, trained: Trained, source: Source) -> int:
    """Return D."""
    config = _reading_all(trained.config)
    accelerator = choose_accelerator(config.runtime)
    network = trained.network()
    accelerator.place(network)
    loader = build_loader(source, config.data, config.seed, accelerator.device)
    pixels = measuring_pixels(config, accelerator)
    _write_header(file, np.dtype(np.float32), (len(source), network.width))
    # Appended, not mapped: a full disk is an error here, and the end of the process there.
    with closing(feature_batches(network, loader, pixels, accelerator)) as batches:
        for features, _ in batches:
            file.write(np.ascontiguousarray(features.cpu().numpy()).data)
    return network.width


def _reading_all(config: Config) -> Config:
    """Whatever loader reads the set, and no other image in an unreadable one's place."""
    changes = {"loader": "auto", "on_error": "raise"}
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def _write_header(file: NewFile, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
