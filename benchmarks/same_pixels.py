"""Check that the JPEG engines of two checkouts decode photographs to the same bytes.

python benchmarks/same_pixels.py FOLDER... --other CHECKOUT

Every JPEG below the folders is decoded as it is and transcoded: whole, cropped, resized, reduced,
each also mirrored, with every set of kernels of this checkout's engine and with the default of the
other's. Both extensions must be built. A difference ends the script with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastselfie.kernels import jpeg

ROOT = Path(__file__).parent.parent


def photographs(folders: list[Path]) -> list[Path]:
    """The JPEGs below the folders."""
    suffixes = {".jpg", ".jpeg"}
    found = (path for folder in folders for path in folder.rglob("*"))
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def requests(
    number: int, width: int, height: int
) -> Iterator[tuple[tuple[int, int, int, int], tuple[int, int]]]:
    """Yield boxes and the sizes that they are decoded to."""
    rng = np.random.default_rng(number)
    whole = (0, 0, width, height)
    for scale in (1, 2, 4, 8):
        yield whole, (-(-height // scale), -(-width // scale))
    for side in (224, 128):
        yield whole, (side, side)
        w, h = (int(rng.integers(max(1, n // 4), n + 1)) for n in (width, height))
        box = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
        yield box, (side, side)
        yield box, (h, w)


def digest(data: bytes, number: int) -> str:
    """The hash of all that is decoded of a file, or why it was refused."""
    total = hashlib.sha256()
    try:
        header = jpeg.read_header(data)
        for box, size in requests(number, header.width, header.height):
            for flip in (False, True):
                total.update(jpeg.decode_resized(data, box, size, flip).tobytes())
    except jpeg.JpegError as error:
        return str(error)
    return total.hexdigest()


def print_digests(files: list[Path], kernels: list[str]) -> None:
    """Print a line per file, form and set of kernels."""
    for number, path in enumerate(files):
        original = path.read_bytes()
        forms = {"as it is": original}
        try:
            forms["transcoded"] = jpeg.transcode(original)
        except jpeg.JpegError as error:
            forms["transcoded"] = str(error).encode()
        for form, data in forms.items():
            for name in kernels:
                jpeg.select_kernels(name)
                print(name, digest(data, number), f"{path}, {form}", sep="\t")


def digests(checkout: Path, folders: list[Path], *options: str) -> list[list[str]]:
    """What print_digests() prints with the engine of a checkout."""
    command = [sys.executable, __file__, *map(str, folders), "--digests", *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--other", type=Path, help="the checkout to compare with")
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--every-set", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    files = photographs(asked.folders)
    if asked.digests:
        print_digests(files, jpeg.available_kernels() if asked.every_set else ["auto"])
        return
    if not files or not asked.other or not (asked.other / "fastselfie").is_dir():
        wrong = "--other must be a checkout" if files else "the folders hold no JPEG"
        print(f"error: {wrong}: see --help", file=sys.stderr)
        sys.exit(2)
    expected = {name: value for _, value, name in digests(asked.other, asked.folders)}
    found = digests(ROOT, asked.folders, "--every-set")
    different = [f"{name}, {kernels}" for kernels, value, name in found if expected[name] != value]
    for line in different:
        print(line)
    sets = ", ".join(dict.fromkeys(kernels for kernels, _, _ in found))
    print(
        f"{len(files)} photographs as they are and transcoded, each decoded in "
        f"{2 * len(list(requests(0, 500, 375)))} ways by {sets}: {len(different)} files differ"
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
