"""A fast JPEG decoder for any program: bytes to RGB arrays, cropped and resized on the way.

Sizes are (height, width), as in array shapes. Crops are (left, top, width, height). All are in
pixels of the stored image: the EXIF orientation is not applied.

May import: data and what is below it. Loads numpy and Pillow, not torch.
"""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from fastselfie.data.sources import decode as pillow
from fastselfie.data.sources.content import describe_content
from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import JpegError, decode_resized, read_header, resize_raw

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["JpegError", "decode", "decode_batch", "read_size"]

Crop: TypeAlias = Sequence[int] | NDArray[np.integer]
Size: TypeAlias = tuple[int, int]

_LONGEST_SIDE = 65_535  # of a JPEG, and of a result


def read_size(data: Buffer) -> tuple[int, int]:
    """Return the size of a JPEG without decoding it.

    Args:
        data: The content of a JPEG file, as for `decode`.

    Returns:
        (height, width) in pixels, as stored.

    Raises:
        JpegError: The data is not a JPEG, or its header is damaged.
        TypeError: `data` is not bytes.
    """
    view = _view(data)
    try:
        header = read_header(view)
    except JpegError as error:
        if not pillow.is_unsupported(error):
            raise _explained(error, view) from None
        return _pillow_size(view, error)
    return header.height, header.width


def decode(
    data: Buffer, crop: Crop | None = None, size: Size | None = None, flip: bool = False
) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB, and crop, resize and mirror it, in this order.

    Only the parts of the file that the crop needs are decoded, at a reduced scale if `size` is much
    smaller. Resizing is antialiased and bilinear, as Pillow's. Gray becomes three equal channels.
    The EXIF orientation is not applied. The GIL is released. Pillow decodes the rare types that the
    engine does not support (CMYK, 12 bits a sample, arithmetic coding) if it can.

    Args:
        data: The content of a JPEG file: bytes, bytearray, mmap, or a contiguous memoryview or
            array of bytes with one dimension.
        crop: (left, top, width, height) in pixels, inside the image. By default the whole image.
        size: (height, width) of the result in pixels, 1 to 65,535 each. By default that of the
            crop.
        flip: Whether to mirror the result left to right.

    Returns:
        (H, W, 3) uint8.

    Raises:
        JpegError: The data is not a JPEG, is damaged, or is of a type that Pillow cannot decode
            either. A subclass of ValueError.
        ValueError: `crop` is not inside the image, or `size` is impossible.
        TypeError: An argument has a wrong type.

    Example:
        ```python
        from pathlib import Path
        from fastselfie import jpeg

        data = Path("photo.jpg").read_bytes()
        image = jpeg.decode(data)
        small = jpeg.decode(data, crop=(10, 5, 60, 50), size=(32, 32), flip=True)
        assert small.shape == (32, 32, 3)
        ```
    """
    view = _view(data)
    box = None if crop is None else _integers(crop, "crop", ("left", "top", "width", "height"))
    shape = _shape(size)
    if not isinstance(flip, bool | np.bool_ | int | np.integer):
        raise TypeError(f"flip must be True or False, not {flip!r}")
    try:
        return decode_resized(view, _int32(box), _int32(shape), bool(flip))
    except JpegError as error:
        if not pillow.is_unsupported(error):
            # Only now the header is read once more, to tell a bad request from bad data.
            _require_possible(box, shape, read_size(view))
            raise _explained(error, view) from None
        pixels = _decode_with_pillow(view, error)
        height, width = pixels.shape[:2]
        _require_possible(box, shape, (height, width))
        part = box or (0, 0, width, height)
        out_shape = shape or (part[3], part[2])
        return resize_raw(pixels, _int32(part), _int32(out_shape), bool(flip))


@overload
def decode_batch(
    images: Iterable[Buffer],
    *,
    crops: Iterable[Crop | None] | None = None,
    size: Size,
    flips: Iterable[bool] | None = None,
    threads: int | None = None,
) -> NDArray[np.uint8]: ...


@overload
def decode_batch(
    images: Iterable[Buffer],
    *,
    crops: Iterable[Crop | None] | None = None,
    size: None = None,
    flips: Iterable[bool] | None = None,
    threads: int | None = None,
) -> list[NDArray[np.uint8]]: ...


def decode_batch(
    images: Iterable[Buffer],
    *,
    crops: Iterable[Crop | None] | None = None,
    size: Size | None = None,
    flips: Iterable[bool] | None = None,
    threads: int | None = None,
) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
    """Decode several JPEGs on several threads, each as `decode` does.

    The threads decode without the GIL. They end before the function returns.

    Args:
        images: N JPEGs.
        crops: N crops, or None for the whole of an image; (N, 4) integers also do.
        size: (height, width) of every result in pixels. By default each has its own size.
        flips: N times whether to mirror the result left to right.
        threads: Number of threads. By default one per core that this process may use.
            1 decodes on the calling thread.

    Returns:
        A list of N arrays (H, W, 3) uint8. With `size`, one array (N, H, W, 3) uint8.

    Raises:
        JpegError: An image cannot be decoded. The message begins with the index of the first one.
        ValueError: A crop or the size is impossible, or `crops` or `flips` has another length.
        TypeError: An argument has a wrong type.

    Example:
        ```python
        from pathlib import Path
        from fastselfie import jpeg

        images = [path.read_bytes() for path in sorted(Path("photos").glob("*.jpg"))]
        batch = jpeg.decode_batch(images, size=(64, 64), threads=2)
        assert batch.shape == (len(images), 64, 64, 3)
        ```
    """
    if isinstance(images, bytes | bytearray | memoryview | str):
        raise TypeError("images must be a list of JPEGs, not one: use decode for one")
    sources = list(images)
    count = len(sources)
    boxes, mirrored = _column(crops, "crops", count, None), _column(flips, "flips", count, False)
    shape, threads = _shape(size), _thread_count(threads)
    _require_size(shape)
    results: Any = [None] * count if shape is None else np.empty((count, *shape, 3), np.uint8)

    def decode_one(index: int) -> None:
        try:
            results[index] = decode(sources[index], boxes[index], shape, mirrored[index])
        except (ValueError, TypeError) as error:  # a JpegError too
            raise type(error)(f"image {index}: {error}") from error

    threads = min(threads, count)
    if threads <= 1:
        list(map(decode_one, range(count)))
    else:
        with ThreadPoolExecutor(threads, "fastselfie-jpeg") as pool:
            list(pool.map(decode_one, range(count)))  # raises what a thread raised
    return results  # type: ignore[no-any-return]


def _column(values: Iterable[object] | None, name: str, count: int, default: object) -> list[Any]:
    """Return one value per image. Raise ValueError if there are more or fewer."""
    column = [default] * count if values is None else list(values)
    if len(column) != count:
        raise ValueError(f"{name} has {len(column)} items for {count} images")
    return column


def _view(data: Buffer) -> memoryview:
    """Return the bytes without a copy. Raise TypeError if they are not bytes in one row."""
    try:
        view = memoryview(data)
    except TypeError:
        hint = ": pass the content of the file" if isinstance(data, str | os.PathLike) else ""
        raise TypeError(f"data must be bytes, not {type(data).__name__}{hint}") from None
    if view.ndim != 1 or view.itemsize != 1 or not view.c_contiguous:
        raise TypeError(
            f"data must be contiguous bytes with one dimension, not {type(data).__name__} of shape "
            f"{view.shape}, {view.itemsize} bytes an item"
        )
    return view


def _integers(values: object, name: str, parts: tuple[str, ...]) -> tuple[int, ...]:
    """Return `values` as a tuple of integers, numpy's too. Raise TypeError if they are others."""
    try:
        numbers = tuple(operator.index(value) for value in values)  # type: ignore[attr-defined]
    except TypeError:
        numbers = ()
    if len(numbers) != len(parts):
        raise TypeError(f"{name} must be integers ({', '.join(parts)}), not {values!r}")
    return numbers


