"""`fastselfie predict`: classes of single images, or pictures of mask prediction."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from fastselfie.data.loaders import Batch, build_loader
from fastselfie.data.sources.base import UNLABELLED, FolderSource
from fastselfie.errors import UserError
from fastselfie.evaluation.mask_picture import beside, filled, originals, predictions
from fastselfie.evaluation.metrics import evaluating
from fastselfie.inference.evaluate_run import measuring_pixels
from fastselfie.runs.load import Trained
from fastselfie.stage_names import PRETRAIN
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.files import write_atomically

_TOP = 5  # classes shown for an image
_SIDE = 448  # approximate side of a picture, in pixels


@dataclass(frozen=True)
class Guess:
    """The most likely classes of an image with their probabilities, the best first."""

    image: Path
    top: list[tuple[str, float]]
    columns: ClassVar = ("image", "class", "probability")

    def rows(self) -> list[tuple[str, str, str]]:
        """Return rows of a table with `columns`."""
        names = [str(self.image), *[""] * (len(self.top) - 1)]
        return [(name, of, f"{p:.1%}") for name, (of, p) in zip(names, self.top, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return {"image": str(self.image), "top": [[name, round(p, 6)] for name, p in self.top]}


@dataclass(frozen=True)
class Filled:
    """An image with masked patches, and the patches that the model chose for them.

    Attributes:
        image: Path of the image.
        picture: Path of the picture: the image, and beside it the same with the chosen patches.
        right: Number of masked patches that are right.
        holes: Number of masked patches.
    """

    image: Path
    picture: Path
    right: int
    holes: int
    columns: ClassVar = ("image", "patches right", "picture")

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the row of a table with `columns`."""
        return [(str(self.image), f"{self.right} of {self.holes}", str(self.picture))]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        paths = {"image": str(self.image), "picture": str(self.picture)}
        return {**paths, "right": self.right, "holes": self.holes}


def classify(trained: Trained, images: Sequence[Path]) -> list[Guess]:
    """Return the five most likely classes of each image, or all if there are fewer.

    Args:
        trained: A finetuned or supervised stage of a run.
        images: Image files.

    Raises:
        UserError: An image cannot be read.
    """
    config, names = trained.config, trained.classes()
    accelerator = choose_accelerator(config.runtime)
    network = trained.network()
    accelerator.place(network)
    pixels = measuring_pixels(config, accelerator, len(names))
    guesses: list[Guess] = []
    with evaluating(network):
        for batch in _batches(trained, images, accelerator, pixels.batch):
            with accelerator.autocast():
                logits = network(pixels.whole(batch)).float()
            best = logits.softmax(dim=1).topk(min(_TOP, len(names)), dim=1)
            for row, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                top = [(names[place], p) for place, p in zip(places, row, strict=True)]
                guesses.append(Guess(images[len(guesses)], top))
    return guesses


def fill_holes(trained: Trained, images: Sequence[Path], out: Path | None) -> list[Filled]:
    """Write a picture of each image: the original, and with the patches that the model chose.

    The masked patches are drawn from the seed of the run and the position in `images`. Nothing is
    written before every image was read.

    Args:
        trained: The pretrain stage of a run.
        images: Image files.
        out: A .png file for a single image, or a folder; None: RUN/predictions.

    Raises:
        UserError: An image cannot be read, or two images have the same name.
    """
    config, targets = trained.config, _targets(images, out or trained.run / "predictions")
    accelerator = choose_accelerator(config.runtime)
    model = trained.selfie()
    accelerator.place(model)
    pixels = measuring_pixels(config, accelerator)
    found: list[tuple[Filled, Image.Image]] = []
    for batch in _batches(trained, images, accelerator, pixels.batch):
        arrays = predictions(model, batch, pixels)
        for image, order, choice in zip(*(np.split(a, len(a)) for a in arrays), strict=True):
            after = filled(image, order, choice, config.model.patch_size, _SIDE)
            right = int((choice[0] == np.arange(config.masked)).sum())
            place = len(found)
            result = Filled(images[place], targets[place], right, config.masked)
            found.append((result, beside(originals(image, _SIDE), after)))
    for result, picture in found:
        file = io.BytesIO()
        picture.save(file, "PNG")
        write_atomically(result.picture, file.getbuffer())
    return [result for result, _ in found]


def predict(
    trained: Trained, images: Sequence[Path], out: Path | None
) -> list[Guess] | list[Filled]:
    """Call `fill_holes` for a pretrain stage, and `classify` otherwise.

    Args:
        trained: A stage of a run.
        images: Image files.
        out: See `fill_holes`; must be None for `classify`.

    Raises:
        UserError: See there; or `out` is passed for `classify`.
    """
    missing = next((path for path in images if not path.is_file()), None)
    if missing is not None:
        what = "is a folder: pass its images" if missing.is_dir() else "no such image file"
        raise UserError(f"{missing}: {what}")
    if trained.kind == PRETRAIN:
        return fill_holes(trained, images, out)
    if out is not None:
        raise UserError(
            f"--out {out}: is for pictures, but {trained.kind} predicts classes: leave it out, or "
            f"use --stage {PRETRAIN}"
        )
    return classify(trained, images)


def _batches(
    trained: Trained, images: Sequence[Path], accelerator: Accelerator, size: int
) -> Iterator[Batch]:
    """Yield the images as evaluation sees them."""
    changes = {"loader": "folder", "workers": 0, "on_error": "raise"}
    data = trained.config.data.model_copy(update=changes)
    labels = np.zeros(len(images), dtype=np.int64)
    source = FolderSource([str(path) for path in images], labels, UNLABELLED)
    loader = build_loader(source, data, trained.config.seed, accelerator.device)
    with closing(loader.in_order(size)) as batches:
        yield from batches


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """Return the path of each picture."""
    if out.suffix.lower() == ".png":
        if len(images) > 1:
            raise UserError(f"--out {out}: is one file for {len(images)} images: pass a folder")
        return [out]
    targets = [out / f"{image.stem}.png" for image in images]
    for place, target in enumerate(targets):
        if target in targets[:place]:
            raise UserError(
                f"{images[place]}: its picture would be {target}, as of another image: predict "
                "them one by one, with different --out"
            )
    return targets
