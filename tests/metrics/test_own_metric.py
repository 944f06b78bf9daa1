"""A metric of one's own: one file, registered through ``imports=``, is a metric like any other everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as oracle
from made_predictions import LABELS, random_predictions
from runs import restored, train
from sweeps import SMALL, in_process, table

from ercfusion._core.errors import ConfigError
from ercfusion.batch.task import TaskSpec
from ercfusion.compare import comparison_text
from ercfusion.metrics import Metric, register
from ercfusion.metrics.inputs import Inputs
from ercfusion.metrics.registry import REGISTERED, score_source
from ercfusion.records.record import record_sums
from ercfusion.sweep import main as sweep

__all__ = ["in_process"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-metric.md"
MORE = """
register(
    Metric(
        "doubt",
        "doubt",
        "mean probability that is not on the predicted label",
        rows={"labelled": lambda rows, task: 1 - rows.confidence.mean()},
        higher_is_better=False,
    )
)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a file of two metrics: that of the documentation and another one."""
    (example,) = re.findall(r"<!-- file: my_metrics.py -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_metrics.py").write_text(example + MORE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with restored("my_metrics"):
        yield tmp_path


OWN = ("imports=[my_metrics]", "model=concat", "data=demo", "training.max_epochs=3", "training.pictures=false")


def test_training_records_intervals_and_tables(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.plots import pictures

    drawn: list[str] = []
    monkeypatch.setattr(pictures, "plot_training_curves", lambda rows, *_, **__: drawn.extend(rows[0]))
    monkeypatch.setattr(pictures, "PICTURES", dict.fromkeys(pictures.PICTURES, lambda *_: None))
    first = train(own / "a", *OWN, "optimizer.lr=0.01", "training.metric=kappa", "training.pictures=true")
    second = train(own / "b", *OWN, "training.metric=kappa", "model.hidden=4", "training.max_epochs=1")
    assert "dev/kappa" in drawn
    assert first["selection"]["metric"] == "kappa"
    _, sums = record_sums(first)
    counts = sums["confusion"].sum(axis=0).ravel()
    truth, said = (np.repeat(places, counts) for places in np.indices((6, 6)).reshape(2, -1))
    assert first["metrics"]["test"]["kappa"] == pytest.approx(oracle.cohen_kappa_score(truth, said), abs=1e-6)
    assert 0 <= first["metrics"]["test"]["doubt"] < 1
    low, high = first["intervals"]["test"]["kappa"]
    assert -1 <= low < first["metrics"]["test"]["kappa"] < high <= 1
    assert score_source(TaskSpec.from_dict(second["task"]), "doubt") is None
    text = comparison_text([str(own / "a"), str(own / "b")])
    assert "test Cohen's kappa" in text
    assert f"{first['metrics']['test']['kappa']:.3f}" in text  # its unit is not the percent
    assert "doubt ↓" in comparison_text([str(own / "a"), str(own / "b")], "doubt")


@pytest.mark.slow
def test_sweeps_go_in_its_direction(own: Path, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*SMALL, *OWN[:1], "training.metric=doubt", "sweep.trials=2", "run=" + str(own / "s")]
    assert sweep(settings) == 0
    values = [float(row["dev/doubt"]) for row in table(own / "s")]
    assert len(set(values)) > 1
    assert f"best trial dev doubt {min(values):.4f}" in capsys.readouterr().out


def test_names_are_taken_once() -> None:
    metric: Any = Metric("uar", "UAR", "another one", rows={"labelled": lambda rows, task: 0.0})
    with pytest.raises(ConfigError, match="'uar' is taken: unweighted average recall"):
        register(metric)
    assert register(REGISTERED["uar"]) is REGISTERED["uar"]
    with pytest.raises(ValueError, match="'a/b' cannot name a metric"):
        Metric("a/b", "x", "x", rows={"labelled": lambda rows, task: 0.0})
    with pytest.raises(ValueError, match="'x' has no formula"):
        Metric("x", "x", "x")


def test_a_formula_of_another_shape_is_refused() -> None:
    predictions = random_predictions(LABELS, 0)
    one = Metric("one", "one", "one", rows={"sets": lambda sets, task: sets.output.mean(axis=0)})
    with pytest.raises(ConfigError, match=r"'one': the formula of 'sets' gave shape \(6,\).* \(\) is expected"):
        one.values(Inputs(predictions))
    each = Metric("each", "each", "each", sums={"counts": lambda sums, task: sums.sum()}, outputs="all")
    with pytest.raises(ConfigError, match=r"'each': the formula of 'counts' gave shape \(\).* \(6,\) is expected"):
        each.values(Inputs(predictions))
