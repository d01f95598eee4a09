"""The specification against the paper's formula and against mathematics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastselfie.kernels.patch_changes import PatchChanges
from fastselfie.kernels.reference import (
    distractor_score,
    distractor_scores,
    luma,
    patchify,
    query_score,
    query_scores,
)

B, N, M, D = 3, 16, 4, 8


@pytest.fixture
def task():
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    locations = torch.stack([torch.randperm(N, generator=random)[:M] for _ in range(B)])
    return normal(B, D), normal(B, M, D), normal(N, D), locations


def test_the_loss_is_the_formula_of_the_paper(task):
    """Re-derived with loops and dicts: for every image and masked place, -log of the softmax
    over that image's masked patches, taken at the patch that was there."""
    u, h, positions, locations = task
    terms, right = [], 0
    for b in range(B):
        places = locations[b].tolist()
        candidates = {place: h[b, k].tolist() for k, place in enumerate(places)}
        for place in places:
            v = [u[b, d].item() + positions[place, d].item() for d in range(D)]
            score = {
                other: 0.5 * sum(x * y for x, y in zip(v, candidate, strict=True))
                for other, candidate in candidates.items()
            }
            total = sum(math.exp(s) for s in score.values())
            terms.append(-math.log(math.exp(score[place]) / total))
            right += max(score, key=score.get) == place
    loss, correct = distractor_score(*task, scale=0.5)
    assert loss.item() == pytest.approx(sum(terms) / (B * M), rel=1e-12)
    assert correct.item() == right


def test_the_order_of_the_masked_patches_does_not_matter(task):
    u, h, positions, locations = task
    shuffled = torch.tensor([2, 0, 3, 1])
    before, _ = distractor_score(u, h, positions, locations, 1.0)
    after, _ = distractor_score(u, h[:, shuffled], positions, locations[:, shuffled], 1.0)
    assert after.item() == pytest.approx(before.item(), rel=1e-12)


def test_softmax_runs_over_candidates_and_not_over_places(task):
    """A constant added to a place's scores changes nothing; one added to a candidate's does."""
    u, h, positions, locations = task
    base, _ = distractor_score(u, h, positions, locations, 1.0)
    extended = torch.cat([h, torch.ones(B, M, 1, dtype=h.dtype)], dim=-1)
    place_bias = torch.cat([positions, torch.randn(N, 1, dtype=h.dtype)], dim=-1)
    zero = torch.zeros(B, 1, dtype=h.dtype)
    same, _ = distractor_score(torch.cat([u, zero], -1), extended, place_bias, locations, 1.0)
    assert same.item() == pytest.approx(base.item(), rel=1e-12)
    extended[:, :, -1] = torch.randn(B, M, dtype=h.dtype)
    ones = torch.ones(N, 1, dtype=h.dtype)
    other, _ = distractor_score(
        torch.cat([u, zero], -1), extended, torch.cat([positions, ones], -1), locations, 1.0
    )
    assert abs(other.item() - base.item()) > 1e-3


def test_equal_scores_give_ln_m_and_one_candidate_gives_zero(task):
    u, h, positions, locations = task
    loss, _ = distractor_score(u, torch.ones_like(h), positions, locations, 1.0)
    assert loss.item() == pytest.approx(math.log(M))
    one, correct = distractor_score(u, h[:, :1], positions, locations[:, :1], 1.0)
    assert (one.item(), correct.item()) == (0.0, B)


def test_gradients_reach_everything_and_match_differences(task):
    u, h, positions, locations = task
    inputs = [t.requires_grad_() for t in (u, h, positions)]
    assert torch.autograd.gradcheck(
        lambda *args: distractor_score(*args, locations, 0.7)[0], inputs
    )


