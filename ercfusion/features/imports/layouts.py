"""The layouts of foreign pickles by name, and which of them a content fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.features.imports._checks import Imported, LayoutError, shown
from ercfusion.features.imports.dialogues import COGMEN, FAMILIES, fields_fit, read_samples, read_tuple, samples_fit
from ercfusion.features.imports.segments import CARAT, MMSA, carat_fits, mmsa_fits, read_carat, read_mmsa

LAYOUTS: Mapping[str, str] = {
    name: entry.title for group in (FAMILIES, COGMEN, MMSA, CARAT) for name, entry in group.items()
}
"""Every layout's name and what it is, in one line."""

ORIGINS: Mapping[str, str] = {
    name: entry.origin for group in (FAMILIES, COGMEN, MMSA, CARAT) for name, entry in group.items()
}
"""Every layout's name and the public code (repository, file) in which its fields were read."""


def _reader(name: str) -> Callable[[str, Any], Imported]:
    if name in FAMILIES:
        return read_tuple
    if name in COGMEN:
        return read_samples
    return read_mmsa if name in MMSA else read_carat


def detect_layout(content: Any) -> list[str]:
    """Names of the layouts whose outer form a pickle's content has, the best guess first; nothing inside is checked.

    Args:
        content: As :func:`~ercfusion.features.imports.unpickle.safe_load` returns it.
    """
    found = [name for name in FAMILIES if fields_fit(name, content)]
    if samples_fit(content):
        found += COGMEN
    if mmsa_fits(content):
        found += MMSA
    if carat_fits(content):
        found += CARAT
    return sorted(found, key=lambda name: not _widths_fit(name, content))


def _widths_fit(name: str, content: Any) -> bool:
    # Layouts of the same fields differ in the widths of their published files.
    family = FAMILIES.get(name)
    if family is None:
        return True
    for role, value in zip(family.fields, content, strict=True):
        width = family.widths.get(role.removeprefix("~"))
        if width is None or not role.startswith("~"):
            continue
        first = next(iter(value.values()), None) if isinstance(value, dict) else None
        try:
            if len(first[0]) != width:  # type: ignore[index]
                return False
        except (TypeError, IndexError, KeyError):
            return False
    return True


def read_layout(content: Any, layout: str | None) -> Imported:
    """A pickle's content in ercfusion's terms.

    Args:
        content: As :func:`~ercfusion.features.imports.unpickle.safe_load` returns it.
        layout: A name of :data:`LAYOUTS`.

    Raises:
        ConfigError: no layout was given, or there is none of that name; the message names those that fit.
        LayoutError: the content is not as the layout says; the message names field, id, found and expected.
    """
    if layout is not None and layout in LAYOUTS:
        try:
            return _reader(layout)(layout, content)
        except LayoutError as error:
            others = [name for name in detect_layout(content) if name != layout]
            if others and layout not in detect_layout(content):
                raise LayoutError(f"{error}\nThe content has the form of the layout {' or '.join(others)}.") from error
            raise
    fitting = detect_layout(content)
    lines = "".join(f"\n  {name}: {LAYOUTS[name]}" for name in (fitting or LAYOUTS))
    advice = f"The content has the form of:{lines}" if fitting else (
        f"The content ({shown(content)}) has the form of none of those that are known:{lines}"
    )  # fmt: skip
    if layout is None:
        raise ConfigError(f"which layout the pickle has must be said (layout=NAME). {advice}")
    raise ConfigError(f"there is no layout {layout!r}. {did_you_mean(layout, LAYOUTS)} {advice}")
