"""The laws of a run: from the settings ``missing.*`` to :mod:`ercfusion.config.missing_laws`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ercfusion._core.errors import ConfigError
from ercfusion.config.missing_laws import LARGEST, LAWS, Law, meaning, parse, syntax
from ercfusion.config.sections import Missing

STANDARD = "standard"
"""The grid of all patterns and of :data:`RATES`."""

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Rates of the standard grid."""

_LAWS = ("train", "dev", "eval")
_GRID = "missing.grid"


def training_law(missing: Missing) -> Law:
    """The law in training."""
    return parse(missing.train or "none", "missing.train")


def split_law(missing: Missing, split: str) -> Law:
    """The law under which a split is scored, with fixed masks.

    Dev has ``missing.dev``. Test, and train if it is scored, have ``missing.eval``. Both default to ``missing.train``.
    """
    name = "dev" if split == "dev" else "eval"
    own = getattr(missing, name)
    return training_law(missing) if own is None else parse(own, f"missing.{name}")


def used_laws(missing: Missing, splits: Sequence[str]) -> dict[str, str]:
    """The canonical texts of the laws of training and of scored splits, by use; empty if none hides anything."""
    laws = {"train": training_law(missing), **{split: split_law(missing, split) for split in splits}}
    return {} if all(law.hides_nothing for law in laws.values()) else {use: str(law) for use, law in laws.items()}


def laws_text(laws: Mapping[str, str], seed: int) -> str:
    """Laws by use and the seed of their masks, in words."""
    return f"{', '.join(f'{use} {text}' for use, text in laws.items())}; seed of the masks {seed}"


def grid_laws(grid: str | Sequence[str] | None, modalities: Sequence[str], place: str = _GRID) -> list[Law]:
    """The laws of a grid, such as ``missing.grid``, each once, in order; empty for None.

    Args:
        grid: ``standard``, also as the only item of a list, a law, or a list of laws.
        modalities: Of the run. The standard grid has their 2^M - 1 patterns, the complete one last, then the rates.
        place: Beginning of messages.

    Raises:
        ConfigError: A law does not fit the modalities, or the standard grid is too large.
    """
    if grid is None:
        return []
    texts = grid_texts(grid, place)
    if texts == STANDARD:
        if len(modalities) > LARGEST:
            raise ConfigError(
                f"{place}={STANDARD}: it has all patterns of at most {LARGEST} modalities, here "
                f"{len(modalities)}. Give a list of laws."
            )
        sizes = range(1, len(modalities) + 1)
        patterns = (kept for size in sizes for kept in itertools.combinations(modalities, size))
        texts = [f"pattern:{'+'.join(kept)}" for kept in patterns] + [f"rate:{rate:g}" for rate in RATES]
    laws = {str(law): law for law in (parse(text, place) for text in texts)}
    for law in laws.values():
        law.check(modalities, place)
    return list(laws.values())


def grid_texts(grid: str | Sequence[str], place: str) -> str | list[str]:
    """``standard``, or the canonical texts of the laws of another grid.

    Raises:
        ConfigError: It is empty, or a text is not a law; the message begins with ``place``.
    """
    if not grid:
        no_grid = ", or null" if place == _GRID else ""
        raise ConfigError(f"{place} is empty. Give laws, or {STANDARD}{no_grid}.")
    texts = [grid] if isinstance(grid, str) else list(grid)
    if texts == [STANDARD]:
        return STANDARD
    if STANDARD in texts:
        raise ConfigError(f"{place}: {STANDARD} is not one law among others. Give only it, or list the laws.")
    return [str(parse(text, place, [STANDARD] * (len(texts) == 1))) for text in texts]


def canonical_laws(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``missing`` with the canonical text of every law.

    Raises:
        ConfigError: A text is not a law; the message begins with the key.
    """
    changed = dict(section)
    for name in _LAWS:
        if section.get(name) is not None:
            changed[name] = str(parse(section[name], f"missing.{name}"))
    grid = section.get("grid")
    if grid is not None:
        changed["grid"] = grid_texts(grid, _GRID)
    return changed


def described_laws() -> list[tuple[str, str]]:
    """How every law is typed, and what it does, for the help of commands."""
    return [(syntax(law), meaning(law).rstrip(".")) for law in LAWS.values()]


def check_laws(missing: Missing, modalities: Sequence[str]) -> None:
    """Check the laws of a run for its modalities.

    Raises:
        ConfigError: A law has an unknown modality or leaves nothing; the message begins with the key.
    """
    for name in _LAWS:
        text = getattr(missing, name)
        if text is not None:
            parse(text, f"missing.{name}").check(modalities, f"missing.{name}")
    grid_laws(missing.grid, modalities)
