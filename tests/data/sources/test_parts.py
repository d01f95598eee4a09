"""Which part of a set is held out, and what its labels mean."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jpeg_bytes, picture, tiny_config, write_beton, write_idx

from fastselfie.data.beton import reader as beton
from fastselfie.data.beton.reader import BetonReader
from fastselfie.data.dataset import open_dataset, open_part
from fastselfie.data.sources.beton import BetonSource
from fastselfie.errors import UserError


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def tree(root, part, classes, count=2):
    """COUNT images of each class; of none: loose images."""
    for place in [root / part / name for name in classes] or [root / part]:
        for i in range(count):
            save(place / f"{i}.png", i)


def dataset(folder, labels_needed=True, **data):
    config = tiny_config(data={"train": str(folder), **data})
    return open_dataset(config.data, labels_needed=labels_needed)


def write_tar(path, labels):
    """A WebDataset shard; a label of None is none."""
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels):
            members = {"jpg": jpeg_bytes(picture(i)), "cls": str(label).encode()}
            for kind in ("jpg",) if label is None else ("jpg", "cls"):
                info = tarfile.TarInfo(f"{i:03}.{kind}")
                info.size = len(members[kind])
                tar.addfile(info, io.BytesIO(members[kind]))


def write_parquet(path, labels, classes):
    """As Hugging Face writes it; without a column of labels where there are no classes."""
    columns = {"image": [{"bytes": jpeg_bytes(picture(i))} for i in range(len(labels))]}
    table = pa.table({**columns, "label": labels} if classes else columns)
    note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": classes}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), path)


def names(source):
    return [source.classes[label] for label in source.labels]


# --- the choice among parts


@pytest.mark.parametrize("others", [("test",), ("test", "valid"), ()])
def test_kaggles_imagenet_holds_out_the_labelled_part(tmp_path, cli, others):
    tree(tmp_path, "train", ["n0", "n1"])
    tree(tmp_path, "val", ["n0", "n1"], 3)
    for part in others:
        tree(tmp_path, part, [])
    found = dataset(tmp_path)
    assert names(found.held_out) == ["n0"] * 3 + ["n1"] * 3
    assert found.split.startswith(f"the val part of {tmp_path}")
    assert ("(no labels of the training classes in: test" in found.split) == ("test" in others)
    out = tmp_path / "out.beton"
    assert cli("prepare", tmp_path, "--out", out, "--part", "test").status == 0
    assert BetonReader(out).label.tolist() == found.held_out.labels.tolist()


def test_of_two_labelled_parts_test_is_held_out(tmp_path):
    for part, count in (("train", 2), ("val", 1), ("test", 3)):
        tree(tmp_path, part, ["a", "b"], count)
    assert len(dataset(tmp_path).held_out) == 6


def test_the_labelled_part_is_chosen_without_a_training_part_too(tmp_path):
    tree(tmp_path, "test", [])
    tree(tmp_path, "val", ["a", "b"])
    assert list(open_part(tmp_path, "test")[0].classes) == ["a", "b"]
    with pytest.raises(UserError, match="holds no training images"):
        dataset(tmp_path)


def test_a_part_of_other_classes_is_passed_over(tmp_path):
    tree(tmp_path, "train", ["a", "b"])
    tree(tmp_path, "test", ["unknown"])
    tree(tmp_path, "valid", ["a", "b"], 1)
    assert names(dataset(tmp_path).held_out) == ["a", "b"]


def test_a_share_is_held_out_where_only_the_test_part_has_no_labels(tmp_path):
    tree(tmp_path, "train", ["a", "b"], 10)
    tree(tmp_path, "test", [])
    found = dataset(tmp_path, held_out=0.2)
    assert (len(found.train), len(found.held_out)) == (16, 4)
    assert found.split == f"20% of {tmp_path}: its test part has no labels"
    assert len(open_part(tmp_path, "test")[0]) == 2  # for `features`


@pytest.mark.parametrize("name", ["unknown", "test", "images"])
def test_one_folder_of_images_without_labels_is_no_class(tmp_path, name):
    tree(tmp_path, "train", ["a", "b"], 10)
    tree(tmp_path, "test", [name])
    assert dataset(tmp_path).split == f"10% of {tmp_path}: its test part has no labels"


def test_unlabelled_training_images_hold_out_their_unlabelled_test_part(tmp_path):
    tree(tmp_path, "train", [], 3)
    tree(tmp_path, "test", [], 1)
    tree(tmp_path, "val", ["a", "b"])
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (3, 1)


def test_the_labels_of_held_out_images_are_dropped_where_training_has_none(tmp_path):
    tree(tmp_path, "train", [], 3)
    tree(tmp_path, "val", ["a", "b"])
    found = dataset(tmp_path)
    assert found.comparable
    assert found.held_out.labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("train", "test"),
    [("training", "testing"), ("Train", "Val"), ("train", "dev"), ("Training", "Evaluation")],
)
def test_other_names_of_parts(tmp_path, train, test):
    tree(tmp_path, train, ["a", "b"], 3)
    tree(tmp_path, test, ["a", "b"], 1)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (6, 2)


def test_an_empty_part_is_none(tmp_path):
    tree(tmp_path, "train", ["a", "b"])
    tree(tmp_path, "val", ["a", "b"])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / ".gitkeep").touch()
    assert len(dataset(tmp_path).held_out) == 4


def test_archives_beside_the_parts_are_left_alone(tmp_path, cli):
    """The root of torchvision.datasets.ImageNet."""
    for part in ("train", "val"):
        tree(tmp_path, part, ["n01440764", "n01443537"])
        (tmp_path / f"ILSVRC2012_img_{part}.tar").write_bytes(bytes(10240))
    assert names(dataset(tmp_path).train) == ["n01440764"] * 2 + ["n01443537"] * 2


@pytest.mark.parametrize("name", ["n01440764.tar", "ILSVRC2012_img_train.tar"])
def test_imagenets_own_archives_are_no_shards(tmp_path, name):
    write_tar(tmp_path / name, [None] * 3)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name} is of ImageNet's archives"):
            open_part(path, "train")


def test_shards_hold_out_the_labelled_part(tmp_path):
    write_tar(tmp_path / "in-train-0.tar", [0, 1, 2, 0])
    write_tar(tmp_path / "in-test-0.tar", [None] * 4)
    write_tar(tmp_path / "in-val-0.tar", [0, 1, 0])
    assert len(dataset(tmp_path).held_out) == 3
    assert len(open_part(tmp_path, "test")[0]) == 3


def test_parquet_holds_out_the_labelled_part(tmp_path):
    labels = ["cat", "dog", "owl"]
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 2, 0], labels)
    write_parquet(tmp_path / "test-0.parquet", [0] * 4, [])
    write_parquet(tmp_path / "validation-0.parquet", [0, 1, 2], labels)
    assert names(dataset(tmp_path).held_out) == labels
    assert len(open_part(tmp_path, "test")[0]) == 3


# --- held-out parts beside folders of classes


@pytest.mark.parametrize("part", ["val", "test", "dev", "Validation"])
def test_a_part_beside_the_classes_is_no_class(tmp_path, capsys, part):
    tree(tmp_path, "", ["a", "b"], 3)
    tree(tmp_path, part, ["a", "b"], 1)
    found = dataset(tmp_path)
    assert list(found.train.classes) == ["a", "b"]
    assert (len(found.train), names(found.held_out)) == (6, ["a", "b"])
    assert found.split == f"the {part.lower()} part of {tmp_path}"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("inner", [[], ["unknown"]])
def test_a_part_without_labels_beside_the_classes_is_no_class_and_is_said(tmp_path, capsys, inner):
    tree(tmp_path, "", ["a", "b"], 10)
    tree(tmp_path, "test", inner)
    found = dataset(tmp_path)
    assert list(found.train.classes) == ["a", "b"]
    assert (len(found.train), len(found.held_out)) == (18, 2)
    words = f"{tmp_path}: test is taken for a held-out part without labels, since it has no folders"
    assert capsys.readouterr().err.startswith(words)


def test_a_class_called_test_stays_one(tmp_path):
    tree(tmp_path, "", ["oral", "test/blood", "test/urine"], 10)
    found = dataset(tmp_path)
    assert list(found.train.classes) == ["oral", "test"]
    assert (len(found.train), len(found.held_out)) == (27, 3)


def test_a_class_called_test_in_the_training_part_stays_one(tmp_path, capsys):
    for part in ("train", "val"):
        tree(tmp_path, part, ["oral", "test"], 2)
    found = dataset(tmp_path)
    assert names(found.train) == names(found.held_out) == ["oral"] * 2 + ["test"] * 2
    assert capsys.readouterr().err == ""


def test_a_link_to_no_part_is_said(tmp_path, capsys):
    tree(tmp_path, "train", ["a", "b"], 10)
    (tmp_path / "val").symlink_to(tmp_path / "gone")
    assert dataset(tmp_path).split == f"10% of {tmp_path}"
    words = f"{tmp_path / 'val'}: a link to no folder, so the set has no such part: fix the link\n"
    assert capsys.readouterr().err == words


def test_files_beside_the_parts_are_counted(tmp_path, capsys):
    tree(tmp_path, "train", ["a", "b"])
    for name in ("sample.png", "README.md", "labels.csv"):
        save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    dataset(tmp_path, held_out=0.5)
    assert capsys.readouterr().err == f"{tmp_path}: 1 file ignored, first: sample.png\n"


def test_a_part_inside_a_folder_of_its_name_is_explained(tmp_path):
    for part in ("train", "val"):
        tree(tmp_path, f"{part}/{part}", ["a", "b"])
    with pytest.raises(UserError, match=r"\(train, val\): give the inner folders as data\.train"):
        dataset(tmp_path)


# --- shards beside images and other shards


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("place", ["", "train"])
def test_shards_in_folders_beside_shards_are_counted(tmp_path, capsys, kind, place):
    for name in ("0", "more/1", "more/deeper/2"):
        path = tmp_path / place / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "tar":
            write_tar(path, [0, 1])
        else:
            write_parquet(path, [0, 1], ["a", "b"])
    assert len(open_part(tmp_path, "train")[0]) == 2
    words = f"{tmp_path / place}: 2 files ignored, first: more/1.{kind}\n"
    assert capsys.readouterr().err == words


def test_loose_images_beside_fewer_shards_are_refused(tmp_path):
    write_tar(tmp_path / "backup.tar", [0, 1])
    tree(tmp_path, "", [], 3)
    words = r"either its 3 images \(0\.png\) or its 1 \.tar files \(backup\.tar\) may be the set"
    with pytest.raises(UserError, match=words):
        open_part(tmp_path, "train")


@pytest.mark.parametrize("place", ["", "a"])
def test_images_beside_shards_are_counted(tmp_path, capsys, place):
    write_tar(tmp_path / "0.tar", [0, 1])
    tree(tmp_path, place, [], 3 if place else 1)
    assert len(open_part(tmp_path, "train")[0]) == 2
    words = "3 files ignored, first: a/0.png" if place else "1 file ignored, first: 0.png"
    assert capsys.readouterr().err == f"{tmp_path}: {words}\n"


@pytest.mark.parametrize("place", ["", "a"])
def test_a_table_of_what_is_known_of_images_is_no_set(tmp_path, capsys, place):
    pq.write_table(pa.table({"file_name": ["0.png"]}), tmp_path / "metadata.parquet")
    tree(tmp_path, place, [], 3)
    assert len(open_part(tmp_path, "train")[0]) == 3
    words = f"{tmp_path}: 1 file ignored, first: metadata.parquet\n"
    assert capsys.readouterr().err == words


# --- what the labels mean


@pytest.mark.parametrize("empty", [True, False])
def test_a_class_without_held_out_images(tmp_path, cli, empty):
    """By name, never shifted; prepared too."""
    tree(tmp_path, "train", "abcd")
    tree(tmp_path, "val", "abd")
    if empty:
        (tmp_path / "val" / "c").mkdir()
    found = dataset(tmp_path)
    assert list(found.held_out.classes) == list("abcd")
    assert found.held_out.labels.tolist() == [0, 0, 1, 1, 3, 3]
    paths = {part: tmp_path / f"{part}.beton" for part in ("train", "test")}
    for part, path in paths.items():
        assert cli("prepare", tmp_path, "--out", path, "--part", part).status == 0
    assert BetonReader(paths["test"]).label.tolist() == [0, 0, 1, 1, 3, 3]
    again = dataset(paths["train"], test=str(paths["test"]))
    assert again.fingerprint() == found.fingerprint()


def test_numbers_as_names_are_names(tmp_path):
    """Sorted as text 10 comes before 2."""
    tree(tmp_path, "train", [str(i) for i in range(12)], 1)
    tree(tmp_path, "val", ["0", "1", "2"], 1)
    held_out = dataset(tmp_path).held_out
    assert names(held_out) == ["0", "1", "2"]
    assert held_out.labels.tolist() == [0, 1, 4]


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


def test_idx_without_the_last_class(idx_folder):
    write_idx(idx_folder / "t10k-labels-idx1-ubyte", (np.arange(20) % 3).astype(np.uint8))
    found = dataset(idx_folder)
    assert list(found.held_out.classes) == ["0", "1", "2", "3"]


def test_other_classes_are_refused_with_both_lists(tmp_path):
    tree(tmp_path, "train", ["cat", "dog"])
    tree(tmp_path / "other", "val", ["cat", "cow"])
    words = r"its classes cat, cow are not those of the training images, cat, dog, which lack cow"
    with pytest.raises(UserError, match=words):
        dataset(tmp_path, test=str(tmp_path / "other" / "val"))
    found = dataset(tmp_path, labels_needed=False, test=str(tmp_path / "other" / "val"))
    assert not found.comparable
    assert list(found.held_out.classes) == ["cat", "cow"]


def test_the_same_classes_in_another_order_are_refused_with_both_lists(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2], ["a", "b", "c"])
    write_parquet(tmp_path / "test.parquet", [0, 1, 2], ["c", "b", "a"])
    words = "its classes c, b, a come in another order than those of the training images, a, b, c"
    with pytest.raises(UserError, match=words):
        dataset(tmp_path)
    write_parquet(tmp_path / "validation.parquet", [0, 1], ["a", "c"])
    assert names(dataset(tmp_path).held_out) == ["a", "c"]


def test_held_out_images_without_labels_are_for_pretraining(tmp_path):
    tree(tmp_path, "train", ["cat", "dog"])
    tree(tmp_path, "loose", [])
    with pytest.raises(UserError, match="its images have no labels, which measuring needs"):
        dataset(tmp_path, test=str(tmp_path / "loose"))
    assert len(dataset(tmp_path, labels_needed=False, test=str(tmp_path / "loose")).held_out) == 2


def test_a_beton_file_without_labels_is_unlabelled(tmp_path):
    path = write_beton(tmp_path / "a.beton", [jpeg_bytes(picture(0))] * 2, [-1, -1])
    source, _ = open_part(path, "train")
    assert (source.classes, source.labels.tolist()) == (("images",), [0, 0])
    path = write_beton(tmp_path / "b.beton", [jpeg_bytes(picture(0))] * 2, [-1, 1])
    with pytest.raises(UserError, match="a label is -1"):
        open_part(path, "train")


def write_stock_beton(path, fields):
    """As stock FFCV: an image and int fields, name -> values. Four images of two pixels."""
    count, start = 4, 1 << 12
    described = np.zeros(1 + len(fields), beton.FIELD)
    for row, (kind, name) in enumerate([(beton.IMAGE_FIELD, "image"), *((1, f) for f in fields)]):
        described[row]["type_id"] = kind
        described[row]["name"][: len(name)] = list(name.encode())
    columns = [("f0", beton.IMAGE), *((f"f{k}", "<i8") for k in range(1, 1 + len(fields)))]
    rows = np.zeros(count, np.dtype(columns, align=True))
    rows["f0"]["mode"], rows["f0"]["width"], rows["f0"]["height"] = 1, 2, 1
    rows["f0"]["data_ptr"] = start + 6 * np.arange(count)
    for k, values in enumerate(fields.values(), start=1):
        rows[f"f{k}"] = values
    table = np.zeros(count, beton.ALLOCATION)
    table["sample_id"], table["size"], table["ptr"] = np.arange(count), 6, rows["f0"]["data_ptr"]
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
    source, _ = open_part(write_stock_beton(tmp_path / "a.beton", fields), "train")
    if labels is None:
        assert source.classes == ("images",)
    else:
        assert (source.labels.tolist(), list(source.classes)) == (labels, ["0", "1"])


def test_a_stock_beton_file_whose_label_is_any_of_two_fields_is_refused(tmp_path):
    path = write_stock_beton(tmp_path / "a.beton", {"breed": [0] * 4, "age": [1] * 4})
    with pytest.raises(UserError, match=r"may be the label \(breed, age\): write it with one call"):
        open_part(path, "train")


# --- in a run


def test_pretraining_takes_held_out_images_of_other_classes(tmp_path, cli, tiny_yaml):
    tree(tmp_path / "set", "train", ["a", "b"], 8)
    tree(tmp_path / "other", "test", ["x", "y", "z"], 4)
    command = ["train", tiny_yaml, f"data.train={tmp_path / 'set' / 'train'}",
               f"data.test={tmp_path / 'other' / 'test'}", "--out", tmp_path / "run"]  # fmt: skip
    assert "lack x, y, z" in cli(*command).err
    assert not (tmp_path / "run").exists()
    planned = cli(*command, "--stage", "pretrain", "--dry-run")
    assert planned.status == 0
    assert "missing data" not in planned.out
    result = cli(*command, "--stage", "pretrain", "pretrain.knn_every=2")
    assert result.status == 0
    assert "no k-NN or linear probe on the way: the held-out images have no labels" in result.err
    figures = json.loads(result.out)
    assert "pretext_accuracy" in figures
    assert "knn" not in figures
    assert "lack x, y, z" in cli("evaluate", tmp_path / "run").err


@pytest.mark.parametrize("label", [1 << 24, 1 << 40])
def test_a_number_that_is_no_class_takes_no_memory_for_names(tmp_path, label):
    path = write_beton(tmp_path / "a.beton", [jpeg_bytes(picture(0))] * 2, [0, label])
    with pytest.raises(UserError, match=f"a.beton: its label {label} is too large for the number"):
        open_part(path, "train")
