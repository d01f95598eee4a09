"""Says what some bytes are, for messages about bytes that are not what they should be."""

from __future__ import annotations

import re

_HEIF = rb"....ftyp"  # a container; the name of its content follows
# How the first bytes of a format look -> its name. The first match is used.
_FORMATS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), name)
    for pattern, name in (
        (rb"\x89PNG", "a PNG image"),
        (rb"RIFF....WEBP", "a WebP image"),
        (rb"GIF8", "a GIF image"),
        (rb"BM.{4}\0\0\0\0", "a BMP image"),
        (rb"II\*\0|MM\0\*", "a TIFF image"),
        (_HEIF + rb"avi[fs]", "an AVIF image"),
        (_HEIF + rb"(?:hei|hev|mif1|msf1)", "a HEIC image"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
        (rb"%PDF-", "a PDF document"),
        (rb"PK\x03\x04", "a ZIP archive"),
        (rb"\x1f\x8b", "a gzip file"),
        (rb"\s*<(?:!doctype\s+html|html)", "an HTML page"),
        (rb"(?:data:image/[^,]*,)?/9j/", "a JPEG in base64: pass what base64.b64decode returns"),
        (rb"\s*<(?:\?xml|svg)", "an XML or SVG document"),
        (rb"\0+\Z", "zeros"),
        (rb"[\t\n\r\x20-\x7e]+\Z", "text"),
    )
)


def describe_content(start: bytes) -> str:
    """Return what a file is, with its article, from its first bytes, for example "a PNG image"."""
    if not start:
        return "empty"
    found = (name for pattern, name in _FORMATS if pattern.match(start))
    return next(found, f"of an unknown format that begins with the bytes {start[:8].hex(' ')}")