def test_queries_that_are_given_score_as_the_sums_do(task):
    u, h, positions, locations = task
    v = u[:, None] + positions[locations]
    assert torch.equal(query_scores(v, h, 0.5), distractor_scores(*task, 0.5))
    loss, correct = query_score(v, h, 0.5)
    expected, right = distractor_score(*task, 0.5)
    assert torch.equal(loss, expected)
    assert torch.equal(correct, right)
    low = v.bfloat16(), h.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = query_score(*low, 0.5)
    assert loss.dtype == torch.float32
    exact, _ = query_score(*(t.double() for t in low), 0.5)
    assert loss.item() == pytest.approx(exact.item(), rel=D * 2**-23 * 4)


def test_low_precision_inputs_are_scored_in_float32(task):
    u, h, positions, locations = task
    low = [t.bfloat16() for t in (u, h, positions)]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = distractor_score(*low, locations, 1.0)
    exact, _ = distractor_score(*(t.double() for t in low), locations, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=D * 2**-23 * 4)


def test_a_width_that_differs_is_named(task):
    u, h, positions, locations = task
    with pytest.raises(ValueError, match="u has 7, h 8"):
        distractor_scores(u[:, :7], h, positions, locations, 1.0)


def test_patchify_against_slices():
    images = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    order = torch.tensor([[5, 0, 3], [1, 1, 4]])
    flip = torch.tensor([False, True])
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    patches = patchify(images, flip, order, 4, mean, std, torch.float64)
    assert patches.shape == (2, 3, 3, 4, 4)
    for b in range(2):
        image = images[b].flip(1) if flip[b] else images[b]
        for i, location in enumerate(order[b].tolist()):
            y, x = 4 * (location // 3), 4 * (location % 3)
            pixels = image[y : y + 4, x : x + 4].double()
            expected = (pixels / 255 - mean.double()) / std.double()
            assert torch.allclose(patches[b, i], expected.permute(2, 0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_changed_patches_against_slices(centred):
    """A window of the cell, grey by Pillow, contrast about the mean, then the normalisation."""
    random = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8, generator=random)
    order = torch.tensor([[5, 0, 3], [1, 1, 4]])
    flip = torch.tensor([False, True])
    corners = None if centred else torch.randint(0, 4, (2, 6, 2), generator=random)
    grey = torch.tensor([[True, False] * 3, [False, True] * 3])
    tone = torch.rand(2, 6, 2, dtype=torch.float64, generator=random)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    changes = PatchChanges(1, corners, grey, tone)
    patches = patchify(images, flip, order, 4, mean, std, torch.float64, changes)
    assert patches.shape == (2, 3, 3, 1, 1)
    for b in range(2):
        image = images[b].flip(1) if flip[b] else images[b]
        for i, place in enumerate(order[b].tolist()):
            down, right = (1, 1) if centred else corners[b, place].tolist()
            pixel = image[4 * (place // 3) + down, 4 * (place % 3) + right]
            if grey[b, place]:
                colour = Image.fromarray(pixel.numpy()[None, None])
                pixel = torch.from_numpy(np.array(colour.convert("L").convert("RGB"))[0, 0])
            level, (contrast, brightness) = pixel.double() / 255, tone[b, place]
            level = mean.double() + contrast * (level - mean.double()) + brightness
            expected = (level - mean.double()) / std.double()
            assert torch.allclose(patches[b, i, :, 0, 0], expected, rtol=1e-12, atol=1e-12)


def test_luma_is_that_of_pillow():
    pixels = torch.randint(0, 256, (300, 300, 3), dtype=torch.uint8)
    expected = np.array(Image.fromarray(pixels.numpy()).convert("L"))
    assert np.array_equal(luma(pixels).numpy(), expected)


def test_patches_are_channels_last_in_memory():
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    order = torch.arange(4).expand(2, 4)
    one = torch.ones(3)
    patches = patchify(images, torch.zeros(2, dtype=torch.bool), order, 4, one, one)
    assert patches.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_a_patch_that_does_not_divide_is_refused():
    one = torch.ones(3)
    with pytest.raises(ValueError, match="patch is 3"):
        patchify(
            torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
            torch.zeros(1, dtype=torch.bool),
            torch.zeros(1, 1, dtype=torch.int64),
            3,
            one,
            one,
        )
