"""JPEGs that deviate from the standard: some decode to every pixel all the same, some do not.

Each deviation is a function of a file's bytes. `HARMLESS` are those that libjpeg decodes as if they
were not there, `LOST` those that cost pixels.
"""

from __future__ import annotations

import numpy as np

from helpers.jpegs import encode, texture, write_baseline

EOI = b"\xff\xd9"
SOF0, DHT, SOS, DQT, DRI, APP0, APP14 = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE

_PIXELS = texture(48, 64)
_BLOCKS = np.random.default_rng(0).integers(-9, 10, (6, 8, 64), dtype=np.int16)

SOURCES = {
    "4:2:0": encode(_PIXELS, "4:2:0"),
    "4:4:4": encode(_PIXELS, "4:4:4"),
    "gray": encode(_PIXELS, "gray"),
    "restarts": encode(_PIXELS, "4:2:0", restart_marker_blocks=2),
    "progressive": encode(_PIXELS, "4:2:0", progressive=True),
    "three scans": write_baseline([_BLOCKS, _BLOCKS[::-1], -_BLOCKS]),
}


def segments(data):
    """[(marker, begin, end)] of the header, the scan's own segment last."""
    found, at = [], 2
    while not found or found[-1][0] != SOS:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at, end))
        at = end
    return found


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def place(data, marker):
    """(begin, end) of the first such segment."""
    return next((begin, end) for found, begin, end in segments(data) if found == marker)


def insert(data, at, new):
    return data[:at] + new + data[at:]


def before_scan(new):
    return lambda data: insert(data, place(data, SOS)[0], new)


def before_end(new):
    return lambda data: data[:-2] + new + EOI


def without(data, marker):
    for _, begin, end in reversed([s for s in segments(data) if s[0] == marker]):
        data = data[:begin] + data[end:]
    return data


