"""Fuzz the JPEG engine under sanitizers: how many damaged inputs it survives.

python benchmarks/fuzz.py --inputs 100000 --json benchmarks/results/fuzz.json
python benchmarks/fuzz.py --inputs 20000 --sanitizers thread
python benchmarks/fuzz.py --libfuzzer 60

Compiles kernels/jpeg/fuzz.cpp and gives it mutated JPEGs. Needs g++ and the headers of libjpeg;
--libfuzzer needs clang++ in place of g++. A crash or a report of a sanitizer ends the script with
status 1. libFuzzer saves the input that caused it in the current folder. With --json the campaign
is added to the file and replaces an earlier one under the same sanitizers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastselfie.kernels import jpeg

KERNELS = Path(__file__).parent.parent / "kernels" / "jpeg"
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wno-psabi", "-fno-sanitize-recover=all"]


def corpus(folder: Path) -> list[Path]:
    """Small JPEGs of every kind that the engine knows; mutations do the rest."""
    random = np.random.default_rng(0)
    files: list[bytes] = []
    for width, height in ((17, 9), (40, 33), (70, 50)):
        y, x = np.mgrid[:height, :width]
        waves = 128 + 60 * np.sin(x / 5 + y / 9)[..., None] + random.normal(0, 12, (*x.shape, 3))
        image = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
        for mode in ("4:4:4", "4:2:2", "4:2:0", "gray", "rgb"):
            for progressive in (False, True):
                options: dict[str, Any] = {"keep_rgb": True} if mode == "rgb" else {}
                if mode not in ("rgb", "gray"):
                    options = {"subsampling": mode}
                out = io.BytesIO()
                source = image.convert("L") if mode == "gray" else image
                source.save(out, "JPEG", quality=85, progressive=progressive, **options)
                files.append(out.getvalue())
                if mode != "rgb":
                    files += [jpeg.transcode(files[-1], n) for n in (1, 3)]
                if mode == "4:2:2" and not progressive:  # 4:4:0: the same blocks, otherwise laid
                    at = files[-1].index(b"\xff\xc0")
                    turned = bytearray(files[-1])
                    turned[at + 5 : at + 9] = turned[at + 7 : at + 9] + turned[at + 5 : at + 7]
                    turned[at + 11] = 0x12
                    files.append(bytes(turned))
                files += deviations(files[-1])
    paths = [folder / f"{i}.jpg" for i in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


def deviations(data: bytes) -> list[bytes]:
    """The file with what costs no pixel: the readers' tolerance is mutated too."""
    scan = data.index(b"\xff\xda")
    behind = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    return [
        data[: behind - 3] + bytes(3) + data[behind:],  # no spectral selection
        data[:scan] + b"\xff\0text" + data[scan:],
        data[:-2] + bytes(40) + data[-2:],
        data[:-2] + b"text before the end" + data[-2:],
        data[:-2],
        data.replace(b"\xff\xc4", b"\xff\xfe"),  # no Huffman tables
        *(data.replace(bytes([0xFF, n]), b"\0\xff\xd4") for n in (0xD0, 0xD1)),
    ]


def build(folder: Path, compiler: str, flags: list[str]) -> Path:
    """Compile the fuzzer and return the program."""
    sources = [p for p in sorted(KERNELS.glob("*.cpp")) if not p.name.startswith("bindings")]

    def compile_one(source: Path) -> str:
        made = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(made)], check=True)
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "fuzz"
    subprocess.run([compiler, *flags, *objects, "-ljpeg", "-o", str(program)], check=True)
    return program


def run(command: list[str], pattern: str) -> tuple[int, ...]:
    """Run the fuzzer and return the numbers that it prints. Exit with status 1 on a fault."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr[-20_000:], sep="", end="")
    found = re.search(pattern, done.stdout + done.stderr)
    if done.returncode or not found:
        sys.exit(1)
    return tuple(map(int, found.groups()))


def mutate(program: Path, files: list[Path], inputs: int, seed: int) -> dict[str, int]:
    """Run our own mutations, and return what there is to record."""
    numbers = run(
        [str(program), str(inputs), str(seed), *map(str, files)],
        r"(\d+) inputs, (\d+) calls succeeded, (\d+) batches closed",
    )
    return dict(zip(("inputs", "calls_succeeded", "batches_closed_early"), numbers, strict=True))


def search(program: Path, files: list[Path], seconds: int, seed: int) -> dict[str, int]:
    """Run libFuzzer, and return what there is to record."""
    options = [f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=60", "-print_final_stats=1"]
    command = [str(program), *options, str(files[0].parent)]
    # The last line before it ends is "#N DONE cov: EDGES ft: ...".
    edges, inputs = run(command, r"DONE +cov: (\d+)(?:.*\n)+?Done (\d+) runs")
    return {"inputs": inputs, "covered_edges": edges}


def record(path: Path, campaign: dict[str, object]) -> None:
    before = json.loads(path.read_text(encoding="utf-8"))["campaigns"] if path.exists() else []
    others = [c for c in before if c["sanitizers"] != campaign["sanitizers"]]
    campaigns = sorted([*others, campaign], key=lambda c: str(c["sanitizers"]))
    claim = "Mutated JPEGs, raw pixels, boxes and pointers: no crash and no sanitizer's report."
    text = json.dumps({"claim": claim, "campaigns": campaigns}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sanitizers", default="address,undefined")
    parser.add_argument("--libfuzzer", type=int, metavar="SECONDS", help="instead of --inputs")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    compiler, sanitizers, flags = "g++", asked.sanitizers, FLAGS
    if asked.libfuzzer:
        compiler, sanitizers = "clang++", f"fuzzer,{sanitizers}"
        flags = [*FLAGS, "-DJPEG_LIBFUZZER"]
    if not shutil.which(compiler):
        package = compiler.replace("clang++", "clang")
        print(f"error: {compiler} is missing: apt-get install {package}", file=sys.stderr)
        sys.exit(2)
    flags = [*flags, f"-fsanitize={sanitizers}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        program = build(folder, compiler, flags)
        (folder / "corpus").mkdir()
        files = corpus(folder / "corpus")
        begin = time.monotonic()
        if asked.libfuzzer:
            numbers = search(program, files, asked.libfuzzer, asked.seed)
        else:
            numbers = mutate(program, files, asked.inputs, asked.seed)
        seconds = time.monotonic() - begin
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    if asked.json:
        campaign = {
            "command": "python benchmarks/fuzz.py " + shlex.join(sys.argv[1:]),
            "sanitizers": sanitizers,
            "seed": asked.seed,
            **numbers,
            "faults": 0,
            "files_mutated": len(files),
            "kernels": jpeg.available_kernels(),
            "compiler": version.stdout.splitlines()[0],
            "flags": shlex.join(flags),
            "seconds": round(seconds),
            "date": datetime.now(timezone.utc).date().isoformat(),
        }
        record(asked.json, campaign)


if __name__ == "__main__":
    main()
