"""The transcode's own reader and writer of scans, held against libjpeg and the standard."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.jpegs import (
    ENCODABLE,
    SUBSAMPLINGS,
    ZIGZAG,
    encode,
    make_jpeg,
    pack_bits,
    texture,
    write_baseline,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastselfie.kernels import jpeg

EOI = b"\xff\xd9"


def same_coefficients(before, after):
    pairs = zip(jpeg.coefficients(before), jpeg.coefficients(after), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def blocks_of(values):
    """Blocks of a gray image in one row, each given by {place in zigzag order: value}."""
    blocks = np.zeros((1, len(values), 64), np.int16)
    for block, named in zip(blocks[0], values, strict=True):
        for place, value in named.items():
            block[ZIGZAG[place]] = value
    return blocks


def code_lengths(data):
    """{(table class and number): how many codes of 1 to 16 bits}"""
    found, at = {}, data.index(b"\xff\xc4")
    while data[at + 1] != 0xDA:
        if data[at + 1] == 0xC4:
            found[data[at + 4]] = list(data[at + 5 : at + 21])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return found


@given(
    st.sampled_from(ENCODABLE),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 9),
    st.integers(20, 100),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_bytes_are_libjpegs(subsampling, width, height, restart, quality, progressive):
    """Its optimiser's, of the same coefficients: symbols, tables, stuffing, markers and header."""
    pixels = texture(height, width, restart)
    row = -(-width // (8 * SUBSAMPLINGS[subsampling][0]))
    interval = max(n for n in range(1, restart + 1) if row % n == 0)
    expected = encode(pixels, subsampling, quality, optimize=True, restart_marker_blocks=interval)
    source = encode(pixels, subsampling, quality, progressive=progressive)
    assert jpeg.transcode(source, restart) == expected
    assert jpeg.transcode(expected, restart) == expected


@given(
    st.sampled_from(sorted(SUBSAMPLINGS)),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 9),
    st.integers(1, 9),
)
@settings(max_examples=100, deadline=None)
def test_intervals_of_the_source_become_others(subsampling, width, height, before, after):
    plain = make_jpeg(subsampling, width, height, before)
    marked = make_jpeg(subsampling, width, height, before, restart_marker_blocks=before)
    assert jpeg.transcode(marked, after) == jpeg.transcode(plain, after)


places = st.sampled_from([1, 2, 15, 16, 17, 18, 33, 34, 49, 50, 62, 63])  # runs around 16, 32, 48
values = st.sampled_from([1, -1, 2, -2, 5, -255, 511, 512, -1023, 1023])
sparse = st.dictionaries(places, values, max_size=4)
full = st.just(dict.fromkeys(range(1, 64), -1023) | {0: 1023})  # no end of block; 0xFF in plenty
means = st.integers(-1023, 1023).map(lambda mean: {0: mean})
blocks = st.builds(lambda mean, block: mean | block, means, st.one_of(sparse, full))