def patch(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def spectrum(*values):
    """Other values of Ss, Se and Ah Al, in every scan: only progressive files heed them."""

    def change(data):
        at = data.find(b"\xff\xda")
        while at >= 0:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            data = patch(data, end - 3, bytes(values))
            at = data.find(b"\xff\xda", end)
        return data

    return change


def wide_tables(data):
    """The quantisation tables with steps of 16 bits."""
    out = data[:2]
    for marker, begin, end in segments(data):
        body = data[begin + 4 : end]
        if marker != DQT:
            out += data[begin:end]
        for at in range(0, len(body) if marker == DQT else 0, 65):
            steps = b"".join(bytes([0, step]) for step in body[at + 1 : at + 65])
            out += segment(DQT, bytes([body[at] | 0x10]) + steps)
    return out + data[segments(data)[-1][2] :]


def adobe(transform):
    """Adobe's marker in the place of JFIF's."""
    marker = segment(APP14, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
    return lambda data: insert(without(data, APP0), 2, marker)


def with_ids(*ids):
    """Other numbers of the components, in the frame and the scan."""

    def change(data):
        frame, scan = place(data, SOF0)[0], place(data, SOS)[0]
        for i, number in enumerate(ids):
            data = patch(patch(data, frame + 10 + 3 * i, bytes([number])), scan + 5 + 2 * i,
                         bytes([number]))  # fmt: skip
        return data

    return change


def renumbered(number_of):
    """Other numbers of the restart markers: the k-th of a file has number_of(k)."""

    def change(data):
        at, count, out = place(data, SOS)[1], 0, bytearray(data)
        for i in range(at, len(data) - 1):
            if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7:
                out[i + 1], count = 0xD0 + number_of(count) % 8, count + 1
        return bytes(out)

    return change


def at_marker(number, new):
    """The first restart marker of this number replaced."""

    def change(data):
        return data.replace(bytes([0xFF, 0xD0 + number]), new, 1)

    return change


def at_jfif(offset, new):
    return lambda data: patch(data, data.index(b"JFIF\0") + offset, new)


def retype(data):
    """Extended sequential instead of baseline."""
    return patch(data, place(data, SOF0)[0] + 1, b"\xc1")


def cut(numerator, denominator, end=b""):
    """A part of the file, and `end` behind it."""
    return lambda data: data[: len(data) * numerator // denominator] + end


def last_scan_gone(data):
    return data[: data.rindex(b"\xff\xda")] + EOI


_SEQUENTIAL = ("4:2:0", "4:4:4", "gray", "restarts", "three scans")
_WRITTEN = ("4:2:0", "4:4:4", "gray", "restarts", "progressive")  # by Pillow: with JFIF's marker
_ALL = tuple(SOURCES)
_UNUSED_CODES = segment(DHT, b"\3" + bytes([20] + 15 * [0]) + bytes(20))
_UNUSED_STEPS = segment(DQT, b"\3" + bytes(64))

# {name: (the deviation, the sources that it is one of)}
HARMLESS = {
    "Se 0": (spectrum(0, 0, 0), _SEQUENTIAL),
    "Se 1": (spectrum(0, 1, 0), _SEQUENTIAL),
    "Ss 1": (spectrum(1, 63, 0), _SEQUENTIAL),
    "Ah 1": (spectrum(0, 63, 0x10), _SEQUENTIAL),
    "Al 1": (spectrum(0, 63, 0x01), _SEQUENTIAL),
    "Ss, Se, Ah, Al 255": (spectrum(255, 255, 255), _SEQUENTIAL),
    "zeros before the end": (before_end(bytes(258)), _ALL),
    "a byte before the end": (before_end(b"\r"), _ALL),
    "stuffed bytes before the end": (before_end(b"\xff\0" * 9), _ALL),
    "fill bytes before the end": (before_end(b"\xff" * 9), _ALL),
    "text before the end": (before_end(b"<p>not a pixel</p>\r\n" * 9), _ALL),
    "a comment before the end": (before_end(segment(0xFE, b"text")), _ALL),
    "the number of lines before the end": (before_end(b"\xff\xdc\0\4\0\x30"), _ALL),
    "a restart marker before the end": (before_end(b"\xff\xd3"), _ALL),
    "no end": (lambda data: data[:-2], _ALL),
    "half an end": (lambda data: data[:-1], _ALL),
    "zeros instead of the end": (lambda data: data[:-2] + bytes(200), _ALL),
    "two ends": (lambda data: data + EOI, _ALL),
    "a page behind the end": (lambda data: data + b"<html>\xff\xd8\xff\xda</html>" * 9, _ALL),
    "a JPEG behind the end": (lambda data: data + data, _ALL),
    "zeros behind the end": (lambda data: data + bytes(5000), _ALL),
    "FF 00 between segments": (before_scan(b"\xff\0"), _ALL),
    "text between segments": (before_scan(b"text\0\r\n"), _ALL),
    "zeros between segments": (before_scan(bytes(99)), _ALL),
    "fill bytes between segments": (before_scan(b"\xff" * 5), _ALL),
    "a restart marker in the header": (before_scan(b"\xff\xd3"), _ALL),
    "a TEM marker in the header": (before_scan(b"\xff\x01"), _ALL),
    "the number of lines in the header": (before_scan(b"\xff\xdc\0\4\0\x30"), _ALL),
    "zeros behind the start": (lambda data: insert(data, 2, bytes(3)), _ALL),
    "a segment of length 0": (before_scan(b"\xff\xe5\0\0"), _ALL),
    "a segment of length 1": (before_scan(b"\xff\xe5\0\1"), _ALL),
    "a comment of length 0": (before_scan(b"\xff\xfe\0\0"), _ALL),
    "too short a length": (
        lambda data: insert(data, 2, b"\xff\xe1\0\x08Exif\0\0MM\0*\0\0\0\x08\0\0"),
        _ALL,
    ),
    "no JFIF marker": (lambda data: without(data, APP0), _WRITTEN),
    "JFIF 2": (at_jfif(5, b"\2"), _WRITTEN),
    "JFIF 0": (at_jfif(5, b"\0"), _WRITTEN),
    "no density": (at_jfif(7, b"\0\0\0\0\0"), _WRITTEN),
    "a thumbnail that is not there": (at_jfif(12, b"\x20\x20"), _WRITTEN),
    "a cut JFIF marker": (
        lambda data: insert(without(data, APP0), 2, segment(APP0, b"JFIF\0\1")),
        _WRITTEN,
    ),
    "Adobe's transform 1": (adobe(1), _ALL),
    "Adobe's transform 7": (adobe(7), _ALL),
    "components 1, 1, 1": (with_ids(1, 1, 1), ("4:2:0", "4:4:4", "restarts")),
    "components 200, 7, 9": (with_ids(200, 7, 9), ("4:2:0", "4:4:4", "restarts")),
    "SOF1": (retype, _SEQUENTIAL),
    "16-bit steps": (wide_tables, _ALL),
    "a bad table that nobody uses": (before_scan(_UNUSED_CODES), _ALL),
    "steps of zero that nobody uses": (before_scan(_UNUSED_STEPS), _ALL),
    "no Huffman tables": (lambda data: without(data, DHT), ("4:2:0", "4:4:4", "gray", "restarts")),
    "an interval above the image": (before_scan(b"\xff\xdd\0\4\xff\xff"), ("4:2:0", "gray")),
    "zeros before a restart": (at_marker(1, b"\0\0\xff\xd1"), ("restarts",)),
    "text before a restart": (at_marker(1, b"text\xff\xd1"), ("restarts",)),
    "fill bytes before a restart": (at_marker(1, b"\xff\xff\xd1"), ("restarts",)),
    "restarts from 3": (renumbered(lambda k: k + 3), ("restarts",)),
    "restarts from 4": (renumbered(lambda k: k + 4), ("restarts",)),
    "one restart 4 too far": (renumbered(lambda k: k + 4 * (k == 2)), ("restarts",)),
}

LOST = {
    "half": (cut(1, 2), _ALL),
    "half, with an end": (cut(1, 2, EOI), _ALL),
    "nine tenths, with an end": (cut(9, 10, EOI), _ALL),
    "a byte less": (lambda data: data[:-3], ("4:2:0", "4:4:4", "gray", "restarts", "three scans")),
    "no scan": (lambda data: data[: place(data, SOS)[0]] + EOI, _ALL),
    "the last scan is missing": (last_scan_gone, ("three scans",)),
    "no quantisation tables": (lambda data: without(data, DQT), _ALL),
    "no Huffman tables": (lambda data: without(data, DHT), ("progressive",)),
    "intervals without markers": (before_scan(b"\xff\xdd\0\4\0\2"), ("4:2:0", "gray")),
    "markers without intervals": (lambda data: without(data, DRI), ("restarts",)),
    "a marker in the scan": (
        lambda data: insert(data, data.index(b"\xff\0", place(data, SOS)[1]), b"\xff\xe5\0\2"),
        ("4:2:0", "4:4:4", "gray"),
    ),
    "restarts from 1": (renumbered(lambda k: k + 1), ("restarts",)),
    "restarts all 0": (renumbered(lambda k: 0), ("restarts",)),
    "a restart missing": (at_marker(1, b""), ("restarts",)),
    "a restart twice": (at_marker(1, b"\xff\xd1\xff\xd1"), ("restarts",)),
    "two starts": (lambda data: insert(data, 2, b"\xff\xd8"), _ALL),
    "a reserved marker": (before_scan(b"\xff\x02\0\4ab"), _ALL),
}


def cases(kind):
    """[(deviation, source)] of HARMLESS or LOST: the arguments of a parametrised test."""
    return [(name, source) for name, (_, sources) in kind.items() for source in sources]
