"""Tables of settings, from the fields of their sections."""

from __future__ import annotations

from typing import Any

from docs.computed.registry import register_built

SECTIONS = (
    *("", "data", "training", "objective", "missing", "task", "recipe"),
    *("optimizer", "scheduler", "curriculum", "trainer", "sweep"),
)


def cell(value: Any) -> str:
    """A value as it is typed in YAML."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def corpus_options_table() -> list[str]:
    """One row per option of a corpus's reader."""
    from ercfusion.config.reference import corpora_table

    return corpora_table()


def settings_page() -> list[str]:
    """Every section of settings with a heading, the options of corpora, and the groups."""
    from docs.computed.commands import groups_table
    from ercfusion.config.choices import CHOICES
    from ercfusion.config.settings import defaults_of, fields_in, flat, names_of

    lines: list[str] = []
    for section in SECTIONS:
        names = names_of(section) if section in CHOICES else [None]
        defaults = [flat(defaults_of(section, name), f"{section}." if section else "") for name in names]
        rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
        for key, field in fields_in(section).items():
            values = list(dict.fromkeys(typed(each[key]) for each in defaults if key in each)) or [typed(field.default)]
            if len(values) > 1:
                each = zip(names, defaults, strict=True)
                values = [f"{typed(own[key])} ({name})" for name, own in each if key in own]
            marks = ("†" if field.known.searchable else "") + ("" if field.known.decides == "result" else "‡")
            cells = [f"`{key}` {marks}".rstrip(), ", ".join(values), field.values, field.known.meaning]
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines += [f"## {section or 'Top level'}", "", *rows, ""]
    return [*lines, "## Options of corpora", "", *corpus_options_table(), "", "## Groups", "", *groups_table()]


def typed(value: Any) -> str:
    """A value as it is typed in a command, marked as code."""
    from ercfusion.config.fields import typed_text

    return f"`{typed_text(value)}`"


register_built("settings", "docs/settings.md", settings_page)
