"""What the tests of loaders share."""

from __future__ import annotations

import pytest
from conftest import jpeg_bytes, picture, textured, write_beton


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """A .beton file of 20 JPEGs of several sizes and 2 raw images; the label is the number."""
    images = [jpeg_bytes(textured(i, 50 + 3 * i, 90 - 2 * i)) for i in range(20)]
    images += [picture(i, 60, 50) for i in range(2)]
    return write_beton(tmp_path_factory.mktemp("loader") / "a.beton", images, range(22))
