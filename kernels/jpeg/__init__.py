"""The JPEG engine: lossless transcoding, bitstream crops, decoding with resizing, and batches.

Boxes are (left, top, width, height) in pixels. Sizes are (height, width), as in array shapes.
An invalid image or box raises `JpegError`, a `ValueError`.

The environment variable FASTSELFIE_KERNELS chooses the instruction set: one of
`available_kernels()`.
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

select_kernels("auto")  # a wrong FASTSELFIE_KERNELS is reported here, not as a damaged image

# The types of items for BatchDecoder.submit(kinds=...).
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
