"""Decodes image files with Pillow, and decides what counts as an image file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import JpegError, check, transcode

# Excluded although Pillow lists them: vector graphics, videos, and scientific formats that need an
# external program. Pillow names no format for .mpo, which it opens as JPEG.
_NOT_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
EXTENSIONS = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if (kind in Image.OPEN and kind not in _NOT_PICTURES) or kind == "MPO"
)

# Pillow refuses to open a larger image: it may be a decompression bomb.
MAX_PIXELS = 178_956_970
# The limit for an image that is shrunk right after decoding, which bounds memory to a few GB.
MAX_SHRUNK_PIXELS = 2 * MAX_PIXELS
JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# The text of these exceptions explains itself. For others the message includes the type.
_EXPLAINED = (OSError, SyntaxError, RuntimeError, ValueError)


def decode_image(file: str | io.BytesIO, name: str) -> Image.Image:
    """Decode an image with Pillow to mode RGB.

    Args:
        file: A path, or the content of a file.
        name: What a `UserError` calls the image.

    Raises:
        UserError: The image is unreadable.
    """
    image = open_image(file, name)
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(
    file: str | io.BytesIO, name: str, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Decode an image with Pillow to mode RGB, or to L if it is grayscale. Alpha is dropped.

    16-bit samples are scaled to 8 bits; Pillow's own conversion clips them at 255.

    Args:
        file: A path, or the content of a file.
        name: What a `UserError` calls the image.
        at_least: (width, height) that the caller will shrink the image to, or None. The image may
            then have MAX_SHRUNK_PIXELS, and a JPEG is decoded at a fraction of its size that is
            not below `at_least`.

    Raises:
        UserError: The decoder failed with any exception, or some pixels are lost.
    """
    try:
        if isinstance(file, str):
            with open(file, "rb") as opened:
                data = opened.read()
        else:
            data = file.getvalue()
        return _decode(data, at_least)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name}: {str(error).rstrip('.')}: remove it, or shrink it by `prepare --max-side`"
        ) from error
    except Exception as error:  # Pillow, its plug-ins and their libraries raise any type
        raise UserError(f"{name}: unreadable image ({_reason(error)}): fix or remove it") from error


def _decode(data: bytes, at_least: tuple[int, int] | None) -> Image.Image:
    try:
        return _decode_once(data, at_least)
    except (JpegError, Image.DecompressionBombError):
        raise
    except Exception:
        if not data.startswith(JPEG_START):
            raise
    # Pillow is stricter than libjpeg: for example, it requires an end marker. Retry with the
    # transcoded file, which is also what `prepare` stores.
    try:
        data = transcode(data)
    except JpegError as error:
        if not is_unsupported(error):
            raise
        data += _JPEG_END
    return _decode_once(data, at_least)


def _decode_once(data: bytes, at_least: tuple[int, int] | None) -> Image.Image:
    with open_lazily(data, MAX_PIXELS if at_least is None else MAX_SHRUNK_PIXELS) as image:
        if data.startswith(JPEG_START):
            check(data)  # Pillow silently fills lost pixels with gray or noise
        if at_least is not None:
            image.draft(None, at_least)
        return _to_eight_bits(image)


def open_lazily(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image without decoding it. Above MAX_PIXELS this is not thread-safe.

    Args:
        data: The content of an image file.
        max_pixels: The most pixels to accept.

    Raises:
        DecompressionBombError: The image has more than `max_pixels`.
        Exception: Pillow's plug-ins raise any other type.
    """
    if max_pixels <= MAX_PIXELS:
        return Image.open(io.BytesIO(data))
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels // 2  # up to twice its limit, Pillow only warns
    try:
        return Image.open(io.BytesIO(data))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def is_unsupported(error: JpegError) -> bool:
    """Return whether a JPEG is of a type that only Pillow reads, rather than damaged."""
    return str(error).startswith("unsupported")


def _reason(error: Exception) -> str:
    """Return one line that says what is wrong with an image."""
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own text contains the address of a buffer, which differs between runs.
        return "not an image that Pillow knows"
    words = " ".join(str(error).split())
    if words and isinstance(error, _EXPLAINED):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert to mode L or RGB. Raise ValueError for float samples: their range is unknown."""
    if image.mode == "F":
        raise ValueError("its samples are floats of an unknown range")
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("its samples do not fit in 16 bits")
        return Image.fromarray(np.uint8((samples.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF))
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
