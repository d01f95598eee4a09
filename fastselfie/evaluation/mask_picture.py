"""The mask-prediction picture (paper, figure 4): masked patches filled as the model predicts.

A right patch has a white frame, a wrong one a red frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fastselfie.data.draws import IntArray
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import Batch
from fastselfie.evaluation.metrics import evaluating
from fastselfie.models.selfie import Selfie

_TILE = 104  # about the side of an image in a picture, pixels
_GAP = 6
_RIGHT, _WRONG = (255, 255, 255), (230, 0, 0)
_GROUND = (48, 54, 61)  # background of the page as well; differs from both frames


def predictions(
    model: Selfie, batch: Batch, pixels: InputTransform
) -> tuple[npt.NDArray[np.uint8], IntArray, IntArray]:
    """Let `model` choose a candidate for each masked patch of a batch.

    Returns:
        What `filled` draws: images (B, H, W, 3) uint8, order (B, N) and chosen (B, M).
    """
    with evaluating(model), pixels.accelerator.autocast():
        patches, order = pixels.patches(batch)
        chosen = model.scores(patches, order).argmax(dim=-1)
    return batch.images.cpu().numpy(), order.cpu().numpy(), chosen.cpu().numpy()


def filled(
    images: npt.NDArray[np.uint8], order: IntArray, chosen: IntArray, patch: int, side: int = _TILE
) -> Image.Image:
    """Draw a column of images, each masked patch filled with the chosen candidate.

    Args:
        images: (B, H, W, 3) uint8.
        order: (B, N) locations, masked ones last.
        chosen: (B, M) candidate (0..M-1) that was chosen for each masked location.
        patch: P, pixels.
        side: about the side of an image in the picture, pixels.
    """
    columns = images.shape[2] // patch
    tiles = []
    for image, locations, answer in zip(images, order[:, -chosen.shape[1] :], chosen, strict=True):
        target = image.copy()
        for hole, source in zip(locations, locations[answer], strict=True):
            target[_region(int(hole), columns, patch)] = image[_region(int(source), columns, patch)]
        tile, zoom = _enlarge(target, side)
        draw = ImageDraw.Draw(tile)
        for index, hole in enumerate(locations):
            y, x = divmod(int(hole), columns)
            step = patch * zoom
            corner = (round(x * step), round(y * step))
            box = (*corner, round((x + 1) * step) - 1, round((y + 1) * step) - 1)
            colour = _RIGHT if answer[index] == index else _WRONG
            draw.rectangle(box, outline=colour, width=max(2, side // _TILE))
        tiles.append(tile)
    return _column(tiles)


def originals(images: npt.NDArray[np.uint8], side: int = _TILE) -> Image.Image:
    """Draw a column of the images (B, H, W, 3) uint8 as they are."""
    return _column([_enlarge(image, side)[0] for image in images])


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Join two columns of the same height into one picture."""
    both = Image.new("RGB", (left.width + _GAP + right.width, left.height), _GROUND)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return both


def _region(location: int, columns: int, patch: int) -> tuple[slice, slice]:
    y, x = divmod(location, columns)
    return slice(y * patch, (y + 1) * patch), slice(x * patch, (x + 1) * patch)


def _enlarge(image: npt.NDArray[np.uint8], side: int) -> tuple[Image.Image, float]:
    """Scale an image to about `side` pixels, up by a whole factor; also return the factor."""
    own = image.shape[0]
    zoom = float(side // own) if own <= side else side / own
    how = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS
    size = round(own * zoom)
    return Image.fromarray(image).resize((size, size), how), size / own


def _column(tiles: list[Image.Image]) -> Image.Image:
    width, height = tiles[0].size
    column = Image.new("RGB", (width, len(tiles) * (height + _GAP) - _GAP), _GROUND)
    for index, tile in enumerate(tiles):
        column.paste(tile, (0, index * (height + _GAP)))
    return column
