"""`fastselfie features`: a row per image, in the order of the set, as in evaluation."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import refused, write_beton
from PIL import Image

from fastselfie.config.load import load_config
from fastselfie.kernels.reference import scale_and_offset
from fastselfie.runs.load import load_run
from fastselfie.system.files import write_atomically


def figures(result):
    assert result.status == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def files(images, part):
    return sorted((images / part).rglob("*.png"))


def by_hand(run, stage, paths):
    """One image at a time, without any loader."""
    trained = load_run(run, stage)
    network = trained.network().eval()
    data = trained.config.data
    scale, offset = scale_and_offset(torch.tensor(data.mean), torch.tensor(data.std), torch.float32)
    rows = []
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path))).float()
        with torch.no_grad():
            rows.append(network.features((pixels * scale + offset).permute(2, 0, 1)[None])[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(("stage", "width"), [("pretrain", 64), ("finetuned", 128)])
@pytest.mark.parametrize("part", ["train", "test"])
def test_rows_are_the_images_in_order(cli, tiny_run, tmp_path, stage, width, part):
    images, out, labels = tiny_run.parent / "images", tmp_path / "f.npy", tmp_path / "l.npy"
    found = figures(cli("features", tiny_run, "--data", images, "--out", out, "--labels", labels,
                        "--part", part, "--stage", stage))  # fmt: skip
    paths = files(images, part)
    assert (found["n"], found["D"], found["path"]) == (len(paths), width, str(out))
    rows = np.load(out)
    assert rows.shape == (len(paths), width)
    assert rows.dtype == np.float32
    # Batches of several images sum in another order than one alone.
    assert np.allclose(rows, by_hand(tiny_run, stage, paths), rtol=1e-4, atol=1e-5)
    assert np.load(labels).tolist() == [int(path.parent.name == "dog") for path in paths]


def test_a_beton_file_gives_what_its_folder_does(cli, tiny_run, tmp_path):
    paths = files(tiny_run.parent / "images", "test")
    beton = write_beton(tmp_path / "x.beton", [Image.open(p) for p in paths], [0] * len(paths))
    command = ("features", tiny_run, "--out")
    figures(cli(*command, tmp_path / "a.npy", "--data", beton))
    figures(cli(*command, tmp_path / "b.npy", "--data", tiny_run.parent / "images",
                "--part", "test"))  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_an_unreadable_image_leaves_nothing(cli, tiny_run, tmp_path):
    """Under on_error: skip too, where a loader puts another image in its place."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = load_config(run / "config.yaml", ["data.on_error=skip"])
    write_atomically(run / "config.yaml", config.to_yaml())
    folder = tmp_path / "images"
    folder.mkdir()
    for path in files(tiny_run.parent / "images", "test"):
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (folder / "dog-0.png").write_bytes(b"no picture")
    out = tmp_path / "f.npy"
    result = cli("features", run, "--data", folder, "--out", out)
    refused(result, str(folder / "dog-0.png"))
    assert set(tmp_path.iterdir()) == {folder, run}


def test_mistakes(cli, tiny_run, tmp_path):
    images, out = tiny_run.parent / "images", tmp_path / "f.npy"
    folder = tmp_path / "folder.npy"
    folder.mkdir()
    for run, data, target, words in (
        (tmp_path, images, out, "not a run"),
        (tiny_run, tmp_path / "none", out, "no such file or folder"),
        (tiny_run, images, folder, "Is a directory"),
        (
            tiny_run,
            images,
            tmp_path / "f.csv",
            "f.csv: is written as .npy: pass a name that",
        ),
    ):
        refused(cli("features", run, "--data", data, "--out", target), words)
    command = ("features", tiny_run, "--data", images, "--out", out, "--labels")
    refused(cli(*command, tmp_path / "x" / ".." / "f.npy"), "f.npy: is also --out")
    blocked = images / "train" / "cat" / "0.png" / "l.npy"  # below a file
    assert cli(*command, blocked).status == 2
    assert [folder, *folder.iterdir()] == list(tmp_path.iterdir())
