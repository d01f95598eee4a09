"""Check that the C++ engine gives the same bytes on aarch64 as on this x86-64 processor.

python benchmarks/aarch64.py --json benchmarks/results/aarch64.json

Compiles support/aarch64.cpp for both with the flags of setup.py and runs both, the one for aarch64
in qemu-user. The inputs are JPEGs made here: every chroma subsampling, gray, progressive, with
restart markers, cut and damaged; decoded whole, cropped and scaled. Every instruction set of both
processors is compared. A difference ends the script with status 1. It measures no times, because an
emulator has none.

Needs g++-aarch64-linux-gnu and qemu-user (`make aarch64` installs them for root). libjpeg for arm64
is downloaded from Debian's mirror into a temporary folder.

Differences of libjpeg alone are counted separately: on coefficients that only a damaged file has,
its code for Neon, for AVX2 and for any processor overflow in different ways.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

import fuzz
from support.conditions import command

from fastselfie.kernels.jpeg import available_kernels
from fastselfie.system.files import write_atomically

ROOT = Path(__file__).parent.parent
PACKAGES = "g++-aarch64-linux-gnu qemu-user"
OF_LIBJPEG = "-changed.jpg libjpeg "  # in a line of what libjpeg makes of a damaged file
LIBJPEG_PACKAGES = ("libjpeg62-turbo", "libjpeg62-turbo-dev")


class Target(NamedTuple):
    """A compiler, its further flags, and what its programs are run by."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    runner: tuple[str, ...]


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def fetch_libjpeg(folder: Path) -> Path:
    """A folder with libjpeg's arm64 headers and library; nothing is installed.

    apt has lists and a cache of its own there, for the other architecture.
    """
    for name in ("lists/partial", "archives/partial", "debs"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::Status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::Archives": folder / "archives",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    debs = folder / "debs"
    for arguments in (["update"], ["download", *LIBJPEG_PACKAGES]):
        done = subprocess.run(
            [*apt, *arguments], cwd=debs, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            fail(
                f"{' and '.join(LIBJPEG_PACKAGES)} for arm64: apt-get could not fetch them: {said}"
            )
    for package in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    return folder / "root" / "usr"


def build(target: Target, folder: Path) -> Path:
    """The program of support/aarch64.cpp for a target."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    jpeg_flags, host_flags = map(
        ast.literal_eval, re.findall(r"extra_compile_args=(\[.*?\])", text)
    )
    flags = {"jpeg": jpeg_flags, "host": host_flags, "support": ["-O2", "-Wall", "-Wextra"]}
    sources = [
        path
        for path in sorted(ROOT.glob("kernels/*/*.cpp"))
        if not path.name.startswith("bindings") and path.name != "fuzz.cpp"
    ]

    def compile_one(source: Path) -> str:
        made = folder / f"{target.name}-{source.parent.name}-{source.stem}.o"
        own = flags[source.parent.name]
        subprocess.run(
            [target.compiler, "-std=c++17", *own, *target.flags, "-c", str(source), "-o", made],
            check=True,
        )
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(
            pool.map(compile_one, [*sources, Path(__file__).parent / "support" / "aarch64.cpp"])
        )
    program = folder / target.name
    subprocess.run(
        [target.compiler, *objects, *target.flags, "-fopenmp", "-ljpeg", "-o", str(program)],
        check=True,
    )
    return program


def corpus(folder: Path) -> list[Path]:
    """The fuzzer's JPEGs, each also cut in its middle and with a bit changed in its scan."""
    paths = fuzz.corpus(folder)
    for path in list(paths):
        data = path.read_bytes()
        changed = bytearray(data)
        changed[len(data) * 3 // 4] ^= 4
        for name, spoilt in (("cut", data[: len(data) // 2]), ("changed", bytes(changed))):
            paths.append(folder / f"{path.stem}-{name}.jpg")
            paths[-1].write_bytes(spoilt)
    return paths


def outputs(target: Target, program: Path, kernels: str, files: list[Path]) -> list[str]:
    """The lines of a run. What it computed by, it says on standard error."""
    call = [*target.runner, str(program), kernels, *map(str, files)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{target.name}, {kernels}: {done.stderr.strip()[-500:]}")
    print(f"{target.name}, {done.stderr.strip()}: {done.stdout.count(chr(10)):,} outputs")
    return done.stdout.splitlines()


def differences(expected: list[str], found: list[str]) -> list[str]:
    """Lines that are not the same in both, as a person reads them."""
    if len(expected) != len(found):
        return [f"{len(found):,} outputs, not {len(expected):,}"]
    return [f"{b}, not {a}" for a, b in zip(expected, found, strict=True) if a != b]


def first_line(*call: str) -> str:
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    native, cross, emulator = "g++", "aarch64-linux-gnu-g++", "qemu-aarch64"
    if not all(map(shutil.which, (native, cross, emulator))):
        fail(f"{native}, {cross} or {emulator} is missing: sudo apt-get install g++ {PACKAGES}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = fetch_libjpeg(folder / "apt")
        library = root / "lib" / "aarch64-linux-gnu"
        include = (f"-I{root / 'include'}", f"-I{root / 'include' / 'aarch64-linux-gnu'}")
        paths = f"LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib:{library}"
        arm = Target(
            "aarch64",
            cross,
            (*include, f"-L{library}"),
            (emulator, "-L", "/usr/aarch64-linux-gnu", "-E", paths),
        )
        here = Target("x86-64", native, (), ())
        files = corpus(folder)
        built = {target: build(target, folder) for target in (here, arm)}
        expected = outputs(here, built[here], "generic", files)
        compared = [
            (arm, "neon"),
            (arm, "generic"),
            *((here, name) for name in available_kernels()),
        ]
        different, of_libjpeg = 0, 0
        for target, kernels in compared:
            found = differences(expected, outputs(target, built[target], kernels, files))
            ours = [line for line in found if OF_LIBJPEG not in line]
            for line in ours[:20]:
                print(f"  {target.name}, {kernels}: {line}")
            different += len(ours)
            of_libjpeg += len(found) - len(ours)
    refused = sum(" refused: " in line for line in expected)
    print(
        f"{len(files)} files, {len(expected):,} outputs, {refused:,} of them refusals: {different} "
        f"differ, and {of_libjpeg} of libjpeg's own on damaged files"
    )
    if asked.json:
        result = {
            "claim": "On aarch64 the C++ engine gives the bytes that it gives on x86-64.",
            "command": command(),
            "files": len(files),
            "outputs": len(expected),
            "refused": refused,
            "different": different,
            "different_in_libjpeg_on_damaged_files": of_libjpeg,
            "compared": [f"{target.name}, {kernels}" for target, kernels in compared],
            "compilers": [first_line(c, "--version") for c in (native, cross)],
            "emulator": first_line(emulator, "--version"),
        }
        write_atomically(asked.json, json.dumps(result, indent=1) + "\n")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
