"""Pixels against Pillow's: crop(box), then antialiased bilinear resize.

Floors: 38 dB at full DCT scale, 33 dB where the inverse DCT is reduced.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.jpegs import (
    ENCODABLE,
    SUBSAMPLINGS,
    boxes,
    decode,
    encode,
    make_jpeg,
    photographs,
    psnr,
    random_box,
    reference,
    texture,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastselfie.kernels import jpeg

FULL_DB, REDUCED_DB = 38, 33


def is_reduced(box, size):
    """plan.cpp: halved while the planes cover the output with half as much again to spare."""
    return min(box[2] / size[1], box[3] / size[0]) >= 3


def floor_of(box, size):
    return REDUCED_DB if is_reduced(box, size) else FULL_DB


def worst_margin(sources, sides, seed):
    """The least by which an image exceeds its floor, over a random box for each side."""
    rng, margins = np.random.default_rng(seed), []
    for source in sources:
        header = jpeg.read_header(source)
        for side in sides:
            box, size = random_box(rng, header.width, header.height), (side, side)
            db = psnr(jpeg.decode_resized(source, box, size), reference(source, box, size))
            margins.append(db - floor_of(box, size))
    return min(margins)


@pytest.mark.slow
def test_photographs_as_they_are():
    """The transcoded originals: mostly 4:4:4."""
    assert worst_margin(map(jpeg.transcode, photographs()), (224, 128, 56), 0) >= 0


@pytest.mark.slow
@pytest.mark.parametrize("subsampling", ENCODABLE)
def test_photographs_in_every_subsampling(subsampling):
    """Every 4th photograph, for the sake of time."""
    pixels = (np.asarray(decode(data)) for data in photographs()[::4])
    sources = (jpeg.transcode(encode(p, subsampling)) for p in pixels)
    assert worst_margin(sources, (224, 160, 64), 1) >= 0


@given(
    st.sampled_from(sorted(SUBSAMPLINGS)),
    st.integers(1, 120),
    st.integers(1, 120),
    st.integers(1, 60),
    st.integers(1, 60),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_any_box_of_any_image(subsampling, width, height, out_w, out_h, data):
    """At full DCT scale the filters are Pillow's chain composed: any box and size will do."""
    box = data.draw(boxes(width, height))
    assume(not is_reduced(box, (out_h, out_w)))
    source = make_jpeg(subsampling, width, height, out_w)
    ours = jpeg.decode_resized(source, box, (out_h, out_w))
    assert psnr(ours, reference(source, box, (out_h, out_w))) >= FULL_DB


@pytest.mark.parametrize("subsampling", ENCODABLE)
@pytest.mark.parametrize("size", [(224, 224), (100, 130), (40, 40), (20, 20), (9, 9)])
def test_no_shift_on_gradients(subsampling, size):
    """A ramp displaced by d pixels differs by d times its slope, so the mean difference measures
    the displacement: 1/20 of a pixel is allowed, and 0.15 for what rounding to 8 bits leaves after
    noise has decorrelated it. A reduced inverse DCT rounds half up, and coarse steps of chroma's
    mean put every second one on a half: a bias of up to 1/4, 0.35 in RGB, that is no shift."""
    slope = 0.5853  # no block has the same rounding as its neighbour
    y, x = np.mgrid[:320, :320]
    noise = np.random.default_rng(0).normal(0, 6, x.shape)
    box = (13, 21, 275, 281)
    rounding = 0.35 if is_reduced(box, size) else 0.15
    for axis in (x, y):
        ramp = np.clip(axis * slope + 30 + noise, 0, 255).astype(np.uint8)
        # Colour runs against brightness, so that a shift of chroma alone shows in some channel.
        source = encode(np.stack([ramp, 255 - ramp, ramp // 2 + 60], -1), subsampling, quality=98)
        difference = jpeg.decode_resized(source, box, size) - reference(source, box, size).astype(
            float
        )
        assert np.abs(difference.mean(axis=(0, 1))).max() <= slope / 20 + rounding


@pytest.mark.parametrize("cell", [16, 23, 40])
@pytest.mark.parametrize("size", [(224, 224), (64, 64), (30, 30)])
def test_no_shift_on_checkerboards(cell, size):
    """The displacement that maximises the correlation with Pillow, to sub-pixels, is zero."""
    y, x = np.mgrid[:300, :300]
    board = (((x // cell + y // cell) % 2) * 180 + 40).astype(np.uint8)
    source = encode(np.stack([board, 255 - board, board], -1), "4:2:0", quality=95)
    box = (5, 9, 280, 285)
    ours = jpeg.decode_resized(source, box, size).astype(float)
    pillow = reference(source, box, size).astype(float)
    for axis in (0, 1):  # least squares of the displacement: difference ~ d * derivative
        derivative = np.gradient(pillow, axis=axis)
        shift = (derivative * (ours - pillow)).sum() / (derivative**2).sum()
        assert abs(shift) < 0.01


@pytest.mark.parametrize("subsampling", sorted(SUBSAMPLINGS))
def test_flip_is_the_mirror_image(subsampling):
    source = make_jpeg(subsampling, 150, 110)
    box = (7, 5, 120, 99)
    straight = jpeg.decode_resized(source, box, (64, 48))
    assert np.array_equal(jpeg.decode_resized(source, box, (64, 48), flip=True), straight[:, ::-1])


@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_flat_colours_stay_flat(value):
    source = encode(np.full((64, 64, 3), value, np.uint8))
    out = jpeg.decode_resized(source, (3, 5, 50, 41), (77, 33))
    assert (out == np.asarray(decode(source))[0, 0]).all()


def test_adobe_rgb_is_read_as_rgb():
    source = encode(texture(64, 80), "4:4:4", keep_rgb=True)
    assert jpeg.read_header(source).color == "rgb"
    box = (5, 3, 70, 55)
    assert psnr(jpeg.decode_resized(source, box, (48, 48)), reference(source, box, (48, 48))) > 45
    with pytest.raises(jpeg.JpegError, match="RGB"):
        jpeg.transcode(source)


def test_raw_pixels_are_cropped_and_flipped_exactly():
    pixels = texture(37, 53)
    assert np.array_equal(jpeg.resize_raw(pixels, (0, 0, 53, 37), (37, 53)), pixels)
    flipped = jpeg.resize_raw(pixels, (5, 6, 20, 10), (10, 20), flip=True)
    assert np.array_equal(flipped, pixels[6:16, 5:25][:, ::-1])


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_raw_padding_is_numpys(padding, mode):
    pixels = texture(37, 53)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode=mode)
    ours = jpeg.resize_raw(pixels, (-4, -3, 53, 37), (37, 53), padding=padding)
    assert np.array_equal(ours, padded[1:38, 0:53])


def test_raw_resize_is_pillows():
    pixels = texture(37, 53)
    cropped = Image.fromarray(pixels).crop((5, 6, 45, 36))
    expected = np.asarray(cropped.resize((19, 64), Image.Resampling.BILINEAR))
    assert psnr(jpeg.resize_raw(pixels, (5, 6, 40, 30), (64, 19)), expected) > 48


@pytest.mark.parametrize(
    ("box", "padding"),
    [((-1, 0, 10, 10), "none"), ((-60, 0, 10, 10), "reflect"), ((0, 0, 70_000, 1), "zero")],
)
def test_raw_boxes_out_of_reach(box, padding):
    with pytest.raises(jpeg.JpegError):
        jpeg.resize_raw(texture(37, 53), box, (10, 10), padding=padding)
