"""One image into a .beton file: what is kept without loss, what is encoded anew, and how."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from fastselfie.data.conversion.encode import DEFAULT_QUALITY, Recoding, encode
from fastselfie.errors import UserError
from fastselfie.kernels import jpeg

LOSSLESS = Recoding()


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


def as_decoded(stored):
    """RGB as every reader of the file sees it."""
    if stored.mode == "raw":
        return np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    return np.asarray(opened(stored.data).convert("RGB"))


def psnr(a, b):
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def check_crops(stored):
    header = jpeg.read_header(stored.data)
    assert header.can_crop
    assert not header.progressive
    assert (stored.mode, stored.width, stored.height) == ("jpg", header.width, header.height)
    return header


PHOTO = picture(3, 203, 151)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_coefficient_of_a_jpeg_is_kept(mode, subsampling, progressive):
    source = saved(PHOTO.convert(mode), quality=88, subsampling=subsampling,
                   progressive=progressive)  # fmt: skip
    assert jpeg.read_header(source).progressive == progressive
    stored = encode(source, "x", LOSSLESS)
    check_crops(stored)
    before, after = jpeg.coefficients(source), jpeg.coefficients(stored.data)
    assert len(before) == len(after) == len(mode)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.array_equal(as_decoded(stored), np.asarray(opened(source).convert("RGB")))


@pytest.mark.parametrize("kind", ["CMYK", "RGB"])
def test_a_jpeg_that_the_loaders_cannot_decode_is_encoded_once(kind):
    options = {"keep_rgb": True} if kind == "RGB" else {}
    source = saved(PHOTO.convert(kind), quality=97, subsampling="4:4:4", **options)
    with pytest.raises(jpeg.JpegError, match="unsupported"):
        jpeg.transcode(source)
    stored = encode(source, "x", LOSSLESS)
    header = check_crops(stored)
    assert (header.color, set(header.sampling)) == ("ycbcr", {(1, 1)})
    expected = saved(opened(source).convert("RGB"), quality=DEFAULT_QUALITY, subsampling="4:4:4")
    assert np.array_equal(as_decoded(stored), np.asarray(opened(expected)))


def test_a_12_bit_jpeg_is_named():
    source = bytearray(saved(PHOTO))
    frame = source.index(b"\xff\xc0")
    source[frame + 4] = 12
    with pytest.raises(UserError, match=r"a/b\.jpg: unreadable image"):
        encode(bytes(source), "a/b.jpg", LOSSLESS)


def png_of(samples, color_type):
    """A 16-bit PNG, which Pillow cannot write in colour: (H, W, channels) uint16."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))  # fmt: skip


RAMP = np.linspace(0, 65535, 100 * 120).reshape(100, 120)


@pytest.mark.parametrize("kind", ["gray", "rgb", "tiff"])
def test_16_bit_samples_are_scaled(kind):
    levels = np.uint16(RAMP)
    if kind == "tiff":
        source = saved(Image.fromarray(levels), "TIFF")
    elif kind == "gray":
        source = png_of(levels[..., None], 0)
    else:
        source = png_of(np.repeat(levels[..., None], 3, axis=2), 2)
    stored = encode(source, "x", LOSSLESS)
    assert check_crops(stored).color == ("ycbcr" if kind == "rgb" else "gray")
    # Clipped, 99.6% of the ramp would be white. A JPEG of quality 95 strays by a few levels.
    assert np.abs(as_decoded(stored)[..., 1] - RAMP / 257).max() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_stays_gray(mode):
    source = saved(PHOTO.convert("L").convert(mode), "PNG")
    stored = encode(source, "x", LOSSLESS)
    assert check_crops(stored).color == "gray"
    if mode != "1":  # dots of pure black and white are not what JPEG is for
        assert psnr(as_decoded(stored), PHOTO.convert("L").convert("RGB")) > 40


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_other_kinds_of_file_become_jpegs(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = encode(saved(PHOTO, kind, **options), "x", LOSSLESS)
    assert set(check_crops(stored).sampling) == {(1, 1)}
    assert psnr(as_decoded(stored), PHOTO) > 40


def test_palette_and_alpha_become_rgb_as_torchvision_does():
    palette = PHOTO.convert("P")
    stored = encode(saved(palette, "PNG"), "x", LOSSLESS)
    assert psnr(as_decoded(stored), palette.convert("RGB")) > 30  # dithered: hard for JPEG
    clear = PHOTO.copy()
    clear.putalpha(0)  # invisible, but its colours are there
    assert psnr(as_decoded(encode(saved(clear, "PNG"), "x", LOSSLESS)), PHOTO) > 40


def test_small_lossless_images_are_stored_as_pixels():
    small = picture(0, 64, 48)
    stored = encode(saved(small, "PNG"), "x", LOSSLESS)
    assert stored[1:] == ("raw", 64, 48)
    assert np.array_equal(as_decoded(stored), np.asarray(small))
    assert encode(saved(small, "PNG"), "x", Recoding(quality=90)).mode == "jpg"
    assert encode(saved(small, "JPEG"), "x", LOSSLESS).mode == "jpg"
    assert encode(saved(picture(0, 65, 48), "PNG"), "x", LOSSLESS).mode == "jpg"


TURNS = [np.asarray, np.fliplr, lambda a: np.rot90(a, 2), np.flipud,
         lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1),
         lambda a: np.rot90(a, 2).swapaxes(0, 1), np.rot90]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_that_pillow_turns_is_not_turned_again(orientation):
    data = saved(PHOTO, "TIFF", tiffinfo={0x0112: orientation})
    for recoding in (LOSSLESS, Recoding(apply_orientation=True)):
        turned = as_decoded(encode(data, "x", recoding))
        assert psnr(turned, TURNS[orientation - 1](np.asarray(PHOTO))) > 35


