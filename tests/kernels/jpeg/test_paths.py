"""Every path gives the same bytes: instruction sets, engines, with and without restart markers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.jpegs import SUBSAMPLINGS, boxes, make_jpeg, photographs
from hypothesis import given, settings
from hypothesis import strategies as st

from fastselfie.kernels import jpeg


@pytest.fixture(autouse=True)
def _restore_kernels():
    yield
    jpeg.select_kernels("auto")


def same_planes(source, box, block_size=8):
    """Of every instruction set, against libjpeg's samples to the last bit."""
    expected = jpeg.planes(source, box, block_size, engine="libjpeg")
    for kernels in jpeg.available_kernels():
        jpeg.select_kernels(kernels)
        planes = jpeg.planes(source, box, block_size)
        assert all(np.array_equal(a, b) for a, b in zip(planes, expected, strict=True)), kernels


@given(
    st.sampled_from(sorted(SUBSAMPLINGS)),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(10, 100),
    st.integers(1, 6),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_planes_are_libjpegs(subsampling, width, height, quality, restart, data):
    """The specification of the fast decoder, at every scale."""
    plain = make_jpeg(subsampling, width, height, restart, quality=quality)
    box = data.draw(boxes(width, height))
    for source in (plain, jpeg.transcode(plain, restart)):
        for block_size in (8, 4, 2, 1):
            same_planes(source, box, block_size)


@pytest.mark.parametrize("subsampling", sorted(SUBSAMPLINGS))
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (50, 61), (17, 16), (3, 1)])
def test_resized_pixels_agree(subsampling, progressive, size):
    source = make_jpeg(subsampling, 201, 187, progressive=progressive)
    marked = jpeg.transcode(source, 3)
    for box in [(0, 0, 201, 187), (33, 47, 101, 90), (200, 186, 1, 1), (16, 16, 160, 160)]:
        expected = jpeg.decode_resized(source, box, size, engine="libjpeg")
        assert np.array_equal(jpeg.decode_resized(marked, box, size, engine="libjpeg"), expected)
        for kernels in jpeg.available_kernels():
            jpeg.select_kernels(kernels)
            assert np.array_equal(jpeg.decode_resized(source, box, size), expected)
            assert np.array_equal(jpeg.decode_resized(marked, box, size), expected)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 7, 11, 100])
@pytest.mark.parametrize(
    "box", [(0, 0, 150, 130), (70, 60, 20, 30), (140, 120, 10, 10), (0, 100, 10, 30)]
)
def test_intervals_that_do_not_divide_a_row(blocks, box):
    """crop() cannot cut such files; the fast decoder still skips to the intervals it needs."""
    same_planes(make_jpeg("4:2:0", 150, 130, restart_marker_blocks=blocks), box)


def test_photographs():
    for data in photographs()[::16]:
        header = jpeg.read_header(data)
        same_planes(data, (0, 0, header.width, header.height))
