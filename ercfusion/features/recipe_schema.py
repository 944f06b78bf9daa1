"""Schema of recipe files."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ercfusion._core.schemas.common import Closed, Name, Text


def _folder_name(name: str) -> str:
    if "/" in name or "\0" in name or name.startswith("."):
        raise ValueError(f"{name[:40]!r} cannot be the beginning of a folder's name")
    return name


class RecipeFile(Closed):
    """A recipe of a feature pack."""

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_folder_name)]
    tool: Name
    settings: dict[Name, Any] = {}
    about: Text = ""
    licence: Text = ""
