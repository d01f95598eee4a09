"""benchmarks/throughput.py on a tiny dataset: its result, and its errors for bad options."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY, picture
from helpers.benchmarks import run_benchmark
from PIL import Image

from fastselfie.data.beton.writer import BetonWriter

pytestmark = pytest.mark.slow

IMAGES = 8


@pytest.fixture
def beton(tmp_path):
    path = tmp_path / "tiny.beton"
    with BetonWriter(path, IMAGES) as writer:
        for k in range(IMAGES):
            data = io.BytesIO()
            picture(k, 64, 48).save(data, "JPEG", quality=90)
            writer.append(data.getvalue(), "jpg", 64, 48, k % 2)
        writer.finish({"classes": ["a", "b"]})
    return path


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "raw.beton"
    with BetonWriter(path, IMAGES) as writer:
        for k in range(IMAGES):
            writer.append(picture(k).tobytes(), "raw", 32, 32, k % 2)
        writer.finish()
    return path


def throughput(*arguments, first=()):
    return run_benchmark("benchmarks/throughput.py", *arguments, first=first)


def test_writes_rates_ratios_and_conditions(beton, tmp_path):
    out, folder = tmp_path / "out" / "result.json", tmp_path / "folder"
    done = throughput(
        "--data", beton, "--folder", folder, "--loaders", "native,folder", "--threads", 1,
        "--json", out, "--size", 32, "--batch", 4, "--seconds", 0.05,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("*/*.jpg"))) == IMAGES  # made of the .beton
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["loader"] for row in result["results"]] == ["native", "folder"]
    for row in result["results"]:
        assert len(row["rounds"]) == 5
        rates = row["images_per_s"]
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]
        assert row["peak_rss_mb"] >= row["pss_mb"] > 0
        assert row["cpu_ms_per_image"] >= 0
    ratio = result["ratios"]["native/folder"]
    assert set(ratio) == {"median", "min", "max"}
    native, folder_row = (row["rounds"] for row in result["results"])
    pairs = sorted(a / b for a, b in zip(native, folder_row, strict=True))
    assert ratio["median"] == pytest.approx(pairs[2], rel=1e-3)
    assert {"processor", "torch", "peers", "load_average"} <= set(result["environment"])
    assert result["protocol"]["loaders"]["native"]["size"] == 32
    assert out.with_suffix(".png").stat().st_size > 0
    assert "folder" in done.stdout


def test_measures_small_raw_images(raw, tmp_path):
    out = tmp_path / "result.json"
    done = throughput(
        "--raw", raw, "--loaders", "resident", "--rounds", 1, "--batch", 4, "--seconds", 0.05,
        "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["results"][0]["loader"] == "resident"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data", "nowhere.beton", "--loaders", "native"], "nowhere.beton"),
        (["--data", "BETON", "--loaders", "native,feather"], "feather"),
        (["--data", "BETON", "--loaders", "native,resident"], "resident"),
        (["--data", "BETON", "--loaders", "native,folder"], "--folder"),
        (["--data", "BETON", "--loaders", "native", "--rounds", "0"], "--rounds"),
        (["--loaders", "native"], "--data"),
        (["--data", "BETON", "--pace"], "--pace"),
    ],
)
def test_bad_input_is_one_line(arguments, named, beton, tmp_path):
    arguments = [str(beton) if word == "BETON" else word for word in arguments]
    done = throughput(*arguments, "--json", tmp_path / "out.json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_a_missing_peer_is_one_line(beton, tmp_path):
    # None in sys.modules stands for a package that is not there, also where it is.
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text("import sys; sys.modules['ffcv'] = None\n", encoding="utf-8")
    arguments = ("--data", beton, "--loaders", "native,ffcv", "--json", tmp_path / "out.json")
    done = throughput(*arguments, first=[tmp_path])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "ffcv" in line
    assert "not installed" in line


@pytest.mark.extra  # OpenCV comes with FFCV
@pytest.mark.parametrize("train", [False, True])
def test_the_crop_of_the_simplejpeg_peer_shows_what_pillows_shows(train, tmp_path, monkeypatch):
    """The same box, from another decoder (here Pillow stands in) and another bilinear resize."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from support.crops import PillowCrop, SimplejpegCrop

    def decode_jpeg(data):
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    monkeypatch.setitem(sys.modules, "simplejpeg", SimpleNamespace(decode_jpeg=decode_jpeg))
    ramp = np.linspace(0, 255, 96 * 64).reshape(64, 96).astype(np.uint8)
    file = tmp_path / "ramp.jpg"
    Image.fromarray(np.stack([ramp, ramp, ramp[::-1]], axis=2)).save(file)
    crops = [PillowCrop(32, train), SimplejpegCrop(32, train)]
    for crop in crops:
        crop.rng = np.random.default_rng(3)
    one, other = (np.asarray(crop(str(file))).astype(int) for crop in crops)
    assert one.shape == other.shape == (32, 32, 3)
    assert np.abs(one - other).mean() < 8
