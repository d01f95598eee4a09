"""The public decoder: equal to the engine, close to Pillow, and clear about every bad input."""

from __future__ import annotations

import io
import mmap
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.jpegs import (
    ENCODABLE,
    SUBSAMPLINGS,
    decode,
    encode,
    make_jpeg,
    psnr,
    reference,
    texture,
)
from PIL import Image

from fastselfie import jpeg
from fastselfie.kernels.jpeg import decode_resized

HEIGHT, WIDTH = 90, 131
CROP, SIZE = (11, 7, 100, 70), (33, 47)
# Whole images against libjpeg, in steps of a channel. The samples are the same to the last bit. A
# channel is rounded on both sides (1/2 each), so two that are computed from equal chroma differ by
# 1 at most. Halved chroma is rounded as well on both sides, and blue takes it times 1.772: 2.77.
LARGEST_DIFFERENCE = {"gray": 0, "4:4:4": 1, "4:2:2": 2, "4:2:0": 2}
FULL_DB = 38  # of tests/kernels/jpeg/test_accuracy.py, for a crop that is not reduced


def as_file(pixels, kind, mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def cmyk():
    return as_file(texture(HEIGHT, WIDTH), "JPEG", "CMYK", quality=95)


def dark(height=HEIGHT, width=WIDTH):
    return make_jpeg("4:2:0", width, height)


@pytest.mark.parametrize("subsampling", sorted(SUBSAMPLINGS))
def test_it_is_the_engine(subsampling):
    data = make_jpeg(subsampling, WIDTH, HEIGHT)
    whole = (0, 0, WIDTH, HEIGHT)
    assert jpeg.read_size(data) == (HEIGHT, WIDTH)
    for crop, size, flip in [
        (None, None, False),
        (CROP, None, True),
        (None, SIZE, False),
        (CROP, SIZE, True),
    ]:
        box = crop or whole
        expected = decode_resized(data, box, size or (box[3], box[2]), flip)
        assert np.array_equal(jpeg.decode(data, crop, size, flip), expected)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ENCODABLE)
def test_it_is_close_to_pillow(subsampling, progressive):
    data = encode(texture(HEIGHT, WIDTH), subsampling, progressive=progressive)
    difference = jpeg.decode(data).astype(int) - np.asarray(decode(data))
    assert np.abs(difference).max() <= LARGEST_DIFFERENCE[subsampling]
    small = jpeg.decode(data, CROP, SIZE)
    assert psnr(small, reference(data, CROP, SIZE)) >= FULL_DB


@pytest.mark.parametrize("subsampling", ENCODABLE)
def test_a_crop_is_a_part_of_the_whole(subsampling):
    data, (left, top, width, height) = make_jpeg(subsampling, WIDTH, HEIGHT), CROP
    part = jpeg.decode(data)[top : top + height, left : left + width]
    assert np.array_equal(jpeg.decode(data, CROP), part)


def test_an_image_wider_than_8192_pixels():
    data = encode(np.zeros((2, 9000, 3), np.uint8))
    assert jpeg.decode(data).shape == (2, 9000, 3)
    assert jpeg.decode(data, size=(1, 20_000), flip=True).shape == (1, 20_000, 3)


def test_cmyk_is_decoded_by_pillow():
    data = cmyk()
    pixels, (left, top, width, height) = np.asarray(decode(data)), CROP
    assert jpeg.read_size(data) == (HEIGHT, WIDTH)
    assert np.array_equal(jpeg.decode(data), pixels)
    cropped = pixels[top : top + height, left : left + width][:, ::-1]
    assert np.array_equal(jpeg.decode(data, CROP, flip=True), cropped)
    assert jpeg.decode(data, size=SIZE).shape == (*SIZE, 3)
    with pytest.raises(ValueError, match=f"{WIDTH} wide and {HEIGHT} high"):
        jpeg.decode(data, (0, 0, WIDTH + 1, 1))


def test_rgb_coded_is_decoded_by_the_engine():
    data = encode(texture(64, 80), "4:4:4", keep_rgb=True)
    assert np.array_equal(jpeg.decode(data), np.asarray(decode(data)))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(texture(HEIGHT, WIDTH), exif=exif)
    assert jpeg.decode(data).shape == (HEIGHT, WIDTH, 3)


