"""The pretraining network: sizes, the loss at the start, and what may see a position."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import REPOSITORY, tiny_config

from fastselfie import ModelConfig, Selfie
from fastselfie.config.load import load_config
from fastselfie.data.draws import patch_orders
from fastselfie.kernels.reference import patchify
from fastselfie.models.positions import Positions
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import build_classifier, build_selfie, cut_patches


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def inputs(config, images):
    """Noise as patches, and each image's own order."""
    side = config.model.patch_size
    samples = torch.arange(images).numpy()
    order = torch.from_numpy(patch_orders(0, 0, samples, config.patches))
    return torch.randn(images, config.patches, 3, side, side), order


def encoded(model, patches, order):
    return model.encoded(model.vectors(patches), order)


def test_sizes_are_the_papers():
    model = build_selfie(load_config(REPOSITORY / "configs" / "in224.yaml"))
    p, a = millions(model.patch_network), millions(model.pooling)
    assert p == pytest.approx(8.54, abs=0.02)
    assert a == pytest.approx(16.54, abs=0.02)
    assert p + a == pytest.approx(25.08, abs=0.02)
    classifier = build_classifier(load_config(REPOSITORY / "configs" / "in224.yaml"), 1000)
    assert millions(classifier) == pytest.approx(25.55, abs=0.02)


@pytest.mark.parametrize("query", ["summed", "pooled"])
@pytest.mark.parametrize("name", ["cifar10", "in32", "in224"])
def test_the_loss_at_step_0_is_near_ln_m(name, query):
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml", [f"model.query={query}"])
    loss, _ = build_selfie(config)(*inputs(config, 4))
    assert abs(loss.item() - math.log(config.masked)) < 0.3


@pytest.mark.parametrize("kernels", ["auto", "triton", "reference"])
@pytest.mark.parametrize(
    ("patch", "fraction", "masked"), [(8, 0.125, 2), (8, 0.95, 15), (16, 0.75, 3), (4, 0.75, 48)]
)
def test_any_number_of_patches_is_masked(patch, fraction, masked, kernels):
    """From two masked patches to one visible one, and grids of 2 x 2 to 8 x 8."""
    config = tiny_config(
        model={"patch_size": patch, "mask_fraction": fraction}, runtime={"kernels": kernels}
    )
    assert config.masked == masked
    model, given = build_selfie(config), inputs(config, 3)
    loss, correct = model(*given)
    loss.backward()
    assert abs(loss.item() - math.log(masked)) < 0.5
    assert 0 <= correct.item() <= 3 * masked
    assert model.scores(*given).shape == (3, masked, masked)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_selfie_of_ones_own_takes_a_model_config_and_a_grid():
    model = Selfie(ModelConfig(stem="cifar", width=4, heads=4, patch_size=8), grid=4)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    loss, _ = model(torch.randn(3, 16, 3, 8, 8), order)
    assert abs(loss.item() - math.log(4)) < 0.5
    with pytest.raises(ValueError, match=r"grid 2: mask_fraction 0\.25 masks 1 of 4"):
        Selfie(ModelConfig(), grid=2)


def test_raw_scores_start_far_above_ln_m():
    """Why the scores are scaled by default."""
    config = load_config(REPOSITORY / "configs" / "cifar10.yaml", ["model.logit_scale=none"])
    loss, _ = build_selfie(config)(*inputs(config, 4))
    assert loss.item() > math.log(config.masked) + 2


QUERIES = pytest.mark.parametrize("small", ["summed", "pooled"], indirect=True)


@pytest.fixture
def small(request):
    config = tiny_config(model={"query": getattr(request, "param", "summed")})
    return build_selfie(config).double().eval(), inputs(config, 3)


def test_the_pooled_query_has_the_same_parameters():
    found = []
    for query in ("summed", "pooled"):
        torch.manual_seed(0)
        found.append(build_selfie(tiny_config(model={"query": query})).state_dict())
    assert list(found[0]) == list(found[1])
    assert all(map(torch.equal, found[0].values(), found[1].values()))


