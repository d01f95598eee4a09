"""Our loaders, as throughput.py measures them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fastselfie.data.loaders.view import Crop
    from support.contenders import Spec, Stream


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
    crop: Crop = "random_resized" if spec.train else "center"
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
