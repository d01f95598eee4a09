"""benchmarks/decode.py on tiny photographs: its result, what it leaves out, and its tables."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import picture
from helpers.benchmarks import run_benchmark
from support.decode_tables import decode as decode_table
from support.decoders import DecodeJob

pytestmark = pytest.mark.slow

IMAGES = 5


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs" / "a"
    folder.mkdir(parents=True)
    for k in range(IMAGES):
        picture(k, 64, 48 + 8 * k).save(folder / f"{k}.jpg", quality=90)
    picture(9).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "notes.txt").write_text("no photograph")
    return folder.parent


@pytest.fixture
def decode(tmp_path, monkeypatch):
    """Run the script in its own process, where the module `hidden` cannot be imported."""

    def run(*arguments, hidden=""):
        (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{hidden!r}] = None\n")
        return run_benchmark("benchmarks/decode.py", *arguments, first=[tmp_path])

    return run


def test_measures_both_inputs_and_names_what_is_left_out(photographs, decode, tmp_path):
    out = tmp_path / "out" / "decode.json"
    done = decode(
        "--data", photographs, "--decoders", "ours,simplejpeg,pillow", "--workers", "1",
        "--rounds", 2, "--seconds", 0.02, "--json", out, hidden="simplejpeg",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [(m["input"], m["workers"], m["clock"]) for m in result["measurements"]] == [
        ("originals", None, "CPU"), ("originals", 1, "wall"),
        ("transcoded", None, "CPU"), ("transcoded", 1, "wall"),
    ]  # fmt: skip
    for measured in result["measurements"]:
        assert [row["decoder"] for row in measured["results"]] == ["ours", "pillow"]
        for row in measured["results"]:
            assert len(row["rounds"]) == 2
            rates = row["images_per_s"]
            assert 0 < rates["min"] <= rates["median"] <= rates["max"]
        assert measured["ratios"] == {}  # simplejpeg is the denominator
    assert list(result["left_out"]) == ["simplejpeg"]
    assert "simplejpeg" in done.stdout
    assert result["files"]["photographs"] == IMAGES
    assert result["files"]["not_transcodable"] == 1
    assert result["versions"]["pillow"]["pillow"]
    assert {"processor", "load_average"} <= set(result["environment"])
    assert "Left out: simplejpeg." in decode_table([result])


def test_torchvision_runs_in_the_interpreter_that_is_given(photographs, decode, tmp_path):
    """A stand-in for torchvision, which only that interpreter can import."""
    package = tmp_path / "other" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "io.py").write_text(
        "import io, numpy, torch\n"
        "from PIL import Image\n"
        "class ImageReadMode: RGB = 'RGB'\n"
        "def decode_jpeg(data, mode):\n"
        "    image = Image.open(io.BytesIO(data.numpy().tobytes())).convert(mode)\n"
        "    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)\n"
    )
    information = tmp_path / "other" / "torchvision-7.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 7\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{package.parent}" exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    out = tmp_path / "decode.json"
    done = decode(
        "--data", photographs, "--decoders", "ours,torchvision", "--torchvision", python,
        "--workers", "", "--rounds", 1, "--seconds", 0.02, "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["left_out"] == {}
    assert result["versions"]["torchvision"]["torchvision"] == "7"
    assert [row["decoder"] for row in result["measurements"][0]["results"]] == [
        "ours", "torchvision",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--decoders", "ours,turbo"], "--decoders: unknown decoder 'turbo'"),
        (["--rounds", "0"], "--rounds 0: it must be above 0"),
        (["--workers", "few"], "--workers few: give numbers"),
        (["--data", "no-such-folder", "--decoders", "ours"], "no-such-folder: holds no .jpg"),
        (
            ["--decoders", "torchvision", "--torchvision", "nowhere"],
            "--torchvision nowhere: ",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, named, photographs, decode, tmp_path):
    done = decode("--data", photographs, "--json", tmp_path / "out.json", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_an_image_of_another_size_is_an_error(photographs):
    files = tuple(map(str, sorted(photographs.rglob("[0-9].jpg"))))
    job = DecodeJob("pillow", files, ((48, 64, 3),), None)
    with pytest.raises(TypeError, match=r"shape \(56, 64, 3\), which no file has"):
        job.images(next(job.stream()))


def test_the_ratio_is_that_of_paired_rounds():
    from decode import _summary
    from support.rounds import Round

    def rounds(*seconds):
        return [Round(100, s, s / 2, 0.0, 0.0, 1.0, 1.0, 0.0) for s in seconds]

    found = {"ours": rounds(1, 2, 4), "simplejpeg": rounds(2, 2, 5)}
    by_wall, by_cpu = _summary(found, 2), _summary(found, None)
    assert by_wall["ratios"]["ours/simplejpeg"] == {"median": 1.25, "min": 1.0, "max": 2.0}
    assert by_wall["results"][0]["images_per_s"]["median"] == 50
    assert by_cpu["results"][0]["images_per_s"]["median"] == 100
