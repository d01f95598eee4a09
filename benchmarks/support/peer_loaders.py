"""FFCV, DALI and SPDL, as throughput.py measures them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from support.crops import AREA, RATIO, random_box, short_side
from support.image_folder import files_of

if TYPE_CHECKING:
    from support.contenders import Spec, Stream


def ffcv(spec: Spec) -> Stream:
    """FFCV on a .beton file with JPEGs."""
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

    side = (spec.size, spec.size)
    if spec.train:
        image = RandomResizedCropRGBImageDecoder(side, scale=AREA, ratio=RATIO)
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
                data, device="cpu", random_area=AREA, random_aspect_ratio=RATIO, num_attempts=100
            )
            image = fn.resize(image, size=side)
        else:
            image = fn.decoders.image(data, device="cpu")
            image = fn.crop(fn.resize(image, resize_shorter=short_side(spec.size)), crop=side)
        pipeline.set_outputs(image, label)
    pipeline.build()
    loader = DALIGenericIterator(
        [pipeline], ["image", "label"], reader_name="Reader", auto_reset=True,
        last_batch_policy=LastBatchPolicy.PARTIAL,
    )  # fmt: skip
    while True:
        for (out,) in loader:
            yield out["image"], out["label"]


def spdl(spec: Spec) -> Stream:
    """SPDL: FFmpeg's decoder and scaler in threads of one process. It gives no labels."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    files, size = files_of(spec.folder)[0], spec.size
    rng = np.random.default_rng()

    def load(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        if spec.train:
            x, y, w, h = random_box(packets.width, packets.height, rng)
            chain = f"crop={w}:{h}:{x}:{y},scale={size}:{size}:flags=bilinear"
        else:
            short = short_side(size)
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
