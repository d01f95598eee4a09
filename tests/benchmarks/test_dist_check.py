"""The check of a distribution: which program of the README it runs."""

from __future__ import annotations

import importlib

import pytest
from conftest import REPOSITORY, picture, write_beton


@pytest.fixture
def dist_check(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("dist_check")


def test_the_readme_program_reads_the_whole_file(dist_check, tmp_path, monkeypatch, capsys):
    write_beton(tmp_path / "train.beton", [picture(k, 80, 60) for k in range(5)], [0, 1, 0, 1, 0])
    monkeypatch.chdir(tmp_path)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    exec(dist_check.readme_program(readme), {})
    assert capsys.readouterr().out == "(5, 3, 224, 224)\n"


@pytest.mark.parametrize(
    "blocks", ["", "```python\nimport os\n```\n", "```python\n'train.beton'\n```\n" * 2]
)
def test_a_readme_without_one_program_is_refused(dist_check, blocks):
    with pytest.raises(dist_check.DistError, match=r"README\.md: not one Python program"):
        dist_check.readme_program(blocks)
