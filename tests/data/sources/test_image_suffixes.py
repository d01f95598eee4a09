"""Which suffixes are taken for images: those of what the installed Pillow decodes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from fastselfie.data.sources.decode import EXTENSIONS, decode_image

KINDS = {
    ".apng": "PNG", ".avif": "AVIF", ".bmp": "BMP", ".dib": "DIB", ".gif": "GIF", ".ico": "ICO",
    ".jfif": "JPEG", ".jp2": "JPEG2000", ".jpe": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG",
    ".mpo": "MPO", ".pgm": "PPM", ".png": "PNG", ".pnm": "PPM", ".ppm": "PPM", ".tga": "TGA",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip


@pytest.mark.parametrize("suffix", KINDS)
def test_pictures_are_taken_and_decoded(suffix):
    file = io.BytesIO()
    picture(3).save(file, KINDS[suffix])
    assert suffix in EXTENSIONS
    pixels = np.asarray(decode_image(file, suffix), dtype=float)
    # GIF's palette is off the most, by 4 of 255; another picture is off by 56.
    assert np.abs(pixels - np.asarray(picture(3))).mean() < 8


@pytest.mark.parametrize(
    "suffix", [".eps", ".ps", ".pdf", ".wmf", ".emf", ".mpg", ".h5", ".hdf", ".grib", ".bufr"]
)
def test_what_needs_another_program_is_not_taken(suffix):
    assert suffix not in EXTENSIONS


def test_each_suffix_is_of_a_kind_that_pillow_opens():
    kinds = Image.registered_extensions()
    assert all(kinds[suffix] in {*Image.OPEN, "MPO"} for suffix in EXTENSIONS)
    assert not [suffix for suffix in EXTENSIONS if suffix != suffix.lower() or suffix[0] != "."]
