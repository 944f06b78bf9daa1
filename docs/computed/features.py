"""Parts of pages about features."""

from __future__ import annotations

from docs.computed.registry import register


def recipes_table() -> list[str]:
    """One row per recipe."""
    from ercfusion.features.recipe import read_recipe, recipe_names

    rows = ["| recipe | tool | result |", "|---|---|---|"]
    for recipe in map(read_recipe, recipe_names()):
        rows.append(f"| `{recipe.name}` | {recipe.tool} | {recipe.about} |")
    return rows


def face_columns_table() -> list[str]:
    """Width of every set of columns by tool."""
    from ercfusion.features.faces import FEX_SETS, OPENFACE_SETS

    rows = ["| columns | py-feat, fex | openface |", "|---|---|---|"]
    for name in dict.fromkeys([*FEX_SETS, *OPENFACE_SETS]):
        widths = [str(len(sets[name])) if name in sets else "" for sets in (FEX_SETS, OPENFACE_SETS)]
        rows.append(f"| `{name}` | {widths[0]} | {widths[1]} |")
    return rows


def layouts_table() -> list[str]:
    """One row per layout of feature pickles."""
    from ercfusion.features.imports import LAYOUTS

    rows = ["| layout | file | content |", "|---|---|---|"]
    for name, title in LAYOUTS.items():
        file, _, content = title.partition(": ")
        rows.append(f"| `{name}` | {file.replace('_', chr(92) + '_')} | {content} |")
    return rows


register("recipes", "docs/features.md", recipes_table)
register("face columns", "docs/features.md", face_columns_table)
register("layouts", "docs/import-pickles.md", layouts_table)
