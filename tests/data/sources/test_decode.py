"""One image that Pillow decodes: whatever is wrong with it is one line, and prepare agrees."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import picture
from helpers.deviations import EOI, HARMLESS, LOST, SOURCES, before_end, cases
from PIL import Image, ImageFile

from fastselfie.data.conversion.encode import Recoding, encode
from fastselfie.data.sources.decode import MAX_PIXELS, MAX_SHRUNK_PIXELS, decode_image, open_image
from fastselfie.errors import UserError

PHOTO = picture(3, 203, 151)


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def read_by_train(data):
    return np.asarray(decode_image(io.BytesIO(data), "a.jpg"))


@pytest.mark.parametrize(("deviation", "source"), cases(HARMLESS))
def test_train_and_prepare_see_the_pixels_of_the_sound_file(deviation, source):
    wanted = opened(SOURCES[source])
    changed = HARMLESS[deviation][0](SOURCES[source])
    assert np.array_equal(read_by_train(changed), wanted)
    assert np.array_equal(opened(encode(changed, "a.jpg", Recoding()).data), wanted)


@pytest.mark.parametrize(("deviation", "source"), cases(LOST))
def test_train_and_prepare_refuse_the_same_files(deviation, source):
    changed = LOST[deviation][0](SOURCES[source])
    for call in (read_by_train, lambda data: encode(data, "a.jpg", Recoding())):
        with pytest.raises(UserError, match=r"^a\.jpg: unreadable image \(.*\): fix or remove it"):
            call(changed)


def in_mode(mode):
    if mode == "CMYK":
        return saved(PHOTO.convert(mode), quality=90)
    return saved(PHOTO, quality=90, keep_rgb=True)


RECODINGS = [Recoding(), Recoding(max_side=60), Recoding(quality=70)]


@pytest.mark.parametrize("recoding", RECODINGS)
@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_padding_and_damage_are_told_apart_where_only_pillow_decodes(mode, recoding):
    whole = in_mode(mode)
    for sound in (before_end(bytes(99))(whole), whole[:-2], whole[:-1]):
        assert np.array_equal(read_by_train(sound), read_by_train(whole))
        assert encode(sound, "a.jpg", recoding) == encode(whole, "a.jpg", recoding)
    for lost in (whole[: len(whole) // 2], whole[: len(whole) // 2] + EOI):
        for call in (read_by_train, lambda data: encode(data, "a.jpg", recoding)):
            with pytest.raises(UserError, match=r"^a\.jpg: unreadable image"):
                call(lost)


ERRORS = [
    RuntimeError("Failed to decode image"),  # AVIF's
    NotImplementedError("Unimplemented pixel format"),  # DDS's
    zlib.error("Error -3"),
    struct.error("unpack requires a buffer of 8 bytes"),
    MemoryError(),
    OverflowError("signed integer is greater than maximum"),
    KeyError("ICC"),
    TypeError("'NoneType' object is not subscriptable"),
    AttributeError("no attribute 'seek'"),
    ZeroDivisionError("division by zero"),
    RecursionError("maximum recursion depth exceeded"),
    AssertionError(),
    Image.DecompressionBombWarning("as an error"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_a_decoder_raises_is_its_images_failure(monkeypatch, where, error):
    def fail(*_):
        raise error

    if where == "open":
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for call in (
        lambda data: decode_image(io.BytesIO(data), "b.png"),
        lambda data: encode(data, "b.png", Recoding()),
        lambda data: encode(data, "b.png", Recoding(max_side=60)),
    ):
        with pytest.raises(UserError, match=r"^b\.png: unreadable image \(.+\): fix") as caught:
            call(saved(PHOTO, "PNG"))
        said = str(caught.value)
        assert str(error).strip("'") in said
        assert isinstance(error, RuntimeError) or type(error).__name__ in said


def test_ctrl_c_is_no_images_failure(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_image(io.BytesIO(saved(PHOTO, "PNG")), "b.png")


def test_real_files_that_raise_what_is_not_on_any_list():
    """A .dds of an unknown pixel format, and a PNG whose text is a decompression bomb."""
    header = struct.pack("<7I44x", 124, 0x1007, 8, 8, 0, 0, 0) + struct.pack(
        "<8I", 32, 4, 0, *[0] * 5
    )
    dds = b"DDS " + header + bytes(20)
    text = zlib.compress(bytes(3 << 20))
    chunk = b"zTXt" + b"a\0\0" + text
    png = saved(PHOTO, "PNG")
    bomb = (
        png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    for data in (dds, bomb + png[33:]):
        with pytest.raises(UserError, match=r"^b: unreadable image"):
            decode_image(io.BytesIO(data), "b")
        with pytest.raises(UserError, match=r"^b: unreadable image"):
            encode(data, "b", Recoding())


def flat(width, height, kind="JPEG"):
    """A gray image with a bright corner."""
    image = Image.new("L", (width, height), 77)
    image.paste(200, (0, 0, width // 2, height // 2))
    return saved(image, kind)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_above_pillows_limit_is_shrunk_or_refused():
    assert MAX_PIXELS < 13_378**2 < MAX_SHRUNK_PIXELS < 18_920**2
    above, far_above = (flat(side, side) for side in (13_378, 18_920))
    before = Image.MAX_IMAGE_PIXELS
    small = encode(above, "a.jpg", Recoding(max_side=100))
    assert (small.width, small.height) == (100, 100)
    pixels = opened(small.data)
    assert abs(int(pixels[20, 20, 0]) - 200) < 4 > abs(int(pixels[80, 80, 0]) - 77)
    upright = encode(above, "a.jpg", Recoding(max_side=100, apply_orientation=True))
    assert upright == small
    assert before == Image.MAX_IMAGE_PIXELS
    for data, recoding in (
        (above, Recoding()),
        (above, Recoding(quality=80)),
        (above, Recoding(max_side=60_000)),
        (far_above, Recoding()),
        (far_above, Recoding(max_side=100)),
    ):
        with pytest.raises(UserError, match=r"^a\.jpg: .*(more than|exceeds|too large)") as caught:
            encode(data, "a.jpg", recoding)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match=r"^a\.jpg: .*exceeds limit of 178956970 pixels.*--max-side"
    ):
        decode_image(io.BytesIO(above), "a.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_kinds_have_the_same_limits():
    image = saved(Image.new("1", (13_377, 13_378)), "PNG")
    assert encode(image, "a.png", Recoding(max_side=100)).width == 100
    for recoding in (Recoding(), Recoding(max_side=20_000)):
        with pytest.raises(UserError, match=r"^a\.png: .*--max-side"):
            encode(image, "a.png", recoding)


def test_as_many_pixels_as_pillow_allows_are_stored():
    assert MAX_PIXELS >= 13_377**2
    stored = encode(flat(13_377, 13_377), "a.jpg", Recoding())
    assert (stored.width, stored.height) == (13_377, 13_377)


def test_a_header_that_lies_is_not_believed():
    whole = saved(PHOTO)
    at = whole.index(b"\xff\xc0") + 5
    liar = whole[:at] + struct.pack(">HH", 18_000, 19_000) + whole[at + 4 :]
    for recoding in (Recoding(), Recoding(max_side=100)):
        with pytest.raises(UserError, match="too few bytes"):
            encode(liar, "a.jpg", recoding)


def test_16_bit_samples_are_scaled_up_to_the_last():
    levels = np.uint16([[0, 1, 128, 129, 65_534, 65_535]])
    image = open_image(io.BytesIO(saved(Image.fromarray(levels), "PNG")), "a.png")
    assert np.asarray(image).tolist() == [[0, 0, 0, 1, 255, 255]]