@pytest.mark.parametrize("small", ["pooled"], indirect=True)
def test_the_score_of_a_place_does_not_depend_on_the_other_places(small):
    model, (patches, order) = small
    scores = model.scores(patches.double(), order)
    visible = model.patch_network(patches.double().flatten(0, 1)).view(3, 16, -1)[:, :12]
    for j in range(4):
        alone = model.query(visible, torch.cat([order[:, :12], order[:, 12 + j, None]], dim=1))
        expected = torch.einsum("bjd,bkd->bjk", alone, encoded(model, patches.double(), order).h)
        assert torch.allclose(scores[:, j], expected[:, 0] * model.scale, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("small", ["pooled"], indirect=True)
def test_the_loss_of_pooled_queries_is_that_of_their_scores(small):
    model, (patches, order) = small
    loss, correct = model(patches.double(), order)
    scores = model.scores(patches.double(), order)
    chance = scores.softmax(-1).diagonal(dim1=1, dim2=2)
    assert loss.item() == pytest.approx(-chance.log().mean().item(), rel=1e-10)
    assert correct == (scores.argmax(-1) == torch.arange(4)).sum()


COSINE = {"query": "pooled", "logit_scale": "cosine", "temperature": 0.2}


def test_cosine_scores_are_those_of_the_formula():
    config = tiny_config(model=COSINE)
    model, (patches, order) = build_selfie(config).double().eval(), inputs(config, 3)
    query, h = encoded(model, patches.double(), order)
    expected = torch.cosine_similarity(query[:, :, None], h[:, None], dim=-1) / 0.2
    scores = model.scores(patches.double(), order)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    loss, _ = model(patches.double(), order)
    chance = expected.softmax(-1).diagonal(dim1=1, dim2=2)
    assert loss.item() == pytest.approx(-chance.log().mean().item(), rel=1e-10)


@pytest.mark.parametrize(
    "model",
    [{"positions": "learned"}, {"positions": "row_column"}, {"query": "pooled"}, COSINE],
    ids=["learned", "row_column", "pooled", "cosine"],
)
def test_the_fused_loss_trains_like_the_reference(model):
    """To float32: a convolution's gradient sums some hundred terms, each within a few 2^-24."""
    found = []
    for kernels in ("reference", "triton"):
        config = tiny_config(model=model, runtime={"kernels": kernels})
        torch.manual_seed(0)
        network = build_selfie(config)
        loss, correct = network.eval()(*inputs(config, 3))
        loss.backward()
        found.append([loss, correct, *(p.grad for p in network.parameters())])
    for plain, fused in zip(*found, strict=True):
        scale = max(plain.abs().max().item(), 1e-3)
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * scale)


@QUERIES
def test_shuffling_masked_patches_with_their_locations_keeps_the_loss(small):
    model, (patches, order) = small
    shuffled = torch.cat([torch.arange(12), 12 + torch.tensor([2, 3, 1, 0])])
    before, _ = model(patches.double(), order)
    after, _ = model(patches[:, shuffled].double(), order[:, shuffled])
    assert after.item() == pytest.approx(before.item(), rel=1e-10)


@QUERIES
def test_shuffling_visible_patches_with_their_locations_keeps_the_query(small):
    model, (patches, order) = small
    shuffled = torch.cat([torch.randperm(12), torch.arange(12, 16)])
    before = encoded(model, patches.double(), order).query
    after = encoded(model, patches[:, shuffled].double(), order[:, shuffled]).query
    assert torch.allclose(before, after, rtol=1e-10, atol=1e-12)


@QUERIES
def test_the_encoder_sees_positions(small):
    model, (patches, order) = small
    other = torch.cat([order[:, :12].roll(1, dims=1), order[:, 12:]], dim=1)
    before, after = (encoded(model, patches.double(), o).query for o in (order, other))
    assert not torch.allclose(before, after)


@QUERIES
def test_the_candidates_carry_no_position(small):
    """h depends on neither the position tables nor the locations."""
    model, (patches, order) = small
    before = encoded(model, patches.double(), order).h
    torch.nn.init.normal_(model.positions.table)
    after = encoded(model, patches.double(), order.flip(1)).h
    assert torch.equal(before, after)


@QUERIES
def test_every_patch_goes_through_p_once(small, monkeypatch):
    model, (patches, order) = small
    seen = []
    forward = ResNetV2.forward
    monkeypatch.setattr(
        ResNetV2, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1]
    )
    model(patches.double(), order)
    assert seen == [3 * 16]


@QUERIES
def test_every_parameter_receives_gradient(small):
    model, (patches, order) = small
    model.train()
    model(patches.double(), order)[0].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert without == []


