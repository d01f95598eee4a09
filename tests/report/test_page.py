"""The page of one run and of several: content, writing, size."""

from __future__ import annotations

import cProfile
import errno
import json
import os
from xml.etree import ElementTree

import pytest
from conftest import tiny_config
from helpers.runs import make_run, write

from fastselfie.report import live
from fastselfie.report.charts import charts_of
from fastselfie.report.compare import compare_page
from fastselfie.report.figures import figures_of, findings_of
from fastselfie.report.live import LivePage
from fastselfie.report.page import run_page, write_page
from fastselfie.report.render import format_duration
from fastselfie.runs.folder import read_run
from fastselfie.stage_names import StageName
from fastselfie.training.metrics_log import read_log


def read(folder, **options):
    return read_run(folder, make_run(folder, **options))


def said(folder):
    return [finding.text for finding in findings_of(read_run(folder, tiny_config()))]


# --- one run ----------------------------------------------------------------------------------


def test_a_finished_run(tmp_path):
    run = read(tmp_path / "run")
    state = run.state()
    assert (state.stage, state.done, state.finished) == ("supervised", 400, True)
    page = run_page(run)
    assert "reload" not in page
    assert 'http-equiv="refresh"' not in page
    for words in (">finished<", "85.0%", "chance 25.0%", "random weights 40.0%", "83 min",
                  "raw pixels 50.0%", "pretraining step", "cross-entropy, nats",
                  "images a second", "L2 norm", "share of the time, %", "chance 10.0%",
                  "fastselfie train", "2.13.0", "batch_size: 8", "4 masked"):  # fmt: skip
        assert words in " ".join(page.split()), words
    assert page.index("<img") < page.index("<svg")
    assert page.count("<svg") == 11
    assert page.count("<img") == 7


def test_a_run_that_goes_on(tmp_path):
    run = read(tmp_path, done=False)
    state = run.state()
    assert (state.stage, state.done, state.steps, state.finished) == ("pretrain", 200, 400, False)
    assert state.seconds_left == pytest.approx(10)
    assert state.quiet_after == 60
    assert state.checkpoint == "pretrain/step-0000200.pt"
    page = run_page(run, running=True)
    assert "location.reload()" in page
    assert ">running<" in page
    assert "step 200 of 400, about 10 s" in " ".join(page.split())
    assert ">stopped<" in run_page(run, running=False)
    assert "data-unknown" in run_page(run)


def test_what_is_missing_keeps_a_run_from_being_finished(tmp_path):
    config = make_run(tmp_path)
    assert read_run(tmp_path, config).state().finished
    (tmp_path / "summary.json").write_text('{"seco')
    assert not read_run(tmp_path, config).state().finished
    make_run(tmp_path)
    (tmp_path / "supervised" / "log.jsonl").unlink()
    assert not read_run(tmp_path, config).state().finished
    (tmp_path / "finetuned" / "log.jsonl").unlink()  # pretraining alone was asked for
    assert read_run(tmp_path, config).state().finished
    alone = config.model_copy(update={"pretrain": config.pretrain.model_copy(
        update={"steps": 401})})  # fmt: skip
    assert not read_run(tmp_path, alone).state().finished


def test_the_usual_pace_tells_the_time_left(tmp_path):
    """Whatever an evaluation, or a night between two halves of a run, took."""
    lines = [{"step": s, "time": 10.0 * s + 9e4 * (s > 5), "loss": 1.0} for s in range(1, 11)]
    write(tmp_path / "pretrain" / "log.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    state = read_run(tmp_path, tiny_config(pretrain={"steps": 110})).state()
    assert state.seconds_left == pytest.approx(1000)
    assert state.quiet_after == pytest.approx(100)


def test_times_in_words():
    shown = [format_duration(s) for s in (4, 89, 91, 5_000, 5_400, 7_199, 172_000, 180_000)]
    assert shown == ["4 s", "89 s", "2 min", "83 min", "1 h 30 min", "2 h 0 min", "47 h 47 min",
                     "2 d 2 h"]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "finding"),
    [
        ([{"pretext_accuracy": 0.8}], "80.0% of the masked patches are identified: 3.2 times"),
        ([{"pretext_accuracy": 0.26}], "26.0% of the masked patches are identified, which is near"),
        ([{"heldout_loss": 0.5}, {"heldout_loss": 0.7}], "rose to 0.7, from 0.5 at step 1"),
        ([{"heldout_loss": 0.7}, {"heldout_loss": 0.5}], None),
        ([{"waiting": 0.4}, {"waiting": 0.2}], "waits 30% of its time"),
        ([{"waiting": 0.02}], None),
        ([{"skipped": 1234, "skipped_steps": 2}],
         "2 non-finite steps and 1,234 unreadable images"),
    ],
)  # fmt: skip
def test_findings(tmp_path, lines, finding):
    text = "".join(json.dumps({"step": i, "time": 0, **line}) + "\n"
                   for i, line in enumerate(lines, 1))  # fmt: skip
    write(tmp_path / "pretrain" / "log.jsonl", text)
    findings = said(tmp_path)
    assert len(findings) == (finding is not None)
    assert not findings or finding in findings[0]


