"""Which cases of a test the default run has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, cases: Iterable[Any]) -> list[Any]:
    """The first cases as they are, the others as slow tests: they are of the same kind, and take time."""
    cases = list(cases)
    return cases[:count] + [_slow(case) for case in cases[count:]]


def every(step: int, cases: Iterable[Any]) -> list[Any]:
    """Every ``step``-th case as it is, the others as slow tests."""
    return [case if number % step == 0 else _slow(case) for number, case in enumerate(cases)]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
