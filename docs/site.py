"""The Sphinx extension of the documentation site: what is computed while the site is built.

Four things: parts between ``<!-- built: NAME -->`` and the next blank line, one page per public package (``docs/api``),
tables of contents from the lists of links in ``docs/index.md``, and the pages that belong to another page.
"""

from __future__ import annotations

import re
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from docs.computed import BUILT, ROOT
from docs.computed.api import package_pages

CHILDREN = {
    "docs/choose-a-model": "models/*",
    "docs/experiments": "../experiments/README\n../experiments/*/README",
    "docs/api": "api/ercfusion\napi/*",
}
"""The pages below another page in the table of contents."""


def contents(text: str) -> str:
    """Hidden tables of contents: one per section of the index, with the pages that its list links to."""
    trees = []
    for section in re.split(r"(?m)^## ", text)[1:]:
        pages = re.findall(r"(?m)^- \[[^\]]+\]\(([^)#]+)\.(?:md|ipynb)\)", section)
        if pages:
            trees.append(tree("\n".join(pages), f":caption: {section.splitlines()[0]}"))
    return "".join(trees)


def tree(pages: str, option: str) -> str:
    """A hidden table of contents."""
    return f"\n```{{toctree}}\n:hidden:\n{option}\n\n{pages}\n```\n"


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Adds the computed parts and tables of contents to the text of a page."""
    for name in re.findall(r"<!-- built: (.+?) -->", source[0]):
        source[0] = source[0].replace(f"<!-- built: {name} -->", "\n".join(BUILT[name].compute()))
    if page == "docs/index":
        source[0] += contents(source[0])
    if page in CHILDREN:
        source[0] += tree(CHILDREN[page], ":glob:")


def completed(*_: object) -> list[str]:
    """The pages that are read again in every build: what is added to them may have changed."""
    return ["docs/index", *CHILDREN, *(part.page.removesuffix(".md") for part in BUILT.values())]


def write_api(app: Sphinx) -> None:
    """Writes one page per public package to ``docs/api``, which is not under version control."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    pages = package_pages()
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_lexer("csv", TextLexer)
    app.connect("builder-inited", write_api)
    app.connect("env-get-outdated", completed)
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}