def test_the_gain_is_told_once_both_arms_are_done(tmp_path):
    def gain():
        run = read_run(tmp_path, config)
        return next(f.note for f in figures_of(run) if f.name == "finetuned, top-1")

    config = make_run(tmp_path)
    with open(tmp_path / "finetuned" / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 400, "time": 1.0, "top1": 0.85}) + "\n")
    assert gain() == "+5.0 points over from scratch"
    (tmp_path / "summary.json").unlink()
    assert gain() == ""


def test_lines_that_a_log_should_not_have(tmp_path):
    text = '[1]\n{"a": 1}\n{"step": "<b>", "time": 1}\n{"step": 1, "time": 1, "loss": "<b>"}\n'
    text += '{"step": 1, "time": 1, "loss": 2}\n{"step": 2, "time": 2, "loss": NaN}\n\x00'
    write(tmp_path / "pretrain" / "log.jsonl", text)
    with open(tmp_path / "pretrain" / "log.jsonl", "ab") as file:
        file.write(b"\xff\xfe\n")
    run = read_run(tmp_path, tiny_config())
    assert [line["step"] for line in run.logs["pretrain"]] == [1, 2]
    assert "<b>" not in run_page(run)


def test_pictures_at_most_six_and_whole_ones(tmp_path):
    run = read(tmp_path)
    folder = tmp_path / "pretrain" / "pictures"
    whole = (folder / "original.png").read_bytes()
    for step in range(1, 30):
        (folder / f"{step:07d}.png").write_bytes(whole)
    page = run_page(run)
    assert page.count("<img") == 7
    for title in ("step 0<", "step 200<", "original<"):
        assert title in page
    (folder / "original.png").unlink()
    (folder / "0000200.png").write_bytes(whole[:-1])  # is being written
    page = run_page(run)
    assert page.count("<img") == 5
    assert "original<" not in page


MARKUP = "<script>alert(1)</script>"


def test_markup_from_outside_is_text(tmp_path):
    folder = tmp_path / MARKUP.partition("/")[0] / "a'b"
    config = make_run(folder, data={"train": f"/data/{MARKUP}"}, done=False)
    write(folder / "environment.json", json.dumps({"device": MARKUP}))
    (folder / "pretrain" / "pictures" / f"{MARKUP.partition('/')[0]}.png").write_bytes(b"")
    page = write_page(read_run(folder, config)).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)") == 4  # environment, config, twice in the command
    other = folder.with_name("$x_$<script>alert(2)")
    runs = [read_run(folder, config), read(other, data={"train": MARKUP})]
    page = compare_page(runs)
    assert "<script" not in page
    assert "$x_$&lt;script&gt;alert(2)" in page


def test_drawings_are_well_formed(tmp_path):
    page = run_page(read(tmp_path))
    drawings = page.split("<svg")[1:]
    for text in drawings:
        ElementTree.fromstring("<svg" + text[: text.index("</svg>")] + "</svg>")
        assert "#010203" not in text  # the page's own ink


def test_use_of_context_is_drawn_where_it_was_measured(tmp_path):
    drawn = charts_of(read(tmp_path / "new"))["Use of context"]
    for line in ("own context", "another image's context", "no context", "chance 25.0%"):
        assert f">{line}</text>" in drawn
    older = read(tmp_path / "older")
    for line in older.logs["pretrain"]:
        line.pop("pretext_accuracy_other_context", None)
    assert "Use of context" not in charts_of(older)


