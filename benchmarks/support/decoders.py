"""The JPEG decoders that decode.py compares: each gives a whole image, (H, W, 3) uint8, RGB.

A function imports its library and returns the decoder, so that no process loads the others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Decode = Callable[[bytes], Any]

BATCH = 32  # images of the DataLoader


def ours() -> Decode:
    """Our decoder."""
    from fastselfie.jpeg import decode

    return decode


def simplejpeg() -> Decode:
    """simplejpeg, on libjpeg-turbo, in its default (accurate) mode."""
    import simplejpeg

    decode: Decode = simplejpeg.decode_jpeg
    return decode


def torchvision() -> Decode:
    """torchvision.io, on libjpeg-turbo. Its result is a tensor; an array shares the memory."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> Any:
        # torch warns about memory that cannot be written, hence the copy.
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()

    return decode


def opencv() -> Decode:
    """OpenCV in RGB, on libjpeg-turbo, without rotating by EXIF as the others do not either."""
    import cv2
    import numpy as np

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def imagecodecs() -> Decode:
    """imagecodecs, on libjpeg-turbo."""
    import imagecodecs

    return lambda data: imagecodecs.jpeg8_decode(data, outcolorspace="RGB")


def pillow() -> Decode:
    """Pillow, on libjpeg-turbo."""
    import numpy as np
    from PIL import Image

    return lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def kornia_rs() -> Decode:
    """kornia-rs by its function on libjpeg-turbo, the faster of its two."""
    from kornia_rs.io import decode_image_jpegturbo

    return lambda data: decode_image_jpegturbo(data, "rgb")


@dataclass(frozen=True)
class Decoder:
    """A decoder: the function that loads it, the module and the distribution that it needs."""

    load: Callable[[], Decode]
    module: str
    package: str


DECODERS = {
    "ours": Decoder(ours, "fastselfie.kernels.jpeg", "fastselfie"),
    "simplejpeg": Decoder(simplejpeg, "simplejpeg", "simplejpeg"),
    "torchvision": Decoder(torchvision, "torchvision", "torchvision"),
    "opencv": Decoder(opencv, "cv2", "opencv-python-headless"),
    "imagecodecs": Decoder(imagecodecs, "imagecodecs", "imagecodecs"),
    "pillow": Decoder(pillow, "PIL", "pillow"),
    "kornia-rs": Decoder(kornia_rs, "kornia_rs", "kornia-rs"),
}


@dataclass(frozen=True)
class DecodeJob:
    """What the process of one decoder does.

    Args:
        name: Key of DECODERS.
        files: JPEG files, which are read into memory before the clock runs.
        shapes: (height, width, 3) of each image.
        workers: Worker processes of a DataLoader; None decodes in a plain loop on one thread.
    """

    name: str
    files: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]
    workers: int | None

    @property
    def ready(self) -> int:
        ahead = BATCH * (2 * (self.workers or 0) + 1)  # a DataLoader has 2 batches a worker ready
        return -(-ahead // len(self.files))

    def images(self, batch: list[tuple[int, ...]]) -> int:
        """Return the number of images. Raise TypeError for a shape that no file has."""
        if wrong := set(batch) - set(self.shapes):
            raise TypeError(f"gives an image of shape {min(wrong)}, which no file has")
        return len(batch)

    def stream(self) -> Generator[list[tuple[int, ...]]]:
        """Decode all files again and again; yield the shapes of each pass.

        A whole pass: each round decodes the same mix of images.
        """
        decode = DECODERS[self.name].load()
        encoded = [Path(file).read_bytes() for file in self.files]
        if self.workers is None:
            while True:
                yield [_shape(decode(data)) for data in encoded]
        shapes: list[tuple[int, ...]] = []
        for batch in _data_loader(_Images(encoded, decode), self.workers):
            shapes += map(_shape, batch)
            if len(shapes) >= len(encoded):
                yield shapes
                shapes = []


def _shape(image: Any) -> tuple[int, ...]:
    """Return the shape of an image. Raise TypeError if it is not uint8."""
    if image.dtype.name != "uint8":
        raise TypeError(f"gives {image.dtype}, not uint8")
    shape: tuple[int, ...] = image.shape
    return shape


class _Images:
    """A dataset of decoded images, listed so often that no round contains the end of an epoch."""

    def __init__(self, encoded: list[bytes], decode: Decode) -> None:
        self.encoded, self.decode = encoded, decode

    def __len__(self) -> int:
        return 100_000_000

    def __getitem__(self, k: int) -> Any:
        return self.decode(self.encoded[k % len(self.encoded)])


def _data_loader(images: Any, workers: int) -> Any:
    """torch's DataLoader, whose batches are lists of arrays: the images have different sizes."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    return DataLoader(images, batch_size=BATCH, num_workers=workers, collate_fn=list)
