"""Several .beton files read as one dataset: the same as the file that `join` makes of them."""

from __future__ import annotations

import pickle
import resource
import shutil
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, picture, refused, textured, tiny_config, write_beton
from helpers.beton_files import make_samples, write
from helpers.loaders import CPU
from PIL import Image

from fastselfie import Loader, open_dataset
from fastselfie.data.conversion.merge import merge_shards
from fastselfie.data.conversion.prepare import Options, prepare
from fastselfie.data.dataset import find_place, open_part
from fastselfie.data.loaders import build_loader
from fastselfie.data.loaders.backend import required_one_file
from fastselfie.data.splits import choose_labels
from fastselfie.errors import UserError

SHARDS = 11  # part-10 and part-11 sort before part-2


def photos(root, count=44):
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i:02}.{'png' if i % 5 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        textured(i, 50 + i, 80 - i).save(path)
    return root


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The merged file; the shards are in the folder shards beside it."""
    root = tmp_path_factory.mktemp("set")
    folder = photos(root / "photos")
    (root / "shards").mkdir()
    paths = [root / "shards" / f"part-{k}.beton" for k in range(1, SHARDS + 1)]
    for k, path in enumerate(paths, start=1):
        prepare(folder, path, Options(workers=1, shard=(k, SHARDS)))
    merge_shards(paths, root / "merged.beton")
    return root / "merged.beton"


@pytest.fixture(params=["folder", "pattern", "list"])
def named(merged, request):
    """The shards, as each way names them."""
    folder = merged.parent / "shards"
    if request.param == "list":
        return sorted(map(str, folder.glob("*.beton")), reverse=True)
    return str(folder if request.param == "folder" else folder / "part-*.beton")


def test_a_set_is_the_merged_file(merged, named):
    one, many = open_dataset(merged), open_dataset(named)
    assert many.fingerprint() == one.fingerprint()
    for theirs, ours in ((one.train, many.train), (one.held_out, many.held_out)):
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [ours.encoded(i) for i in range(len(ours))] == [
            theirs.encoded(i) for i in range(len(theirs))
        ]
        for i in range(len(ours)):
            assert np.array_equal(np.asarray(ours.image(i)), np.asarray(theirs.image(i)))
    arguments = (0.5, None, 3, one.train.classes)
    chosen = choose_labels(many.train.labels, *arguments)
    assert chosen.tolist() == choose_labels(one.train.labels, *arguments).tolist()
    worker = pickle.loads(pickle.dumps(many.train))
    assert worker.encoded(7) == one.train.encoded(7)
    assert "shards/part-1.beton: sample 0" in open_part(find_place(named), "train").source.name(0)
    last = open_part(find_place(named), "train").source.name(43)
    assert f"part-{SHARDS}.beton: sample 3" in last


@pytest.mark.parametrize("backend", ["native", "resident", "folder"])
def test_the_batches_of_a_set_are_those_of_the_merged_file(merged, named, backend):
    options = {"batch_size": 7, "size": 32, "seed": 5, "backend": backend, "workers": 1}
    options["crop"] = "pad" if backend == "resident" else "random_resized"
    batches = []
    for data in (merged, named):
        with Loader(data, **options) as loader:
            batches.append(
                [(images.clone(), labels.clone()) for _ in range(2) for images, labels in loader]
            )
    assert len(batches[0]) == 14
    for (images, labels), (theirs, their_labels) in zip(*batches, strict=True):
        assert torch.equal(images, theirs)
        assert torch.equal(labels, their_labels)


def test_the_streams_of_training_are_those_of_the_merged_file(merged, named):
    batches = []
    for data in (str(merged), named):
        config = tiny_config(data={"train": data, "crop": "resized", "loader": "native"})
        loader = build_loader(open_dataset(config.data).train, config.data, 3, CPU)
        with closing(loader.stream(9, 8)) as stream:
            batches.append([(b.images.clone(), b.index.samples) for b in islice(stream, 9)])
    for (images, samples), (theirs, their_samples) in zip(*batches, strict=True):
        assert torch.equal(images, theirs)
        assert samples.tolist() == their_samples.tolist()


@pytest.mark.extra
def test_dali_reads_a_set(merged, named):
    batches = []
    for data in (merged, named):
        with Loader(data, 8, size=32, backend="dali", workers=1) as loader:
            batches.append(next(iter(loader))[0].clone())
    assert torch.equal(*batches)


def test_ffcv_refuses_a_set(merged, named):
    source = open_part(find_place(named), "train").source
    with pytest.raises(UserError, match=f"the ffcv loader reads one .*has {SHARDS}: use the nat"):
        required_one_file(source, "ffcv")
    assert required_one_file(open_part(merged, "train").source, "ffcv").path == merged


@pytest.mark.slow
def test_a_run_on_a_set_is_evaluated_and_goes_on_with_the_merged_file(
    merged, named, tmp_path, cli, tiny_yaml
):
    out = tmp_path / "run"
    text = f"[{', '.join(named)}]" if isinstance(named, list) else named
    train = ("train", tiny_yaml, "--out", out, "runtime.threads=1")
    result = cli(*train, f"data.train={text}")
    assert result.status == 0, result.err
    assert cli("evaluate", out).status == 0
    prepared = cli("prepare", named[0] if isinstance(named, list) else named, "--out",
                   tmp_path / "again.beton", "--workers", 1)  # fmt: skip
    assert prepared.status == 0, prepared.err
    # The images of the checkpoint are the same, so the run goes on.
    result = cli(*train, f"data.train={merged}", "--stage", "pretrain")
    assert result.status == 0, result.err


def test_an_image_that_cannot_be_decoded_is_named_by_its_file(tmp_path):
    good = [jpeg_bytes(picture(i, 40, 40)) for i in range(3)]
    write_beton(tmp_path / "a.beton", good, [0, 1, 0])
    path = write_beton(tmp_path / "b.beton", good[:2], [0, 1])
    content = path.read_bytes()
    path.write_bytes(content.replace(good[1][-200:], bytes(200)))
    with (
        Loader(tmp_path, 5, size=32, shuffle=False, backend="native") as loader,
        pytest.raises(UserError, match=r"b\.beton: sample 1: "),
    ):
        next(iter(loader))


def test_files_that_are_no_shards_come_in_the_order_of_their_names(tmp_path):
    for name, labels in (("c", [2, 2]), ("a", [0]), ("b", [1, 0, 1])):
        write_beton(tmp_path / f"{name}.beton", [picture(i) for i in labels], labels)
    source = open_part(tmp_path, "train").source
    assert source.labels.tolist() == [0, 1, 0, 1, 2, 2]
    assert source.classes == ["0", "1", "2"]
    order = np.asarray([5, 0, 3])
    expected = [np.asarray(picture(i)) for i in (2, 0, 1)]
    for index, pixels in enumerate(expected):
        assert np.array_equal(np.asarray(source.select(order).image(index)), pixels)


def test_the_parts_of_a_folder_are_told_by_the_names_of_the_files(tmp_path):
    for name, label in (("train-0", 0), ("train-1", 1), ("val-0", 1)):
        write_beton(tmp_path / f"{name}.beton", [picture(label)] * 2, [label, label])
    found = open_dataset(tmp_path)
    assert (found.train.labels.tolist(), found.held_out.labels.tolist()) == ([0, 0, 1, 1], [1, 1])
    pattern = str(tmp_path / "train-*.beton")
    data = {"train": pattern, "held_out": 0.5}
    held_out = open_dataset(tiny_config(data=data).data)
    assert (len(held_out.train), len(held_out.held_out)) == (2, 2)
    assert open_dataset(tiny_config(data={**data, "test": pattern}).data).held_out_is_train


def test_a_folder_of_images_beside_a_beton_file_stays_a_folder_of_images(tmp_path):
    folder = photos(tmp_path / "photos", 4)
    write_beton(folder / "a.beton", [picture(0)], [0])
    assert len(open_part(folder, "train").source) == 4


def _prepared(path, folder, shard=(1, 1)):
    prepare(folder, path, Options(workers=1, shard=shard))


def _same_shard(root):
    _prepared(root / "a.beton", photos(root / "photos", 4), (1, 2))
    shutil.copy(root / "a.beton", root / "b.beton")


def _shard_and_whole(root):
    _prepared(root / "a.beton", photos(root / "photos", 4), (1, 2))
    _prepared(root / "whole.beton", root / "photos")


def _other_classes(root):
    write(root / "a.beton", make_labelled(2), classes=("a", "b"))
    write(root / "b.beton", make_labelled(2), classes=("a", "c"))


def _unnamed_class(root):
    write(root / "a.beton", make_labelled(2), classes=("a", "b"))
    write_beton(root / "b.beton", [picture(0)], [2])


def _no_labels(root):
    write_beton(root / "a.beton", [picture(0)], [-1])
    write_beton(root / "b.beton", [picture(0)], [0])


def _missing_label(root):
    write_beton(root / "a.beton", [picture(0)], [0])
    write_beton(root / "b.beton", [picture(0)] * 2, [0, -1])


def _damaged(root):
    write_beton(root / "a.beton", [picture(0)], [0])
    (root / "b.beton").write_bytes((root / "a.beton").read_bytes()[:-100])


def _other_suffix(root):
    write_beton(root / "a.beton", [picture(0)], [0])
    (root / "b.tar").touch()


def _both_parts(root):
    write_beton(root / "train-a.beton", [picture(0)], [0])
    write_beton(root / "val-a.beton", [picture(0)], [0])


def make_labelled(count):
    return [(*sample[:4], i % 2) for i, sample in enumerate(make_samples(count))]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_same_shard, r"b.beton: is shard 1, as is .*a.beton: pass each shard once"),
        (_shard_and_whole, r"whole.beton: is no shard, but .*a.beton is, so images may be read tw"),
        (_other_classes, r"b.beton: has other classes than .*a.beton: prepare the files from"),
        (_unnamed_class, r"b.beton: a label is 2, but it names 2 classes"),
        (_no_labels, r"a.beton: has no labels, but .*b.beton has: pass files of one dataset"),
        (_missing_label, r"b.beton: a label is -1: prepare it"),
        (_damaged, r"b.beton: .*prepare it again"),
        (_other_suffix, r"b.tar: is no .beton file, and a list or pattern names .beton files only"),
        (_both_parts, r"has training files and .*val-a.beton: name those of each part"),
    ],
)
def test_files_that_are_no_one_dataset_are_refused(tmp_path, make, words):
    make(tmp_path)
    files = [str(path) for path in tmp_path.iterdir() if path.is_file()]
    for named in (files, f"{tmp_path}/*.*"):
        with pytest.raises(UserError, match=words):
            open_dataset(named)


def test_a_set_that_is_not_there_is_refused(tmp_path, cli, tiny_yaml):
    refused(cli("train", tiny_yaml, f"data.train={tmp_path}/a-*.beton"), "no file matches")
    refused(cli("train", tiny_yaml, "data.train=[]"), "the list of .beton files is empty")
    refused(cli("train", tiny_yaml, "data.train=[a.beton, a.beton]"), "in the list twice")
    refused(cli("train", tiny_yaml, "data.train=[no.beton, o.beton]"), "no.beton: cannot be read")
    refused(cli("train", tiny_yaml, "data.train=[1, 2]"), "data.train")
    refused(cli("train", tiny_yaml, "data.train=s3://bucket/a.tar"), "is a URL: convert it with")
    write_beton(tmp_path / "a.beton", [picture(0)], [0])
    (tmp_path / "b.beton.partial").touch()
    refused(cli("train", tiny_yaml, f"data.train={tmp_path}"), "b.beton.partial: is incomplete")
    with pytest.raises(TypeError, match="a list of paths"):
        Loader([1, 2], 4)


def test_missing_shards_are_reported(merged, tmp_path, capsys):
    for k in (3, 1):
        shutil.copy(merged.parent / "shards" / f"part-{k}.beton", tmp_path)
    assert len(open_part(tmp_path, "train").source) == 8
    assert f"{SHARDS - 2} of the {SHARDS} shards are missing" in capsys.readouterr().err


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    path = write_beton(tmp_path / "a[1].beton", [picture(0)], [0])
    assert find_place(path) == path


def test_more_files_than_the_soft_limit_allows_are_opened(tmp_path):
    """Each map keeps a descriptor."""
    for i in range(80):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        write_beton(tmp_path / f"{i:02}.beton", [picture(i, 8, 8)], [i % 2])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "a.png").unlink()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        assert len(open_part(tmp_path, "train").source) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
