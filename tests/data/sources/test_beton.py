"""Labels and image fields of .beton files, ours and stock ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from conftest import jpeg_bytes, picture, write_beton
from helpers.datasets import dataset, tree

from fastselfie.data.beton import reader as beton
from fastselfie.data.dataset import open_part
from fastselfie.data.sources.beton import BetonSource
from fastselfie.errors import UserError


def test_a_beton_file_of_fewer_classes_is_renumbered(tmp_path):
    """Also where its loader takes labels by batch, and in another process."""
    tree(tmp_path, "train", ["1", "2", "3"])
    images = [jpeg_bytes(picture(i)) for i in range(4)]
    path = write_beton(tmp_path / "val.beton", images, [1, 3, 1, 2])
    held_out = dataset(tmp_path, test=str(path)).held_out
    assert isinstance(held_out, BetonSource)
    assert held_out.labels.tolist() == [0, 2, 0, 1]
    some = pickle.loads(pickle.dumps(held_out.select(np.asarray([1, 2]))))
    assert some.labels.tolist() == [2, 0]


def test_a_beton_file_without_labels_is_unlabelled(tmp_path):
    path = write_beton(tmp_path / "a.beton", [jpeg_bytes(picture(0))] * 2, [-1, -1])
    source = open_part(path, "train").source
    assert (source.classes, source.labels.tolist()) == (("images",), [0, 0])
    path = write_beton(tmp_path / "b.beton", [jpeg_bytes(picture(0))] * 2, [-1, 1])
    with pytest.raises(UserError, match="a label is -1"):
        open_part(path, "train")


def write_stock_beton(path, fields, images=("image",)):
    """As stock FFCV: int fields, name -> values, and image fields. Four images of two pixels."""
    count, start = 4, 1 << 13
    kinds = [*((beton.IMAGE_FIELD, name) for name in images), *((1, name) for name in fields)]
    described = np.zeros(len(kinds), beton.FIELD)
    for row, (kind, name) in zip(described, kinds, strict=True):
        row["type_id"] = kind
        row["name"][: len(name)] = list(name.encode())
    columns = [(name, beton.IMAGE if kind == beton.IMAGE_FIELD else "<i8") for kind, name in kinds]
    rows = np.zeros(count, np.dtype(columns, align=True))
    pointers = start + 6 * np.arange(count)
    for name in images:
        rows[name]["mode"], rows[name]["width"], rows[name]["height"] = 1, 2, 1
        rows[name]["data_ptr"] = pointers
    for name, values in fields.items():
        rows[name] = values
    table = np.zeros(count, beton.ALLOCATION)
    table["sample_id"], table["size"], table["ptr"] = np.arange(count), 6, pointers
    header = np.zeros(1, beton.HEADER)
    header[0] = (beton.VERSION, len(described), 1 << 12, count, start + 6 * count)
    content = header.tobytes() + described.tobytes() + rows.tobytes()
    path.write_bytes(content.ljust(start, b"\0") + bytes(6 * count) + table.tobytes())
    return path


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"index": [9, 8, 7, 6], "label": [0, 1, 1, 0]}, [0, 1, 1, 0]),
        ({"index": [9, 8, 7, 6], "breed": [0, 1, 1, 0]}, [0, 1, 1, 0]),
        ({"coarse_label": [0] * 4, "fine_label": [0, 1, 1, 0]}, [0, 1, 1, 0]),
        ({"breed": [0, 1, 1, 0]}, [0, 1, 1, 0]),
        ({"index": [0, 1, 2, 3]}, None),
        ({}, None),
    ],
)
def test_the_label_of_a_stock_beton_file_is_found_by_name(tmp_path, fields, labels):
    source = open_part(write_stock_beton(tmp_path / "a.beton", fields), "train").source
    if labels is None:
        assert source.classes == ("images",)
    else:
        assert (source.labels.tolist(), list(source.classes)) == (labels, ["0", "1"])


def test_a_stock_beton_file_whose_label_is_any_of_two_fields_is_refused(tmp_path):
    path = write_stock_beton(tmp_path / "a.beton", {"breed": [0] * 4, "age": [1] * 4})
    with pytest.raises(UserError, match=r"may be the label \(breed, age\): write it with one call"):
        open_part(path, "train")


@pytest.mark.parametrize("label", [1 << 24, 1 << 40])
def test_a_number_that_is_no_class_takes_no_memory_for_names(tmp_path, label):
    path = write_beton(tmp_path / "a.beton", [jpeg_bytes(picture(0))] * 2, [0, label])
    with pytest.raises(UserError, match=f"its label {label} is too large for a class number"):
        open_part(path, "train")


@pytest.mark.parametrize(
    ("images", "read", "ignored"),
    [
        (("mask", "image"), "image", "mask"),
        (("left", "right", "depth"), "left", "right, depth"),
    ],
)
def test_the_image_field_that_is_read_is_reported(tmp_path, capsys, images, read, ignored):
    path = write_stock_beton(tmp_path / "a.beton", {"label": [0, 1, 1, 0]}, images)
    source = open_part(path, "train").source
    assert source.reader.image_field == read
    words = f"{path}: field {read} is read, other image fields ignored: {ignored}\n"
    assert capsys.readouterr().err == words
