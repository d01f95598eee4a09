"""A wrong field and a lost pixel are told apart, by every reader alike."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from helpers.deviations import (
    EOI,
    HARMLESS,
    LOST,
    SOURCES,
    adobe,
    at_jfif,
    before_end,
    cases,
    with_ids,
)
from helpers.jpegs import encode, texture
from PIL import Image

from fastselfie.kernels import jpeg

WHOLE, INNER = (0, 0, 64, 48), (20, 10, 9, 9)


def seen_by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def same(arrays, others):
    return all(np.array_equal(*pair) for pair in zip(arrays, others, strict=True))


@pytest.mark.parametrize(("deviation", "source"), cases(HARMLESS))
def test_what_costs_no_pixel_is_read(deviation, source):
    whole = SOURCES[source]
    changed = HARMLESS[deviation][0](whole)
    assert changed != whole
    wanted = seen_by_pillow(whole)
    with suppress(OSError):  # its parser refuses a little that libjpeg reads
        assert np.array_equal(seen_by_pillow(changed), wanted)
    jpeg.check(changed)
    stored = jpeg.transcode(changed)
    assert np.array_equal(seen_by_pillow(stored), wanted)
    assert same(jpeg.coefficients(stored), jpeg.coefficients(whole))
    assert same(jpeg.coefficients(changed), jpeg.coefficients(whole))
    for box in (WHOLE, INNER):
        for engine in ("auto", "libjpeg"):
            seen = jpeg.decode_resized(changed, box, (32, 32), engine=engine)
            assert np.array_equal(seen, jpeg.decode_resized(whole, box, (32, 32), engine=engine))
        if (small := jpeg.crop(changed, *box)) is not None:
            assert small[1:] == jpeg.crop(whole, *box)[1:]
            assert same(jpeg.coefficients(small[0]), jpeg.coefficients(jpeg.crop(whole, *box)[0]))


@pytest.mark.parametrize(("deviation", "source"), cases(LOST))
def test_what_costs_pixels_is_refused(deviation, source):
    changed = LOST[deviation][0](SOURCES[source])
    assert changed != SOURCES[source]
    for call in (
        jpeg.check,
        jpeg.transcode,
        lambda data: jpeg.decode_resized(data, WHOLE, (32, 32)),
        lambda data: jpeg.decode_resized(data, WHOLE, (32, 32), engine="libjpeg"),
    ):
        with pytest.raises(jpeg.JpegError):
            call(changed)


@pytest.mark.parametrize("source", ["4:2:0", "restarts"])
def test_a_small_box_does_not_hide_that_the_end_is_missing(source):
    changed = LOST["half"][0](SOURCES[source])
    with pytest.raises(jpeg.JpegError):
        jpeg.decode_resized(changed, (0, 0, 8, 8), (8, 8))
    if source == "4:2:0":  # which has no intervals to cut along
        return
    with pytest.raises(jpeg.JpegError):
        jpeg.crop(changed, 0, 0, 8, 8)


def test_a_reader_that_lost_its_way_is_known_by_where_it_ends():
    """Bytes are left over behind noise too. An encoder fills its last byte up with equal bits."""
    whole = encode(texture(96, 128))
    found = 0
    for at in range(700, len(whole) - 100, 97):
        changed = whole[:at] + 32 * b"\x55" + whole[at + 32 :]
        if np.array_equal(seen_by_pillow(changed), seen_by_pillow(whole)):
            continue
        try:
            jpeg.check(changed)
        except jpeg.JpegError as error:
            found += "left over" in str(error)
    assert found > 0


def test_a_run_of_zeros_beyond_the_block_is_damage():
    """libjpeg says nothing of it, and so neither does Pillow."""
    whole = encode(texture(96, 128))
    at = len(whole) * 2 // 3
    changed = whole[:at] + bytes(64) + whole[at + 64 :]
    assert not np.array_equal(seen_by_pillow(changed), seen_by_pillow(whole))
    with pytest.raises(jpeg.JpegError, match="bad Huffman code"):
        jpeg.check(changed)


def test_tables_of_the_image_before_are_not_lent():
    whole = SOURCES["progressive"]
    lacking, _ = LOST["no quantisation tables"]
    jpeg.decode_resized(whole, WHOLE, (8, 8))
    with pytest.raises(jpeg.JpegError):
        jpeg.decode_resized(lacking(whole), WHOLE, (8, 8))


@pytest.mark.parametrize(
    "deviation",
    [at_jfif(5, b"\2"), at_jfif(7, b"\7\0\0\0\0"), at_jfif(7, b"\0\0\0\0\0"), with_ids(1, 1, 1),
     adobe(7)],
)  # fmt: skip
def test_what_is_written_is_standard(deviation):
    """Wrong labels are not passed on: the result is that of the sound file."""
    whole = SOURCES["4:2:0"]
    assert jpeg.transcode(deviation(whole)) == jpeg.transcode(whole)


def test_the_scan_header_of_a_crop_is_standard():
    changed = HARMLESS["Se 0"][0](SOURCES["restarts"])
    assert jpeg.crop(changed, *INNER) == jpeg.crop(SOURCES["restarts"], *INNER)


def in_mode(mode):
    out = io.BytesIO()
    image = Image.fromarray(texture(48, 64))
    if mode == "CMYK":
        image.convert(mode).save(out, "JPEG", quality=90)
    else:
        image.save(out, "JPEG", quality=90, keep_rgb=True)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_damage_is_found_in_what_only_pillow_reads(mode):
    whole = in_mode(mode)
    for harmless in (whole, before_end(bytes(99))(whole), whole[:-2]):
        jpeg.check(harmless)
        with pytest.raises(jpeg.JpegError, match="unsupported"):
            jpeg.transcode(harmless)
    for lost in (whole[: len(whole) // 2], whole[: len(whole) // 2] + EOI):
        with pytest.raises(jpeg.JpegError, match="libjpeg"):
            jpeg.check(lost)
