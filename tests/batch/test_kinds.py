"""Task kinds: that no other code asks for the name of one, and that one of a user's own is one file."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ercfusion
from ercfusion import evaluate, train
from ercfusion._core.errors import ConfigError
from ercfusion._core.registry import import_modules
from ercfusion.batch.kinds import KINDS, TaskKind, register, task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.data import FeatureTable, open_corpus
from ercfusion.data.pack import write_pack
from ercfusion.records.predictions import read_predictions
from ercfusion.records.record import read_record
from ercfusion.testing import check_model, make_task

PACKAGE = Path(ercfusion.__file__).parent
PAGE = PACKAGE.parent / "docs" / "tasks.md"
NAMES = {"single_label", "multi_label", "distribution", "regression", "intensity"}


def names_a_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(names_a_kind, node.elts))
    return isinstance(node, ast.Constant) and node.value in NAMES


def branches(source: str) -> list[int]:
    """Lines that decide by the name of a task kind: comparisons, cases, and mappings from it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = [side for side in sides if isinstance(side, ast.Attribute) and side.attr == "kind"]
            of_task = any(ast.unparse(side.value).rpartition(".")[2] == "task" for side in named)
            wrong = of_task or any(map(names_a_kind, sides))
        elif isinstance(node, ast.MatchValue):
            wrong = names_a_kind(node.value)
        elif isinstance(node, ast.Dict):
            wrong = any(key is not None and names_a_kind(key) for key in node.keys)
        else:
            continue
        if wrong:
            found.append(node.lineno if not isinstance(node, ast.MatchValue) else node.value.lineno)
    return found


def test_no_code_branches_on_the_name_of_a_kind() -> None:
    for source, expected in (
        ("if task.kind == x: pass", 1),
        ("if kind in ('single_label', 'distribution'): pass", 1),
        ("TABLE = {'multi_label': 1}", 1),
        ("match kind:\n    case 'regression': pass", 1),
        ("if array.dtype.kind == 'O': pass", 0),
        ("TaskSpec('emotion', 'single_label', schema)", 0),
    ):
        assert len(branches(source)) == expected, source
    assert set(KINDS) >= NAMES
    apart = {"kinds"}
    files = [path for path in PACKAGE.rglob("*.py") if not apart & set(path.relative_to(PACKAGE).parts)]
    assert len(files) > 100
    found = {str(path.relative_to(PACKAGE)): lines for path in files if (lines := branches(path.read_text("utf-8")))}
    assert not found, f"ask task.rules instead: {found}"


def test_kinds_are_found_by_their_files() -> None:
    assert {path.stem for path in (PACKAGE / "tasks" / "kinds").glob("[!_]*.py")} == NAMES
    assert all(isinstance(task_kind(name), TaskKind) for name in NAMES)
    assert task_kind("regression") is task_kind("regression")
    with pytest.raises(ConfigError, match=r"no task kind 'singel_label'\. Did you mean 'single_label'"):
        task_kind("singel_label")
    with pytest.raises(ConfigError, match="the task kind name 'regression' belongs to"):
        register("regression", "mine:Mine")


@pytest.fixture
def ordinal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a kind of one's own and a small corpus that uses it."""
    (example,) = re.findall(r"<!-- file: my_ordinal.py -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_ordinal.py").write_text(example, encoding="utf-8")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    grades, chance = ("bad", "fair", "good"), np.random.default_rng(0)
    rows, keys, values = ["conversation,turn,speaker,split,mood"], [], []
    for split, count in {"train": 8, "dev": 4, "test": 4}.items():
        for number in range(count):
            for turn in range(4):
                grade = int(chance.integers(3))
                rows.append(f"{split}{number},{turn},{'ab'[turn % 2]},{split},{grades[grade]}")
                keys.append((f"{split}{number}", str(turn)))
                values.append([grade + chance.normal(0, 0.1), chance.normal()])
    (corpus / "utterances.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_pack(
        corpus / "packs" / "audio", FeatureTable("audio", keys, np.array(values, dtype=np.float32)), tool="none",
        tool_version="1", settings={}, corpus="custom",
        fingerprint=open_corpus("custom", corpus).source_fingerprint("audio"),  # which targets do not change
    )  # fmt: skip
    (corpus / "corpus.yaml").write_text(
        f"synthetic: true\ntargets:\n  mood:\n    kind: ordinal\n    labels: [{', '.join(grades)}]\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_ordinal", None)
    KINDS.pop("ordinal", None)


@pytest.mark.slow
def test_a_kind_of_ones_own_is_one_file(ordinal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ordinal / "run"
    typed = ["imports=[my_ordinal]", "model=concat", "data=custom", f"data.raw={ordinal / 'corpus'}", f"run={run}"]
    typed += ["training.max_epochs=6", "training.bootstrap=20", "optimizer.lr=0.1", "training.batch_size=2"]
    train.main(typed)
    record = read_record(run)
    assert record["task"]["kind"] == "ordinal"
    assert record["metrics"]["test"]["accuracy"] > 0.8 > record["majority"]["test"]["accuracy"]
    assert (run / "plots" / "test-confusion.png").is_file()
    test = read_predictions(run / "predictions.parquet", TaskSpec.from_dict(record["task"]))["test"]
    np.testing.assert_allclose(test.output.sum(axis=1), 1, atol=1e-5)
    assert json.loads((run / "model" / "config.json").read_text())["task"]["kind"] == "ordinal"
    capsys.readouterr()
    evaluate.main([str(run), "imports=[my_ordinal]"])
    assert "equal to the run's record" in capsys.readouterr().out


@pytest.mark.slow
def test_architectures_are_checked_with_a_kind_of_ones_own(ordinal: Path) -> None:
    import_modules(["my_ordinal"])
    check_model("concat", make_task("ordinal"))
