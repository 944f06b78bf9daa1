"""Plots of a sweep: they are drawn from whatever a sweep may give, twice the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ercfusion.plots.sweep import _limits, plot_importance, plot_search, plot_settings

POINTS: list[dict[str, Any]] = [
    {"trial": 0, "state": "complete", "score": 0.50, "lr": 1e-3, "kind": "a", "on": True, "layers": 1, "past": 5},
    {"trial": 1, "state": "pruned", "score": 0.30, "lr": 1e-4, "kind": "b", "on": False, "layers": 2, "past": 9},
    {"trial": 2, "state": "fail", "score": None, "lr": 9e-3, "kind": None, "on": True, "layers": 2, "past": 1},
    {"trial": 4, "state": "complete", "score": 0.54, "lr": 2e-3, "kind": "b", "on": True, "layers": 3, "past": 3},
    {"trial": 5, "state": "complete", "score": 0.02, "lr": 5e-3, "kind": "a", "on": True, "layers": 1, "past": 2},
]
DEFAULTS = {"lr": 1e-3, "kind": "a", "on": True, "layers": 1, "past": 5}


@pytest.mark.slow
def test_all_are_drawn_and_the_same_twice(tmp_path: Path) -> None:
    for ending in ("png", "svg"):
        for folder in ("one", "two"):
            target = tmp_path / folder
            target.mkdir(exist_ok=True)
            plot_search(POINTS, target / f"history.{ending}", "Dev F1", synthetic=True)
            plot_settings(POINTS, DEFAULTS, target / f"settings.{ending}", "Dev F1", 4, log=["lr"])
            plot_importance({"lr": 0.7, "kind": 0.3}, target / f"importance.{ending}", complete=12)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    text = (tmp_path / "one/history.svg").read_text()
    assert "synthetic corpus" in text
    assert "failed" in text


def test_a_trial_far_below_does_not_press_the_others_together() -> None:
    points = [{"trial": n, "state": "complete", "score": 0.5 + 0.001 * n} for n in range(20)]
    points.append({"trial": 20, "state": "complete", "score": 0.0})
    low, high, outside = _limits(points, maximize=True)
    assert low > 0.4
    assert outside == 1
    losses = [{**point, "score": -point["score"]} for point in points]
    low, high, outside = _limits(losses, maximize=False)
    assert high < -0.4
    assert outside == 1


@pytest.mark.parametrize("count", [1, 2])
def test_few_trials(tmp_path: Path, count: int) -> None:
    points = [POINTS[0], POINTS[3]][:count]
    plot_search(points, tmp_path / "a.png", "Dev nll", maximize=False)
    plot_settings(points, {"lr": 1e-3}, tmp_path / "b.png", "Dev nll", 0, log=["lr"])


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trial is complete"):
        plot_search(POINTS[1:3], tmp_path / "a.png", "F1")
    with pytest.raises(ValueError, match="no importances"):
        plot_importance({}, tmp_path / "a.png", complete=3)


def test_a_point_is_at_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its tick the number 2 would be read as another number; names are spread so that none hides another."""
    from matplotlib.axes import Axes

    places: dict[str, list[float]] = {}
    original = Axes.plot

    def watched(self: Axes, x: Any, *arguments: Any, **options: Any) -> Any:
        places.setdefault(str(self.get_subplotspec().num1), []).append(float(x))
        return original(self, x, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", watched)
    plot_settings(POINTS, {"layers": 1, "past": 5, "kind": "a"}, tmp_path / "a.png", "F1", 4)
    assert places["0"] == [0, 1, 2, 0, 2], "of 1, 2 and 3 layers, and the best trial"
    assert places["1"] == [2, 3, 1, 0, 1], "of 2, 3, 5 and 9"
    assert any(place != round(place) for place in places["2"])
