"""Measures against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_config

from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import InputTransform, draw_masks
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.knn import _nearest, knn_accuracy
from fastselfie.evaluation.metrics import (
    classification_accuracy,
    evaluating,
    pretext_accuracy,
)
from fastselfie.evaluation.probes import linear_probe_accuracy, standardized
from fastselfie.evaluation.representations import extract_features
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import PatchConcat, build_classifier, build_selfie, cut_patches


@pytest.fixture
def setting(image_folder, accelerator):
    config = tiny_config(data={"train": str(image_folder)})
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    return config, loader, InputTransform(config, accelerator, batch=7)


def test_pretext_accuracy_is_the_share_of_places_answered_right(setting, accelerator):
    config, loader, pixels = setting
    model = build_selfie(config)
    measured = pretext_accuracy(model, loader, pixels, limit=10)
    assert model.training
    right = 0
    model.eval()
    for batch in loader.in_order(1, limit=10):
        best = model.scores(*pixels.patches(batch))[0].argmax(dim=1)
        right += sum(int(chosen) == place for place, chosen in enumerate(best))
    assert measured["pretext_accuracy"] == right / 40
    again = pretext_accuracy(model, loader, pixels, limit=10)
    assert again == measured


@pytest.mark.parametrize("images", [9, 8])
@pytest.mark.parametrize("query", ["summed", "pooled"])
def test_use_of_context_by_hand(image_folder, accelerator, query, images):
    """Each image with the visible patches of the one before it in a pass of 7, then of 2 or 1."""
    config = tiny_config(data={"train": str(image_folder)}, model={"query": query})
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    model, pixels = build_selfie(config), InputTransform(config, accelerator, batch=7)
    measured = pretext_accuracy(model, loader, pixels, limit=images)
    other = none = 0
    model.eval()
    for batch in loader.in_order(7, limit=images):
        whole, (_, orders) = pixels.whole(batch), pixels.patches(batch)
        for i, order in enumerate(orders[:, None]):
            own = model.encoded(
                model.vectors(cut_patches(whole[i, None], 4)[order[0]][None]), order
            )
            # u is the other image's own, of its own mask.
            places = order if query == "pooled" else orders[i - 1, None]
            cut = cut_patches(whole[i - 1, None], 4)[places[0]]
            foreign = model.encoded(model.vectors(cut[None]), places).query
            if query == "pooled":
                without = model.pooling(own.h[:, :0], model.positions()[order[:, 12:]])
            else:
                without = torch.zeros_like(foreign)
            if len(orders) > 1:
                other += int(model.score(own._replace(query=foreign), order)[1])
            none += int(model.score(own._replace(query=without), order)[1])
    assert measured["pretext_accuracy_other_context"] == other / (4 * images if images == 9 else 28)
    assert measured["pretext_accuracy_no_context"] == none / (4 * images)


def test_an_image_alone_in_its_pass_has_no_other_context(setting):
    config, loader, pixels = setting
    measured = pretext_accuracy(build_selfie(config), loader, pixels, limit=1)
    assert set(measured) == {"heldout_loss", "pretext_accuracy", "pretext_accuracy_no_context"}


def test_the_context_costs_no_second_pass_through_p(setting, monkeypatch):
    config, loader, pixels = setting
    seen = []
    forward = ResNetV2.forward
    monkeypatch.setattr(
        ResNetV2, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1]
    )
    pretext_accuracy(build_selfie(config), loader, pixels, limit=9)
    assert seen == [7 * 16, 2 * 16]


def test_classification_accuracy_counts_every_image_once(setting, accelerator):
    config, loader, pixels = setting
    network = build_classifier(config, 2)
    with torch.no_grad():
        network.head.fc.weight.zero_()
        network.head.fc.bias.copy_(torch.tensor([1.0, 0.0]))
    measured = classification_accuracy(network, loader, pixels)
    assert measured["top1"] == 0.5
    assert measured["top5"] == 1.0
    assert measured["heldout_loss"] == pytest.approx((np.log1p(np.e) - 1 + np.log1p(np.e)) / 2)


def test_features_are_in_the_order_of_the_images(setting, accelerator):
    config, loader, pixels = setting
    network = build_selfie(config).patch_network
    features, labels = extract_features(network, loader, pixels)
    assert features.shape == (16, 64)
    assert labels.tolist() == [0] * 8 + [1] * 8
    with evaluating(network):
        for batch in loader.in_order(1, limit=3):
            one, row = network.features(pixels.whole(batch)), int(batch.index.samples[0])
            assert torch.allclose(one[0], features[row], rtol=1e-4, atol=1e-5)


def test_patches_side_by_side_are_p_of_each_place(setting, accelerator):
    config, loader, pixels = setting
    network, side, grid = build_selfie(config).patch_network, config.model.patch_size, config.grid
    places = PatchConcat(network, grid)
    features, _ = extract_features(places, loader, pixels)
    assert features.shape == (16, config.patches * network.width)
    with evaluating(network):
        batch = next(loader.in_order(1, limit=1))
        whole, row = pixels.whole(batch), int(batch.index.samples[0])
        for place in range(config.patches):
            y, x = side * (place // grid), side * (place % grid)
            one = network.features(whole[:, :, y : y + side, x : x + side])
            part = features[row, place * network.width : (place + 1) * network.width]
            assert torch.allclose(one[0], part, rtol=1e-4, atol=1e-5)


def test_augmented_they_are_measured_as_training_shows_them_first(image_folder, accelerator):
    config = tiny_config(data={"train": str(image_folder), "pad_mode": "zero"})
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    (measured,) = loader.in_order(16, augment=True)
    trained = next(loader.stream(0, 16))
    of_sample = {int(s): i for i, s in enumerate(trained.index.samples)}
    rows = [of_sample[int(s)] for s in measured.index.samples]
    for name in ("images", "flip", "labels"):
        assert torch.equal(getattr(measured, name), getattr(trained, name)[rows]), name
    (plain,) = loader.in_order(16)
    assert not torch.equal(measured.images, plain.images)
    orders = [draw_masks(batch, 0, 16) for batch in (measured, plain)]
    assert torch.equal(*orders)
    assert torch.equal(orders[0], draw_masks(trained, 0, 16)[rows])
    model, pixels = build_selfie(config), InputTransform(config, accelerator, batch=7)
    found = [pretext_accuracy(model, loader, pixels, 16, augment) for augment in (False, True)]
    assert found[0]["heldout_loss"] != found[1]["heldout_loss"]


def test_standardised_by_the_bank():
    bank, queries = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[3.0, 5.0]])
    known, asked = standardized(bank, queries)
    half = 0.5**0.5  # deviation of 0 and 2 is the root of 2
    assert torch.allclose(known, torch.tensor([[-half, 0.0], [half, 0.0]]))
    assert torch.allclose(asked, torch.tensor([[2 * half, 0.0]]))


def test_knn_votes_by_cosine():
    bank = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [0.1, 2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    queries = torch.tensor([[5.0, 0.2], [0.0, 0.1], [1.0, 0.9]])
    assert knn_accuracy(bank, labels, queries, torch.tensor([0, 1, 0]), k=2) == 1.0
    assert knn_accuracy(bank, labels, queries, torch.tensor([1, 0, 0]), k=2) == pytest.approx(1 / 3)


def test_the_parts_of_a_bank_are_the_bank(monkeypatch):
    """Also where a part, or all of them, have fewer than k."""
    random = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 8, generator=random) for n in (50, 30))
    bank_labels, labels = (torch.randint(0, 3, (n,), generator=random) for n in (50, 30))
    for k in (5, 20, 60):
        found = []
        for part in (1000, 7, 50):
            monkeypatch.setattr("fastselfie.evaluation.knn._BANK_PART", part)
            found.append(knn_accuracy(bank, bank_labels, queries, labels, k))
            unit, asked = (torch.nn.functional.normalize(x, dim=1) for x in (bank, queries))
            best, where = _nearest(asked, unit, k)
            expected = (asked @ unit.T).sort(dim=1, descending=True)
            assert torch.allclose(best, expected.values[:, :k])
            assert torch.equal(where, expected.indices[:, :k])
        assert len(set(found)) == 1


def test_the_linear_probe_separates_what_a_line_separates():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(800, 5, generator=random)
    side = x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])
    clear = side.abs() > 0.5  # a fifth of its deviation: a margin that 300 examples find
    x, y = x[clear][:400], (side[clear][:400] > 0).long()
    assert linear_probe_accuracy(x[:300], y[:300], x[300:], y[300:]) == 1.0
    noise = torch.randint(0, 2, (400,), generator=random)
    assert linear_probe_accuracy(x[:300], noise[:300], x[300:], noise[300:]) < 0.65
