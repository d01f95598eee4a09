"""A table to who sits at a terminal, JSON to a program."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import tiny_config

from fastselfie.cli.output import print_result, training_rows

SUMMARY = {
    "pretext_accuracy": 0.7934,
    "images_per_s": 646.2,
    "knn": 0.81,
    "finetuned_accuracy": 0.8182,
    "supervised_accuracy": 0.7841,
    "seconds": 137.4,
    "report": "runs/a-run-with-a-long-name/report.html",
}


@pytest.fixture
def terminal(monkeypatch):
    """Standard output says that it is one, so many columns wide."""

    def pretend(columns=80):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")

    return pretend


@pytest.mark.parametrize("columns", [40, 80])
def test_a_run_ends_with_a_table_and_where_its_page_is(terminal, capsys, columns):
    config = tiny_config(finetune={"labels": 0.05})
    terminal(columns)
    print_result(SUMMARY, False, lambda: training_rows(SUMMARY, config))
    out = capsys.readouterr().out
    for words in ("pretext accuracy", "79.3%", "chance 25%", "finetuned", "81.8%", "supervised",
                  "78.4%", "646", "2 min", "knn", "81.0%"):  # fmt: skip
        assert words in out
    assert " ".join(out.split()).count("5% of the labels") == 2 or columns == 40
    *table, page = out.splitlines()
    assert max(map(len, table)) <= columns
    assert page == f"report: {SUMMARY['report']}"  # in one piece, to be copied


def test_stages_that_did_not_run_have_no_line():
    summary = {"finetuned_accuracy": 0.5, "seconds": 1.0}
    config = tiny_config(finetune={"labels_per_class": 3})
    assert training_rows(summary, config) == [
        ("finetuned", "50.0%", "top-1, 3 labels a class"),
        ("time", "1 s", "all stages"),
    ]


def test_json_is_for_pipes_and_for_who_asks(terminal, capsys):
    print_result(SUMMARY, False)
    assert json.loads(capsys.readouterr().out) == SUMMARY
    terminal()
    print_result(SUMMARY, True)
    assert json.loads(capsys.readouterr().out) == SUMMARY
    print_result(SUMMARY, False)
    out = capsys.readouterr().out
    assert "{" not in out
    assert "images/s" in out


def test_what_was_evaluated_is_a_line_a_measure(cli, tiny_run, terminal):
    in_a_pipe = json.loads(cli("evaluate", tiny_run).out)
    terminal()
    assert json.loads(cli("evaluate", tiny_run, "--json").out) == in_a_pipe
    lines = [line.split() for line in cli("evaluate", tiny_run).out.splitlines()]
    shown = {(line[0], " ".join(line[2:-2])): line[-1] for line in lines}
    for network, measures in in_a_pipe.items():
        for name, value in measures.items():
            figure = f"{value:.4f}" if "loss" in name else f"{value:.1%}"
            assert shown[network, name.replace("_", " ")] == figure


@pytest.mark.parametrize("asked", [True, False])
def test_commands_with_tables_of_their_own_print_json_alone_where_asked(
    cli, tiny_run, terminal, asked
):
    image = next(tiny_run.parent.glob("images/test/cat/*.png"))
    terminal()
    out = cli("predict", tiny_run, image, *["--json"] * asked).out
    assert ("probability" in out) is not asked
    assert (out[0] == "[") is asked
    if asked:
        assert json.loads(out)[0]["image"] == str(image)


def test_figures_without_a_value_and_switches_are_words(terminal, capsys):
    terminal()
    print_result({"top_k": None, "damaged": False, "whole": True}, False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("top", "-"), ("damaged", "no"), ("whole", "yes"),
    ]  # fmt: skip


def test_a_dry_run_has_no_json(cli, tiny_yaml):
    for command in ("train", "reproduce"):
        done = cli(command, tiny_yaml, "--dry-run", "--json")
        assert done.status == 2
        assert "--json: a dry run has no JSON result" in done.err
