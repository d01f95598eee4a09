"""The mask-prediction picture (paper, figure 4): holes filled with what the model chose.

A white frame where the patch belongs there, a red one where it does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fastselfie.data.random import IntArray

_TILE = 104  # an image's side among others in a picture, pixels, about
_GAP = 6
_RIGHT, _WRONG = (255, 255, 255), (230, 0, 0)
_GROUND = (48, 54, 61)  # neither frame colour, and the page shows the columns on it


def filled(
    images: npt.NDArray[np.uint8],
    order: IntArray,
    chosen: IntArray,
    patch: int,
    side: int = _TILE,
) -> Image.Image:
    """A column of images, each hole filled with the chosen candidate.

    images: (B, H, W, 3) uint8. order: (B, N), masked locations last. chosen: (B, M), for each
    masked location which candidate (0..M-1) was chosen. patch: P. side: of an image in the
    picture, pixels, about.
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
    """A column of the images as they are, (B, H, W, 3) uint8."""
    return _column([_enlarge(image, side)[0] for image in images])


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two columns of one height as one picture."""
    both = Image.new("RGB", (left.width + _GAP + right.width, left.height), _GROUND)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return both


def _region(location: int, columns: int, patch: int) -> tuple[slice, slice]:
    y, x = divmod(location, columns)
    return slice(y * patch, (y + 1) * patch), slice(x * patch, (x + 1) * patch)


def _enlarge(image: npt.NDArray[np.uint8], side: int) -> tuple[Image.Image, float]:
    """The image at about `side` pixels, by a whole factor where it is smaller; and the factor."""
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
