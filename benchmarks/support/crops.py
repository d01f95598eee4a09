"""Decode an image file, crop it and resize it, as users of torch's DataLoader do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def short_side(size: int) -> int:
    """Return the shorter side before the central crop: 256 for a crop of 224."""
    return round(size * 256 / 224)


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params: (left, top, w, h)."""
    for _ in range(10):
        area = width * height * rng.uniform(*AREA)
        ratio = np.exp(rng.uniform(*np.log(RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


class PillowCrop:
    """Pillow's decoder, then torchvision's crop and Pillow's antialiased bilinear resize.

    The other classes replace decoder, crop and resize, and keep the boxes.

    Args:
        size: Side of the result in pixels.
        train: Whether the crop is random.
    """

    def __init__(self, size: int, train: bool) -> None:
        self.size, self.train = size, train
        self.rng = np.random.default_rng()

    def __call__(self, file: str | io.BytesIO) -> Any:
        """Return (size, size, 3), uint8."""
        image, width, height = self.decode(file)
        size = self.size
        if self.train:
            box = random_box(width, height, self.rng)
            return self.finish(self.resize(self.cut(image, *box), size, size))
        scale = short_side(size) / min(width, height)
        width, height = round(width * scale), round(height * scale)
        image = self.resize(image, width, height)
        left, top = (width - size) // 2, (height - size) // 2
        return self.finish(self.cut(image, left, top, size, size))

    def decode(self, file: str | io.BytesIO) -> tuple[Any, int, int]:
        """Return the image of a file, its width and its height."""
        from PIL import Image

        image = Image.open(file).convert("RGB")
        return image, image.width, image.height

    def cut(self, image: Any, left: int, top: int, width: int, height: int) -> Any:
        """Return a box of an image."""
        return image.crop((left, top, left + width, top + height))

    def resize(self, image: Any, width: int, height: int) -> Any:
        """Resize an image bilinearly."""
        from PIL import Image

        return image.resize((width, height), Image.Resampling.BILINEAR)

    def finish(self, image: Any) -> Any:
        """Return an image as (height, width, 3), for the DataLoader to stack."""
        return np.array(image)


class SimplejpegCrop(PillowCrop):
    """simplejpeg's decoder and OpenCV's bilinear resize, which does not antialias."""

    def decode(self, file: str | io.BytesIO) -> tuple[Any, int, int]:
        import simplejpeg

        assert isinstance(file, str)
        image = simplejpeg.decode_jpeg(Path(file).read_bytes())
        return image, image.shape[1], image.shape[0]

    def cut(self, image: Any, left: int, top: int, width: int, height: int) -> Any:
        return image[top : top + height, left : left + width]

    def resize(self, image: Any, width: int, height: int) -> Any:
        import cv2

        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def finish(self, image: Any) -> Any:
        return image


class TorchvisionCrop(PillowCrop):
    """torchvision.io's decoder, and the crop and antialiased resize of torchvision's transforms."""

    def decode(self, file: str | io.BytesIO) -> tuple[Any, int, int]:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        image = decode_jpeg(read_file(file), mode=ImageReadMode.RGB)
        return image, image.shape[2], image.shape[1]

    def cut(self, image: Any, left: int, top: int, width: int, height: int) -> Any:
        return image[:, top : top + height, left : left + width]

    def resize(self, image: Any, width: int, height: int) -> Any:
        from torchvision.transforms.v2 import functional

        return functional.resize(image, [height, width], antialias=True)

    def finish(self, image: Any) -> Any:
        return image.permute(1, 2, 0)
