"""Parts of pages about features."""

from __future__ import annotations

from docs.computed.registry import register


def recipes_table() -> list[str]:
    """One row a recipe."""
    from ercfusion.features.recipe import read_recipe, recipe_names

    rows = ["| recipe | tool | what comes out |", "|---|---|---|"]
    for recipe in map(read_recipe, recipe_names()):
        rows.append(f"| `{recipe.name}` | {recipe.tool} | {recipe.about} |")
    return rows


register("recipes", "docs/features.md", recipes_table)
