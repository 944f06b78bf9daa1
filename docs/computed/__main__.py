"""``python -m docs.computed [PAGE ...]``: writes computed parts of pages.

Each argument is the name of a page, with or without folder and ``.md`` (``README`` is the main page), or of a part;
without arguments all parts are written.
"""

from __future__ import annotations

import sys
import time
from pathlib import PurePosixPath

from docs.computed import COMPUTED, Part
from docs.computed.tables import prepare


def names_of(part: Part) -> set[str]:
    """What a part can be called: its own name, and those of its page."""
    page = PurePosixPath(part.page)
    inner = page.relative_to("docs") if page.parts[0] == "docs" else page
    return {part.name} | {str(form) for each in (page, inner) for form in (each, each.with_suffix(""))}


def chosen(names: list[str]) -> list[Part]:
    """The parts of the given names, or all; exits if there is no part of a name."""
    parts = list(COMPUTED.values())
    for name in names:
        if not any(name in names_of(part) for part in parts):
            pages = sorted({part.page.removeprefix("docs/").removesuffix(".md") for part in parts})
            sys.exit(
                f"{name}: not a page with computed parts, nor a part.\nPages: {', '.join(pages)}.\n"
                f"Parts: {', '.join(COMPUTED)}."
            )
    return [part for part in parts if not names or set(names) & names_of(part)]


def main(names: list[str]) -> None:
    """Writes the parts of the given names, or all, with one line per part."""
    parts = chosen(names)
    prepare(part.preset for part in parts if part.preset)
    for part in parts:
        start = time.perf_counter()
        part.write()
        print(f"{part.page}: {part.name} ({time.perf_counter() - start:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
