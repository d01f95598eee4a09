"""Hooks for MkDocs: make every link of a page work on the site as it does in the repository.

Pages link to files outside docs/, such as ../benchmarks/README.md, and MkDocs reads only docs/. So
the README becomes the start page, and each file that a page links to becomes part of the site, in
repository/: Markdown and source code as pages, other files as they are.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
_COPIED = {".json", ".png", ".txt"}
# Not searched: a page of source code would be the first hit for every name in it.
_SOURCE_PAGE = "---\nsearch: {{exclude: true}}\n---\n\n# {name}\n\n````{language}\n{text}\n````\n"


def _site_path(path: Path) -> str:
    """Return where a file of the repository is on the site, as a path in MkDocs' folder."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = f"repository/{path.relative_to(ROOT).as_posix()}"
    return name if path.suffix in {".md", *_COPIED} else f"{name}.md"


def _linked_files(page: Path) -> list[Path]:
    """Return the files of the repository that a Markdown page links to."""
    targets = (page.parent / found[1] for found in _LINK.finditer(page.read_text(encoding="utf-8")))
    return [path for target in targets if (path := target.resolve()).is_file()]


def _as_site_file(path: Path, config: MkDocsConfig) -> File:
    name = _site_path(path)
    if path.suffix == ".md" or path.suffix in _COPIED:
        return File.generated(config, name, abs_src_path=str(path))
    text = path.read_text(encoding="utf-8")
    language = path.suffix.removeprefix(".") or "text"
    page = _SOURCE_PAGE.format(name=path.relative_to(ROOT), language=language, text=text)
    return File.generated(config, name, content=page)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and every file outside docs/ that a page links to."""
    pages, added = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], set()
    while pages:
        page = pages.pop()
        for path in [page, *_linked_files(page)]:
            if path in added or path.is_relative_to(DOCS):
                continue
            added.add(path)
            files.append(_as_site_file(path, config))
            if path.suffix == ".md":
                pages.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between files of the site."""
    source = page.file.abs_src_path
    if source is None:  # a page of source code
        return markdown

    def moved(link: re.Match[str]) -> str:
        target = (Path(source).parent / link[1]).resolve()
        if not target.is_file():
            return link[0]
        folder = os.path.dirname(page.file.src_uri)
        return f"]({os.path.relpath(_site_path(target), folder or '.')}{link[2] or ''})"

    return _LINK.sub(moved, markdown)
