"""A loss term of one's own: one file, registered through ``imports=``, is a term like any other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, assert_same_run, command, history, read, refused, restored, train
from sweeps import SMALL, in_process, table

from ercfusion import compare, evaluate, sweep
from ercfusion.config.terms import TERMS
from ercfusion.train import main

__all__ = ["in_process"]  # a fixture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses.md"
OWN = ("imports=[my_terms]", "model=concat", "model.hidden=4", "training.max_epochs=1", "training.pictures=false")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with the file of the documentation; afterwards its term is forgotten."""
    (example,) = re.findall(r"<!-- file: my_terms.py -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_terms.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with restored("my_terms"):
        yield tmp_path


def forget(before: dict[str, Any]) -> None:
    """As in a process that has not imported the module."""
    TERMS.clear()
    TERMS.update(before)
    sys.modules.pop("my_terms", None)


def test_settings_are_checked_and_listed(own: Path, capsys: Any) -> None:
    assert "no such choice of objective" in refused(main, ["objective=compact"], capsys)
    _, out, _ = command(main, ["imports=my_terms", "--help"], capsys)
    assert re.search(r"objective= .*\bcompact\b", out)
    _, out, _ = command(main, [*OWN, "objective=compact", "--cfg"], capsys)
    assert "    compact: 0.1\n" in out
    assert "  compact:\n    of: hidden\n    projection: 0\n    radius: 2.0\n" in out
    wrong = refused(main, [*OWN, "objective.compact.radius=-1"], capsys)
    assert "objective.compact.radius must be above 0, found -1" in wrong
    assert "Did you mean 'objective.compact.radius'" in refused(main, [*OWN, "objective.compact.radus=1"], capsys)
    wrong = refused(main, [*OWN, *TINY, "data=demo/multilabel", "objective=compact"], capsys)
    assert "objective.weights.compact is for single_label" in wrong


def test_training_records_and_other_processes(own: Path, capsys: Any) -> None:
    without = dict(TERMS)
    plain = train(own / "plain", *OWN[1:])
    made = train(own / "a", *OWN, "objective.weights.compact=0.3", "objective.compact.radius=0.01")
    assert float(history(own / "a")[0]["train/compact"]) > 0
    assert float(history(own / "a")[0]["train/loss"]) > float(history(own / "plain")[0]["train/loss"])
    expected = {"of": "hidden", "projection": 0, "radius": 0.01}
    assert made["config"]["objective"]["compact"] == expected
    assert read(own / "a" / "config.json")["objective"]["compact"] == expected
    # A run that was made before the term was registered.
    assert "compact" not in plain["config"]["objective"]
    assert command(evaluate.main, ["plain"], capsys)[0] == 0
    _, out, _ = command(compare.main, ["a", "plain"], capsys)
    assert "objective.weights.compact=0.3" in out
    # A process that has not imported the module.
    forget(without)
    _, out, _ = command(compare.main, ["a", "plain"], capsys)
    assert "objective.weights.compact=0.3" in out
    assert "imports=[my_terms]" in refused(evaluate.main, ["a"], capsys)
    shutil.copytree("a", "b")
    (own / "b" / "record.json").unlink()
    assert "imports=[my_terms]" in refused(main, ["resume=b"], capsys)
    assert command(main, ["resume=b", "imports=my_terms"], capsys)[0] == 0
    assert_same_run(own / "b", own / "a")
    forget(without)
    (own / "b" / "record.json").unlink()
    config = read(own / "b" / "config.json")
    config["objective"]["compact"]["radius"] = "x"
    (own / "b" / "config.json").write_text(json.dumps(config))
    wrong = refused(main, ["resume=b", "imports=my_terms"], capsys)
    assert "config.json, key 'objective.compact.radius': found 'x'" in wrong


@pytest.mark.slow
def test_the_commands_of_the_page_run(own: Path, in_process: None, capsys: Any) -> None:
    text = PAGE.read_text("utf-8")
    (trained,) = re.findall(r"(?m)^python -m ercfusion\.train (imports=.*)$", text)
    (swept,) = re.findall(r"(?m)^python -m ercfusion\.sweep (imports=.*)$", text)
    tiny = [*TINY, "training.max_epochs=1", "training.pictures=false"]
    assert command(main, [*trained.split(), *tiny, f"run={own / 'a'}"], capsys)[0] == 0
    assert command(sweep.main, [*SMALL, *shlex.split(swept), "sweep.trials=1", f"run={own / 's'}"], capsys)[0] == 0
    assert len(table(own / "s")) == 1


@pytest.mark.slow
def test_a_sweep_searches_it(own: Path, in_process: None) -> None:
    ranges = ["objective.weights.compact=interval(0.1,1)", "objective.compact.radius=interval(0.1,0.2)"]
    assert sweep.main([*SMALL, *OWN[:3], *ranges, "sweep.trials=2", f"run={own / 's'}"]) == 0
    radii = [float(row["objective.compact.radius"]) for row in table(own / "s")]
    assert len(set(radii)) == 2
    assert all(0.1 <= radius <= 0.2 for radius in radii)
