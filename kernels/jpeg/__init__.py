"""The JPEG engine: lossless transcode, bitstream crop, decode + resize, and batches of them.

Boxes are ``(left, top, width, height)`` in pixels, sizes ``(height, width)`` as in array shapes.
Anything wrong with the bytes or the box of an image is a ``JpegError`` (a ``ValueError``).
"""

from fastselfie.kernels.jpeg._jpeg import (
    BatchDecoder,
    Header,
    JpegError,
    available_kernels,
    check,
    coefficients,
    crop,
    decode_resized,
    planes,
    read_header,
    resize_raw,
    select_kernels,
    selected_kernels,
    transcode,
)

# How BatchDecoder.submit(kinds=...) is told what an item is.
KIND_JPEG, KIND_RAW, KIND_RAW_ZERO_PADDED, KIND_RAW_REFLECTED = range(4)

__all__ = [
    "KIND_JPEG",
    "KIND_RAW",
    "KIND_RAW_REFLECTED",
    "KIND_RAW_ZERO_PADDED",
    "BatchDecoder",
    "Header",
    "JpegError",
    "available_kernels",
    "check",
    "coefficients",
    "crop",
    "decode_resized",
    "planes",
    "read_header",
    "resize_raw",
    "select_kernels",
    "selected_kernels",
    "transcode",
]
