"""The loaders that throughput.py compares, each an endless stream of (images, labels).

Peers run with their own decoders and default settings. A small dataset is listed many times over,
so that no round contains the end of an epoch. All give (B, size, size, 3) uint8. `resident` and
`ffcv-raw` pad by 4, crop and flip. The others do not flip, and crop as torchvision does: area
0.08-1, ratio 3/4-4/3; for evaluation Resize(size * 256 / 224) and CenterCrop.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fastselfie.data.loaders.view import Crop as OurCrop

Stream = Generator[tuple[Any, Any], None, None]

_READY = 8  # batches: more than any of the loaders keeps ready (FFCV 5, torch 2 a worker, DALI 2)
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Spec:
    """What one worker process loads.

    Args:
        loader: Key of CONTENDERS.
        data: .beton file.
        folder: Folder with DIR/CLASS/*.jpg, for loaders that read files.
        size: Side of the output in pixels.
        train: Whether crops are random.
        batch: Images per batch.
        threads: Threads or worker processes.
        epoch: A smaller dataset is repeated until it has this many images.
    """

    loader: str
    data: str
    folder: str
    size: int
    train: bool
    batch: int
    threads: int
    epoch: int = 100_000  # more than a loader gives in all rounds

    @property
    def name(self) -> str:
        return self.loader

    @property
    def ready(self) -> int:
        return _READY

    def stream(self) -> Stream:
        return CONTENDERS[self.loader].stream(self)

    def images(self, batch: tuple[Any, Any]) -> int:
        """Return the number of images. Raise TypeError if they are not uint8 of `size`."""
        images, shape = batch[0], (self.size, self.size, 3)
        if tuple(images.shape[1:]) != shape or "uint8" not in str(images.dtype):
            raise TypeError(f"gives {images.dtype} of {tuple(images.shape)}, not uint8 of {shape}")
        return len(images)

    def repeats(self, count: int) -> int:
        """Return how often a dataset of `count` images is listed."""
        return -(-self.epoch // count)


def native(spec: Spec) -> Stream:
    """Our native loader through the public `Loader`."""
    import torch

    from fastselfie import Loader
    from fastselfie.data.beton.reader import BetonReader
    from fastselfie.data.dataset import BetonSource

    torch.set_num_threads(spec.threads)
    reader = BetonReader(spec.data)
    indices = np.tile(np.arange(len(reader), dtype=np.int64), spec.repeats(len(reader)))
    classes = [str(i) for i in range(int(reader.label.max()) + 1)]
    source = BetonSource(reader, indices, reader.label[indices], classes)
    crop: OurCrop = "random_resized" if spec.train else "center"
    loader = Loader(
        source, spec.batch, size=spec.size, crop=crop, flip=False, shuffle=spec.train,
        drop_last=spec.train, workers=spec.threads, backend="native",
    )  # fmt: skip
    while True:
        for images, labels in loader:
            yield images.permute(0, 2, 3, 1), labels  # a view, as the others have it


def decoder(spec: Spec) -> Stream:
    """The C++ engine of the native loader driven by hand, without the Python of `Loader`."""
    from fastselfie.data.beton.reader import IMAGE_MODES, BetonReader
    from fastselfie.data.loaders import Index, View
    from fastselfie.data.loaders.crops import boxes
    from fastselfie.kernels.jpeg import KIND_JPEG, KIND_RAW, BatchDecoder

    view = View(spec.size, "random_resized" if spec.train else "center", flip=False)
    reader, ahead = BetonReader(spec.data), 2
    order = np.tile(np.arange(len(reader), dtype=np.int64), spec.repeats(len(reader)))
    sizes = np.stack([reader.width, reader.height], axis=1).astype(np.int64)
    raw = reader.mode == IMAGE_MODES["raw"]
    kinds = np.where(raw, KIND_RAW, KIND_JPEG).astype(np.uint8)
    made = [np.empty((spec.batch, spec.size, spec.size, 3), np.uint8) for _ in range(ahead + 2)]
    with BatchDecoder(spec.threads, 10) as engine:
        pending: list[tuple[int, npt.NDArray[np.int64]]] = []
        for number in itertools.count():
            start = number * spec.batch % (len(order) - spec.batch + 1)
            samples = order[start : start + spec.batch]
            index = Index(samples, np.full(len(samples), number))
            box = boxes(view, 0, 0, index, sizes[samples])
            ticket = engine.submit(
                reader.data.data, box.astype(np.int32), out=made[number % len(made)],
                offsets=reader.offset[samples], sizes=reader.size[samples], kinds=kinds[samples],
                shapes=sizes[samples, ::-1].astype(np.int32),
            )  # fmt: skip
            pending.append((ticket, samples))
            if len(pending) > ahead:
                ticket, samples = pending.pop(0)
                engine.wait(ticket)
                yield made[(number - ahead) % len(made)], reader.label[samples]


def resident(spec: Spec) -> Stream:
    """Our loader for small datasets in memory."""
    import torch

    from fastselfie import Loader
    from fastselfie.data.beton.reader import BetonReader
    from fastselfie.data.dataset import BetonSource

    torch.set_num_threads(spec.threads)
    reader = BetonReader(spec.data)
    source = BetonSource(reader, np.arange(len(reader), dtype=np.int64), reader.label, [])
    loader = Loader(
        source, spec.batch, size=spec.size, crop="pad", pad=4, drop_last=True, backend="resident"
    )
    while True:
        for images, labels in loader:
            yield images.permute(0, 2, 3, 1), labels  # a view, as the others have it


def ffcv(spec: Spec) -> Stream:
    """FFCV on a .beton file with JPEGs."""
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

    side = (spec.size, spec.size)
    if spec.train:
        image = RandomResizedCropRGBImageDecoder(side, scale=_AREA, ratio=_RATIO)
    else:
        image = CenterCropRGBImageDecoder(side, ratio=224 / 256)
    return _ffcv(spec, [image], "RANDOM" if spec.train else "SEQUENTIAL", repeat=True)


def ffcv_raw(spec: Spec) -> Stream:
    """FFCV's CIFAR-10 pipeline on a .beton file with raw pixels, which is not repeated."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate

    image = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=4)]
    return _ffcv(spec, image, "RANDOM", repeat=False)


def _ffcv(spec: Spec, image: list[Any], order: str, *, repeat: bool) -> Stream:
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    from fastselfie.data.beton.reader import BetonReader

    count = len(BetonReader(spec.data))
    loader = Loader(
        spec.data,
        batch_size=spec.batch,
        num_workers=spec.threads,
        order=OrderOption[order],
        indices=np.tile(np.arange(count), spec.repeats(count) if repeat else 1),
        pipelines={"image": [*image, ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    while True:
        yield from loader


def files_of(folder: str) -> tuple[list[str], list[int]]:
    """Return the paths of DIR/CLASS/*, and the number of the class of each."""
    paths = sorted(Path(folder).glob("*/*"))
    names = {name: k for k, name in enumerate(sorted({p.parent.name for p in paths}))}
    return [str(p) for p in paths], [names[p.parent.name] for p in paths]