def test_any_buffer_of_bytes(tmp_path):
    data = dark()
    expected = jpeg.decode(data)
    path = tmp_path / "two.jpg"
    path.write_bytes(b"before" + data)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
        view[6:] as part,
    ):
        buffers = (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), part)
        for buffer in buffers:
            assert np.array_equal(jpeg.decode(buffer), expected)
            assert jpeg.read_size(buffer) == (HEIGHT, WIDTH)
        whole = jpeg.decode_batch(buffers, threads=2)
    assert all(np.array_equal(pixels, expected) for pixels in whole)


def test_numpy_integers_are_integers():
    crop, size = np.array(CROP), tuple(np.array(SIZE))
    expected = jpeg.decode(dark(), CROP, SIZE, True)
    assert np.array_equal(jpeg.decode(dark(), crop, size, np.True_), expected)


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_a_batch_is_its_images(threads):
    images = [make_jpeg("4:2:0", WIDTH + i, HEIGHT + i, seed=i) for i in range(7)] + [cmyk()]
    crops = [None if i % 3 == 0 else (i, 2, 50 + i, 40) for i in range(8)]
    flips = np.arange(8) % 2 == 1
    for size in (None, SIZE):
        batch = jpeg.decode_batch(images, crops=crops, size=size, flips=flips, threads=threads)
        expected = [
            jpeg.decode(image, crop, size, flip)
            for image, crop, flip in zip(images, crops, flips, strict=True)
        ]
        assert isinstance(batch, list if size is None else np.ndarray)
        assert all(np.array_equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_an_empty_batch():
    assert jpeg.decode_batch([]) == []
    assert jpeg.decode_batch(iter(()), size=SIZE).shape == (0, *SIZE, 3)


def test_a_batch_decodes_on_threads(monkeypatch):
    """Every thread waits for another one in its first image, so one thread alone would hang."""
    barrier = threading.Barrier(3, timeout=60)

    def meet(*args):
        barrier.wait()
        return decode_resized(*args)

    monkeypatch.setattr(jpeg, "decode_resized", meet)
    assert len(jpeg.decode_batch([dark()] * 6, threads=3)) == 6


def test_decoding_releases_the_gil():
    """This thread stops another one that decodes: while the GIL is held it cannot go on."""
    data, started, stop, rounds = dark(), threading.Event(), threading.Event(), []

    def work():
        started.set()
        while len(rounds) < 50 and not stop.is_set():
            rounds.append(jpeg.decode(data, size=(1000, 1000)))

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # a thread goes on only where another one lets go of the GIL
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        stop.set()
        thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert len(rounds) < 50


PIXELS = np.zeros((8, 8, 3), np.uint8)
NO_JPEGS = {
    "empty": b"",
    "a PNG image": as_file(PIXELS, "PNG"),
    "a WebP image": as_file(PIXELS, "WEBP"),
    "a GIF image": as_file(PIXELS, "GIF"),
    "a BMP image": as_file(PIXELS, "BMP"),
    "a TIFF image": as_file(PIXELS, "TIFF"),
    "a JPEG 2000 image": as_file(PIXELS, "JPEG2000"),
    "an AVIF image": b"\0\0\0\x20ftypavif\0\0\0\0",
    "a HEIC image": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "a JPEG XL image": b"\xff\x0a\xfa\x7f",
    "a PDF document": b"%PDF-1.7\n",
    "a ZIP archive": b"PK\x03\x04\x14\0",
    "a gzip file": b"\x1f\x8b\x08\0",
    "an HTML page": b"\n<!DOCTYPE html><html>404</html>",
    "an XML or SVG document": b'<?xml version="1.0"?>',
    "a JPEG in base64": b"/9j/4AAQSkZJRg==",
    "text": b'{"error": "not found"}',
    "zeros": bytes(4096),
    "begins with the bytes 01 02 03 04 05": b"\1\2\3\4\5",
}


@pytest.mark.parametrize("name", NO_JPEGS)
def test_what_is_no_jpeg_is_named(name):
    for function in (jpeg.decode, jpeg.read_size):
        with pytest.raises(jpeg.JpegError, match=f"^not a JPEG: it is .*{name}"):
            function(NO_JPEGS[name])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dark()[:2], "truncated: a JPEG of 2 bytes"),
        (dark()[:300], "truncated"),
        (dark()[: len(dark()) // 2], "truncated|lost|corrupt"),
        (cmyk()[: len(cmyk()) // 2], "unsupported: CMYK.*Pillow"),
        (cmyk()[:200], "unsupported: CMYK.*Pillow|truncated"),
    ],
)
def test_a_damaged_jpeg(data, message):
    with pytest.raises(jpeg.JpegError, match=message):
        jpeg.decode(data)


@pytest.mark.parametrize(
    "crop",
    [(0, 0, WIDTH + 1, 5), (-1, 0, 5, 5), (5, HEIGHT, 5, 1), (0, 0, 0, 5), (0, 2**70, 5, 5)],
)
@pytest.mark.parametrize("size", [None, SIZE])
def test_a_crop_outside_of_the_image(crop, size):
    with pytest.raises(ValueError, match=f"{WIDTH} wide and {HEIGHT} high") as caught:
        jpeg.decode(dark(), crop, size)
    assert not isinstance(caught.value, jpeg.JpegError)
    assert str(crop[1]) in str(caught.value)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5, 65_536), (2**70, 5)])
