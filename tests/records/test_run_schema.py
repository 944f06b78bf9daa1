"""Schemas of run folders and records: all committed files fit, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_records import record
from runs import TINY, refused, train

from ercfusion._core.errors import RunError
from ercfusion._core.schemas.reading import check
from ercfusion.config.compose import Composer
from ercfusion.config.schema import run_config
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.predictions import read_predictions
from ercfusion.records.record import RECORD, read_record
from ercfusion.train import main

ROOT = Path(__file__).resolve().parents[2]


def test_all_committed_records_fit() -> None:
    paths = sorted((ROOT / "experiments").glob("*/records/*.json"))
    assert len(paths) > 20
    for path in paths[::8]:  # the slow test reads all of them
        assert read_archive(path)


@pytest.mark.slow
def test_every_committed_record_fits() -> None:
    for path in sorted((ROOT / "experiments").glob("*/records/*.json")):
        assert read_archive(path)


CHOICES: list[list[str]] = [
    [],
    ["model=m2fnet_released"],
    ["optimizer=sgd", "scheduler=plateau"],
    ["curriculum=weighted_shift"],
    ["objective=supcon"],
    ["task=metric_learning"],
]


@pytest.mark.parametrize("choices", CHOICES)
def test_every_composed_configuration_fits(choices: list[str]) -> None:
    check(Composer().compose(choices), run_config(), "config.json")


@pytest.mark.parametrize("key", ["training.pictures", "objective.supcon.queue", "optimizer.eps", "task.export", "seed"])
def test_every_setting_is_needed(key: str) -> None:
    config: dict[str, Any] = Composer().compose([])
    node, *path = config, *key.split(".")
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    with pytest.raises(RunError, match=f"{path[-1]}'.* is missing"):
        check(config, run_config(), "config.json")


def test_settings_of_another_choice_are_named() -> None:
    config: dict[str, Any] = Composer().compose(["optimizer=sgd"])
    config["optimizer"]["betas"] = [0.9, 0.999]
    with pytest.raises(RunError, match=r"optimizer=sgd has no setting 'betas'"):
        check(config, run_config(), "config.json")


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("training", "max_epochs", "3", "key 'training.max_epochs': found '3', but a whole number"),
        ("training", "pictures", 1, "key 'training.pictures': found 1, but true or false"),
        ("optimizer", "lr", [0.1], "key 'optimizer.lr': found [0.1], but a number"),
        ("optimizer", "betas", ["a"], "key 'optimizer.betas[0]': found 'a', but a number"),
        ("data", "packs", {"audio": 3}, "key 'data.packs.audio': found 3, but a text"),
        ("model", "hidden", {"a": 1}, "key 'model.hidden'"),
        ("trainer", "devices", True, "key 'trainer.devices'"),
    ],
)
def test_a_wrong_type_names_the_key(section: str, key: str, value: Any, expected: str) -> None:
    config: dict[str, Any] = Composer().compose([])
    config[section][key] = value
    with pytest.raises(RunError) as found:
        check(config, run_config(), "config.json")
    assert expected in str(found.value)


@pytest.mark.parametrize("name", ["config.json", "overrides.json", "environment.json"])
def test_a_damaged_description_is_named_before_anything_is_trained(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(folder, "model=concat", "training.max_epochs=1", "training.pictures=false")
    (folder / RECORD).unlink()
    before = (folder / "metrics.csv").stat().st_mtime_ns
    (folder / name).write_bytes(b'{"seed": "\xff"}')
    assert f"{folder / name}, line 1: not UTF-8" in refused(main, [f"resume={folder}"], capsys)
    assert (folder / "metrics.csv").stat().st_mtime_ns == before


def test_predictions_that_changed_after_the_record_are_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from ercfusion.batch.task import TaskSpec

    folder = tmp_path / "run"
    made = train(folder, *TINY, "model=majority", "training.max_epochs=1", "training.pictures=false")
    path, task = folder / "predictions.parquet", TaskSpec.from_dict(made["task"])
    assert set(read_predictions(path, task)) == {"dev", "test"}
    table = pq.read_table(path)
    pq.write_table(table, path)  # other bytes with the same values
    with pytest.raises(RunError, match=r"predictions\.parquet was changed or damaged"):
        read_predictions(path, task)
    record = json.loads((folder / RECORD).read_text())
    del record["files"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"predictions\.parquet was changed or damaged"):
        read_predictions(path, task)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [([0, 0, -3], "but a number of at least 0"), ([0, 99, 1], "does not fit 6 labels"), ([0, 0], "at least 3 entries")],
)
def test_counts_that_cannot_be_are_refused(tmp_path: Path, cell: list[int], expected: str) -> None:
    made = record()
    confusion = made["splits"]["test"]["confusion"]
    confusion[next(iter(confusion))] = [cell]
    (tmp_path / RECORD).write_text(json.dumps(made))
    with pytest.raises(RunError, match=r"record\.json") as found:
        read_record(tmp_path)
    assert expected in str(found.value)


def test_negative_counts_of_an_archive_are_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.json", [record(seed=0), record(seed=1)])
    content = json.loads(path.read_text())
    content["runs"][0]["splits"]["test"]["confusion"][0] = "0,0,-5"
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"a\.json, key 'splits\.test\.confusion\..*: found -5"):
        read_archive(path)
