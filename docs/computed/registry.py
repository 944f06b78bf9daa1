"""The registry of computed parts: what is between ``<!-- computed: NAME -->`` and ``<!-- end: NAME -->``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """A computed part of a page.

    Args:
        name: As in the marks.
        page: Path of the page from the repository's root.
        compute: Returns the lines of the part.
        preset: The table in ``experiments/`` that the part is computed from, or None.
        measured: Whether its numbers depend on the machine.
    """

    name: str
    page: str
    compute: Callable[[], list[str]]
    preset: str | None = None
    measured: bool = False

    def split(self) -> tuple[str, str, str]:
        """The page before the part, the part, and the page after it; both marks are outside the part."""
        text = (ROOT / self.page).read_text(encoding="utf-8")
        start, stop = f"<!-- computed: {self.name} -->\n", f"<!-- end: {self.name} -->"
        if start not in text or stop not in text.partition(start)[2]:
            raise ValueError(f"{self.page}: the marks of the part {self.name!r} are missing. Add {start}{stop}")
        before, _, rest = text.partition(start)
        part, _, after = rest.partition(stop)
        return before + start, part, stop + after

    def write(self) -> None:
        """Computes the part and writes it into its page."""
        before, _, after = self.split()
        (ROOT / self.page).write_text(before + "\n" + "\n".join(self.compute()) + "\n\n" + after, encoding="utf-8")


COMPUTED: dict[str, Part] = {}
"""All parts by name. Every module of this package registers its own."""


def register(
    name: str, page: str, compute: Callable[[], list[str]], preset: str | None = None, measured: bool = False
) -> None:
    """Adds a part; see :class:`Part`."""
    if name in COMPUTED:
        raise ValueError(f"the part {name!r} is registered twice. Rename one of them.")
    COMPUTED[name] = Part(name, page, compute, preset, measured)


BUILT: dict[str, Part] = {}
"""Parts that are not in the page's file: the site has them where the page says ``<!-- built: NAME -->``."""


def register_built(name: str, page: str, compute: Callable[[], list[str]]) -> None:
    """Adds a part that is computed while the site is built."""
    BUILT[name] = Part(name, page, compute)
