"""Converts one image file to the bytes that a .beton file stores."""

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

# JPEG quality of re-encoded images without --quality: above that of most photographs.
DEFAULT_QUALITY = 95
# Lossless files (PNG and the like) up to this side are stored as pixels. JPEG would cost accuracy,
# and at 32x32 its header alone is a third of the file.
RAW_SIDE = 64
_LONGEST_SIDE = 65_500  # JPEG_MAX_DIMENSION of libjpeg
_FACTORS_420 = [(2, 2), (1, 1), (1, 1)]
# The subsamplings that Pillow can write. Others (4:4:0, 4:1:1) are written with full chroma.
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
    """Which lossy changes to make. By default none, as far as baseline JPEG can hold the image.

    Attributes:
        max_side: In pixels. Larger images are shrunk; the aspect ratio stays.
        quality: JPEG quality, 1 to 100. If given, every image is re-encoded.
        subsampling: 420 re-encodes images with more chroma as 4:2:0; keep leaves it.
        apply_orientation: Whether to turn images upright as EXIF says. torchvision ignores EXIF.
    """

    max_side: int | None = None
    quality: int | None = None
    subsampling: Literal["keep", "420"] = "keep"
    apply_orientation: bool = False

    def recodes(self) -> bool:
        """Return whether any pixel may change, apart from the orientation."""
        return self != Recoding(apply_orientation=self.apply_orientation)

    def note(self) -> dict[str, Any]:
        """Return the options as JSON for the file's metadata and the fingerprint."""
        return asdict(self)


class Stored(NamedTuple):
    """What to append to a .beton file: the bytes, the mode (jpg or raw), and the size in pixels."""

    data: bytes
    mode: str
    width: int
    height: int


def store(source: Source, index: int, recoding: Recoding) -> Stored:
    """Convert image `index` of `source`.

    Raises:
        UserError: It is unreadable or too large.
    """
    data = source.encoded(index)
    if data is None:
        return _raw(source.image(index))
    return encode(data, source.name(index), recoding)


def encode(data: bytes, name: str, recoding: Recoding) -> Stored:
    """Convert an encoded image.

    A JPEG that needs no change is transcoded without loss. Everything else is decoded with Pillow
    and encoded once; grayscale stays grayscale.

    Args:
        data: The content of an image file.
        name: What a `UserError` calls the image.
        recoding: Which changes to make.

    Raises:
        UserError: The image is unreadable or too large.
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
        # Damaged, or a type of JPEG that only Pillow reads.
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
    """Decode, change and encode an image. `header` is None if it is not a JPEG."""
    limit = recoding.max_side
    # Decoding a JPEG at a reduced size loses nothing if that is still twice the final size.
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
    """Raise UserError if Pillow would not open the stored image, or no JPEG can hold it."""
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
    except Exception:  # damaged EXIF of a good image: Pillow's parser raises any type
        return 1