def test_an_impossible_size(size):
    with pytest.raises(ValueError, match=f"65,535.*{WIDTH} wide and {HEIGHT} high") as caught:
        jpeg.decode(dark(), size=size)
    assert not isinstance(caught.value, jpeg.JpegError)


def test_a_size_that_needs_too_much_memory():
    """A row per pixel of a tall image, each as wide as the result: 4 GB a component."""
    tall = as_file(np.zeros((65_500, 1, 3), np.uint8), "JPEG")
    with pytest.raises(jpeg.JpegError, match="too large: this size of this box needs too much"):
        jpeg.decode(tall, size=(1, 65_535))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photo.jpg",), "bytes, not str: pass the content"),
        ((Path("photo.jpg"),), "bytes, not PosixPath: pass the content"),
        ((None,), "bytes, not NoneType"),
        ((np.zeros((4, 4), np.uint8),), "one dimension"),
        ((np.zeros(4, np.float32),), "4 bytes an item"),
        ((np.zeros(8, np.uint8)[::2],), "contiguous"),
        ((dark(), (0, 0, 5)), r"crop must be integers \(left, top, width, height\)"),
        ((dark(), (0, 0, 5.0, 5)), "crop must be integers"),
        ((dark(), 5), "crop must be integers"),
        ((dark(), None, 224), r"size must be integers \(height, width\)"),
        ((dark(), None, None, "no"), "flip must be True or False"),
    ],
)
def test_a_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        jpeg.decode(*arguments)


@pytest.mark.parametrize(
    ("error", "images", "options", "message"),
    [
        (jpeg.JpegError, [dark(), b"GIF89a", b""], {}, "^image 1: not a JPEG: it is a GIF"),
        (jpeg.JpegError, [dark(), dark(), dark()[:500]], {"size": SIZE}, "^image 2: truncated"),
        (ValueError, [dark()] * 2, {"crops": [None, (0, 0, 999, 1)]}, "^image 1: crop .*90 high"),
        (TypeError, [dark(), "a.jpg"], {}, "^image 1: data must be bytes"),
        (TypeError, [dark()], {"crops": [5]}, "^image 0: crop must be integers"),
        (TypeError, dark(), {}, "a list of JPEGs, not one"),
        (ValueError, [dark()], {"crops": [CROP, CROP]}, "crops has 2 items for 1 images"),
        (ValueError, [dark()], {"flips": []}, "flips has 0 items for 1 images"),
        (ValueError, [dark()], {"size": (0, 5)}, "size .*65,535"),
        (ValueError, [dark()], {"threads": 0}, "threads must be at least 1, not 0"),
        (TypeError, [dark()], {"threads": "two"}, "threads"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_batch(error, images, options, message, threads):
    with pytest.raises(error, match=message):
        jpeg.decode_batch(images, **{"threads": threads, **options})


def test_torch_is_not_loaded():
    code = "import sys, fastselfie; fastselfie.jpeg.decode; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "False"
