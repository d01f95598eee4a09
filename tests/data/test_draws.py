"""Draws: what is built on the generator, which tests/kernels/test_host.py checks."""

from __future__ import annotations

import numpy as np
import pytest

from fastselfie.data import draws

IDS = np.arange(1000, dtype=np.int64)


def test_a_draw_belongs_to_its_sample_alone():
    whole = draws.patch_orders(3, 5, IDS, 16)
    some = np.array([7, 999, 0])
    assert np.array_equal(draws.patch_orders(3, 5, some, 16), whole[some])
    epochs = np.array([5, 6, 5])
    mixed = draws.patch_orders(3, epochs, some, 16)
    assert np.array_equal(mixed[0], whole[7])
    assert not np.array_equal(mixed[1], whole[999])


def test_changes_of_a_patch_belong_to_its_sample_and_place():
    """Also in a larger grid, whose first places have the same numbers."""
    some, epochs = np.array([7, 999, 0]), np.array([5, 6, 5])
    for draw, rest in ((draws.patch_corners, (3,)), (draws.patch_colours, (0.5, 0.4, 0.2))):
        whole = draw(3, 5, IDS, 16, *rest)
        mixed, larger = draw(3, epochs, some, 16, *rest), draw(3, 5, some, 49, *rest)
        whole, mixed, larger = (v if isinstance(v, tuple) else (v,) for v in (whole, mixed, larger))
        for all_of, part, more in zip(whole, mixed, larger, strict=True):
            assert np.array_equal(part[[0, 2]], all_of[some[[0, 2]]])
            assert not np.array_equal(part[1], all_of[999])
            assert np.array_equal(more[:, :16], all_of[some])


def test_seeds_epochs_samples_and_purposes_are_independent():
    base = draws.uniform(0, 0, IDS, draws.Purpose.CROP, 8)
    others = [
        draws.uniform(1, 0, IDS, draws.Purpose.CROP, 8),
        draws.uniform(0, 1, IDS, draws.Purpose.CROP, 8),
        draws.uniform(0, 0, IDS + 1000, draws.Purpose.CROP, 8),
        draws.uniform(0, 0, IDS, draws.Purpose.FLIP, 8),
        base[:, ::-1],
    ]
    bound = 4 / np.sqrt(base.size)  # four standard errors of a correlation of independent draws
    for other in others:
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < bound


def test_masks_windows_and_colours_are_independent():
    """Of one patch, so that all take the first numbers of their purpose."""
    mask = draws.uniform(0, 0, IDS, draws.Purpose.MASK, 1)
    corners = draws.patch_corners(0, 0, IDS, 1, 1000)[:, 0]
    grey, tone = draws.patch_colours(0, 0, IDS, 1, 0.5, 0.4, 0.2)
    drawn = np.concatenate([mask, corners, grey, tone[:, 0]], axis=1)
    bound = 4 / np.sqrt(len(IDS))  # as above
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < bound


def test_draws_are_uniform():
    found = draws.uniform(0, 0, IDS, draws.Purpose.ORDER, 100)
    assert found.min() >= 0
    assert found.max() < 1
    counts = np.histogram(found, bins=50, range=(0, 1))[0]
    expected = found.size / 50
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 49 + 4 * np.sqrt(2 * 49)  # mean and four deviations of chi-squared, 49 degrees


def test_orders_are_permutations_and_differ():
    orders = draws.patch_orders(0, 0, IDS, 49)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(49), (1000, 1)))
    assert len(np.unique(orders, axis=0)) == 1000
    assert np.array_equal(np.sort(draws.epoch_order(0, 3, 777)), np.arange(777))
    assert not np.array_equal(draws.epoch_order(0, 3, 777), draws.epoch_order(0, 4, 777))


@pytest.mark.parametrize("count", [1, 2, 777, 2**18, 2**18 + 1, 600_000])
def test_an_epoch_is_in_the_order_of_its_draws(count):
    """The stable argsort defines it; 32-bit draws tie in some of these sizes."""
    samples = np.arange(count, dtype=np.int64)
    drawn = draws.uniform(7, 2, samples, draws.Purpose.ORDER, 1)[:, 0]
    assert (len(np.unique(drawn)) < count) == (count >= 2**18)
    order = draws.epoch_order(7, 2, count)
    assert order.dtype == np.int64
    assert np.array_equal(order, np.argsort(drawn, kind="stable"))


def test_every_location_is_masked_equally_often():
    samples = np.arange(20_000, dtype=np.int64)
    masked = draws.patch_orders(0, 0, samples, 16)[:, 12:]
    share = np.bincount(masked.ravel(), minlength=16) / len(samples)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / len(samples))


def test_shifts_and_flips():
    shifts = draws.shifts(0, 0, IDS, 4)
    assert (shifts.min(), shifts.max()) == (0, 8)
    assert abs(draws.flips(0, 0, IDS).mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_changes_of_patches_are_uniform_in_their_ranges():
    corners = draws.patch_corners(0, 0, IDS, 16, 2)
    assert np.unique(corners).tolist() == [0, 1, 2]
    bound = 4 * np.sqrt(2 / 3 / corners.size * 2)  # four standard errors of a mean of 0, 1, 2
    assert np.abs(corners.mean(axis=(0, 1)) - 1).max() < bound
    grey, tone = draws.patch_colours(0, 0, IDS, 16, 0.3, 0.4, 0.2)
    assert abs(grey.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / grey.size)
    for values, centre, most in ((tone[..., 0], 1, 0.4), (tone[..., 1], 0, 0.2)):
        assert np.abs(values - centre).max() <= most * (1 + 1e-6)
        assert abs(values.mean() - centre) < 4 * most / np.sqrt(3 * values.size)
        assert values.std() > most / 2  # most / sqrt(3) if uniform
    assert draws.patch_colours(0, 0, IDS, 16, 1.0, 0.0, 0.0)[0].all()
    grey, tone = draws.patch_colours(0, 0, IDS, 16, 0.0, 0.0, 0.0)
    assert not grey.any()
    assert (tone == (1, 0)).all()


def test_resized_crops_are_inside_and_of_the_asked_area_and_ratio():
    sizes = np.stack([300 + IDS % 200, 200 + IDS % 300], axis=1)
    area, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    left, top, w, h = draws.resized_crops(0, 0, IDS, sizes, area, ratio).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert (left + w <= sizes[:, 0]).all()
    assert (top + h <= sizes[:, 1]).all()
    assert w.min() > 0
    rounding = 1.02  # half a pixel on a side of 40
    assert (w / h).max() < 4 / 3 * rounding
    assert (w / h).min() > 3 / 4 / rounding
    share = w * h / sizes.prod(axis=1)
    assert share.min() > 0.08 / rounding**2


def test_the_area_of_resized_crops_is_uniform_where_every_box_fits():
    square = np.full((1000, 2), 1000)
    _, _, w, h = draws.resized_crops(0, 0, IDS, square, (0.2, 0.8), (1, 1)).T
    mean, deviation = 0.5, 0.6 / np.sqrt(12)
    assert abs((w * h / 1e6).mean() - mean) < 4 * deviation / np.sqrt(1000)


def test_an_image_that_no_box_fits_gives_its_central_box():
    boxes = draws.resized_crops(0, 0, IDS[:2], np.array([[1000, 10], [10, 1000]]), (0.9, 1), (1, 1))
    assert boxes.tolist() == [[495, 0, 10, 10], [0, 495, 10, 10]]
    assert draws.resized_crops(
        0, 0, IDS[:1], np.array([[1, 1]]), (0.08, 1), (0.75, 1.3)
    ).tolist() == [[0, 0, 1, 1]]
