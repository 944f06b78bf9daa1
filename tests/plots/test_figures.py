from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from quick import first

from ercfusion.batch.labels import get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.calibration import expected_calibration_error
from ercfusion.metrics.classification import confusion_matrix, per_class
from ercfusion.metrics.inputs import labelled
from ercfusion.plots import canvas
from ercfusion.plots import figures as plots

EMOTION = TaskSpec("emotion", "single_label", get_schema("meld7"))
VAD = TaskSpec("vad", "regression", dimensions=("valence", "arousal", "dominance"), low=1, high=5)


class Written:
    """The functions that draw, returning the file that they wrote."""

    def __getattr__(self, name: str) -> Callable[..., Path]:
        def draw(*arguments: Any, **options: Any) -> Path:
            assert isinstance(getattr(plots, name)(*arguments, **options), Figure)
            return next(one for one in arguments if isinstance(one, Path))

        return draw


written = Written()
TITLE = plots.plot_title("meld/7way", "dialogue_rnn", "test")
HISTORY: dict[str, Any] = {
    "train/loss": [1.9, 1.2, 0.9, 0.8],
    "dev/loss": [1.7, None, 1.1, float("inf")],
    "dev/weighted_f1": [0.2, 0.4, 0.5, 0.45],
}


def make(task: TaskSpec, seed: int = 0, count: int = 60) -> Predictions:
    rng = np.random.default_rng(seed)
    output = rng.dirichlet(np.ones(task.size), count)
    value: Any = rng.integers(0, task.size, count)
    if task.kind == "regression":
        value = rng.uniform(task.low, task.high, output.shape)
        output = value + rng.normal(size=output.shape)
    return Predictions(
        task, output, value, np.arange(count) % 7 > 0, (count,), np.zeros(count, int), ("c",), ("t",) * count
    )


PREDICTIONS = make(EMOTION)
PLOTS: dict[str, Callable[..., Path]] = {
    "curves": lambda path, **kw: written.plot_training_curves(HISTORY, path, 2, title=TITLE, **kw),
    "confusion": lambda path, **kw: written.plot_confusion(
        confusion_matrix(PREDICTIONS), EMOTION.output_names, path, TITLE, **kw
    ),
    "class_f1": lambda path, **kw: written.plot_class_f1(per_class(PREDICTIONS), path, TITLE, **kw),
    "reliability": lambda path, **kw: written.plot_reliability(PREDICTIONS, path, TITLE, **kw),
    "scatter": lambda path, **kw: written.plot_scatter(make(VAD), path, TITLE, **kw),
}


def texts(path: Path) -> str:
    """All texts of an SVG: matplotlib draws letters as outlines and puts each text in a comment before them."""
    return "\n".join(line.strip() for line in path.read_text().splitlines() if line.strip().startswith("<!--"))


def size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    return width, height


@pytest.mark.parametrize("name", first(2, PLOTS))
def test_same_numbers_same_bytes(name: str, tmp_path: Path) -> None:
    import matplotlib

    for ending in ("png", "svg"):
        first = PLOTS[name](tmp_path / f"a.{ending}")
        with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "figure.dpi": 40}):
            second = PLOTS[name](tmp_path / f"b.{ending}")
            assert matplotlib.rcParams["font.size"] == 20, "the user's settings come back"
        assert first.read_bytes() == second.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]


@pytest.mark.parametrize("name", PLOTS)
def test_titles(name: str, tmp_path: Path) -> None:
    plain, marked = texts(PLOTS[name](tmp_path / "a.svg")), texts(PLOTS[name](tmp_path / "b.svg", synthetic=True))
    assert TITLE in plain
    assert "synthetic" not in plain
    assert f"{TITLE} (synthetic corpus)" in marked


def test_size_does_not_depend_on_the_content(tmp_path: Path) -> None:
    def confusion(names: list[str]) -> tuple[int, int]:
        matrix = np.arange(len(names) ** 2).reshape(len(names), len(names))
        return size(written.plot_confusion(matrix, names, tmp_path / "a.png", TITLE))

    assert (
        confusion(["no", "yes"]) == confusion([f"a rather long name {number}" for number in range(10)]) == (1500, 720)
    )
    short = written.plot_training_curves({"train/loss": [1.0]}, tmp_path / "b.png", 0)
    assert size(short) == size(PLOTS["curves"](tmp_path / "c.png")) == (1320, 540)


