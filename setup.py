"""Maps the top-level folder kernels/ to the package fastselfie.kernels.

A global package named `kernels` would shadow a well-known one. Everything else is in
pyproject.toml. Sub-packages are listed by name: the wheel lacks what is not listed.
"""

from setuptools import setup

setup(
    packages=[
        "fastselfie",
        "fastselfie.data",
        "fastselfie.data.loaders",
        "fastselfie.models",
        "fastselfie.report",
        "fastselfie.kernels",
    ],
    package_dir={"fastselfie.kernels": "kernels"},
)
