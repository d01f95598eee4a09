"""Hugging Face's parquet files: which columns are read, and what their numbers mean."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.datasets import dataset, png, read, same

from fastselfie.data.dataset import open_part
from fastselfie.errors import UserError


def write_rows(path, seeds, labels=True, names=None, image=None, rows=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [image or {"bytes": png(i), "path": f"{i}.png"} for i in seeds]
    table = pa.table({"image": images, **({"label": [i % 3 for i in seeds]} if labels else {})})
    if names:
        note = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, path, row_group_size=rows)
    return path


def test_parquet_of_hugging_face(tmp_path):
    names = ["cat", "dog", "owl"]
    write_rows(tmp_path / "data" / "train-00000-of-00002.parquet", range(6), names=names)
    write_rows(tmp_path / "data" / "train-00001-of-00002.parquet", range(6, 11), names=names)
    write_rows(tmp_path / "data" / "validation-00000.parquet", range(50, 53), names=names)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (11, 3)
    assert found.train.classes == names
    assert found.train.labels.tolist() == [i % 3 for i in range(11)]
    assert all(same(found.train.image(i), i) for i in range(11))
    assert same(found.held_out.image(2), 52)
    assert found.train.name(10).endswith("train-00001-of-00002.parquet: row group 1, row 0")
    some = pickle.loads(pickle.dumps(found.train.select(np.asarray([9, 2]))))
    assert same(some.image(0), 9)
    assert some.encoded(1) == png(2)


def test_parquet_of_plain_bytes_without_labels(tmp_path):
    path = write_rows(tmp_path / "a.parquet", range(3), labels=False, image=png(5))
    found = open_part(path, "train")
    source, kind = found.source, found.format
    assert (kind, source.classes, len(source)) == ("parquet", ("images",), 3)
    assert same(source.image(1), 5)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": ["http://host/1.jpg"]}, r"no column of image bytes.* among image \(string\)"),
        ({"image": [[b"x"]]}, r"no column of image bytes.* among image \(list<.*binary>\)"),
        ({"id": [1]}, r"no column of image bytes"),
        ({"left": [b"x"], "right": [b"x"]}, "columns left, right may all hold the images"),
        ({"image": [b"x"], "label": ["cat"]}, "column label holds string, not class numbers"),
        ({"image": [b"x"], "label": [0.0]}, "column label holds double, not class numbers"),
        ({"image": [b"x"], "label": [True]}, "column label holds bool, not class numbers"),
        ({"image": [b"x"], "label": [[0, 1]]}, "column label holds list<"),
        ({"image": [b"x"], "label": [1 << 40]}, r"row 0: its label \d+ is too large"),
        ({"image": pa.array([], pa.binary())}, "holds no rows"),
    ],
)
def test_a_bad_parquet_file_is_named(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=words):
        open_part(tmp_path / "a.parquet", "train")


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file"):
        open_part(tmp_path / "a.parquet", "train")


def test_a_parquet_image_that_is_only_a_path_is_named(tmp_path):
    image = {"bytes": None, "path": "/etc/passwd"}
    table = {"image": pa.array([image], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    words = r"a\.parquet: row group 0, row 0: holds no image bytes, only the path /etc/passwd"
    with pytest.raises(UserError, match=words):
        open_part(tmp_path / "a.parquet", "train").source.encoded(0)


def test_a_damaged_row_group_is_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", range(3))
    source = open_part(path, "train").source
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 cannot be read"):
        source.encoded(0)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.parquet", range(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'fastselfie\[parquet\]'"):
        open_part(path, "train")


# --- which columns


def note(**features):
    """What Hugging Face's datasets leave in a schema. A list stands for the names of classes."""
    known = {
        name: {"_type": "ClassLabel", "names": kind} if isinstance(kind, list) else {"_type": kind}
        for name, kind in features.items()
    }
    return {"huggingface": json.dumps({"info": {"features": known}})}


def write_columns(path, features=None, **columns):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(note(**features or {})), path)
    return path


