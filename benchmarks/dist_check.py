"""Check that the wheel of `make dist` works on a machine where nothing else is installed.

python benchmarks/dist_check.py dist

It checks the list of files in the wheel. Then it installs the wheel into a new virtual environment
and uses it in an empty folder: the command line, the programs of examples/ and the Python of the
README. PATH has only the programs of that environment, so there is no compiler. It prints what it
did, and the first fault ends it with status 1. `make dist` builds the wheel from the sdist, so this
checks the sdist too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from fastselfie import __version__

REPOSITORY = Path(__file__).parent.parent
SOURCES = (".cpp", ".hpp", ".inl", ".h", ".c")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")

MAKE_IMAGES = """
import numpy as np
from pathlib import Path
from PIL import Image
random = np.random.default_rng(0)
for number in range(80):
    folder = Path("images", f"class-{number % 2}")
    folder.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60)).save(folder / f"{number}.jpg")
"""

# The extensions come first: they must find torch's OpenMP library without torch.
USE_EXTENSIONS = """
import sys
from pathlib import Path
from fastselfie.kernels import host, jpeg
assert "torch" not in sys.modules

import numpy as np
import torch
from PIL import Image
from fastselfie.kernels.convolution import _shares_openmp
assert _shares_openmp(), "torch and the extension have an OpenMP library each"

path = next(Path("images").rglob("*.jpg"))
pixels = jpeg.decode_resized(path.read_bytes(), (0, 0, 80, 60), (60, 80))
difference = np.abs(pixels.astype(int) - np.asarray(Image.open(path))).max()
assert difference <= 4, f"a decoded image differs from Pillow's by {difference}"

site = Path(torch.__file__).parent.parent
maps = Path("/proc/self/maps").read_text().split()
for name, folder in (("libjpeg", "fastselfie.libs"), ("libgomp", "torch/lib")):
    loaded = {Path(word) for word in maps if name in word}
    folders = {path.parent for path in loaded} - {site / "pillow.libs"}  # Pillow has its own
    assert folders == {site / folder}, f"{name} is loaded from {loaded}"
"""

# Small enough for seconds.
STEPS = [
    f"{stage}.{key}"
    for stage in ("pretrain", "finetune")
    for key in ("steps=4", "batch_size=8", "warmup_steps=1", "eval_every=2")
]
TRAIN = [
    *STEPS, "pretrain.eval_images=16", "pretrain.knn_every=null", "finetune.labels=0.5",
    "data.train=train.beton", "data.crop=resized", "data.workers=2",
]  # fmt: skip


class DistError(Exception):
    """What is wrong with the distribution."""


def main() -> int:
    """Check the files in a folder.

    Returns:
        The exit status: 0, or 1 after the first fault.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="has one sdist and one wheel")
    folder = parser.parse_args().folder
    try:
        wheel = find_wheel(folder)
        check_contents(wheel)
        with tempfile.TemporaryDirectory() as scratch:
            check_use(wheel, Path(scratch))
    except DistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def find_wheel(folder: Path) -> Path:
    """Return the one wheel of this version in `folder`, beside the one sdist."""
    sdists, wheels = sorted(folder.glob("*.tar.gz")), sorted(folder.glob("*.whl"))
    if [path.name for path in sdists] != [f"fastselfie-{__version__}.tar.gz"] or len(wheels) != 1:
        raise DistError(f"{folder}: not one sdist and one wheel of {__version__}: run make dist")
    wheel = wheels[0]
    if not re.fullmatch(rf"fastselfie-{__version__}-cp\d+-cp\d+-manylinux_\d.*\.whl", wheel.name):
        raise DistError(f"{wheel}: not a manylinux wheel of {__version__}")
    print(f"ok: {sdists[0].name}, {wheel.name}")
    return wheel