def dali(spec: Spec) -> Stream:
    """DALI on the CPU, reading files."""
    from nvidia.dali import Pipeline, fn
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    files, labels = files_of(spec.folder)
    repeats, side = spec.repeats(len(files)), (spec.size, spec.size)
    pipeline = Pipeline(spec.batch, spec.threads, device_id=None, seed=1)
    with pipeline:
        data, label = fn.readers.file(
            files=files * repeats, labels=labels * repeats, random_shuffle=spec.train,
            pad_last_batch=True, name="Reader",
        )  # fmt: skip
        if spec.train:
            image = fn.decoders.image_random_crop(
                data, device="cpu", random_area=_AREA, random_aspect_ratio=_RATIO, num_attempts=100
            )
            image = fn.resize(image, size=side)
        else:
            image = fn.decoders.image(data, device="cpu")
            image = fn.crop(fn.resize(image, resize_shorter=_short(spec.size)), crop=side)
        pipeline.set_outputs(image, label)
    pipeline.build()
    loader = DALIGenericIterator(
        [pipeline], ["image", "label"], reader_name="Reader", auto_reset=True,
        last_batch_policy=LastBatchPolicy.PARTIAL,
    )  # fmt: skip
    while True:
        for (out,) in loader:
            yield out["image"], out["label"]


class Folder:
    """torchvision's ImageFolder with RandomResizedCrop: (uint8 (size, size, 3), label)."""

    def __init__(self, spec: Spec) -> None:
        self.files, self.labels = files_of(spec.folder)
        self.count = len(self.files) * spec.repeats(len(self.files))
        self.crop = Crop(spec.size, spec.train)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> tuple[npt.NDArray[np.uint8], int]:
        k %= len(self.files)
        return self.crop(self.files[k]), self.labels[k]