def hf_images(*seeds):
    return [{"bytes": png(i), "path": f"{i}.png"} for i in seeds]


@pytest.mark.parametrize("name", ["class", "target", "y", "Label", "coarse_label", "animal"])
def test_the_label_is_the_column_with_names_of_classes(tmp_path, name):
    features = {"image": "Image", name: ["cat", "dog", "owl"]}
    columns = {"image": hf_images(0, 1), "id": [7, 8], name: [2, 0]}
    source = read(write_columns(tmp_path / "a.parquet", features, **columns))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog", "owl"], [2, 0])


def test_of_several_columns_of_classes_the_name_decides(tmp_path):
    features = {"coarse_label": ["animal", "plant"], "fine_label": ["cat", "dog", "owl"]}
    columns = {"image": hf_images(0, 1), "coarse_label": [0, 0], "fine_label": [2, 1]}
    source = read(write_columns(tmp_path / "a.parquet", features, **columns))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog", "owl"], [2, 1])


@pytest.mark.parametrize(
    ("features", "others"),
    [
        ({"age": ["young", "old"], "colour": ["red", "blue"]}, {}),
        ({"age": ["young", "old"]}, {"label": [1]}),  # the name says the one, the note the other
    ],
)
def test_columns_with_the_same_right_are_listed(tmp_path, features, others):
    columns = {"image": hf_images(0), **{name: [0] for name in features}, **others}
    path = write_columns(tmp_path / "a.parquet", features, **columns)
    with pytest.raises(UserError, match=f"columns {', '.join([*features, *others])} may all hold"):
        read(path)


def test_a_name_that_two_columns_share_is_passed_over(tmp_path):
    arrays = [pa.array(values) for values in (hf_images(0), [1], [2], [0])]
    table = pa.Table.from_arrays(arrays, ["image", "x", "x", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").labels.tolist() == [0]


def test_a_list_called_labels_does_not_contest_a_column_with_names(tmp_path):
    columns = {"image": hf_images(0), "labels": [[0, 1]], "kind": [1]}
    source = read(write_columns(tmp_path / "a.parquet", {"kind": ["cat", "dog"]}, **columns))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [1])


def test_a_held_out_part_whose_labels_are_of_the_type_null_has_none(tmp_path):
    path = write_columns(tmp_path / "test.parquet", image=hf_images(0, 1), label=pa.nulls(2))
    assert read(path, "test").classes == ("images",)


@pytest.mark.parametrize("names", [{"1": "dog", "0": "cat"}, ["cat", "dog"]])
def test_names_of_classes_in_either_form(tmp_path, names):
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"image": hf_images(0), "label": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").classes == ["cat", "dog"]


def test_classes_that_have_a_number_but_no_names(tmp_path):
    features = {"info": {"features": {"kind": {"num_classes": 3, "_type": "ClassLabel"}}}}
    table = pa.table({"image": hf_images(0), "kind": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").classes == ["0", "1", "2"]


@pytest.mark.parametrize("features", [{}, {"photo": "Image"}])
@pytest.mark.parametrize("name", ["photo", "Image", "pixel_values"])
def test_the_only_column_of_images_is_read_whatever_its_name(tmp_path, name, features):
    path = write_columns(tmp_path / "a.parquet", features, id=["x"], **{name: hf_images(4)})
    assert same(read(path).image(0), 4)


def test_the_note_tells_an_image_from_other_bytes(tmp_path):
    columns = {"thumb": [b"x"], "photo": hf_images(4)}
    path = write_columns(tmp_path / "a.parquet", {"photo": "Image"}, **columns)
    assert same(read(path).image(0), 4)


def test_masks_beside_the_images_are_left_out_and_said(tmp_path, capsys):
    features = {"annotation": "Image", "image": "Image", "label": ["cat"]}
    columns = {"annotation": hf_images(9), "image": hf_images(4), "label": [0]}
    path = write_columns(tmp_path / "a.parquet", features, **columns)
    assert same(read(path).image(0), 4)
    assert capsys.readouterr().err == (
        f"{path}: column image is read, other image columns ignored: annotation\n"
    )


def test_columns_that_are_not_labels_are_said(tmp_path, capsys):
    path = write_columns(tmp_path / "a.parquet", image=hf_images(1), target=[3], caption=["x"])
    assert read(path).classes == ("images",)
    assert "no column of labels" in (said := capsys.readouterr().err)
    assert "ignored: target, caption" in said


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
    ids=str,
)
def test_every_type_of_bytes(tmp_path, kind):
    path = write_columns(tmp_path / "a.parquet", image=pa.array([png(3)]).cast(kind), label=[0])
    assert same(read(path).image(0), 3)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.uint64()], ids=str)
