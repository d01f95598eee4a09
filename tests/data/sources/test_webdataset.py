"""WebDataset tar files: what is an image, what a label, and what is said of the rest."""

from __future__ import annotations

import pickle
import re
import tarfile

import numpy as np
import pytest
from helpers.datasets import dataset, png, read, same, write_tar

from fastselfie.data.dataset import open_part
from fastselfie.errors import UserError


def shard(first, count, labels=True):
    for i in range(first, first + count):
        yield f"part/{i:04}.png", png(i)
        if labels:
            yield f"part/{i:04}.cls", f"{i % 3}\n".encode()
        yield f"part/{i:04}.json", b"{}"


def test_webdataset_shards(tmp_path):
    write_tar(tmp_path / "b.tar", shard(6, 4))
    write_tar(tmp_path / "a.tar", shard(0, 6))
    found = open_part(tmp_path, "train")
    source, kind = found.source, found.format
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
    with pytest.raises(UserError, match=r"more\.tar: its name contains neither train nor test"):
        dataset(tmp_path)


def test_a_tar_file_without_labels_is_one_class(tmp_path):
    source = open_part(write_tar(tmp_path / "a.tar", shard(0, 3, labels=False)), "train").source
    assert source.classes == ("images",)


def linked(kind):
    info = tarfile.TarInfo("part/9.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("../x.png", b"1")], r"\.\./x\.png is outside of the folder"),
        ([("/x.png", b"1")], r"/x\.png is outside of the folder"),
        ([("a/../../x.png", b"1")], "is outside of the folder"),
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
    source = open_part(path, "train").source
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"part/0002\.png: the tar file is cut short"):
        source.encoded(2)


# --- which member is what


def labelled(*keys):
    """KEY.png and KEY.cls of each key, which is also its seed."""
    return [
        member
        for seed, key in enumerate(keys)
        for member in ((f"{key}.png", png(seed)), (f"{key}.cls", f"{seed}".encode()))
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["./a", "./b"],
        ["train.v1/a", "train.v1/b"],  # dots of a folder are no dots of a key
        ["one/0", "two/0"],
        ["dä/ö" + "x" * 120, "b"],
    ],
)
def test_keys_of_folders(tmp_path, names):
    source = read(write_tar(tmp_path / "a.tar", labelled(*names)))
    assert [source.name(i) for i in range(2)] == [f"{tmp_path}/a.tar: {name}.png" for name in names]
    assert source.labels.tolist() == [0, 1]


def test_suffixes_in_capitals_and_labels_after_all_images(tmp_path):
    members = labelled("a", "b", "c")
    members = sorted(members, key=lambda member: member[0].endswith("cls"))
    path = write_tar(tmp_path / "a.tar", [(name.upper(), data) for name, data in members])
    assert read(path).labels.tolist() == [0, 1, 2]
    assert same(read(path).image(2), 2)


@pytest.mark.parametrize("suffix", ["gif", "avif", "jfif", "jpe", "jp2", "pnm"])
def test_what_pillow_reads_is_an_image(tmp_path, suffix):
    """By name alone: what is in it the decoder will tell."""
    members = [(f"a.{suffix}", png(5)), ("a.cls", b"0"), *labelled("b")]
    source = read(write_tar(tmp_path / "a.tar", members))
    assert len(source) == 2
    assert same(source.image(0), 5)


