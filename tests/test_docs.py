"""Every command and every program in README.md and docs/ runs as it stands there.

A fenced block is one of
    sh       each command line, by itself (no `cd`: it would end with its line), or, where it begins
             with #!, the whole as a script; each ends with status 0
    python   a program: all of a page's blocks together, after its commands
    yaml     a config, or a part of one
    console  what no test can run; NOT_RUN says how such a line may begin
    text     what a command prints
The commands run in a copy of sandbox.py's folder, made small as is said there.
"""

from __future__ import annotations

import glob
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import REPOSITORY
from helpers import sandbox
from support.file_server import serving

from fastselfie.cli import main
from fastselfie.config.load import load_config
from fastselfie.errors import UserError
from fastselfie.profiling import run as profiling

pytestmark = pytest.mark.slow

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
KINDS = ("sh", "python", "yaml", "console", "text")
# Each wants root, a network, a cluster, a GPU, minutes, or a person who ends it.
NOT_RUN = (
    "make ", "python3 -m venv ", ". .venv/bin/activate", "pip install ", "sudo apt-get install ",
    "git clone ", "wget ", "sbatch ", "kubectl ", "ray job submit ", "ray start ", "ray stop",
    "python benchmarks/", "benchmarks/", "fastselfie report runs/in224 --serve",
    "fastselfie reproduce configs/cifar10.yaml data.train=cifar10 --engine ray --address auto",
)  # fmt: skip
LIMIT = 300  # seconds for a command: only what hangs takes them


class Block(NamedTuple):
    """A fenced block. line: of its first line in the page, from 1."""

    kind: str
    text: str
    line: int


