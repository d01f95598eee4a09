"""The folder in which test_docs.py runs what the docs say, and what is made small there.

    python sandbox.py NAME ARGS    NAME as a shell of the docs finds it, one of STAND_INS

Each page gets a copy of its own. Its names are listed in CONTRIBUTING.md. What it holds is real and
little: images of 80x64 and 32x32 in every layout, a config beside the files that it names, and one
run. Commands are made small as they start, not in the docs: the network, the steps and the batch
of what trains (SMALL), the runs of `reproduce`, the processes of torchrun (2, of several nodes 1)
and srun (1). A command's own keys are checked as they stand before that.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# A stand-in starts in a moment: what makes the images, and what trains, is imported where used.
from fastselfie.config.load import load_config

REPOSITORY = Path(__file__).parents[2]
STAND_INS = ("fastselfie", "python", "ray", "torchrun", "srun", "scontrol")

CLASSES = ("n01440764", "n01443537")  # tench, goldfish
WORLD = 2  # processes of torchrun --standalone
SHARDS = 4

_NETWORK = (
    "data.image_size=64", "data.pad=2", "data.workers=1",
    "model.width=8", "model.blocks=[1,1,1,1]", "model.patch_size=16",
    "model.layers=1", "model.heads=4", "model.feed_forward=32",
    "runtime.threads=1", "runtime.precision=fp32",
    "runtime.compile=off", "runtime.cuda_graphs=false",
)  # fmt: skip
_STAGES = tuple(
    f"{stage}.{key}"
    for stage in ("pretrain", "finetune")
    for key in ("steps=2", "batch_size=4", "micro_batch_size=null", "warmup_steps=1")
)
SMALL = (*_NETWORK, *_STAGES, "pretrain.eval_images=8", "finetune.labels_per_class=2")
# Where several are given the last one holds, of keys and of options.
_APPENDED = {
    "train": SMALL,
    "profile": (*SMALL, "--steps", "2"),
    "prepare": ("--workers", "1"),
    # All labels, as the few of a little set could not be split, and no rate to search.
    "reproduce": (*SMALL, "reproduce.grid=[0.1]", "--labels", "100", "--seeds", "1"),
}
_TAKES_CONFIG = ("train", "profile", "reproduce")


def shrunk(arguments: Sequence[str]) -> list[str]:
    """The arguments of `fastselfie`, for the same command made small.

    Raises:
        UserError: a key or value of the command itself is wrong, even one that is replaced.
    """
    command, rest = arguments[0], list(arguments[1:])
    if command in ("prepare", "join"):
        _make_room(rest)
        rest = [_on_loopback(text) for text in rest]
    if command in _TAKES_CONFIG:
        load_config(rest[0], [text for text in rest[1:] if "=" in text and text[0] != "-"])
    return [command, *rest, *_APPENDED.get(command, ())]


# The address that serves the sandbox, and what stands there for the URLs of the docs.
SERVER = "FASTSELFIE_DOCS_SERVER"
_SERVED = {
    "hf://datasets/ILSVRC/imagenet-1k": "parquet",
    "s3://BUCKET/shards": "shards",
    "https://HOST/shards/imagenet-train-{0000..0146}.tar": "shards/imagenet-train-{0000..0000}.tar",
}


def _on_loopback(argument: str) -> str:
    """The URL of files of the sandbox, in the place of one on the internet."""
    return f"{os.environ[SERVER]}/{_SERVED[argument]}" if "://" in argument else argument


def _make_room(arguments: Sequence[str]) -> None:
    """Remove what --out names if it came with the sandbox: a page may make it itself."""
    if "--out" in arguments:
        out = Path(arguments[arguments.index("--out") + 1])
        if out.exists() and out.stat().st_mtime == 0:
            out.unlink()


# --- what stands in the folder --------------------------------------------------------------------


def make_sandbox(root: Path) -> None:
    """All files but the run; those that `prepare` makes are marked by a time of 0."""
    from conftest import jpeg_bytes, picture, textured

    from fastselfie.data.conversion.prepare import Options, prepare

    shutil.copytree(REPOSITORY / "configs", root / "configs")
    images = {
        part: [(label, jpeg_bytes(textured(seed + 100 * label + i, 80, 64)))
               for label in range(len(CLASSES)) for i in range(count)]
        for part, seed, count in (("train", 0, 8), ("val", 1000, 4))
    }  # fmt: skip
    for part, labelled in images.items():
        for number, (label, data) in enumerate(labelled):
            for name in ("DIR", "imagenet"):
                _write(root / name / part / CLASSES[label] / f"{number}.JPEG", data)
            if part == "train":
                _write(root / "photos" / f"{number}.jpg", data)
    _write(root / "photo.jpg", images["val"][0][1])
    _write_tars(root, images)
    _write_parquet(root, images)
    _write_arrays(root, [picture(i) for i in range(20)])
    made = [(root / "train.beton", Options(workers=1)),
            (root / "test.beton", Options(part="test", workers=1))]  # fmt: skip
    made += [(root / f"part-{k}.beton", Options(workers=1, shard=(k, SHARDS)))
             for k in range(1, SHARDS + 1)]  # fmt: skip
    for out, options in made:
        prepare(root / "DIR", out, options)
        os.utime(out, (0, 0))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _packed(members: Iterator[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _write_tars(root: Path, images: dict[str, list[tuple[int, bytes]]]) -> None:
    """WebDataset shards, and ImageNet as image-net.org and Kaggle give it."""

    def pairs(part: str) -> Iterator[tuple[str, bytes]]:
        for number, (label, data) in enumerate(images[part]):
            yield f"{number:04}.jpg", data
            yield f"{number:04}.cls", str(label).encode()

    _write(root / "train.tar", _packed(pairs("train")))
    for part in ("train", "val"):
        _write(root / "shards" / f"imagenet-{part}-0000.tar", _packed(pairs(part)))

    def of_class(label: int) -> Iterator[tuple[str, bytes]]:
        for number, (own, data) in enumerate(images["train"]):
            if own == label:
                yield f"{CLASSES[label]}_{number}.JPEG", data

    inner = ((f"{name}.tar", _packed(of_class(label))) for label, name in enumerate(CLASSES))
    _write(root / "ILSVRC2012_img_train.tar", _packed(inner))
    held_out = [(f"ILSVRC2012_val_{number:08}", *image)
                for number, image in enumerate(images["val"], start=1)]  # fmt: skip
    flat = ((f"{name}.JPEG", data) for name, _, data in held_out)
    _write(root / "ILSVRC2012_img_val.tar", _packed(flat))
    rows = [f"{name},{CLASSES[label]} 85 1 499 272 \n" for name, label, _ in held_out]
    _write(root / "LOC_val_solution.csv", "".join(["ImageId,PredictionString\n", *rows]).encode())


def _write_parquet(root: Path, images: dict[str, list[tuple[int, bytes]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "parquet").mkdir()
    for part, name in (("train", "train"), ("val", "validation")):
        labels, data = zip(*images[part], strict=True)
        column = [{"bytes": each, "path": None} for each in data]
        table = pa.table({"image": column, "label": list(labels)})
        pq.write_table(table, root / "parquet" / f"{name}-00000-of-00001.parquet")
    shutil.copy(root / "parquet" / "train-00000-of-00001.parquet", root / "train.parquet")


def _write_arrays(root: Path, pictures: Sequence) -> None:
    """Fashion-MNIST, CIFAR-10 and ImageNet 32x32, of ten classes, two images each."""
    import numpy as np
    from conftest import write_idx

    pixels = np.stack([np.asarray(image) for image in pictures])
    labels = (np.arange(len(pixels)) % 10).astype(np.uint8)
    folder = root / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels[:, :28, :28, 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    records = np.concatenate([labels[:, None], planes], axis=1).tobytes()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        _write(root / "cifar10" / f"{name}.bin", records)
    (root / "imagenet32").mkdir()
    for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"):
        np.savez(root / "imagenet32" / f"{name}.npz", data=planes, labels=labels.astype("i8") + 1)


# --- the commands of a shell ----------------------------------------------------------------------


def make_commands(folder: Path) -> None:
    """The stand-ins, for PATH."""
    folder.mkdir()
    for name in STAND_INS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)


def stand_in(name: str, arguments: list[str]) -> None:
    """Become the real command, made small."""
    if name == "scontrol":  # show hostnames
        print("localhost")
        return
    if name == "srun":
        first = next(i for i, text in enumerate(arguments) if not text.startswith("-"))
        os.environ.update(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0")
        os.execvp(arguments[first], arguments[first:])
    if name == "torchrun":
        # Starting one takes seconds: several where one machine is meant, else one.
        world = WORLD if "--standalone" in arguments else 1
        options = [_on_this_machine(text, world) for text in arguments]
        arguments = ["-m", "torch.distributed.run", *options]
    elif name == "ray":
        arguments = ["-m", "ray.scripts.scripts", *arguments]
    elif name == "fastselfie":
        arguments = ["-m", "fastselfie", *arguments]
    if "fastselfie" in arguments:
        own = arguments.index("fastselfie") + 1
        arguments[own:] = shrunk(arguments[own:])
    os.execv(sys.executable, [sys.executable, *arguments])


def _on_this_machine(option: str, world: int) -> str:
    """An option of torchrun's: its parser still reads it, and it still decides what is done."""
    small = {
        "--nproc-per-node": str(world),
        "--nnodes": "1",
        "--max-restarts": "0",
        "--rdzv-endpoint": f"localhost:{random.randrange(20_000, 30_000)}",
    }
    key, equals, _ = option.partition("=")
    return f"{key}={small[key]}" if equals and key in small else option


if __name__ == "__main__":
    stand_in(sys.argv[1], sys.argv[2:])
