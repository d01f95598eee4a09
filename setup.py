"""Maps the top-level folders kernels/ and configs/ into the package, and builds the C++ there.

A global package named `kernels` would shadow a well-known one. Everything else is in
pyproject.toml.
"""

import os
from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

# In a checkout fastselfie/kernels and fastselfie/configs are links, which find_packages follows.
KERNELS = ["fastselfie.kernels", "fastselfie.kernels.host", "fastselfie.kernels.jpeg"]


def _headers(folder: str) -> list[str]:
    """Return the files that compile an extension again when they change."""
    return ["kernels/instruction_set.hpp", *glob(f"{folder}/*.hpp"), *glob(f"{folder}/*.inl")]


jpeg = Pybind11Extension(
    "fastselfie.kernels.jpeg._jpeg",
    # fuzz.cpp is a program of its own, see benchmarks/fuzz.py.
    sorted(path for path in glob("kernels/jpeg/*.cpp") if os.path.basename(path) != "fuzz.cpp"),
    depends=_headers("kernels/jpeg"),
    libraries=["jpeg"],
    cxx_std=17,
    # Kernels for AVX2 and AVX-512 are in files of their own and chosen at run time. -Wno-psabi:
    # vectors are passed only between inlined functions of one file. Without
    # -fno-tree-slp-vectorize, GCC keeps two of the entropy decoder's counters in one vector.
    extra_compile_args=[
        *("-O3", "-Wall", "-Wextra", "-Wno-psabi"),
        *("-fno-math-errno", "-ffp-contract=off", "-fno-tree-slp-vectorize"),
    ],
)

host = Pybind11Extension(
    "fastselfie.kernels.host._host",
    sorted(glob("kernels/host/*.cpp")),
    depends=_headers("kernels/host"),
    cxx_std=17,
    # OpenMP's library is the one that torch loads, so both share one pool of threads.
    # No contraction: patchify rounds the product and the sum, as torch's two operations do.
    extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wextra"],
    extra_link_args=["-fopenmp"],
)

setup(
    packages=[
        *find_packages(include=["fastselfie*"], exclude=["fastselfie.configs*", *KERNELS]),
        "fastselfie.configs",
        *KERNELS,
    ],
    package_dir={"fastselfie.kernels": "kernels", "fastselfie.configs": "configs"},
    ext_modules=[host, jpeg],
    cmdclass={"build_ext": build_ext},
)
