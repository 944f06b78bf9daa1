"""Layouts of foreign pickles by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.features.imports._checks import Imported, LayoutError, shown
from ercfusion.features.imports.dialogues import COGMEN, FAMILIES, fields_fit, read_samples, read_tuple, samples_fit
from ercfusion.features.imports.segments import CARAT, MMSA, carat_fits, mmsa_fits, read_carat, read_mmsa

LAYOUTS: Mapping[str, str] = {
    name: layout.title for group in (FAMILIES, COGMEN, MMSA, CARAT) for name, layout in group.items()
}
"""Descriptions of the layouts, one line each."""

ORIGINS: Mapping[str, str] = {
    name: layout.origin for group in (FAMILIES, COGMEN, MMSA, CARAT) for name, layout in group.items()
}
"""Public code (repository, file) in which each layout was read."""


def _reader(name: str) -> Callable[[str, Any], Imported]:
    if name in FAMILIES:
        return read_tuple
    if name in COGMEN:
        return read_samples
    return read_mmsa if name in MMSA else read_carat


def detect_layout(content: Any) -> list[str]:
    """Layouts with the outer form of :func:`safe_load`'s content, best guess first."""
    fitting = [name for name in FAMILIES if fields_fit(name, content)]
    if samples_fit(content):
        fitting += COGMEN
    if mmsa_fits(content):
        fitting += MMSA
    if carat_fits(content):
        fitting += CARAT
    return sorted(fitting, key=lambda name: not _widths_fit(name, content))


def _widths_fit(name: str, content: Any) -> bool:
    # Layouts with the same fields differ in the widths of their published files.
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
    """The content of a pickle, read as a layout of :data:`LAYOUTS`.

    Raises:
        ConfigError: no layout, or an unknown one; the message lists those that fit.
        LayoutError: the content does not fit.
    """
    if layout is not None and layout in LAYOUTS:
        try:
            return _reader(layout)(layout, content)
        except LayoutError as error:
            others = [name for name in detect_layout(content) if name != layout]
            if others and layout not in detect_layout(content):
                raise LayoutError(
                    f"{error}\nThe content has another layout. Use layout={' or '.join(others)}."
                ) from error
            raise
    fitting = detect_layout(content)
    lines = "".join(f"\n  {name}: {LAYOUTS[name]}" for name in (fitting or LAYOUTS))
    advice = f"The content has the form of:{lines}" if fitting else (
        f"The content ({shown(content)}) has none of the known forms:{lines}"
    )  # fmt: skip
    if layout is None:
        raise ConfigError(f"layout: missing. Give the pickle's layout with layout=NAME. {advice}")
    raise ConfigError(f"layout={layout}: unknown. {did_you_mean(layout, LAYOUTS)} {advice}")