def test_a_side_that_no_jpeg_can_have_is_named():
    data = saved(Image.new("L", (65_501, 1)), "PNG")
    with pytest.raises(UserError, match=r"^x: 65501x1: a JPEG holds at most 65,500 pixels a side"):
        encode(data, "x", LOSSLESS)
    assert encode(data, "x", Recoding(max_side=100)).width == 100


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_or_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = saved(PHOTO, exif=exif, quality=95)
    kept = as_decoded(encode(source, "x", LOSSLESS))
    assert np.array_equal(kept, np.asarray(opened(source)))
    turned = encode(source, "x", Recoding(apply_orientation=True))
    assert psnr(as_decoded(turned), TURNS[orientation - 1](np.asarray(PHOTO))) > 35
    lossless = orientation == 1
    assert np.array_equal(as_decoded(turned), kept) == lossless


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(640, 480), (479, 640), (2000, 1000), (700, 3)])
def test_max_side_shrinks_only_what_is_larger(kind, size):
    image = picture(1, *size)
    source = saved(image, kind)
    stored = encode(source, "x", Recoding(max_side=200))
    scale = 200 / max(size)
    expected = tuple(max(1, round(side * scale)) for side in size)
    assert abs(stored.width - expected[0]) + abs(stored.height - expected[1]) <= 1
    assert max(stored.width, stored.height) == 200
    resized = image.resize((stored.width, stored.height), Image.Resampling.LANCZOS)
    assert psnr(as_decoded(stored), resized) > 34
    assert encode(source, "x", Recoding(max_side=max(size))) == encode(source, "x", LOSSLESS)


def test_quality_encodes_every_image_anew_and_keeps_the_subsampling():
    for subsampling, factors in (("4:4:4", (1, 1)), ("4:2:2", (2, 1)), ("4:2:0", (2, 2))):
        source = saved(PHOTO, quality=95, subsampling=subsampling)
        stored = encode(source, "x", Recoding(quality=60))
        assert check_crops(stored).sampling[0] == factors
        assert len(stored.data) < 0.7 * len(source)


def test_subsampling_420_leaves_alone_what_has_it_or_has_no_colour():
    asked = Recoding(subsampling="420")
    for subsampling in ("4:4:4", "4:2:2"):
        stored = encode(saved(PHOTO, subsampling=subsampling), "x", asked)
        assert check_crops(stored).sampling == [(2, 2), (1, 1), (1, 1)]
    for untouched in (saved(PHOTO, subsampling="4:2:0"), saved(PHOTO.convert("L"))):
        assert encode(untouched, "x", asked) == encode(untouched, "x", LOSSLESS)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "half", "noise", "png"])
def test_damaged_bytes_are_named(damage):
    whole = saved(PHOTO, quality=90)
    middle = len(whole) // 2
    data = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "cut": whole[:-40],
        "half": whole[:middle],
        "noise": whole[:middle] + b"\xff\xd8\xff\x00" * 8 + whole[middle + 32 :],
        "png": saved(PHOTO, "PNG")[:-500],
    }[damage]
    with pytest.raises(UserError, match=r"^a/b\.jpg: unreadable image") as caught:
        encode(data, "a/b.jpg", LOSSLESS)
    assert "\n" not in str(caught.value)


def test_a_jpeg_that_pillow_decodes_to_noise_is_refused():
    """Pillow is silent where libjpeg only warns, and shows gray or garbage."""
    data = bytearray(saved(PHOTO, quality=90))
    middle = len(data) // 2
    data[middle : middle + 32] = b"\x55" * 32
    assert psnr(opened(bytes(data)).convert("RGB"), PHOTO) < 25
    with pytest.raises(UserError, match=r"a\.jpg: unreadable image"):
        encode(bytes(data), "a.jpg", LOSSLESS)
