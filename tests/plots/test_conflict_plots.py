from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ercfusion.plots.conflicts import plot_conflicts


def share(value: float | None) -> dict[str, Any]:
    return {"value": value, "interval": None if value is None else [max(value - 0.1, 0), min(value + 0.1, 1)]}


def made(differ: int = 20) -> dict[str, Any]:
    def subset(kind: str, right: list[str] | None, count: int, value: float | None) -> dict[str, Any]:
        accuracy = {name: share(value) for name in ("fused", "text", "audio")}
        return {"experts": kind, "right": right, "utterances": count, "accuracy": accuracy}

    follows = {"text": share(0.5), "audio": share(0.45), "none": share(0.05)}
    return {
        "synthetic": True,
        "runs": {"fused": {}, "text": {}, "audio": {}},
        "subsets": [
            subset("all", None, 60, 0.7),
            subset("agree", None, 40, 0.8),
            subset("agree", ["text", "audio"], 40, 0.8),
            subset("agree", [], 0, None),
            subset("disagree", None, differ, 0.6 if differ else None),
        ],
        "pairs": [{"experts": ["text", "audio"], "utterances": differ, "follows": follows}],
    }


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_bars_marks_and_parts(tmp_path: Path) -> None:
    figure = plot_conflicts(made(), tmp_path / "one.png", "A title")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        *(
            "all utterances  (n = 60)",
            "experts agree  (n = 40)",
            "experts agree, right  (n = 40)",
            "experts disagree  (n = 20)",
        ),
    ]
    assert [bar.get_width() for bar in left.patches] == pytest.approx([70, 80, 80, 60])
    marks = [line for line in left.lines if line.get_marker() not in (None, "None")]
    assert len(marks) == 6  # two experts in the three subsets that are not defined by what is right
    parts = [bar for bar in right.patches if bar.get_width() > 0]
    assert [bar.get_width() for bar in parts] == pytest.approx([50, 45, 5])
    assert [text.get_text() for text in right.texts] == ["50", "45"]  # 5 % has no room
    assert legend(right) == ["text", "audio", "neither"]
    assert figure._suptitle.get_text() == "A title (synthetic corpus)"
    again = tmp_path / "two.png"
    plot_conflicts(made(), again, "A title")
    assert again.read_bytes() == (tmp_path / "one.png").read_bytes()


def test_neither_is_in_the_legend_if_it_occurs() -> None:
    report = made()
    report["pairs"][0]["follows"] |= {"audio": share(0.5), "none": share(0.0)}
    assert legend(plot_conflicts(report, None, "A title").axes[1]) == ["text", "audio"]


def test_experts_that_never_differ() -> None:
    figure = plot_conflicts(made(differ=0), None, "A title")
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == []
