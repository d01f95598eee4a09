"""The transcode and the bitstream crop change no coefficient."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.jpegs import SUBSAMPLINGS, boxes, decode, encode, make_jpeg, photographs, texture
from hypothesis import given, settings
from hypothesis import strategies as st

from fastselfie.kernels import jpeg

subsamplings = st.sampled_from(sorted(SUBSAMPLINGS))
sides = st.one_of(st.integers(1, 20), st.integers(1, 150))  # smaller than an MCU, and several
intervals = st.integers(1, 9)


@given(
    subsamplings, sides, sides, intervals, st.integers(50, 95), st.booleans(), st.integers(0, 99)
)
@settings(max_examples=150, deadline=None)
def test_transcode_keeps_every_coefficient(
    subsampling, width, height, restart, quality, progressive, seed
):
    source = make_jpeg(subsampling, width, height, seed, quality=quality, progressive=progressive)
    result = jpeg.transcode(source, restart)
    before, after = jpeg.coefficients(source), jpeg.coefficients(result)
    assert len(before) == len(after)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.array_equal(decode(source), decode(result))

    header = jpeg.read_header(result)
    assert (header.width, header.height, header.progressive) == (width, height, False)
    row = -(-width // (8 * SUBSAMPLINGS[subsampling][0]))
    assert header.restart_interval == max(n for n in range(1, restart + 1) if row % n == 0)
    assert header.can_crop


@given(subsamplings, sides, sides, intervals, st.data())
@settings(max_examples=300, deadline=None)
def test_crop_is_its_region_of_the_whole(subsampling, width, height, restart, data):
    """Coefficients exactly; pixels exactly but for the border, where the decoder that enlarges
    chroma sees another neighbour: a sample of chroma, `factors` pixels."""
    source = jpeg.transcode(make_jpeg(subsampling, width, height, restart), restart)
    left, top, w, h = data.draw(boxes(width, height))
    small, dx, dy = jpeg.crop(source, left, top, w, h)

    header, whole = jpeg.read_header(small), jpeg.read_header(source)
    assert 0 <= dx <= header.width - w
    assert 0 <= dy <= header.height - h
    factors = SUBSAMPLINGS[subsampling]
    mcu = 8 * factors[0], 8 * factors[1]
    x0, y0 = left - dx, top - dy
    assert (x0 % mcu[0], y0 % mcu[1]) == (0, 0)
    # No more than the intervals that the box touches: an interval and a row of MCUs at most a side.
    assert header.width <= w + 2 * mcu[0] * whole.restart_interval
    assert header.height <= h + 2 * mcu[1]

    arrays = zip(jpeg.coefficients(source), jpeg.coefficients(small), strict=True)
    for i, (full, part) in enumerate(arrays):
        fx, fy = factors if i == 0 else (1, 1)
        x, y = x0 // mcu[0] * fx, y0 // mcu[1] * fy
        assert np.array_equal(full[y : y + part.shape[0], x : x + part.shape[1]], part)

    region = np.asarray(decode(source))[y0 : y0 + header.height, x0 : x0 + header.width]
    pixels = np.asarray(decode(small))
    assert pixels.shape == region.shape
    # Two columns of chroma libjpeg repeats, where it interpolates three and more: it enlarges such
    # a crop otherwise than the whole, and only the coefficients can be compared.
    if factors[0] > 1 and (header.width > 4) != (width > 4):
        return
    inner = tuple(
        slice(f * (at > 0 and f > 1), length - f * (at + length < end and f > 1))
        for f, at, length, end in zip(
            factors[::-1], (y0, x0), region.shape, (height, width), strict=False
        )
    )
    assert np.array_equal(pixels[inner], region[inner])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_crop_where_intervals_are_whole_rows(rows):
    """What `cjpeg -restart 1` writes: cut by rows only."""
    source = encode(texture(100, 90), "4:2:0", restart_marker_rows=rows)
    small, dx, dy = jpeg.crop(source, 20, 50, 30, 20)
    header = jpeg.read_header(small)
    assert (header.width, dx, (50 - dy) % (16 * rows)) == (90, 20, 0)
    full, part = jpeg.coefficients(source)[0], jpeg.coefficients(small)[0]
    first = (50 - dy) // 8
    assert np.array_equal(full[first : first + part.shape[0]], part)


def test_fill_bytes_before_a_marker_are_no_obstacle():
    source = jpeg.transcode(make_jpeg("4:2:0", 64, 48), 1)
    at = source.index(b"\xff\xc0")
    filled = source[:at] + b"\xff\xff" + source[at:]
    small, *corner = jpeg.crop(source, 20, 20, 30, 20)
    small_of_filled, *same_corner = jpeg.crop(filled, 20, 20, 30, 20)
    assert corner == same_corner
    assert np.array_equal(decode(small), decode(small_of_filled))


@pytest.mark.parametrize(
    "source",
    [
        encode(texture(64, 64)),
        encode(texture(64, 80), restart_marker_blocks=2),  # a row is 5 MCUs
        encode(texture(64, 64), progressive=True),
    ],
    ids=["no markers", "not a divisor", "progressive"],
)
def test_crop_says_where_it_cannot(source):
    assert jpeg.crop(source, 0, 0, 8, 8) is None


def test_metadata_is_dropped():
    source = encode(texture(64, 64), comment=b"x" * 5000, icc_profile=b"y" * 5000)
    assert len(jpeg.transcode(source)) < len(source) - 9000


def test_photographs_grow_by_no_more_than_a_hundredth():
    sizes = [(len(data), len(jpeg.transcode(data))) for data in photographs()[::4]]
    assert sum(after for _, after in sizes) <= 1.01 * sum(before for before, _ in sizes)