# --- several runs -----------------------------------------------------------------------------


def test_runs_side_by_side(tmp_path):
    one, two = (read(tmp_path / n, pretrain={"lr": lr}) for n, lr in (("_a", 0.1), ("b", 0.2)))
    page = compare_page([one, two])
    for words in (
        '<th scope="row">pretrain.lr</th><td>0.1</td><td>0.2</td>',
        "_a, b",
        "Pretext accuracy, held out",
        "Use of context, no context",
        "Accuracy on held-out images, finetuned",
    ):
        assert words in page, words
    assert page.count("pretrain.") == 1  # no other key differs
    assert "Use of context, own context" not in page  # the same as the pretext accuracy
    legend = page[page.index("Throughput") :]
    assert "_a</text>" in legend
    assert ">b</text>" in legend
    assert "reload" not in compare_page([one, two], refresh=5)
    going = read(tmp_path / "c", done=False)
    assert "reload" in compare_page([one, going], refresh=5)
    assert "pretrain, step 200 of 400" in compare_page([one, going])


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [read(tmp_path / name / "run") for name in ("x", "y")]
    page = compare_page([*runs, runs[0]])
    assert "x/run, y/run, x/run (2)" in page
    assert "the configs are the same" in page


# --- written by the run -----------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time that passes where a test says so."""
    now = [1000.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    return now


def test_pages_take_a_two_hundredth_of_the_time(tmp_path, clock, monkeypatch):
    written = []

    def write_slowly(run, running):
        written.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(live, "write_page", write_slowly)
    page = LivePage(make_run(tmp_path), tmp_path)
    for _ in range(1000):
        page()
        clock[0] += 1
    assert len(written) == pytest.approx(10, abs=1)
    follower = LivePage(make_run(tmp_path), tmp_path, is_main=False)
    follower()
    follower.write(running=True)
    assert len(written) == pytest.approx(10, abs=1)


def test_each_line_of_each_stage_asks_for_a_page(
    cli, tiny_yaml, image_folder, tmp_path, monkeypatch
):
    written = []

    def write_and_note(run, running):
        state = run.state()
        written.append((state.stage, state.done, running, state.finished))
        write_page(run, running)

    monkeypatch.setattr(live, "write_page", write_and_note)
    monkeypatch.setattr(live, "_SHARE", float("inf"))
    out = tmp_path / "run"
    assert cli("train", tiny_yaml, f"data.train={image_folder}", "--out", out).status == 0
    lines = [(name, line["step"], True, False) for name in StageName
             for line in read_log(out / name / "log.jsonl")]  # fmt: skip
    assert written == [*lines, ("supervised", 2, False, True)]
    assert json.loads((out / "environment.json").read_text())["device"] == "cpu"


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_page_that_the_disk_refuses(tmp_path, monkeypatch, capsys, policy):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = make_run(tmp_path, checkpoint={"on_error": policy})
    monkeypatch.setattr(live, "write_page", full)
    page = LivePage(config, tmp_path)
    if policy == "stop":
        with pytest.raises(OSError, match="No space left"):
            page()
    else:
        with page:
            page()
            page.write(running=True)
    assert capsys.readouterr().err.count("report.html: No space left") == (policy == "continue")


def test_a_run_that_ends_early_says_so_in_its_page(tmp_path, capsys):
    config = make_run(tmp_path, done=False)
    with pytest.raises(KeyError), LivePage(config, tmp_path):
        raise KeyError
    assert ">stopped<" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not capsys.readouterr().err


# --- numbers ----------------------------------------------------------------------------------


def test_120_000_steps_stay_under_2_mb_and_a_few_calls_a_line(tmp_path):
    """Written every 50 steps in three stages, with six pictures: not the square of the lines."""

    def written(steps):
        folder = tmp_path / str(steps)
        config = make_run(folder, steps=steps, every=50)
        with cProfile.Profile() as profile:
            path = write_page(read_run(folder, config))
        return path, sum(entry.callcount for entry in profile.getstats())

    (_, few), (path, calls) = written(30_000), written(120_000)
    assert calls < 4 * few
    assert 100_000 < path.stat().st_size < 2_000_000
