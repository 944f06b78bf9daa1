"""Parts of pages about losses."""

from __future__ import annotations

from dataclasses import fields

from docs.computed.registry import register
from docs.computed.settings import cell


def _settings_cell(section: type, shared: set[str]) -> str:
    """Settings of a loss with their defaults, without those that it shares with all others."""
    own = [field for field in fields(section) if field.name not in shared]
    return ", ".join(f"`{field.name}` {cell(field.default)}" for field in own)


def task_losses_table() -> list[str]:
    """One row per loss of a single-label task that has settings."""
    from ercfusion.config.reference import about
    from ercfusion.config.terms import TASK_LOSSES

    rows = ["| loss | settings, defaults | what it is |", "|---|---|---|"]
    for name, section in TASK_LOSSES.items():
        if section is not None:
            rows.append(f"| `{name}` | {_settings_cell(section, set())} | {about(section)} |")
    return rows


def loss_terms_table() -> list[str]:
    """One row per term of the package: the kinds of task that have what it reads, and its own settings."""
    from ercfusion.batch.kinds import KINDS, task_kind
    from ercfusion.config.reference import about
    from ercfusion.config.terms import TERMS, Term

    shared = {field.name for field in fields(Term)}
    rows = ["| term | tasks | settings, defaults | what it is |", "|---|---|---|---|"]
    for name, section in TERMS.items():
        if section.__module__ == Term.__module__:
            kinds = [f"`{kind}`" for kind in KINDS if task_kind(kind).representation == section.reads]
            tasks = ", ".join(kinds) if section.reads else "all"
            rows.append(f"| `{name}` | {tasks} | {_settings_cell(section, shared)} | {about(section)} |")
    return rows


def teacher_terms_table() -> list[str]:
    """One row per term with a teacher."""
    from ercfusion.config.reference import about
    from ercfusion.config.terms import TEACHER_TERMS

    rows = ["| term | settings, defaults | what it is |", "|---|---|---|"]
    for name, section in TEACHER_TERMS.items():
        rows.append(f"| `{name}` | {_settings_cell(section, set())} | {about(section)} |")
    return rows


register("task losses", "docs/losses.md", task_losses_table)
register("loss terms", "docs/losses.md", loss_terms_table)
register("teacher terms", "docs/losses.md", teacher_terms_table)
