"""What is measured of P while it trains: when, on what, and without a trace in the training."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from conftest import picture, tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation import online as monitor
from fastselfie.evaluation.knn import knn_accuracy
from fastselfie.evaluation.online import Monitor
from fastselfie.evaluation.probes import linear_probe_accuracy
from fastselfie.evaluation.representations import (
    evaluate_features,
    extract_features,
    pixel_features,
)
from fastselfie.models.selfie import build_selfie
from fastselfie.system.accelerator import random_state
from fastselfie.system.signals import Interrupted
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import pretrain

pytestmark = pytest.mark.slow

MEASURES = {"knn", "linear_probe"}


def run(folder, out, accelerator, data=None, **settings):
    config = tiny_config(data={"train": str(folder), **(data or {})}, pretrain=settings)
    network, last = pretrain(config, open_dataset(config.data), out, accelerator)
    return network.state_dict(), last


def measured(out):
    """Step -> the names of what was measured of P."""
    names = MEASURES | {"knn_pixels"}
    lines = [(line["step"], names & set(line)) for line in read_log(out / "log.jsonl")]
    return {step: found for step, found in lines if found}


@pytest.mark.parametrize("loader", ["resident", "folder"])
def test_the_weights_are_those_of_a_run_that_nobody_watches(
    image_folder, tmp_path, accelerator, loader
):
    """Batch statistics too, and dropout's draws. One evaluation is not due for anything else."""
    options = {"data": {"loader": loader}, "steps": 5, "eval_every": 5, "picture_steps": []}
    alone, _ = run(image_folder, tmp_path / "a", accelerator, knn_every=None, **options)
    watched, last = run(image_folder, tmp_path / "b", accelerator, knn_every=2, **options)
    for name, value in alone.items():
        assert torch.equal(value, watched[name]), name
    losses = [
        [line["loss"] for line in read_log(tmp_path / name / "log.jsonl") if "loss" in line]
        for name in "ab"
    ]
    assert losses[0] == losses[1]
    assert measured(tmp_path / "a") == {}
    assert measured(tmp_path / "b") == {
        0: {*MEASURES, "knn_pixels"}, 2: MEASURES, 4: MEASURES, 5: MEASURES,
    }  # fmt: skip
    assert set(last) >= MEASURES


def test_it_measures_p_on_a_part_of_the_images(image_folder, accelerator):
    """Of those that train against those held out, in eval mode, the same part each time."""
    config = tiny_config(
        data={"train": str(image_folder)}, pretrain={"knn_images": 11, "knn_queries": 5}
    )
    dataset, pixels = open_dataset(config.data), InputTransform(config, accelerator, batch=4)
    watch = Monitor(config, dataset, pixels)
    assert (len(watch.bank.source), len(watch.queries.source)) == (11, 5)
    # Drawn, not the first: an image folder is sorted by class.
    assert len(set(watch.queries.source.labels.tolist())) == 2
    network = build_selfie(config).patch_network
    found = watch.measure(network, 0)
    assert network.training
    bank, queries = (
        extract_features(network, each, pixels) for each in (watch.bank, watch.queries)
    )
    assert found["knn"] == knn_accuracy(*bank, *queries)
    assert found["linear_probe"] == linear_probe_accuracy(*bank, *queries)
    assert Monitor(config, dataset, pixels).measure(network, 0) == found
    assert watch.measure(network, 1) == {}


@pytest.mark.parametrize("labels", ["one class", "none"])
def test_without_labels_it_is_said_once_that_there_is_nothing(
    tmp_path, accelerator, capsys, labels
):
    folder = tmp_path / "images" / ("only" if labels == "one class" else "")
    folder.mkdir(parents=True)
    for i in range(20):
        picture(i).save(folder / f"{i}.png")
    run(tmp_path / "images", tmp_path / "out", accelerator, knn_every=2)
    assert capsys.readouterr().err.count("no k-NN or linear probe") == 1
    assert measured(tmp_path / "out") == {}
    run(tmp_path / "images", tmp_path / "off", accelerator, knn_every=None)
    assert "k-NN" not in capsys.readouterr().err


def test_a_measure_that_was_left_is_made_up_for(image_folder, tmp_path, accelerator, monkeypatch):
    options = {"steps": 6, "knn_every": 3, "save_every": 6}
    straight, last = run(image_folder, tmp_path / "a", accelerator, **options)
    calls = []

    def left(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # of step 0, then this one of step 3
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_features(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "evaluate_features", left)
        with pytest.raises(Interrupted):
            run(image_folder, tmp_path / "b", accelerator, **options)
    assert set(measured(tmp_path / "b")) == {0}
    again, final = run(image_folder, tmp_path / "b", accelerator, **options)
    assert final == last
    assert measured(tmp_path / "b") == measured(tmp_path / "a")
    for name, value in straight.items():
        assert torch.equal(value, again[name]), name


def test_pixels_are_compared_as_they_are_normalised(image_folder, accelerator):
    """In float32 whatever the precision, and averaged down where they are many."""
    config = tiny_config(data={"train": str(image_folder)})
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    pixels = InputTransform(config, accelerator, batch=5)
    pixels.dtype = torch.bfloat16
    features, labels = pixel_features(loader, pixels)
    assert labels.tolist() == [0] * 8 + [1] * 8
    images = torch.cat([batch.images for batch in loader.in_order(5)]).float() / 255
    expected = (images - torch.tensor(config.data.mean)) / torch.tensor(config.data.std)
    assert torch.allclose(features, expected.permute(0, 3, 1, 2).flatten(1), atol=1e-5)
    large = tiny_config(data={"train": str(image_folder), "image_size": 64})
    loader = build_loader(open_dataset(large.data).train, large.data, 0, accelerator.device)
    features, _ = pixel_features(loader, InputTransform(large, accelerator, batch=5))
    assert features.shape == (16, 3 * 32 * 32)


def test_a_probe_draws_nothing(accelerator):
    before = random_state(accelerator.device)["cpu"]
    features, labels = torch.ones(6, 3), torch.tensor([0, 1] * 3)
    linear_probe_accuracy(features, labels, features, labels)
    assert torch.equal(random_state(accelerator.device)["cpu"], before)
