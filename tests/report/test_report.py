"""Pictures and curves, and the page without either."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from fastselfie.evaluation.mask_picture import filled, originals
from fastselfie.report.curves import downsample, line_chart, points_of
from fastselfie.report.page import run_page
from fastselfie.runs.folder import read_run

ORDER = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 12, 14, 13]])


@pytest.fixture
def numbered():
    """One 32x32 image whose 16 patches are plain colours, 10 apart."""
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    return np.repeat(np.kron(values, np.ones((8, 8), np.uint8))[None, :, :, None], 3, axis=3)


def centre(picture: Image.Image, location: int) -> tuple[int, ...]:
    side = picture.width // 4
    y, x = divmod(location, 4)
    return picture.getpixel((x * side + side // 2, y * side + side // 2))


def corner(picture: Image.Image, location: int) -> tuple[int, ...]:
    side = picture.width // 4
    y, x = divmod(location, 4)
    return picture.getpixel((x * side, y * side))


def test_holes_show_what_was_chosen_in_white_or_red(numbered):
    # Masked are 15, 12, 14, 13; chosen candidates 0, 3, 2, 1: the patches 15, 13, 14, 12.
    picture = filled(numbered, ORDER, np.array([[0, 3, 2, 1]]), patch=8)
    shown = [centre(picture, place)[0] for place in (15, 12, 14, 13)]
    assert shown == [150, 130, 140, 120]
    white, red = (255, 255, 255), (230, 0, 0)
    assert [corner(picture, place) for place in (15, 12, 14, 13)] == [white, red, white, red]
    assert centre(picture, 5) == (50, 50, 50)
    assert corner(picture, 5) == (50, 50, 50)


def test_columns_stack_images_and_large_ones_are_made_small(numbered):
    assert originals(numbered).size == (96, 96)
    assert originals(np.concatenate([numbered] * 3)).size == (96, 3 * 96 + 2 * 6)
    assert originals(np.zeros((1, 224, 224, 3), np.uint8)).size == (104, 104)


def test_a_curve_of_120_000_steps_stays_small():
    points = [(step, 1 / step) for step in range(1, 120_001)]
    kept = downsample(points)
    assert len(kept) <= 400
    assert kept[-1] == points[-1]
    svg = line_chart({"training": points}, "step", "loss")
    assert svg is not None
    assert len(svg) < 60_000
    for words in ("step", "loss", "training"):
        assert f">{words}<" in svg
    assert "width=" not in svg[: svg.index(">")]


def test_nothing_to_draw_is_no_chart():
    assert line_chart({"a": [(0, 1.0)], "b": []}, "x", "y") is None
    assert points_of([{"step": 1, "a": 2}, {"step": 2}], "a") == [(1, 2)]


def test_the_page_of_a_run_that_just_began_is_whole(tmp_path):
    page = run_page(read_run(tmp_path, tiny_config()))
    assert page.strip().endswith("</html>")
    assert "<img" not in page
    assert "none yet" in page
