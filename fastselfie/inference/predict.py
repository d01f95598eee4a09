"""`fastselfie predict`: what a network says of single images, classes or filled holes."""

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
from fastselfie.evaluation.mask_picture import beside, filled, originals
from fastselfie.evaluation.metrics import evaluating
from fastselfie.inference.evaluate_run import measuring_pixels
from fastselfie.runs.folder import PRETRAIN
from fastselfie.runs.load import Trained
from fastselfie.system.accelerator import Accelerator, choose_accelerator
from fastselfie.system.files import write_atomically

_MOST = 5  # classes of an image that are worth a line
_SIDE = 448  # pixels of a filled image, about


@dataclass(frozen=True)
class Guess:
    """The likeliest classes of an image, the best first, with their probabilities."""

    image: Path
    top: list[tuple[str, float]]
    columns: ClassVar = ("image", "class", "probability")

    def rows(self) -> list[tuple[str, str, str]]:
        """Lines of a table under `columns`."""
        names = [str(self.image), *[""] * (len(self.top) - 1)]
        return [(name, of, f"{p:.1%}") for name, (of, p) in zip(names, self.top, strict=True)]

    def summary(self) -> dict[str, Any]:
        return {"image": str(self.image), "top": [[name, round(p, 6)] for name, p in self.top]}


@dataclass(frozen=True)
class Filled:
    """An image beside the same with its holes filled, of which `right` as it was."""

    image: Path
    picture: Path
    right: int
    holes: int
    columns: ClassVar = ("image", "holes right", "picture")

    def rows(self) -> list[tuple[str, str, str]]:
        """A line of a table under `columns`."""
        return [(str(self.image), f"{self.right} of {self.holes}", str(self.picture))]

    def summary(self) -> dict[str, Any]:
        paths = {"image": str(self.image), "picture": str(self.picture)}
        return {**paths, "right": self.right, "holes": self.holes}


def classify(trained: Trained, images: Sequence[Path]) -> list[Guess]:
    """The five likeliest classes of each image, or all where there are fewer.

    Raises:
        UserError: an image that is not there or cannot be read.
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
            best = logits.softmax(dim=1).topk(min(_MOST, len(names)), dim=1)
            for row, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                top = [(names[place], p) for place, p in zip(places, row, strict=True)]
                guesses.append(Guess(images[len(guesses)], top))
    return guesses


def fill_holes(trained: Trained, images: Sequence[Path], out: Path | None) -> list[Filled]:
    """Write a picture of each image: as it is, and with what the model puts into its holes.

    Which patches are holes is drawn from the run's seed and the image's place among `images`.
    out: a .png for a single image, else a folder; None: RUN/predictions. Nothing is written before
    every image was read.

    Raises:
        UserError: as `classify`; two images of one name.
    """
    config, targets = trained.config, _targets(images, out or trained.run / "predictions")
    accelerator = choose_accelerator(config.runtime)
    model = trained.selfie()
    accelerator.place(model)
    pixels = measuring_pixels(config, accelerator)
    found: list[tuple[Filled, Image.Image]] = []
    with evaluating(model):
        for batch in _batches(trained, images, accelerator, pixels.batch):
            with accelerator.autocast():
                patches, places = pixels.patches(batch)
                scores = model.scores(patches, places)
            chosen = scores.argmax(dim=-1).cpu().numpy()
            arrays = (batch.images.cpu().numpy(), places.cpu().numpy(), chosen)
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
    """`fill_holes` for a network that was only pretrained, else `classify`.

    Raises:
        UserError: see there; `out` for classes, which are no picture.
    """
    missing = next((path for path in images if not path.is_file()), None)
    if missing is not None:
        what = "is a folder: give its images" if missing.is_dir() else "no such image file"
        raise UserError(f"{missing}: {what}")
    if trained.kind == PRETRAIN:
        return fill_holes(trained, images, out)
    if out is not None:
        raise UserError(
            f"--out {out}: is for pictures of filled holes, {trained.kind} says classes: leave it "
            f"out, or use --stage {PRETRAIN}"
        )
    return classify(trained, images)


def _batches(
    trained: Trained, images: Sequence[Path], accelerator: Accelerator, size: int
) -> Iterator[Batch]:
    """The images as an evaluation sees them: a set's loader over these files."""
    data = trained.config.data.model_copy(
        update={"loader": "folder", "workers": 0, "on_error": "raise"}
    )
    labels = np.zeros(len(images), dtype=np.int64)
    source = FolderSource([str(path) for path in images], labels, UNLABELLED)
    loader = build_loader(source, data, trained.config.seed, accelerator.device)
    with closing(loader.in_order(size)) as batches:
        yield from batches


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """Where each image's picture goes."""
    if out.suffix.lower() == ".png":
        if len(images) > 1:
            raise UserError(f"--out {out}: is one file for {len(images)} images: give a folder")
        return [out]
    targets = [out / f"{image.stem}.png" for image in images]
    for place, target in enumerate(targets):
        if target in targets[:place]:
            raise UserError(
                f"{images[place]}: its picture would be {target}, as another image's: predict them "
                "one after the other with an --out each"
            )
    return targets
