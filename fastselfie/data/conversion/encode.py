"""One image on its way into a .beton file: from the bytes of its file to the bytes to store."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image

from fastselfie.data.sources.base import Source
from fastselfie.data.sources.decode import (
    JPEG_START,
    MAX_PIXELS,
    MAX_SHRUNK_PIXELS,
    is_unsupported,
    open_image,
    open_lazily,
)
from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import Header, JpegError, read_header, transcode

# Of what has to be encoded anew and was given no --quality: above what most photographs have.
DEFAULT_QUALITY = 95
# Lossless files (PNG and so on) up to this side are stored as pixels: JPEG would cost accuracy, and
# at 32x32 its header alone is a third of the file.
RAW_SIDE = 64
_LONGEST_SIDE = 65_500  # of libjpeg's JPEG_MAX_DIMENSION
_FACTORS_420 = [(2, 2), (1, 1), (1, 1)]
# What Pillow can write. Others (4:4:0, 4:1:1) are kept by writing all the chroma there is.
_KEPT = {tuple(_FACTORS_420): "4:2:0", ((2, 1), (1, 1), (1, 1)): "4:2:2"}
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Recoding:
    """What may change about the images. By default nothing that baseline JPEG can hold.

    max_side           pixels: larger images are made smaller, keeping their shape
    quality            of JPEG, 1 to 100: every image is encoded anew
    subsampling        420: images with more chroma are encoded anew with 4:2:0
    apply_orientation  turn images upright as their EXIF says; torchvision ignores it
    """

    max_side: int | None = None
    quality: int | None = None
    subsampling: Literal["keep", "420"] = "keep"
    apply_orientation: bool = False

    def recodes(self) -> bool:
        """Whether pixels may change at all."""
        return self != Recoding(apply_orientation=self.apply_orientation)

    def note(self) -> dict[str, Any]:
        """For the file's note and the fingerprint."""
        return asdict(self)


class Stored(NamedTuple):
    """What to append: the bytes, jpg or raw, and the size in pixels."""

    data: bytes
    mode: str
    width: int
    height: int


def store(source: Source, index: int, recoding: Recoding) -> Stored:
    """Image `index` of `source` as it is stored. Raises UserError where it cannot be read."""
    data = source.encoded(index)
    if data is None:
        return _raw(source.image(index))
    return encode(data, source.name(index), recoding)


def encode(data: bytes, name: str, recoding: Recoding) -> Stored:
    """An image file's bytes as they are stored; `name` is what a UserError calls it.

    A JPEG whose pixels may stay is transcoded without loss. Everything else is decoded by Pillow
    and encoded once, gray as gray.
    """
    if not data:
        raise UserError(f"{name}: unreadable image (it is empty): fix or remove it")
    if not data.startswith(JPEG_START):
        return _encode_pixels(data, name, recoding, None)
    try:
        header = read_header(data)
        if not _must_recode(data, header, recoding):
            _require_storable(header.width, header.height, name)
            return _transcoded(data)
    except (JpegError, MemoryError) as error:
        # Damaged, or merely of a kind that is Pillow's to read.
        if not isinstance(error, JpegError) or not is_unsupported(error):
            reason = str(error) or "it takes too much memory"
            raise UserError(f"{name}: unreadable image ({reason}): fix or remove it") from error
        header = None
    return _encode_pixels(data, name, recoding, header)


def _must_recode(data: bytes, header: Header, recoding: Recoding) -> bool:
    if recoding.quality is not None or _too_large(header.width, header.height, recoding):
        return True
    if recoding.subsampling == "420" and header.color != "gray" and header.sampling != _FACTORS_420:
        return True
    return recoding.apply_orientation and _orientation(data) in _TURNS


def _encode_pixels(data: bytes, name: str, recoding: Recoding, header: Header | None) -> Stored:
    """Decode, change, encode. header: the JPEG's, None where the bytes are something else."""
    limit = recoding.max_side
    # Decoding at half size is as good as decoding whole where half is twice what is wanted.
    image = open_image(io.BytesIO(data), name, None if limit is None else (2 * limit, 2 * limit))
    kept = "4:4:4" if header is None else _KEPT.get(tuple(header.sampling), "4:4:4")
    file = io.BytesIO()
    try:
        if recoding.apply_orientation and (turn := _TURNS.get(_orientation(data))) is not None:
            image = image.transpose(turn)
        if limit is not None and _too_large(*image.size, recoding):
            scale = limit / max(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        _require_storable(*image.size, name)
        is_jpeg = data.startswith(JPEG_START)
        if not is_jpeg and recoding.quality is None and max(image.size) <= RAW_SIDE:
            return _raw(image)
        image.save(
            file,
            "JPEG",
            quality=DEFAULT_QUALITY if recoding.quality is None else recoding.quality,
            subsampling="4:2:0" if recoding.subsampling == "420" else kept,
        )
    except (OSError, MemoryError) as error:  # too many pixels at once
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: cannot be a JPEG ({reason}): use --max-side") from error
    return _transcoded(file.getvalue())


def _require_storable(width: int, height: int, name: str) -> None:
    """Refuse an image that Pillow would not open again, or that no JPEG can hold."""
    if max(width, height) > _LONGEST_SIDE:
        raise UserError(
            f"{name}: {width}x{height}: a JPEG holds at most {_LONGEST_SIDE:,} pixels a side: use "
            "--max-side"
        )
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} pixels are more than {MAX_PIXELS:,}: remove it, or use "
            "a smaller --max-side"
        )


def _transcoded(data: bytes) -> Stored:
    stored = transcode(data)
    header = read_header(stored)
    return Stored(stored, "jpg", header.width, header.height)


def _raw(image: Image.Image) -> Stored:
    return Stored(image.convert("RGB").tobytes(), "raw", *image.size)


def _too_large(width: int, height: int, recoding: Recoding) -> bool:
    return recoding.max_side is not None and max(width, height) > recoding.max_side


def _orientation(data: bytes) -> int:
    try:
        with open_lazily(data, MAX_SHRUNK_PIXELS) as image:
            if image.format == "TIFF":
                return 1  # Pillow itself turns these upright
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # of Pillow's parser, for damaged EXIF of a sound picture: of any kind
        return 1
