"""What is said of a command line that makes no sense, before any command runs."""

from __future__ import annotations

import pytest
from conftest import refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "'train'", "see fastselfie --help"]),
        (["train", "tiny", "--stage", "x"], ["'--stage'", "'x'", "pretrain, finetuned or all"]),
        (["predict", "runs/x", "a.png", "--stage", "x"], ["'--stage'", "finetuned, supervised"]),
        (["export"], ["'run'", "see fastselfie export --help"]),
        (["export", "x", "--format", "foo", "--out", "y"], ["--format", "foo", "safetensors"]),
        (["export", "x", "--out", "y"], ["--format"]),
        (["reproduce", "x.yaml", "--seeds", "many"], ["--seeds", "fastselfie reproduce --help"]),
        (["train", "x.yaml", "--bogus"], ["--bogus"]),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(cli, arguments, words):
    refused(cli(*arguments), "error: ", *words)


def test_without_arguments_there_is_the_help(cli):
    result = cli()
    assert result.status == 2
    assert "reproduce" in result.out
    assert result.err == ""


def test_asked_for_help_and_version_are_no_mistakes(cli):
    for arguments in (["--version"], ["train", "--help"]):
        result = cli(*arguments)
        assert (result.status, result.err) == (0, "")
        assert result.out.strip()


def test_a_name_with_a_line_end_stays_in_one_line(cli, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a\nb\udcff.jpg").write_bytes(b"no image")
    result = cli("prepare", folder, "--out", tmp_path / "x.beton")
    said, error = result.err.splitlines()
    assert "1 images without labels" in said
    assert r"a\nb\udcff.jpg: unreadable" in error
    assert result.status == 2


def test_a_path_that_is_empty_or_too_long_is_one_line(cli, tiny_yaml):
    refused(cli("train", tiny_yaml, "data.train="), "data.train")
    refused(cli("prepare", "x" * 300, "--out", "y.beton"), "x" * 300)
