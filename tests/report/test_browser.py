"""Pages as a browser shows them."""

from __future__ import annotations

import json
import threading

import pytest
from helpers.browser import browser
from helpers.runs import make_run

from fastselfie.report.compare import compare_page
from fastselfie.report.page import run_page, write_page
from fastselfie.report.serve import PageServer
from fastselfie.runs.folder import read_run

pytestmark = [pytest.mark.extra, pytest.mark.slow]

FITS = "document.documentElement.scrollWidth <= innerWidth"
SHOWN = (
    "[...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length"
)


# Of all charts: a curve of 2,400 lines a stage has some hundred.
POINTS = """[...document.querySelectorAll('svg *')]
  .map(e => (e.getAttribute('d') || e.getAttribute('points') || '').split(/[\\sA-Za-z]+/).length)
  .reduce((sum, points) => sum + points)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """120,000 steps, and its page."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    config = make_run(folder, steps=120_000, every=50)
    return write_page(read_run(folder, config))


def clean(tab):
    assert not tab.complaints()
    assert not tab.requests()
    assert tab.evaluate(FITS)


@pytest.mark.parametrize("width", [1200, 390])
def test_a_long_run_is_little_work_to_show(tab, long_run, width):
    """Few elements and points, however long the log is."""
    tab.open(long_run.as_uri(), width)
    clean(tab)
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate(SHOWN) == 7
    assert tab.evaluate("document.querySelectorAll('svg').length") == 11
    assert tab.evaluate("document.getElementsByTagName('*').length") < 2_000
    assert tab.evaluate(POINTS) < 10_000


def test_words_in_charts_can_be_read_on_a_phone_and_in_the_dark(tab, long_run):
    """In pixels of the screen, and in the page's own ink, which is light there."""
    heights = (
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
    )
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    tab.open(long_run.as_uri(), 390)
    assert min(tab.evaluate(heights)) > 9
    assert tab.evaluate(ink) == "rgb(27, 31, 36)"
    tab.open(long_run.as_uri(), 390, dark=True)
    assert tab.evaluate(ink) == "rgb(228, 232, 237)"


def test_the_page_of_a_run_that_goes_on_refreshes_itself(tab, tmp_path):
    """A file as the run writes it: a new line comes into sight, and the place is kept."""
    config = make_run(tmp_path, done=False)
    path = tmp_path / "report.html"

    def written():
        path.write_text(run_page(read_run(tmp_path, config), running=True, refresh=1), "utf-8")

    written()
    tab.open(path.as_uri(), 390)
    clean(tab)
    assert "step 200 of 400" in tab.evaluate("document.body.innerText")
    assert tab.evaluate("document.querySelector('time').textContent").endswith("s ago")
    tab.evaluate("scrollTo(0, 700)")
    add_line(tmp_path, 220)
    written()
    tab.until("document.body && document.body.innerText.includes('step 220 of 400')")
    tab.until("Math.abs(scrollY - 700) < 2")
    clean(tab)


def add_line(folder, step, at=None):
    with open(folder / "pretrain" / "log.jsonl", "a+", encoding="utf-8") as file:
        file.seek(0)
        last = json.loads(file.read().splitlines()[-1])
        file.write(json.dumps({"step": step, "time": at or last["time"] + 1, "loss": 0.5}) + "\n")


def test_a_log_that_is_still_is_told_from_one_that_grows(tab, tmp_path):
    config = make_run(tmp_path, done=False)
    write_page(read_run(tmp_path, config))
    tab.open((tmp_path / "report.html").as_uri(), 1200)
    status = "document.querySelector('#status').textContent"
    assert tab.evaluate(status) == "running"
    path = tmp_path / "pretrain" / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**x, "time": x["time"] - 7200}) + "\n" for x in lines))
    write_page(read_run(tmp_path, config))
    tab.open((tmp_path / "report.html").as_uri(), 1200)
    assert "no new log line" in tab.evaluate(status)
    assert tab.evaluate("document.querySelector('time').textContent") == "2 h ago"


@pytest.mark.parametrize("width", [1200, 390])
def test_runs_compared(tab, tmp_path, width):
    folders = [tmp_path / f"a-run-with-quite-a-long-name-{i}" for i in range(4)]
    runs = [read_run(f, make_run(f, data={"train": "/a/" + 80 * "x" + str(i)}))
            for i, f in enumerate(folders)]  # fmt: skip
    path = tmp_path / "compare.html"
    path.write_text(compare_page(runs), encoding="utf-8")
    tab.open(path.as_uri(), width)
    clean(tab)
    assert tab.evaluate("document.querySelectorAll('svg').length") == 17
    assert "data.train" in tab.evaluate("document.body.innerText")


def test_markup_does_nothing(tab, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)><script>alert(2)"
    run = read_run(folder, make_run(folder, data={"train": "<script>alert(3)</script>"}))
    (tmp_path / "page.html").write_text(run_page(run), encoding="utf-8")
    tab.open((tmp_path / "page.html").as_uri(), 1200)
    clean(tab)
    assert tab.evaluate("document.scripts.length") == 0
    assert tab.evaluate(SHOWN) == 7
    assert "<script>alert(3)</script>" in tab.evaluate("document.body.innerText")


def test_a_served_page_is_live(tab, tmp_path):
    config = make_run(tmp_path, done=False)

    def make():
        return run_page(read_run(tmp_path, config), refresh=1)

    with PageServer(make, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            tab.open(f"http://127.0.0.1:{server.server_port}/", 1200)
            clean(tab)
            add_line(tmp_path, 240)
            tab.until("document.body && document.body.innerText.includes('step 240 of 400')")
            clean(tab)
        finally:
            server.shutdown()