def test_a_key_ends_at_the_first_dot_and_what_that_leaves_out_is_said(tmp_path, capsys):
    members = [*labelled("a", "v1.0_1", "v1.0_2"), ("a.mask.png", png(8)), ("a.json", b"{}")]
    path = write_tar(tmp_path / "a.tar", members)
    source = read(path)
    assert [source.name(i) for i in range(len(source))] == [f"{path}: a.png"]
    assert capsys.readouterr().err == (
        f"{path}: 3 files ignored, first: v1.0_1.png (an image is KEY.jpg or the like, and KEY "
        "ends at the first dot of its name)\n"
    )
    read(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.heic", b"1"), ("a.cls", b"1")], r"1 file ignored, first: a\.heic$"),
        ([("a.cls", b"1"), ("c.cls", b"1")], r"2 files ignored, first: a\.cls$"),
        ([("a.mp4", b"1"), ("README", b""), ("LICENSE", b"")], r"1 file ignored, first: a\.mp4$"),
        ([("__meta__/a.png", b"1")], r"1 file ignored, first: __meta__/a\.png"),
        ([("__index__", b"1")], r"1 file ignored, first: __index__$"),
        ([("a", b"1")], r"1 file ignored, first: a$"),
    ],
)
def test_members_that_are_no_images_are_counted(tmp_path, capsys, members, words):
    path = write_tar(tmp_path / "a.tar", [*members, *labelled("b")])
    assert len(read(path)) == 1
    assert re.search(words, capsys.readouterr().err.strip())


@pytest.mark.parametrize(
    "members",
    [
        [("a.txt", b"a caption"), ("a.json", b"{}"), ("a.npy", b""), ("a.target.json", b"{}")],
        [("._a.png", b"\0\5"), ("part/._a.png", b"\0\5"), ("__MACOSX/._a.png", b"\0\5")],
        [("README", b"1"), ("index.csv", b"")],
    ],
)
def test_what_everybody_expects_beside_images_is_not_said(tmp_path, capsys, members):
    path = write_tar(tmp_path / "a.tar", [*labelled("a"), *members])
    assert len(read(path)) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            [("img.0.jpg", b"1"), ("img.1.jpg", b"1")],
            r"2 files ignored, first: img\.0\.jpg \(an im",
        ),
        ([("0.left.jpg", b"1"), ("0.right.jpg", b"1")], r"first: 0\.left\.jpg \(an image is KEY"),
        ([("n01440764.tar", b"1")], r"first: n01440764\.tar: unpack the tar files in it"),
        ([("a.heic", b"1")], r"1 file ignored, first: a\.heic$"),
    ],
)
def test_a_tar_file_without_images_tells_what_it_holds(tmp_path, members, words):
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=rf"no images \(KEY.jpg.*\) in its tar files: .*{words}"):
        read(path)


# --- labels


@pytest.mark.parametrize("again", ["a.cls", "a.CLS"])
def test_a_second_label_of_a_key_is_refused(tmp_path, again):
    path = write_tar(tmp_path / "a.tar", [*labelled("a", "b"), (again, b"1")])
    with pytest.raises(UserError, match=r"a\.tar: a has two labels \(\.cls\)"):
        read(path)


def test_keys_of_two_shards_are_apart(tmp_path):
    write_tar(tmp_path / "a.tar", labelled("x"))
    write_tar(tmp_path / "b.tar", [("x.png", png(7)), ("x.cls", b"1")])
    assert read(tmp_path).labels.tolist() == [0, 1]


@pytest.mark.parametrize("text", [b"2", b"2\n", b" 002\r\n"])
def test_numbers_as_people_write_them(tmp_path, text):
    source = read(write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", text)]))
    assert (source.labels.tolist(), source.classes) == ([2], ["0", "1", "2"])


@pytest.mark.parametrize("text", [b"", b"n01440764", b"1.0", b"1 2", b"-2", b"9" * 30])
def test_what_is_no_number_of_a_class_is_named(tmp_path, text):
    path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", text)])
    with pytest.raises(UserError, match=r"a\.cls is not a class number"):
        read(path)


def test_an_id_is_no_label(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", b"20240131120000")])
    with pytest.raises(UserError, match=r"a\.png: its label 20240131120000 is too large"):
        read(path)


def test_a_test_part_whose_labels_are_all_missing(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", b"-1")])
    assert read(path, "test").classes == ("images",)
    with pytest.raises(UserError, match="all its labels are missing"):
        read(path)


def test_some_missing_labels_are_counted(tmp_path):
    members = [*labelled("a", "b"), ("c.png", png(0)), ("c.cls", b"-1")]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=r"c\.png: its label is missing .*the first of 1 among 3"):
        read(path, "test")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            [("a.json", b'{"label": 3}'), ("a.cls.txt", b"3")],
            r"KEY\.cls\.txt, KEY\.json are not read",
        ),
        ([("n1/x.png", b""), ("n2/x.png", b"")], "its 2 folders are not classes: unpack it"),
    ],
)
def test_what_might_have_been_labels_is_said(tmp_path, capsys, members, words):
    path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), *members])
    assert read(path).classes == ("images",)
    assert re.search(rf"no label \(KEY\.cls\) beside any image: .*{words}", capsys.readouterr().err)


