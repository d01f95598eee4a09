"""Row groups of parquet files: read in batches, and one line where Arrow cannot."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture

from fastselfie.data.dataset import open_part
from fastselfie.data.sources import parquet
from fastselfie.errors import UserError


@pytest.fixture
def file(tmp_path):
    rows = []
    for seed in range(7):
        out = io.BytesIO()
        picture(seed, 16, 12).save(out, "PNG")
        rows.append({"bytes": out.getvalue(), "path": f"{seed}.png"})
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": rows, "label": list(range(7))}), path, row_group_size=4)
    return path


def test_a_row_group_of_several_batches_is_whole(file, monkeypatch):
    """A row group of more than 2 GiB does not fit in one of Arrow's arrays."""
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 3)
    parquet._row_group.cache_clear()
    source = open_part(file, "train").source
    for seed in range(7):
        assert np.array_equal(np.asarray(source.image(seed)), np.asarray(picture(seed, 16, 12)))


@pytest.mark.parametrize(
    "error", [NotImplementedError("Nested data conversions"), MemoryError(), pa.ArrowInvalid("x")]
)
def test_whatever_arrow_raises_is_one_line(file, monkeypatch, error):
    source = open_part(file, "train").source
    parquet._row_group.cache_clear()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    for call in (source.image, source.encoded):
        with pytest.raises(UserError, match=r"a\.parquet: row group 0 cannot be read"):
            call(0)
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file"):
        open_part(file, "train")