class Crop:
    """Pillow's decoder, then torchvision's crop and Pillow's antialiased bilinear resize."""

    def __init__(self, size: int, train: bool) -> None:
        self.size, self.train = size, train
        self.rng = np.random.default_rng()

    def __call__(self, file: str | io.BytesIO) -> npt.NDArray[np.uint8]:
        from PIL import Image

        image: Image.Image = Image.open(file).convert("RGB")
        bilinear, size = Image.Resampling.BILINEAR, self.size
        if self.train:
            x, y, w, h = _random_box(*image.size, self.rng)
            image = image.crop((x, y, x + w, y + h)).resize((size, size), bilinear)
        else:
            scale = _short(size) / min(image.size)
            image = image.resize(
                (round(image.width * scale), round(image.height * scale)), bilinear
            )
            x, y = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((x, y, x + size, y + size))
        return np.array(image)


def _short(size: int) -> int:
    return round(size * 256 / 224)


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params: (left, top, w, h)."""
    for _ in range(10):
        area = width * height * rng.uniform(*_AREA)
        ratio = np.exp(rng.uniform(*np.log(_RATIO)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def folder(spec: Spec) -> Stream:
    """torch's DataLoader and Pillow, `threads` worker processes."""
    from torch.utils.data import DataLoader

    data: Any = Folder(spec)
    loader = DataLoader(data, batch_size=spec.batch, shuffle=spec.train, num_workers=spec.threads)
    while True:
        yield from loader


def spdl(spec: Spec) -> Stream:
    """SPDL: FFmpeg's decoder and scaler in threads of one process. It gives no labels."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    files, size = files_of(spec.folder)[0], spec.size
    rng = np.random.default_rng()

    def load(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        if spec.train:
            x, y, w, h = _random_box(packets.width, packets.height, rng)
            chain = f"crop={w}:{h}:{x}:{y},scale={size}:{size}:flags=bilinear"
        else:
            short = _short(size)
            chain = f"scale={short}:{short}:force_original_aspect_ratio=increase:flags=bilinear"
            chain += f",crop={size}:{size}"
        return spdl.io.decode_packets(packets, filter_desc=f"{chain},format=pix_fmts=rgb24")

    def endless() -> Iterator[str]:
        while True:
            yield from (files[k] for k in (rng.permutation if spec.train else range)(len(files)))

    builder = PipelineBuilder().add_source(endless()).pipe(load, concurrency=spec.threads)
    builder = builder.aggregate(spec.batch).pipe(spdl.io.convert_frames).add_sink(3)
    pipeline = builder.build(num_threads=spec.threads)
    with pipeline.auto_stop():
        for buffer in pipeline.get_iterator():
            yield spdl.io.to_numpy(buffer), None


def webdataset(spec: Spec) -> Stream:
    """WebDataset: tar shards beside the folder (inputs.py makes them), torch workers, Pillow."""
    import webdataset as wds

    crop = Crop(spec.size, spec.train)
    urls = sorted(str(p) for p in Path(shards_of(spec.folder)).glob("*.tar"))
    urls *= spec.repeats(len(files_of(spec.folder)[0]))
    data = wds.WebDataset(urls, shardshuffle=len(urls) if spec.train else False)
    data = data.shuffle(1000 if spec.train else 0).to_tuple("jpg", "cls")
    data = data.map(lambda s: (crop(io.BytesIO(s[0])), int(s[1]))).batched(spec.batch)
    loader = wds.WebLoader(data, batch_size=None, num_workers=spec.threads)
    while True:
        yield from loader


def shards_of(folder: str) -> str:
    """Return the folder of the WebDataset shards of an image folder."""
    return folder.rstrip("/") + "-shards"


@dataclass(frozen=True)
class Contender:
    """A loader: its stream, the field of Spec that it reads, the package that it needs."""

    stream: Callable[[Spec], Stream]
    reads: str
    package: str = "torch"


CONTENDERS = {
    "native": Contender(native, "data"),
    "decoder": Contender(decoder, "data"),
    "ffcv": Contender(ffcv, "data", "ffcv"),
    "ffcv-shared": Contender(ffcv, "data", "ffcv"),  # FFCV on the same file as native
    "dali-cpu": Contender(dali, "folder", "nvidia.dali"),
    "folder": Contender(folder, "folder"),
    "spdl": Contender(spdl, "folder", "spdl"),
    "webdataset": Contender(webdataset, "folder", "webdataset"),
    "resident": Contender(resident, "data"),
    "ffcv-raw": Contender(ffcv_raw, "data", "ffcv"),
}