def blocks(text):
    found = re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    return [Block(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in found]


def command_lines(text):
    """Continued lines joined; what is blank or a comment left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The sandbox and, beside it, the commands; with a run, which other pages look at."""
    root = tmp_path_factory.mktemp("docs")
    sandbox.make_sandbox(root / "sandbox")
    sandbox.make_commands(root / "bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "sandbox")
        patch.setattr(
            sys, "argv", ["fastselfie", *sandbox.shrunk(["train", "configs/quickstart.yaml"])]
        )
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 0
    return root


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A page's own copy, where it is run; its processes have a thread each."""
    copy = tmp_path / "page"
    shutil.copytree(original / "sandbox", copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PATH", str(original / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests"))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NNODES", "1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost")
    # Of a second each.
    monkeypatch.setattr(profiling, "_SECONDS", 0.05)
    monkeypatch.setattr(profiling, "_ROUNDS", 1)
    threads = torch.get_num_threads()
    with serving(copy) as server:
        monkeypatch.setenv(sandbox.SERVER, server.url)
        yield copy
    torch.set_num_threads(threads)


def in_shell(command):
    """(status, what it said). Of its own group: a command that hangs leaves nothing behind."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def run_line(line, cli):
    """(status, what it said). A plain `fastselfie` runs in this process, which has torch."""
    words = shlex.split(line, comments=True)
    if words[0] == "fastselfie" and not set("|&;<>$`(){}") & set(" ".join(words)):
        expanded = [name for word in words[1:] for name in (sorted(glob.glob(word)) or [word])]
        result = cli(*sandbox.shrunk(expanded))
        return result.status, result.out + result.err
    return in_shell(["bash", "-euo", "pipefail", "-c", line])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, folder, cli):
    found = blocks(page.read_text(encoding="utf-8"))
    for kind, text, number in found:
        if kind == "sh" and text.startswith("#!"):
            Path("script.sh").write_text(text, encoding="utf-8")
            status, said = in_shell(["bash", "-eu", "script.sh"])
            assert status == 0, f"{page}:{number}: the script ended with {status}\n{said}"
        elif kind == "sh":
            for line in command_lines(text):
                status, said = run_line(line, cli)
                assert status == 0, f"{page}:{number}: {line}\nended with {status}\n{said}"
        elif kind == "yaml":
            Path("part.yaml").write_text(text, encoding="utf-8")
            load_config("part.yaml", ["name=docs"])
    run_program(page, [block for block in found if block.kind == "python"])


def run_program(page, programs):
    """In a file, as Triton reads its programs' source there, with the page's line numbers."""
    if not programs:
        return
    lines = []
    for _, text, number in programs:
        lines += [""] * (number - 1 - len(lines)) + text.splitlines()
    path = Path(f"{page.stem}.py")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    status, said = in_shell([sys.executable, str(path)])
    assert status == 0, f"{page}: its program ended with {status}\n{said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_hides(page):
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    assert text.count("```") == 2 * len(found), f"{page}: a fence inside of a line or a list"
    for kind, block, number in found:
        assert kind in KINDS, f"{page}:{number}: a block of kind '{kind}'"
        lines = command_lines(block) if kind == "console" else []
        hidden = [line for line in lines if not line.startswith(NOT_RUN)]
        if kind == "text":
            hidden = re.findall(r"^(?:fastselfie|torchrun|python|pip|make) .*", block, re.MULTILINE)
        assert not hidden, f"{page}:{number}: a test could run it, or NOT_RUN lacks it: {hidden[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks(text):  # grid[n](x) is no link
        text = text.replace(block.text, "")
    named = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [name for name in named if not (page.parent / name).exists()] == []


def test_the_command_line_page_is_current():
    page = runpy.run_path(str(REPOSITORY / "docs" / "make_cli.py"))
    assert page["PAGE"].read_text(encoding="utf-8") == page["cli_page"](), "python docs/make_cli.py"


@pytest.mark.extra
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    dead = []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if page.name != "404.html":  # its links are absolute
            named = re.findall(r"(?:href|src)=\"(?!https?:|data:|#)([^\"#?]+)", text)
            dead += [(page, name) for name in named if not (page.parent / name).exists()]
    assert dead == []
    loaded = {
        found
        for page in site.rglob("*.html")
        for found in re.findall(
            r"(?:src|rel=.stylesheet. href)=\"(https?:[^\"]+)", page.read_text()
        )
    }
    assert loaded == set(), "the site loads these from the network"


def test_every_page_is_in_the_list():
    listed = re.findall(r"\]\(docs/([^)]+)\)", PAGES[0].read_text(encoding="utf-8"))
    assert {page.relative_to(REPOSITORY / "docs").as_posix() for page in PAGES[1:]} <= set(listed)


def test_the_architecture_page_names_every_folder():
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = REPOSITORY / "fastselfie"
    folders = {p.parent.relative_to(package) for p in package.rglob("__init__.py")} - {Path()}
    assert [str(f) for f in sorted(folders) if f"`{f}/`" not in text] == []


def test_the_names_of_the_sandbox_are_those_listed(folder):
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = {name.split("/")[0] for name in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)}
    listed |= {f"part-{k}.beton" for k in range(1, sandbox.SHARDS + 1)}
    assert {path.name for path in folder.iterdir()} == listed


def test_a_key_that_is_made_small_is_checked_as_it_stands(folder):
    assert sandbox.shrunk(["train", "configs/in224.yaml", "pretrain.steps=9"])[-1] != ""
    for wrong in ("pretrain.stepz=9", "pretrain.steps=many"):
        with pytest.raises(UserError, match="pretrain"):
            sandbox.shrunk(["train", "configs/in224.yaml", wrong])


@pytest.mark.parametrize(
    "line",
    [
        "fastselfie train configs/missing.yaml --dry-run",
        "fastselfie prepare DIR --out train.beton --fast",
        "false | cat",
        "fastselfie join part-*.beton --out train.beton | grep nothing",
        "torchrun --standalone --cores=8 -m fastselfie train configs/in224.yaml data.train=DIR",
    ],
)
def test_a_wrong_line_is_found(line, folder, cli):
    try:
        status, _ = run_line(line, cli)
    except UserError:
        return
    assert status != 0
