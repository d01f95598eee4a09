"""`fastselfie predict`: classes or mask prediction of single images, as in evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image

from fastselfie.data import draws
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.metrics import evaluating
from fastselfie.runs.load import load_run
from fastselfie.system.accelerator import choose_accelerator


def answers(result):
    assert result.status == 0, result.err
    return json.loads(result.out.splitlines()[-1])


@pytest.fixture
def images(tiny_run):
    """The held-out images, in the order of the set."""
    return sorted((tiny_run.parent / "images" / "test").rglob("*.png"))


@pytest.fixture
def evaluation(tiny_run):
    """A batch of the run's own evaluation of its held-out set, and its input."""
    trained = load_run(tiny_run, "pretrain")
    config = trained.config
    accelerator = choose_accelerator(config.runtime)
    held_out = open_dataset(config.data, config.seed).held_out
    loader = build_loader(held_out, config.data, config.seed, accelerator.device)
    return next(loader.in_order(8)), InputTransform(config, accelerator, 8)


def test_classes_are_those_of_the_evaluation(cli, tiny_run, images, evaluation):
    batch, pixels = evaluation
    network = load_run(tiny_run, "finetuned").network()
    with evaluating(network):
        expected = network(pixels.whole(batch)).softmax(dim=1)
    result = cli("predict", tiny_run, *images)
    found = answers(result)
    assert [x["image"] for x in found] == [str(path) for path in images]
    for row, answer in zip(expected, found, strict=True):
        names = ["cat", "dog"] if row[0] >= row[1] else ["dog", "cat"]
        assert [name for name, _ in answer["top"]] == names
        assert [p for _, p in answer["top"]] == pytest.approx(
            sorted(row.tolist(), reverse=True), abs=1e-5
        )
    assert result.out.count("%") == 2 * len(images)  # the table


def test_holes_are_those_of_the_evaluation(cli, tiny_run, images, evaluation, tmp_path):
    batch, pixels = evaluation
    patches, order = pixels.patches(batch)
    model = load_run(tiny_run, "pretrain").selfie()
    with evaluating(model):
        chosen = model.scores(patches, order).argmax(dim=-1)
    right = (chosen == torch.arange(4)).sum(dim=1).tolist()
    assert np.array_equal(order, draws.patch_orders(0, 0, np.arange(8), 16))
    # One folder's four: the other's have the same names, and so would their pictures.
    out = tmp_path / "pictures"
    found = answers(cli("predict", tiny_run, *images[:4], "--stage", "pretrain", "--out", out))
    assert [x["right"] for x in found] == right[:4]
    assert {x["holes"] for x in found} == {4}
    assert sorted(out.iterdir()) == [out / f"{i}.png" for i in range(4)]
    picture = Image.open(out / "0.png")
    side = 448
    assert picture.size == (2 * side + 6, side)
    original = np.asarray(picture)[:, :side]
    assert np.array_equal(original[::14, ::14], np.asarray(Image.open(images[0])))
    # A corner of a hole's frame is white where it is right, red where not.
    corners = [picture.getpixel((side + 6 + int(h) % 4 * 112, int(h) // 4 * 112))
               for h in order[0, -4:]]  # fmt: skip
    frames = [(255, 255, 255) if c == i else (230, 0, 0) for i, c in enumerate(chosen[0].tolist())]
    assert corners == frames


def test_where_pictures_go(cli, tiny_run, images, tmp_path):
    command = ("predict", tiny_run, "--stage", "pretrain")
    one = answers(cli(*command, images[0], "--out", tmp_path / "one.png"))
    assert one[0]["picture"] == str(tmp_path / "one.png")
    default = answers(cli(*command, images[0]))
    assert default[0]["picture"] == str(tiny_run / "predictions" / "0.png")
    assert (tiny_run / "predictions" / "0.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    refused(cli(*command, *images[:2], "--out", tmp_path / "x.png"), "one file for 2 images")
    same_name = cli(*command, images[0], images[4], "--out", tmp_path / "x")
    refused(same_name, str(images[4]), "as of another image")
    refused(cli("predict", tiny_run, images[0], "--out", tmp_path / "x"), "predicts classes")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


@pytest.mark.parametrize("stage", ["finetuned", "pretrain"])
def test_an_image_that_cannot_be_read_is_named(cli, tiny_run, images, tmp_path, stage):
    """And of the good one before it nothing is written."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(images[0].read_bytes()[:60])
    out = ("--out", tmp_path / "x") if stage == "pretrain" else ()
    command = ("predict", tiny_run, "--stage", stage, *out, images[1])
    refused(cli(*command, bad), str(bad), "unreadable image")
    refused(cli(*command, tmp_path / "none.png"), "none.png: no such image file")
    refused(cli(*command, tmp_path), f"{tmp_path}: is a folder: pass its images")
    assert list(tmp_path.iterdir()) == [bad]


def test_a_folder_that_is_no_run(cli, images, tmp_path):
    refused(cli("predict", tmp_path, images[0]), "not a run")