def second_form(**model):
    return tiny_config(model=model, finetune={"form": "attention_pooling"})


def test_an_image_is_cut_as_patchify_cuts_it():
    images = torch.randint(0, 256, (3, 28, 28, 3), dtype=torch.uint8)
    flip = torch.tensor([True, False, True])
    rest = torch.zeros(3), torch.ones(3), torch.float64
    expected = patchify(images, flip, torch.arange(49).expand(3, -1), 4, *rest)
    whole = patchify(images, flip, torch.zeros(3, 1, dtype=torch.int64), 28, *rest)[:, 0]
    assert torch.equal(cut_patches(whole, 7), expected.flatten(0, 1))


def test_the_second_form_sees_what_pretraining_would_with_nothing_masked():
    config = second_form()
    pretrained = build_selfie(config).eval()
    classifier = build_classifier(config, 5, pretrained).eval()
    images = torch.randn(3, 3, 32, 32)
    pretrained.masked = 0
    order = torch.randperm(16).expand(3, -1)
    patches = cut_patches(images, 4).view(3, 16, 3, 8, 8)[:, order[0]]
    u = encoded(pretrained, patches, order).query
    # Float32 sums of some hundred terms, in the order of the patches.
    torch.testing.assert_close(classifier.features(images), u, rtol=1e-4, atol=1e-5)
    assert torch.equal(classifier(images), classifier.head(classifier.features(images)))
    assert classifier(images).shape == (3, 5)


def test_the_second_form_has_a_pooled_query_without_a_position():
    """It is what pretraining would compute for a masked location whose vector is zero."""
    config = second_form(query="pooled")
    pretrained = build_selfie(config).eval()
    pretrained.positions.table.data[5] = 0
    classifier = build_classifier(config, 5, pretrained).eval()
    images = torch.randn(3, 3, 32, 32)
    h_bnd = pretrained.patch_network(cut_patches(images, 4)).view(3, 16, -1)
    order = torch.cat([torch.arange(16), torch.tensor([5])]).expand(3, -1)
    expected = pretrained.query(h_bnd, order)[:, 0]
    # Float32 sums of some hundred terms.
    torch.testing.assert_close(classifier.features(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("query", ["summed", "pooled"])
def test_every_parameter_of_the_second_form_receives_gradient(query):
    """Several processes wait for each of them."""
    classifier = build_classifier(second_form(query=query), 5)
    logits = classifier(torch.randn(4, 3, 32, 32))
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    without = [n for n, p in classifier.named_parameters() if p.grad is None]
    assert without == []


def test_the_second_form_begins_with_p_a_and_the_positions():
    config = second_form()
    pretrained = build_selfie(config)
    for buffer in pretrained.buffers():
        buffer.add_(1)
    found = {}
    for start in (pretrained, None):
        torch.manual_seed(3)
        found[start] = build_classifier(config, 5, start).state_dict()
    scratch, taken = found[None], found[pretrained]
    assert set(taken) == {*pretrained.state_dict(), "head.fc.weight", "head.fc.bias"}
    for name, value in pretrained.state_dict().items():
        assert torch.equal(taken[name], value), name
    assert torch.equal(taken["head.fc.weight"], scratch["head.fc.weight"])
    assert not torch.equal(taken["pooling.u0"], scratch["pooling.u0"])
    resnet = build_classifier(tiny_config(), 5)
    spread = [v["head.fc.weight"].std().item() for v in (taken, resnet.state_dict())]
    # 320 and 640 draws of N(0, 0.01): each within four times 1 / sqrt(2 x 320) of it.
    assert spread == pytest.approx([0.01, 0.01], rel=4 / math.sqrt(2 * 320))


def test_row_and_column_positions_are_summed():
    positions = Positions("row_column", 7, 8, std=1.0)
    table = positions()
    assert table.shape == (49, 8)
    assert torch.equal(table[7 * 2 + 5], positions.rows[2] + positions.columns[5])


@pytest.mark.parametrize("kind", ["learned", "row_column"])
def test_positions_start_with_the_asked_spread(kind):
    table = Positions(kind, 7, 1024, std=0.5)()
    # 14 x 1024 independent entries at least: a relative error of 1 / sqrt(2 x 14336), four times.
    assert table.std().item() == pytest.approx(0.5, rel=4 / math.sqrt(2 * 14 * 1024) * 2)
