"""Files that somebody made to do harm, where the tests of their readers have no such case."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
from conftest import tiny_config

from fastselfie.config.load import load_config
from fastselfie.errors import UserError
from fastselfie.report.page import write_page
from fastselfie.runs.folder import read_run
from fastselfie.training.checkpoint import newest_checkpoint

BOMB = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "its aliases expand to more than 10,000 values"),
        ("name: &a [*a]", "its aliases expand to more than"),
        ("data: &a {train: *a}", "its aliases expand to more than"),
        ("name: " + "[" * 100_000, "nested too deeply"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ("name: !!python/object/new:os.system [ls]", "could not determine a constructor"),
        ("name: !mine x", "could not determine a constructor"),
        ("name: !!int x", "not valid YAML"),
        ("name: 2001-13-45", "not valid YAML"),
        ("2001-01-01: x", "a key is not a string"),
        ("name: a\nnewer: {key: 1}", "unknown key 'newer'"),
    ],
)
def test_a_config_that_means_harm_is_one_line(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert "c.yaml" in str(caught.value)


def test_an_alias_is_no_bomb(tmp_path):
    (tmp_path / "c.yaml").write_text("name: a\npretrain: &s {steps: 7}\nfinetune: *s")
    assert load_config(tmp_path / "c.yaml").finetune.steps == 7


class Foreign:
    def __reduce__(self):
        return (print, ("a checkpoint ran this",))


@pytest.mark.parametrize("value", [Foreign(), {"format": 1, "kind": "pretrain", "step": "3"},
                                   {"format": "1"}, [1]])  # fmt: skip
def test_a_sealed_checkpoint_of_something_else_is_passed_over(tmp_path, capsys, value):
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": value} if isinstance(value, Foreign) else value, buffer)
    data = buffer.getvalue()
    (tmp_path / "latest.pt").write_bytes(data + hashlib.sha256(data).digest())
    with pytest.raises(UserError, match="no good checkpoint is left") as caught:
        newest_checkpoint(tmp_path, "pretrain")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_the_page_escapes_the_runs_folder(tmp_path):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    page = write_page(read_run(run, tiny_config())).read_text(encoding="utf-8")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
