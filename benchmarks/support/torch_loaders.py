"""torch's DataLoader over image files and over WebDataset shards."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.crops import PillowCrop, SimplejpegCrop, TorchvisionCrop
from support.image_folder import files_of, shards_of

if TYPE_CHECKING:
    from support.contenders import Spec, Stream


class Folder:
    """torchvision's ImageFolder with RandomResizedCrop: (uint8 (size, size, 3), label)."""

    def __init__(self, spec: Spec, crop: PillowCrop) -> None:
        self.files, self.labels = files_of(spec.folder)
        self.count = len(self.files) * spec.repeats(len(self.files))
        self.crop = crop

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> tuple[Any, int]:
        k %= len(self.files)
        return self.crop(self.files[k]), self.labels[k]


def folder(spec: Spec) -> Stream:
    """torch's DataLoader and Pillow, `threads` worker processes."""
    return _data_loader(spec, PillowCrop(spec.size, spec.train))


def simplejpeg(spec: Spec) -> Stream:
    """torch's DataLoader and simplejpeg, `threads` worker processes."""
    return _data_loader(spec, SimplejpegCrop(spec.size, spec.train))


def torchvision(spec: Spec) -> Stream:
    """torch's DataLoader and torchvision.io, `threads` worker processes."""
    return _data_loader(spec, TorchvisionCrop(spec.size, spec.train))


def _data_loader(spec: Spec, crop: PillowCrop) -> Stream:
    from torch.utils.data import DataLoader

    data: Any = Folder(spec, crop)
    loader = DataLoader(data, batch_size=spec.batch, shuffle=spec.train, num_workers=spec.threads)
    while True:
        yield from loader


def webdataset(spec: Spec) -> Stream:
    """WebDataset: tar shards beside the folder (inputs.py makes them), torch workers, Pillow."""
    import webdataset as wds

    crop = PillowCrop(spec.size, spec.train)
    urls = sorted(str(p) for p in Path(shards_of(spec.folder)).glob("*.tar"))
    urls *= spec.repeats(len(files_of(spec.folder)[0]))
    data = wds.WebDataset(urls, shardshuffle=len(urls) if spec.train else False)
    data = data.shuffle(1000 if spec.train else 0).to_tuple("jpg", "cls")
    data = data.map(lambda s: (crop(io.BytesIO(s[0])), int(s[1]))).batched(spec.batch)
    loader = wds.WebLoader(data, batch_size=None, num_workers=spec.threads)
    while True:
        yield from loader
