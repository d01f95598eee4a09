"""`fastselfie prepare`: any source into one file, killed and resumed, the same bytes each time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, picture, tiny_config
from PIL import Image

from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.dataset import open_dataset, open_part
from fastselfie.kernels import jpeg

pytestmark = pytest.mark.slow


def photos(root, count=40, side=120):
    """ROOT/{a,b,c}/NN.jpg|png|webp of several kinds."""
    for i in range(count):
        folder = root / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        image = picture(i, side + i % 17, side - i % 11)
        if i % 10 == 7:
            image.convert("CMYK").save(folder / f"{i:02}.jpg")
        elif i % 10 == 8:
            image.save(folder / f"{i:02}.png")
        else:
            options = {"progressive": i % 2 == 1, "subsampling": i % 3}
            image.save(folder / f"{i:02}.jpg", quality=90, **options)
    return root


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """750 images: the journal reaches the disk every 146; one of the first is unreadable."""
    root = photos(tmp_path_factory.mktemp("large"), 30, 300)
    for path in sorted(root.rglob("*.*")):
        for copy in range(24):
            path.with_stem(f"{path.stem}-{copy:02}").write_bytes(path.read_bytes())
    (root / "a" / "00-07.jpg").write_bytes(b"no image")
    return root


def command(*arguments):
    return [sys.executable, "-m", "fastselfie", "prepare", *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def beside(out):
    return sorted(path.name for path in out.parent.glob(f"{out.stem}*"))


def test_a_folder_keeps_order_labels_names_and_coefficients(cli, folder, tmp_path):
    out = tmp_path / "new" / "photos.beton"
    result = cli("prepare", folder, "--out", out, "--workers", 1)
    assert result.status == 0, result.err
    summary = json.loads(result.out.splitlines()[-1])
    assert (summary["images"], summary["skipped"]) == (40, 0)
    assert summary["bytes"] == out.stat().st_size
    assert beside(out) == ["photos.beton"]
    reader, source = BetonReader(out), open_part(folder, "train").source
    assert reader.label.tolist() == source.labels.tolist()
    assert reader.info["classes"] == ["a", "b", "c"]
    assert reader.info["source"] == "image folder photos, train"
    assert reader.info["options"]["quality"] is None
    for i in range(40):
        original = source.encoded(i)
        if original[:2] == b"\xff\xd8" and Image.open(source.name(i)).mode != "CMYK":
            pairs = zip(
                jpeg.coefficients(original), jpeg.coefficients(reader.image(i)), strict=True
            )
            assert all(np.array_equal(a, b) for a, b in pairs)
    assert cli("prepare", "--check", out).status == 0


def test_the_bytes_do_not_depend_on_the_workers(cli, large, tmp_path):
    files = []
    for workers in (1, 2, 3):
        files.append(tmp_path / f"{workers}.beton")
        options = ("--workers", workers, "--on-error", "skip")
        assert cli("prepare", large, "--out", files[-1], *options).status == 0
    assert len({path.read_bytes() for path in files}) == 1


def start(folder, out, *options):
    return subprocess.Popen(
        command(folder, "--out", out, "--on-error", "skip", *options),
        env=environment(),
        stdout=subprocess.DEVNULL,
        # Not a pipe: what outlives the process would hold it open, and the test with it.
        stderr=open(out.with_name("errors"), "wb"),
        start_new_session=True,  # what it leaves behind can be found by its group
    )


def errors_of(out):
    return out.with_name("errors").read_text()


def members(group):
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again_gives_the_same_bytes(cli, tmp_path, large, workers):
    """Kills at random moments until it ends by itself; a bad image in the middle stays listed."""
    whole, out = tmp_path / "whole.beton", tmp_path / "out.beton"
    options = ("--workers", workers)
    assert cli("prepare", large, "--out", whole, "--on-error", "skip", *options).status == 0
    random = np.random.default_rng(workers)
    partial, journal = (out.with_name(f"out.beton.{name}") for name in ("partial", "journal"))
    kept = [0]  # bytes of the journal that each kill left
    while True:
        process = start(large, out, *options)
        while process.poll() is None and len(kept) <= 3:
            # The kill is to fall into the work, after some of it reached the disk.
            if journal.exists() and journal.stat().st_size > kept[-1]:
                time.sleep(random.uniform(0, 0.1))
                process.kill()
                break
            time.sleep(0.002)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors_of(out)
        assert partial.exists()
        assert not out.exists()
        kept.append(journal.stat().st_size)
        deadline = time.monotonic() + 10
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = members(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, "workers outlive the process that was killed"
    assert len(kept) >= 3
    assert kept[-1] > kept[1] > 0
    assert out.read_bytes() == whole.read_bytes()
    lists = [path.with_suffix(".skipped.txt").read_text() for path in (out, whole)]
    assert lists[0] == lists[1]
    assert beside(out) == ["out.beton", "out.skipped.txt"]


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.4])  # while workers start, and after
def test_ctrl_c_says_how_to_go_on(tmp_path, large, delay):
    out = tmp_path / "out.beton"
    process = start(large, out, "--workers", 2)
    while not any(tmp_path.glob("out.beton.partial")):
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert errors_of(out) == "interrupted: run the same command to resume\n"


def test_an_unreadable_image_stops_or_is_skipped_and_listed(cli, folder, tmp_path):
    bad = [folder / "a" / "03.jpg", folder / "b" / "10.jpg", folder / "c" / "38.png"]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:-300])
    bad[2].write_bytes(b"noise")
    out, listed = tmp_path / "x.beton", tmp_path / "x.skipped.txt"
    listed.write_text("7\tleft by an earlier file\tof this name\n")
    stopped = cli("prepare", folder, "--out", out, "--workers", 1)
    assert stopped.status == 2
    assert stopped.err.startswith(f"error: {bad[0]}: unreadable image (it is empty)")
    assert "--on-error skip" in stopped.err
    assert stopped.err.count("\n") == 1
    assert not out.exists()
    result = cli("prepare", folder, "--out", out, "--on-error", "skip", "--workers", 1)
    assert result.status == 0, result.err
    assert json.loads(result.out)["skipped"] == 3
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    source = open_part(folder, "train").source
    assert [line[1] for line in lines] == [str(path) for path in bad]
    assert [source.name(int(line[0])) for line in lines] == [line[1] for line in lines]
    assert all(line[2].startswith("unreadable image (") for line in lines)
    reader = BetonReader(out)
    good = [i for i in range(40) if source.name(i) not in map(str, bad)]
    assert reader.label.tolist() == source.labels[good].tolist()
    assert reader.info["skipped"] == 3
    assert cli("prepare", "--check", out).status == 0


def test_not_one_readable_image_is_an_error(cli, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"noise")
    out = tmp_path / "x.beton"
    result = cli("prepare", tmp_path / "photos", "--out", out, "--on-error", "skip")
    assert result.status == 2
    assert "no image is readable" in result.err
    assert not out.exists()


def test_an_image_larger_than_a_page_is_named_or_skipped(cli, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "x.beton"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    picture(0).save(folder / "b.jpg")
    small = ("prepare", folder, "--out", out, "--page-size", 4096)
    result = cli(*small)
    assert result.status == 2
    assert "a.jpg: 200x200 pixels in" in result.err
    assert "--max-side" in result.err
    assert cli(*small, "--on-error", "skip").status == 0
    assert len(BetonReader(out)) == 1
    assert BetonReader(out).page_size == 4096


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "photos"], "must end in .beton"),
        (["--out", "x.beton", "--page-size", 5000], "--page-size 5000: give a power of two"),
        (["--out", "x.beton", "--quality", 0], "--quality 0: give 1 to 100"),
        (["--out", "x.beton", "--max-side", 0], "--max-side 0: give 1 to 65535"),
        (["--out", "x.beton", "--workers", 0], "--workers 0: give at least 1"),
        (["--out", "x.beton", "--part", "test"], "holds no held-out images"),
        ([], "pass SOURCE and --out"),
        (["--check", "x.beton"], "remove SOURCE"),
    ],
)
def test_mistakes_are_one_line(cli, folder, monkeypatch, tmp_path, options, words):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "train")
    (tmp_path / "set").mkdir()
    (tmp_path / "train").rename(tmp_path / "set" / "train")
    result = cli("prepare", "set", *options)
    assert result.status == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert not any(tmp_path.glob("x.*"))


def test_a_file_that_exists_is_left_alone(cli, folder, tmp_path):
    out = tmp_path / "x.beton"
    out.write_bytes(b"mine")
    result = cli("prepare", folder, "--out", out)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"{out}: exists already" in result.err
    assert out.read_bytes() == b"mine"


def test_other_options_do_not_go_on_with_a_partial_file(cli, folder, tmp_path):
    out = tmp_path / "x.beton"
    (folder / "c" / "38.png").write_bytes(b"noise")
    assert cli("prepare", folder, "--out", out, "--workers", 1).status == 2
    result = cli("prepare", folder, "--out", out, "--quality", 50, "--workers", 1)
    assert result.status == 2
    assert "was begun with another source or other options" in result.err
    moved = folder.rename(tmp_path / "moved")  # the same set at another place may go on
    assert cli("prepare", moved, "--out", out, "--on-error", "skip", "--workers", 1).status == 0


def test_recoding_options_reach_every_image(cli, folder, tmp_path):
    out = tmp_path / "x.beton"
    options = ("--max-side", 90, "--quality", 80, "--subsampling", "420", "--workers", 2)
    assert cli("prepare", folder, "--out", out, *options).status == 0
    reader = BetonReader(out)
    assert max(reader.width.max(), reader.height.max()) == 90
    headers = [jpeg.read_header(reader.image(i)) for i in range(len(reader))]
    assert {header.sampling[0] for header in headers} == {(2, 2)}
    assert reader.info["options"] == {
        "max_side": 90, "quality": 80, "subsampling": "420", "apply_orientation": False,
    }  # fmt: skip


def test_arrays_are_stored_as_pixels(cli, idx_folder, tmp_path):
    for part, count in (("train", 40), ("test", 20)):
        out = tmp_path / f"{part}.beton"
        assert cli("prepare", idx_folder, "--out", out, "--part", part).status == 0
        reader, source = BetonReader(out), open_part(idx_folder, part).source
        assert len(reader) == count
        assert set(reader.mode) == {1}
        stored = np.stack([reader.image(i).reshape(32, 32, 3) for i in range(count)])
        assert np.array_equal(stored, source.images)
        assert reader.label.tolist() == source.labels.tolist()
    refused = cli("prepare", idx_folder, "--out", tmp_path / "q.beton", "--quality", 90)
    assert refused.status == 2
    assert "IDX holds pixels, which are stored unchanged" in refused.err
    parts = {"train": str(tmp_path / "train.beton"), "test": str(tmp_path / "test.beton")}
    found = open_dataset(tiny_config(data=parts).data)
    assert (len(found.train), len(found.held_out)) == (40, 20)
    assert np.array_equal(np.asarray(found.held_out.image(3)), stored[3])


def test_a_tar_file_and_a_beton_are_sources_too(cli, folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in sorted(folder.rglob("*.jpg")):
            tar.add(path, path.relative_to(folder))
    first, second = tmp_path / "1.beton", tmp_path / "2.beton"
    assert cli("prepare", tmp_path / "a.tar", "--out", first, "--workers", 2).status == 0
    assert cli("prepare", first, "--out", second, "--workers", 2).status == 0
    one, two = BetonReader(first), BetonReader(second)
    assert len(one) == len(two) == 36
    assert one.crc32.tolist() == two.crc32.tolist()


def test_a_worker_that_the_system_kills_is_one_line(tmp_path, large):
    out = tmp_path / "out.beton"
    process = start(large, out, "--workers", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    spawned = []
    while len(spawned) < 2:
        pids = children.read_text().split()
        spawned = [p for p in pids if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(int(spawned[-1]), signal.SIGKILL)
    assert process.wait(timeout=60) == 2
    assert errors_of(out).startswith("error: a worker process was killed")
    assert errors_of(out).count("\n") == 1


@pytest.mark.parametrize("damage", ["image", "table", "cut", "none", "not"])
def test_check_names_what_is_wrong(cli, folder, tmp_path, damage):
    out = tmp_path / "x.beton"
    assert cli("prepare", folder, "--out", out, "--workers", 1).status == 0
    data = bytearray(out.read_bytes())
    if damage == "image":
        data[int(BetonReader(out).offset[5]) + 700] ^= 1
    elif damage == "table":
        data[3000] ^= 1
    elif damage == "cut":
        del data[-50:]
    elif damage == "not":
        data[:] = b"<html>" * 99
    out.write_bytes(data)
    result = cli("prepare", "--check", out)
    if damage == "none":
        assert (result.status, result.out) == (0, f"{out}: no problem found\n")
        return
    assert result.status == 2
    assert result.out.startswith(f"{out}: ")
    assert ("sample 5" in result.out) == (damage == "image")
    assert result.err == f"error: {out}: 1 problems found: copy it or prepare it again\n"
