"""The formats of large sets: ImageNet 32x32, WebDataset tar files, Hugging Face parquet."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture, tiny_config

from fastselfie.data.sources import ArraySource, open_dataset, open_part
from fastselfie.errors import UserError


def dataset(path, **data):
    return open_dataset(tiny_config(data={"train": str(path), **data}).data)


def png(seed):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def same(image, seed):
    return np.array_equal(np.asarray(image), np.asarray(picture(seed)))


# --- ImageNet 32x32


def imagenet_batch(seed, count):
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": 1 + (np.arange(count) * 37 + seed) % 1000}


def write_npz(path, batch):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, mean=batch["data"].mean(axis=0), **batch)


def write_pickle(path, batch, protocol=4, encode=str):
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {**batch, "labels": batch["labels"].tolist(), "mean": batch["data"].mean(axis=0)}
    path.write_bytes(pickle.dumps({encode(k): v for k, v in fields.items()}, protocol=protocol))


def write_imagenet(root, kind, nested=True):
    """Ten training batches of 5, the last of 6, and 7 held-out images."""
    suffix, write = (".npz", write_npz) if kind == "npz" else ("", write_pickle)
    tail = "_npz" if kind == "npz" else ""
    train, val = (root / f"Imagenet32_{p}{tail}" if nested else root for p in ("train", "val"))
    batches = [imagenet_batch(i, 6 if i == 10 else 5) for i in range(1, 11)]
    for i, batch in enumerate(batches, start=1):
        write(train / f"train_data_batch_{i}{suffix}", batch)
    write(val / f"val_data{suffix}", imagenet_batch(0, 7))
    return batches


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["npz", "python"])
def test_imagenet32(tmp_path, kind, nested):
    batches = write_imagenet(tmp_path, kind, nested)
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (51, 7)
    assert len(found.train.classes) == 1000
    third = batches[2]["data"].reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(found.train.images[10:15], third)
    labels = np.concatenate([batch["labels"] for batch in batches]) - 1
    assert np.array_equal(found.train.labels, labels)


@pytest.mark.parametrize("protocol", [2, 5])
def test_imagenet32_in_any_pickle_protocol(tmp_path, protocol):
    write_imagenet(tmp_path, "python", nested=False)
    batch = imagenet_batch(1, 5)
    write_pickle(tmp_path / "train_data_batch_1", batch, protocol)
    assert np.array_equal(dataset(tmp_path).train.labels[:5], batch["labels"] - 1)


@pytest.mark.parametrize("damage", ["missing", "cut", "labels", "shape", "keys"])
@pytest.mark.parametrize("kind", ["npz", "python"])
def test_a_damaged_imagenet32_batch_is_named(tmp_path, kind, damage):
    write_imagenet(tmp_path, kind, nested=False)
    suffix, write = (".npz", write_npz) if kind == "npz" else ("", write_pickle)
    bad = tmp_path / f"train_data_batch_4{suffix}"
    batch = imagenet_batch(4, 5)
    if damage == "missing":
        bad.unlink()
    elif damage == "cut":
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    elif damage == "labels":
        write(bad, {**batch, "labels": batch["labels"] * 0})
    elif damage == "shape":
        write(bad, {**batch, "data": batch["data"][:, :3000]})
    elif kind == "npz":
        np.savez(bad, images=batch["data"])
    else:
        bad.write_bytes(pickle.dumps({"images": batch["data"]}))
    with pytest.raises(UserError, match="train_data_batch_4"):
        dataset(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("a data file ran this",))


def test_an_imagenet32_pickle_is_not_run(tmp_path, capsys):
    write_imagenet(tmp_path, "python", nested=False)
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match=r"val_data: not an ImageNet batch .*print"):
        dataset(tmp_path)
    assert capsys.readouterr().out == ""


# --- WebDataset


def write_tar(path, members):
    """members: (name, bytes)"""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shard(first, count, labels=True):
    for i in range(first, first + count):
        yield f"part/{i:04}.png", png(i)
        if labels:
            yield f"part/{i:04}.cls", f"{i % 3}\n".encode()
        yield f"part/{i:04}.json", b"{}"


def test_webdataset_shards(tmp_path):
    write_tar(tmp_path / "b.tar", shard(6, 4))
    write_tar(tmp_path / "a.tar", shard(0, 6))
    source, kind = open_part(tmp_path, "train")
    assert (len(source), kind, source.classes) == (10, "WebDataset", ["0", "1", "2"])
    assert source.labels.tolist() == [i % 3 for i in range(10)]
    assert all(same(source.image(i), i) for i in range(10))
    assert source.encoded(7) == png(7)
    assert source.name(7) == f"{tmp_path}/b.tar: part/0007.png"
    some = pickle.loads(pickle.dumps(source.select(np.asarray([9, 2]))))
    assert same(some.image(0), 9)
    assert some.name(1).endswith("a.tar: part/0002.png")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.tar", "b.tar"]


def test_one_tar_file_and_its_split(tmp_path):
    found = dataset(write_tar(tmp_path / "a.tar", shard(0, 12)), held_out=0.25)
    assert (len(found.train), len(found.held_out)) == (9, 3)


def test_tar_files_named_after_parts(tmp_path):
    for name, first in (("imagenet-train-00", 0), ("imagenet-train-01", 6), ("imagenet-val-0", 90)):
        write_tar(tmp_path / f"{name}.tar", shard(first, 6))
    found = dataset(tmp_path)
    assert (len(found.train), len(found.held_out)) == (12, 6)
    assert same(found.held_out.image(0), 90)
    write_tar(tmp_path / "more.tar", shard(0, 1))
    with pytest.raises(UserError, match=r"more\.tar: neither train nor test"):
        dataset(tmp_path)


def test_a_tar_file_without_labels_is_one_class(tmp_path):
    source, _ = open_part(write_tar(tmp_path / "a.tar", shard(0, 3, labels=False)), "train")
    assert source.classes == ("images",)


def linked(kind):
    info = tarfile.TarInfo("part/9.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("../x.png", b"1")], r"\.\./x\.png leaves the folder"),
        ([("/x.png", b"1")], r"/x\.png leaves the folder"),
        ([("a/../../x.png", b"1")], "leaves the folder"),
        ([("x.png", b"1"), ("x.cls", b"cat")], r"x\.cls is not a class number"),
        ([("x.png", b"1"), ("x.cls", b"1" * 99)], r"x\.cls is not a class number"),
        ([("x.png", b"1"), ("x.jpg", b"1")], "x has two images"),
        ([("x.png", b"1"), ("x.cls", b"1"), ("y.png", b"1")], r"a\.tar: y has no \.cls"),
        ([("y.png", b"1"), ("x.png", b"1"), ("x.cls", b"1")], r"a\.tar: y\.png has no \.cls"),
        ([("x.txt", b"1")], "no images"),
    ],
)
def test_a_bad_tar_file_is_named(tmp_path, members, words):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=words):
        open_part(tmp_path / "a.tar", "train")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_file_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(linked(kind))
    with pytest.raises(UserError, match=r"part/9\.png is a link"):
        open_part(tmp_path / "a.tar", "train")


@pytest.mark.parametrize("damage", ["cut", "gzip", "noise"])
def test_a_damaged_tar_file_is_named(tmp_path, damage):
    path = write_tar(tmp_path / "a.tar", shard(0, 3))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1500])
    elif damage == "gzip":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
    else:
        path.write_bytes(b"noise" * 1000)
    with pytest.raises(UserError, match=r"a\.tar: not an uncompressed tar file"):
        open_part(path, "train")


def test_a_tar_file_cut_after_the_scan_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", shard(0, 3))
    source, _ = open_part(path, "train")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"part/0002\.png: the tar file is cut short"):
        source.encoded(2)


# --- parquet


def write_parquet(path, seeds, labels=True, names=None, image=None, rows=4):
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
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", range(6), names=names)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", range(6, 11), names=names)
    write_parquet(tmp_path / "data" / "validation-00000.parquet", range(50, 53), names=names)
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
    path = write_parquet(tmp_path / "a.parquet", range(3), labels=False, image=png(5))
    source, kind = open_part(path, "train")
    assert (kind, source.classes, len(source)) == ("parquet", ("images",), 3)
    assert same(source.image(1), 5)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"pixels": [b"x"]}, "no image column image among pixels"),
        ({"image": [b"x"], "label": ["cat"]}, "column label has no usable labels"),
        ({"image": [b"x"], "label": [-1]}, "column label has no usable labels"),
        ({"image": pa.array([], pa.binary())}, "holds no rows"),
        ({"image": [b"x", b"y"], "label": [1, None]}, "some are null"),
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
    with pytest.raises(UserError, match=r"a\.parquet: row group 0, row 0: holds no image bytes"):
        open_part(tmp_path / "a.parquet", "train")[0].encoded(0)


def test_a_damaged_row_group_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", range(3))
    source, _ = open_part(path, "train")
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 cannot be read"):
        source.encoded(0)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", range(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'fastselfie\[parquet\]'"):
        open_part(path, "train")


def test_arrays_keep_no_file():
    source = ArraySource(np.zeros((3, 2, 2, 3), np.uint8), np.zeros(3, np.int64), ["a"], "file")
    assert source.encoded(0) is None
    assert len(source.select(np.asarray([2, 0]))) == 2