def check_contents(wheel: Path) -> None:
    """Check the list of files, and that libjpeg-turbo is what the extension was compiled for."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sources = [name for name in names if name.endswith(SOURCES)]
        if sources:
            raise DistError(f"{wheel}: has C++ sources: {', '.join(sources)}")
        bundled = [name for name in names if name.startswith("fastselfie.libs/lib")]
        if len(bundled) != 1 or "libjpeg" not in bundled[0]:
            raise DistError(f"{wheel}: bundles {bundled}, not libjpeg-turbo alone")
        library = archive.read(bundled[0])
    expected = tracked_packages()
    missing = [name for name in expected if name not in names]
    if missing:
        raise DistError(f"{wheel}: lacks {', '.join(missing)}")
    print(f"ok: all {len(expected)} tracked files of the package, no C++ source")
    version = header_version()
    if f"libjpeg-turbo version {version} ".encode() not in library:
        raise DistError(f"{bundled[0]}: not the libjpeg-turbo {version} of the compiler's headers")
    print(f"ok: {bundled[0]}, libjpeg-turbo {version} as its headers")


def tracked_packages() -> list[str]:
    """Return where git's files of the package belong in the wheel, C++ sources left out."""
    found = subprocess.run(
        ["git", "ls-files", "fastselfie", "kernels", "configs"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    links = ("fastselfie/kernels", "fastselfie/configs")
    return [
        name if name.startswith("fastselfie/") else f"fastselfie/{name}"
        for name in found
        if name not in links and not name.endswith(SOURCES)
    ]


def header_version() -> str:
    """Return the version that the headers of libjpeg-turbo give the compiler."""
    done = subprocess.run(
        [os.environ.get("CXX", "g++"), "-E", "-P", "-x", "c++", "-"],
        input="#include <stdio.h>\n#include <jpeglib.h>\nLIBJPEG_TURBO_VERSION",
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.split()[-1]


def check_use(wheel: Path, scratch: Path) -> None:
    """Install the wheel into a new environment below `scratch` and use it in an empty folder."""
    programs, folder = scratch / "venv" / "bin", scratch / "empty"
    folder.mkdir()
    venv.create(scratch / "venv", with_pip=True)
    for name in COMPILERS:
        if shutil.which(name, path=str(programs)):
            raise DistError(f"{programs}: has the compiler {name}")
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    environment = {**inherited, "PATH": str(programs)}

    def run(program: str, *arguments: str, expect: str = "", what: str = "") -> None:
        command = [str(programs / program), *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        shown = what or " ".join([program, *arguments])
        if done.returncode != 0 or expect not in done.stdout:
            raise DistError(f"{shown}: status {done.returncode}\n{done.stdout}{done.stderr}")
        print(f"ok: {shown}")

    constraints = REPOSITORY / "constraints.txt"
    run(
        "python", "-m", "pip", "install", "-q", "--only-binary", ":all:",
        "-c", str(constraints), str(wheel.resolve()),
    )  # fmt: skip
    run("fastselfie", "--version", expect=__version__)
    run("fastselfie", "configs", expect="quickstart")
    run("fastselfie", "doctor", expect="torch")
    run("python", "-c", MAKE_IMAGES, what="made a folder of 80 images")
    run("python", "-c", USE_EXTENSIONS, what="decoded an image; one libgomp, that of torch")
    run("fastselfie", "prepare", "images", "--out", "train.beton")
    run("fastselfie", "prepare", "--check", "train.beton", expect="no problem found")
    run("fastselfie", "train", "quickstart", "--out", "run", *TRAIN, expect="finetuned")
    run("fastselfie", "evaluate", "run")
    for example in sorted((REPOSITORY / "examples").glob("*.py")):
        run("python", str(example), "images", what=f"python examples/{example.name} images")
    program = readme_program((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    run("python", "-c", program, expect="(80, 3, 224, 224)", what="the Python of README.md")


def readme_program(readme: str) -> str:
    """Return the Python program in a README, which reads train.beton; it prints its last batch."""
    programs = re.findall(r"^```python\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    if len(programs) != 1 or "train.beton" not in programs[0]:
        raise DistError("README.md: not one Python program that reads train.beton")
    return f"{programs[0]}print(tuple(images.shape))\n"


if __name__ == "__main__":
    sys.exit(main())
