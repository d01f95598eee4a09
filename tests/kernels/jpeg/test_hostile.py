"""Whatever the bytes are: a picture or a JpegError, never a crash, never a silent corruption."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from helpers.jpegs import SUBSAMPLINGS, encode, make_jpeg, relabel, texture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastselfie.kernels import jpeg

WHOLE = (0, 0, 64, 48)


def attempt(data):
    """Calls everything; returns how many of the calls succeeded."""
    done = 0
    said = []
    for call in (
        lambda: jpeg.read_header(data),
        lambda: jpeg.decode_resized(data, WHOLE, (32, 32)),
        lambda: jpeg.decode_resized(data, (20, 10, 9, 9), (32, 32)),
        lambda: jpeg.decode_resized(data, WHOLE, (32, 32), engine="libjpeg"),
        lambda: jpeg.transcode(data),
        lambda: jpeg.crop(data, 10, 10, 20, 20),
        lambda: jpeg.coefficients(data),
    ):
        try:
            call()
            done += 1
        except jpeg.JpegError as error:
            said.append(str(error))
    assert all(said)
    return done


def test_what_is_whole_passes():
    assert attempt(jpeg.transcode(make_jpeg("4:2:0", 64, 48), 2)) == 7


@pytest.mark.parametrize("engine", ["auto", "libjpeg"])
@pytest.mark.parametrize("subsampling", sorted(SUBSAMPLINGS))
def test_every_truncation_is_an_error(subsampling, engine):
    data = jpeg.transcode(make_jpeg(subsampling, 64, 48), 2)
    for length in range(0, len(data) - 2, 7):
        with pytest.raises(jpeg.JpegError):
            jpeg.decode_resized(data[:length], WHOLE, (32, 32), engine=engine)
        with pytest.raises(jpeg.JpegError):
            jpeg.transcode(data[:length])


@given(st.sampled_from(sorted(SUBSAMPLINGS)), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_flipped_bytes(subsampling, progressive, seed):
    data = bytearray(make_jpeg(subsampling, 64, 48, progressive=progressive))
    if not progressive and seed % 2:
        data = bytearray(jpeg.transcode(bytes(data), 2))
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    attempt(bytes(data))


@given(st.binary(max_size=300))
def test_random_bytes(data):
    assert attempt(b"\xff\xd8" + data) == 0


@pytest.mark.parametrize(
    ("width", "height"), [(60_000, 60_000), (65_535, 2_000), (64, 4_000), (0, 48), (64, 0)]
)
def test_dimensions_that_lie(width, height):
    liar = relabel(encode(texture(48, 64), "4:2:0"), 0x22, width, height)
    with pytest.raises(jpeg.JpegError):
        jpeg.decode_resized(liar, (0, 0, width, height), (32, 32))
    with pytest.raises(jpeg.JpegError):
        jpeg.transcode(liar)


@pytest.mark.parametrize("change", [b"\xff\xd4", b"\x12\x34"], ids=["misnumbered", "missing"])
def test_one_wrong_restart_marker_is_an_error(change):
    data = jpeg.transcode(make_jpeg("4:2:0", 64, 48), 2)
    at = data.index(b"\xff\xd3")
    broken = data[:at] + change + data[at + 2 :]
    with pytest.raises(jpeg.JpegError):
        jpeg.decode_resized(broken, (0, 0, 8, 8), (8, 8))
    with pytest.raises(jpeg.JpegError):
        jpeg.crop(broken, 0, 0, 8, 8)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 65, 48),
        (0, 0, 64, 49),
        (-1, 0, 10, 10),
        (0, -1, 10, 10),
        (0, 0, 0, 10),
        (0, 0, 10, 0),
        (64, 0, 1, 1),
        (2**31 - 1, 0, 2, 2),
        (0, 0, 2**31 - 1, 1),
        (-(2**31), 0, 2**31 - 1, 1),
    ],
)
def test_boxes_outside_of_the_image(box):
    data = jpeg.transcode(make_jpeg("4:2:0", 64, 48))
    with pytest.raises(jpeg.JpegError, match="not inside"):
        jpeg.decode_resized(data, box, (32, 32))
    with pytest.raises(jpeg.JpegError, match="not inside"):
        jpeg.crop(data, *box)


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (10, 2**30), (2**31 - 1, 2**31 - 1)])
def test_output_sizes_out_of_range(size):
    with pytest.raises(jpeg.JpegError):
        jpeg.decode_resized(make_jpeg("4:2:0", 64, 48), WHOLE, size)


def test_one_pixel_can_be_enlarged():
    data = make_jpeg("4:2:0", 64, 48)
    assert jpeg.decode_resized(data, (5, 5, 1, 1), (300, 1)).shape == (300, 1, 3)


def test_what_prepare_must_reencode_is_said_clearly():
    out = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 4), np.uint8), "CMYK").save(out, "JPEG")
    with pytest.raises(jpeg.JpegError, match="CMYK"):
        jpeg.transcode(out.getvalue())


def test_more_scans_than_any_encoder_writes():
    """A progressive file may hold any number of scans, and each costs a pass over the image."""
    data = encode(texture(16, 16), "gray", progressive=True)
    first = data.index(b"\xff\xda")
    scan = bytearray(data[first : data.index(b"\xff\xc4", first)])
    scan[9] = 0  # all bits of the means at once, so that it may come again
    whole = (0, 0, 16, 16)
    assert jpeg.decode_resized(data[:first] + 100 * scan + b"\xff\xd9", whole, (8, 8)).any()
    with pytest.raises(jpeg.JpegError, match="scans"):
        jpeg.decode_resized(data[:first] + 300 * scan + b"\xff\xd9", whole, (8, 8))