@pytest.mark.parametrize("encoded", [False, True])
def test_every_type_of_integers(tmp_path, kind, encoded):
    labels = pa.array([1, 0, 1], kind)
    labels = labels.dictionary_encode() if encoded else labels
    path = write_columns(tmp_path / "a.parquet", image=hf_images(0, 1, 2), label=labels)
    assert read(path).labels.tolist() == [1, 0, 1]


# --- what the numbers mean


def test_other_lists_of_classes_are_refused_with_both(tmp_path):
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        columns = {"image": hf_images(0, 1), "label": [0, 1]}
        write_columns(tmp_path / f"{name}.parquet", {"label": classes}, **columns)
    with pytest.raises(
        UserError, match=r"b\.parquet: its classes are dog, cat, those of .*a\.parquet are cat, dog"
    ):
        read(tmp_path)


def test_a_file_that_names_no_classes_goes_with_those_that_do(tmp_path):
    write_columns(tmp_path / "a.parquet", image=hf_images(0), label=[0])
    write_columns(tmp_path / "b.parquet", {"label": ["x", "y"]}, image=hf_images(1), label=[1])
    assert (read(tmp_path).classes, read(tmp_path).labels.tolist()) == (["x", "y"], [0, 1])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": hf_images(0)}, "are image and none, those of .* are image and label"),
        ({"image": hf_images(0), "cls": [0]}, "are image and cls, those of"),
        ({"photo": hf_images(0), "label": [0]}, "are photo and label, those of"),
    ],
)
def test_files_with_other_columns_are_refused(tmp_path, columns, words):
    write_columns(tmp_path / "a.parquet", image=hf_images(0), label=[0])
    write_columns(tmp_path / "b.parquet", **columns)
    with pytest.raises(UserError, match=rf"b\.parquet: its columns of images and labels {words}"):
        read(tmp_path)


def test_a_label_without_a_class_is_named(tmp_path):
    features, columns = {"label": ["cat", "dog"]}, {"image": hf_images(0, 1), "label": [1, 2]}
    path = write_columns(tmp_path / "a.parquet", features, **columns)
    with pytest.raises(UserError, match="row 1: its label is 2, but only 2 classes are named"):
        read(path)


@pytest.mark.parametrize("none", [-1, None])
def test_a_test_part_without_labels(tmp_path, none):
    columns = {"image": hf_images(0, 1), "label": pa.array([none, none], pa.int64())}
    path = write_columns(tmp_path / "a.parquet", {"label": ["cat", "dog"]}, **columns)
    source = read(path, "test")
    assert (source.classes, source.labels.tolist()) == (("images",), [0, 0])
    with pytest.raises(UserError, match="all its labels are missing"):
        read(path)


@pytest.mark.parametrize("none", [-1, None])
@pytest.mark.parametrize("part", ["train", "test"])
def test_some_missing_labels_are_counted(tmp_path, part, none):
    columns = {"image": hf_images(0, 1, 2), "label": [1, none, none]}
    path = write_columns(tmp_path / "a.parquet", **columns)
    with pytest.raises(UserError, match=r"row 1: its label is missing .*the first of 2 among 3"):
        read(path, part)