def test_images_without_anything_beside_them_need_no_words(tmp_path, capsys):
    read(write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("b.png", png(1))]))
    assert capsys.readouterr().err == ""


# --- the end of a tar file


def at_the_end(path):
    """Where the mark of the end begins: 512 bytes before it the last member's data ends."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


def test_a_damaged_header_does_not_end_a_tar_file_in_silence(tmp_path):
    path = write_tar(tmp_path / "a.tar", labelled("a", "b", "c"))
    with tarfile.open(path) as tar:
        at = tar.getmember("b.png").offset
    data = bytearray(path.read_bytes())
    data[at : at + 100] = b"x" * 100
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.tar: .*damaged at byte {at:,}"):
        read(path)


def test_a_header_that_is_cut_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", labelled("a", "b", "c"))
    with tarfile.open(path) as tar:
        at = tar.getmember("c.png").offset
    path.write_bytes(path.read_bytes()[: at + 100])
    with pytest.raises(UserError, match=rf"a\.tar: .*damaged at byte {at:,}"):
        read(path)


def test_joined_tar_files_are_named(tmp_path):
    first, second = (write_tar(tmp_path / f"{name}.x", labelled(name)) for name in "ab")
    (tmp_path / "a.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(UserError, match=r"a\.tar: goes on after its end at byte"):
        read(tmp_path / "a.tar")


def test_a_tar_file_without_its_end_is_read_and_said(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", labelled("a", "b"))
    path.write_bytes(path.read_bytes()[: at_the_end(path)])
    assert len(read(path)) == 2
    assert "a.tar: the tar file has no end marker" in capsys.readouterr().err


def test_an_end_of_one_block_is_one(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", labelled("a", "b"))
    path.write_bytes(path.read_bytes()[: at_the_end(path) + 512])
    assert len(read(path)) == 2
    assert capsys.readouterr().err == ""


# --- shards that are not read


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.tar.zst", "b.TAR", "b.tar.part"])
def test_a_shard_that_cannot_be_read_is_not_passed_over(tmp_path, name):
    write_tar(tmp_path / "a.tar", labelled("a"))
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=rf"/{re.escape(name)}: .*or move it away$"):
        read(tmp_path)


def test_the_metadata_of_macos_beside_a_shard_is_no_shard(tmp_path):
    write_tar(tmp_path / "a.tar", labelled("a"))
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")
    assert len(read(tmp_path)) == 1


def test_a_shard_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "a.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"/a\.tar: cannot be read \(No such file or directory\)"):
        read(tmp_path)


@pytest.mark.parametrize("stem", ["a", "images"])
def test_only_compressed_shards_are_called_so(tmp_path, stem):
    for number in range(2):
        (tmp_path / f"{stem}-{number}.tar.gz").write_bytes(b"\x1f\x8b")
    for path in (tmp_path, tmp_path / f"{stem}-0.tar.gz"):
        with pytest.raises(UserError, match=r"-0\.tar\.gz: is compressed: decompress it"):
            read(path)


@pytest.mark.parametrize("beside", ["cat/1.png", "1.png"])
def test_an_archive_beside_images_does_not_make_them_shards(tmp_path, beside):
    (tmp_path / "all.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_bytes(png(0))
    assert open_part(tmp_path, "train").format == "image folder"