def test_confusion_shows_counts_and_percentages(tmp_path: Path) -> None:
    matrix = np.array([[8, 2, 0], [1234, 12345, 0], [0, 0, 0]])
    found = texts(written.plot_confusion(matrix, ("a", "b", "c"), tmp_path / "a.svg", TITLE))
    for text in ("12345", "1234", "80", "20", "91", "–"):
        assert f"<!-- {text} -->" in found
    with pytest.raises(ValueError, match="with 2 labels"):
        written.plot_confusion(matrix, ("a", "b"), tmp_path / "a.svg", TITLE)
    written.plot_confusion(np.zeros((2, 2)), ("a", "b"), tmp_path / "a.svg", TITLE)


def test_class_f1_keeps_the_order_and_shows_support(tmp_path: Path) -> None:
    table = per_class(PREDICTIONS)
    found = texts(PLOTS["class_f1"](tmp_path / "a.svg"))
    places = [found.index(f"{label}  (n = {row['support']:g})") for label, row in table.items()]
    assert places == sorted(places)
    assert all(f"<!-- {100 * row['f1']:.1f} -->" in found for row in table.values())


def test_curves_accept_rows_and_columns(tmp_path: Path) -> None:
    rows = [
        {"epoch": epoch} | {name: values[epoch] for name, values in HISTORY.items() if values[epoch] is not None}
        for epoch in range(4)
    ]
    PLOTS["curves"](tmp_path / "columns.svg")
    written.plot_training_curves(rows, tmp_path / "rows.svg", 2, title=TITLE)
    assert (tmp_path / "columns.svg").read_bytes() == (tmp_path / "rows.svg").read_bytes()
    found = texts(tmp_path / "rows.svg")
    for text in ("Loss", "Score", "chosen: epoch 2", "dev/weighted_f1"):
        assert text in found
    empty: list[Any] = [{}, [], {"dev/loss": [None, float("nan")]}]
    for nothing in empty:
        with pytest.raises(ValueError, match="empty"):
            written.plot_training_curves(nothing, tmp_path / "x.png")


def test_calibration_error_is_in_the_title(tmp_path: Path) -> None:
    rows = labelled(PREDICTIONS)
    assert rows is not None
    error = expected_calibration_error(rows)
    assert f"expected calibration error {100 * error:.1f} %" in texts(PLOTS["reliability"](tmp_path / "a.svg"))
    with pytest.raises(ValueError, match="no single right label"):
        written.plot_reliability(make(VAD), tmp_path / "x.png", TITLE)


def test_scatter(tmp_path: Path) -> None:
    found = texts(PLOTS["scatter"](tmp_path / "a.svg"))
    assert all(f"{name}: CCC " in found for name in VAD.dimensions)
    assert "intervals cover" not in found
    predicted = make(VAD)
    exact = replace(predicted, output=predicted.value.astype(float), spread=np.ones_like(predicted.output))
    assert texts(written.plot_scatter(exact, tmp_path / "c.svg", TITLE)).count("90 % intervals cover 100.0%") == 3
    for part in (predicted, exact):
        figure = plots.plot_scatter(part, None, TITLE)
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert 0 <= box.y0 < box.y1 <= figure.bbox.height, "cut at an edge"
    one = TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-3, high=3)
    assert size(written.plot_scatter(make(one, count=3), tmp_path / "b.png", TITLE)) == (720, 696)
    with pytest.raises(ValueError, match="no numbers to draw"):
        written.plot_scatter(PREDICTIONS, tmp_path / "x.png", TITLE)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="png, svg, pdf"):
        PLOTS["curves"](tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported_and_matplotlib_only_when_needed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ercfusion.plots import figures as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.plot_training_curves({'loss': [1.0, 0.5]}, sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    arguments: list[Any] = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    subprocess.run(arguments, check=True)


def test_signs_that_no_font_has_are_written_as_codes(tmp_path, monkeypatch, recwarn):
    drawn = []
    original = canvas._write_all_signs

    def watched(figure):
        original(figure)
        drawn.extend(text.get_text() for text in figure.findobj(Text))
        figure.canvas.draw()

    monkeypatch.setattr(canvas, "_write_all_signs", watched)
    monkeypatch.setattr(canvas, "_OTHER_FONTS", ())
    labels = ["高兴", "Überraschung", "\u60b2"]
    written.plot_confusion(np.eye(3, dtype=int), labels, tmp_path / "a.png", "计 matrix")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert {"U+9AD8 U+5174", "Überraschung", "U+60B2"} <= set(drawn)
    assert any(text.startswith("U+8BA1") for text in drawn)


def test_training_curves_show_what_to_compare_with(tmp_path):
    path = tmp_path / "a.svg"
    written.plot_training_curves(HISTORY, path, levels={"majority": 0.1, "best reachable": 0.9})
    text = path.read_text()
    assert text.count("<!-- majority -->") == text.count("<!-- best reachable -->") == 1  # not among the losses
