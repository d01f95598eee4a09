"""Fixtures: small configs, small sets of images in every layout, the command line in-process."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# As the command line does, and before torch is imported: see fastselfie.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell without job control starts what it puts in the background with Ctrl-C ignored, which the
# programs that the tests send one to would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Triton programs run in the interpreter; read when triton is imported.
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

try:
    from fastselfie.cli import main
    from fastselfie.config import Config
    from fastselfie.data.beton.writer import BetonWriter
    from fastselfie.system.accelerator import Accelerator, choose_accelerator
except ImportError as error:
    raise pytest.UsageError(f"fastselfie is not installed ({error}): pip install -e .") from error

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "benchmarks"))  # for `support`

# D = 64, 16 patches of 8x8 with 4 masked: a step takes milliseconds.
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"image_size": 32, "crop": "pad", "pad": 2, "pad_mode": "reflect", "workers": 0},
    "model": {
        "stem": "cifar",
        "width": 4,
        "blocks": [1, 1, 1, 1],
        "patch_size": 8,
        "positions": "learned",
        "layers": 1,
        "heads": 4,
        "feed_forward": 32,
    },
    "pretrain": {
        "steps": 4,
        "batch_size": 8,
        "warmup_steps": 1,
        "log_every": 1,
        "eval_every": 2,
        "eval_images": 16,
        "save_every": 2,
        "picture_steps": [0],
    },
    "finetune": {
        "labels": 0.5,
        "steps": 2,
        "batch_size": 8,
        "warmup_steps": 1,
        "log_every": 1,
        "eval_every": 2,
        "save_every": 1,
    },
    # On auto what is tested would depend on the processor.
    "runtime": {"precision": "fp32"},
}


def tiny_config(**sections: dict[str, Any]) -> Config:
    """TINY with some keys of some sections replaced."""
    values = json.loads(json.dumps(TINY))
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return Config.model_validate_json(json.dumps(values))


@pytest.fixture
def tiny() -> Callable[..., Config]:
    return tiny_config


@pytest.fixture
def one_torch_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def accelerator() -> Accelerator:
    return choose_accelerator(tiny_config().runtime)


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """A smooth picture: what JPEG keeps well and what no two patches of share."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    phases = np.random.default_rng(seed).uniform(0, 6, (3, 3))
    waves = [np.sin(4 * x + p) + np.cos(5 * y + q) + np.sin(7 * x * y + r) for p, q, r in phases]
    return Image.fromarray(np.uint8(127 + 40 * np.stack(waves, axis=-1)))


def textured(seed: int, width: int, height: int) -> Image.Image:
    """A picture with the fine grain of a photograph."""
    grain = np.random.default_rng(seed).normal(0, 8, (height, width, 1))
    pixels = np.asarray(picture(seed, width, height)) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg_bytes(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def png_bytes(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_beton(path: Path, images: Sequence[bytes | Image.Image], labels: Sequence[int]) -> Path:
    """Bytes are a JPEG and stored as they are, a picture is stored raw."""
    with BetonWriter(path, len(images)) as writer:
        for image, label in zip(images, labels, strict=True):
            if isinstance(image, bytes):
                width, height = Image.open(io.BytesIO(image)).size
                writer.append(image, "jpg", width, height, label)
            else:
                writer.append(image.tobytes(), "raw", *image.size, label)
        writer.finish()
    return path


def psnr(a: Any, b: Any) -> float:
    """Of two images 0..255, in dB."""
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def thread_count() -> int:
    """The system's threads of this process: Python does not know those of C++ libraries."""
    return len(os.listdir("/proc/self/task"))


def write_image_folder(root: Path) -> Path:
    """ROOT/{train,test}/{cat,dog}/*.png: 8 and 4 images a class, 32x32."""
    for part, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(1000 * label + 100 * (part == "test") + i).save(folder / f"{i}.png")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of TINY with all its stages. Tests only read it, or add predictions/."""
    from fastselfie.report.live import LivePage
    from fastselfie.runs.train import train

    folder = tmp_path_factory.mktemp("trained")
    images = write_image_folder(folder / "images")
    config = tiny_config(data={"train": str(images)})
    train(config, "all", "auto", folder / "run", LivePage)
    return folder / "run"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """MNIST's layout: 40 training images (gzipped) and 20 test images (plain), 28x28, 4 classes."""
    folder = tmp_path / "idx"
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count, suffix in (("train", 40, ".gz"), ("t10k", 20, "")):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        labels = (np.arange(count) % 4).astype(np.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return folder


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs `fastselfie ARGS` in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fastselfie", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


def refused(result: Result, *words: str) -> None:
    """Status 2, and one line with all `words` in it."""
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config().to_yaml(), encoding="utf-8")
    return path


@pytest.fixture
def trained(
    cli: Callable[..., Result], tiny_yaml: Path, image_folder: Path, tmp_path: Path
) -> tuple[Path, dict[str, Any]]:
    """A run of TINY that a test may change, and its figures."""
    out = tmp_path / "run"
    result = cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out)
    assert result.status == 0, result.err
    return out, json.loads(result.out.splitlines()[-1])


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