@given(st.lists(blocks, min_size=1, max_size=12), st.integers(1, 12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_runs_ends_of_blocks_and_stuffing(values, restart, color):
    plane = blocks_of(values)
    source = write_baseline([plane, plane[:, ::-1], -plane] if color else [plane])
    result = jpeg.transcode(source, restart)
    assert same_coefficients(source, result)
    assert np.array_equal(jpeg.coefficients(result)[0].reshape(plane.shape), plane)
    assert jpeg.read_header(result).can_crop


@pytest.mark.parametrize(("symbols", "at_the_limit"), [(2, False), (20, True)])
def test_codes_are_at_most_16_bits_long(symbols, at_the_limit):
    """Frequencies that are Fibonacci numbers make every code one bit longer than the one before."""
    counts = [1, 2]
    while len(counts) < symbols:
        counts.append(counts[-1] + counts[-2])
    sequence = [i for i, count in enumerate(counts) for _ in range(count)]
    values, place = [{}], 0
    for i in sequence:  # symbol i: a run of i // 10 zeros, then a value of i % 10 + 1 bits
        place += 1 + i // 10
        if place > 63:
            values.append({})
            place = 1 + i // 10
        values[-1][place] = 1 << i % 10
    source = write_baseline([blocks_of(values)])
    result = jpeg.transcode(source, 10_000)
    assert same_coefficients(source, result)
    lengths = code_lengths(result)[0x10]
    assert sum(lengths) in (symbols, symbols + 1)  # the end of block
    assert (lengths[15] > 0) == at_the_limit
    used = sum(count << (16 - length) for length, count in enumerate(lengths, 1))
    assert used < 1 << 16  # the code of all ones stays free


def test_runs_that_lead_nowhere_are_not_kept():
    """Three of 16 zeros before the end of a block, and three instead of it."""
    plain = write_baseline([blocks_of([{0: 5, 1: 1}, {0: 5, 15: 1}])])
    mean, same_mean, run, end = "00011101", "00000", "11110000", "00000000"
    first, second = mean + "000000011", same_mean + "111000011"
    scan = plain.index(b"\xff\xda") + 10
    assert plain[scan:] == pack_bits(first + end + second + end) + EOI
    with_runs = plain[:scan] + pack_bits(first + 3 * run + end + second + 3 * run) + EOI
    assert jpeg.transcode(with_runs) == jpeg.transcode(plain)


@pytest.mark.parametrize("color", [False, True], ids=["one scan", "three scans"])
@pytest.mark.parametrize(
    "values", [[{1: 1024}], [{63: -1024}], [{0: 2048}], [{0: 1024}, {0: -1024}]]
)
def test_values_out_of_range(values, color):
    plane = blocks_of(values)
    with pytest.raises(jpeg.JpegError, match="out of range"):
        jpeg.transcode(write_baseline([plane] * 3 if color else [plane]))


PLAIN = encode(texture(48, 64), "4:2:0")
MARKED = encode(texture(48, 64), "4:2:0", restart_marker_blocks=2)


@pytest.mark.parametrize(
    "source",
    [
        PLAIN + b"padding",
        PLAIN[:-2] + b"\xff\xff" + EOI,
        PLAIN[:-2] + b"\xff\xfe\0\x04hi" + EOI,
        MARKED[:-2] + b"\xff\xd3" + EOI,
        MARKED.replace(b"\xff\xd1", b"\xff\xff\xd1"),
        PLAIN[:-2],
        PLAIN[:-2] + 30 * b"\0" + EOI,
        MARKED.replace(b"\xff\xd1", b"\0\0\xff\xd1"),
        PLAIN.replace(b"JFIF\0\1", b"JFIF\0\2"),
    ],
    ids=[
        "behind the end",
        "fill bytes",
        "a comment",
        "one more marker",
        "fill bytes in between",
        "no end",
        "zeros",
        "zeros in between",
        "version",
    ],
)
def test_what_costs_no_pixel_is_forgiven(source):
    assert jpeg.transcode(source) == jpeg.transcode(PLAIN)


@pytest.mark.parametrize(
    "source",
    [
        PLAIN[:-30] + EOI,
        MARKED.replace(b"\xff\xd1", b"\xff\xd2"),
        MARKED.replace(b"\xff\xd1", b""),
    ],
    ids=["cut", "misnumbered", "missing"],
)
def test_what_costs_pixels_is_an_error(source):
    assert source not in (PLAIN, MARKED)
    with pytest.raises(jpeg.JpegError):
        jpeg.transcode(source)


def test_a_code_of_all_ones_is_an_error():
    """Also where no block uses it, as in a table of sixteen codes of four bits."""
    source = write_baseline([blocks_of([{0: 1}])])
    counts = source.index(b"\xff\xc4") + 5
    full = source[:counts] + bytes([0] * 3 + [16] + [0] * 12) + source[counts + 16 :]
    scan = full.index(b"\xff\xda") + 10
    full = full[:scan] + pack_bits("0001" + "1" + "00000000") + EOI
    with pytest.raises(jpeg.JpegError, match="Huffman table"):
        jpeg.transcode(full)