def _shape(size: Size | None) -> Size | None:
    if size is None:
        return None
    height, width = _integers(size, "size", ("height", "width"))
    return height, width


def _thread_count(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0))
    (count,) = _integers((threads,), "threads", ("number",))
    if count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    return count


def _int32(values: tuple[int, ...] | None) -> Any:
    """Limit numbers to what the engine takes. It refuses the limits too."""
    return None if values is None else tuple(max(-1, min(v, 2**31 - 1)) for v in values)


def _require_possible(
    box: tuple[int, ...] | None, shape: tuple[int, ...] | None, image: tuple[int, int]
) -> None:
    """Raise ValueError if an image of (height, width) cannot be cropped or resized like this."""
    height, width = image
    if box is not None:
        left, top, across, down = box
        if not (0 <= left < left + across <= width and 0 <= top < top + down <= height):
            raise ValueError(
                f"crop (left {left}, top {top}, width {across}, height {down}) is not inside the "
                f"image, which is {width} wide and {height} high"
            )
    _require_size(shape, f"; the image is {width} wide and {height} high")


def _require_size(shape: tuple[int, ...] | None, image: str = "") -> None:
    if shape is not None and not (min(shape) >= 1 and max(shape) <= _LONGEST_SIDE):
        height, width = shape
        raise ValueError(
            f"size (height {height}, width {width}) must be 1 to {_LONGEST_SIDE:,} a side{image}"
        )


def _explained(error: JpegError, view: memoryview) -> JpegError:
    """Return an error that names the format of what is not a JPEG, else `error`."""
    start = bytes(view[:256])
    if not start.startswith(pillow.JPEG_START):
        return JpegError(f"not a JPEG: it is {describe_content(start)}")
    return error if len(view) > 3 else JpegError(f"truncated: a JPEG of {len(view)} bytes")


def _decode_with_pillow(view: memoryview, error: JpegError) -> NDArray[np.uint8]:
    try:
        return np.asarray(pillow.decode_image(io.BytesIO(view), f"{error}; Pillow"))
    except UserError as reason:
        raise JpegError(str(reason)) from None


def _pillow_size(view: memoryview, error: JpegError) -> tuple[int, int]:
    try:
        with pillow.open_lazily(bytes(view), pillow.MAX_PIXELS) as image:
            return image.height, image.width
    except Exception:  # Pillow's plug-ins raise any type
        raise JpegError(f"{error}; Pillow cannot open it either") from None
