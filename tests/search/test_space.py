"""Dimensions: how they are written, typed, stretched, and turned into settings."""

from __future__ import annotations

from typing import Any

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config.compose import Composer
from ercfusion.search import space


def typed(text: str, default: Any = None) -> space.Dimension:
    _, ranges = Composer("sweep").split_ranges([text])
    ((key, parsed),) = ranges.items()
    return space.typed_dimension(key, parsed, default)


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("optimizer.lr=interval(1e-4,1e-2)", 0.001, {"low": 1e-4, "high": 1e-2}),
        ("optimizer.lr=tag(log,interval(1e-4,1e-2))", 0.001, {"low": 1e-4, "high": 1e-2, "log": True}),
        ("model.layers=interval(0,3)", 2, {"low": 0, "high": 3}),
        ("model.hidden=tag(log,interval(8,64))", 2, {"low": 8, "high": 64, "log": True}),
        ("model.layers=0,1,2", 2, {"choices": [0, 1, 2]}),
        ("model.norm=choice(layer,'batch')", "layer", {"choices": ["layer", "batch"]}),
        ("data.modalities=[text],[text,audio]", None, {"choices": [["text"], ["text", "audio"]]}),
        ("model.residual=true,false", True, {"choices": [True, False]}),
        ("model.layers=1,1,2", 1, {"choices": [1, 2]}),
        ("model.past=range(1,8,2)", 5, {"low": 1, "high": 7, "step": 2}),
        ("model.past=range(3)", 5, {"low": 0, "high": 2, "step": 1}),
        ("model.dropout=range(0.1,0.5,0.1)", 0.4, {"low": 0.1, "high": 0.4, "step": 0.1}),
    ],
)
def test_what_hydras_syntax_means(text: str, default: Any, expected: space.Dimension) -> None:
    assert typed(text, default) == expected


@pytest.mark.parametrize(
    ("text", "default", "message"),
    [
        ("optimizer.lr=interval(1,0)", 0.1, r"low \(1.0\) is above high \(0.0\)"),
        ("optimizer.lr=tag(log,interval(0,1))", 0.1, "a logarithmic range cannot start at 0"),
        ("optimizer.lr=tag(big,interval(0,1))", 0.1, "unknown tag big"),
        ("model.layers=interval(0.5,2)", 2, "takes whole numbers"),
        ("model.layers=tag(log,choice(1,2))", 2, "not for choices"),
        ("model.layers=tag(log,range(1,4))", 2, r"range\(\) cannot be logarithmic"),
        ("model.layers=range(3,3)", 2, "the range is empty"),
        ("model.layers=glob(*)", 2, r"Use a,b,c or choice\(..\)"),
        ("seed=0,1", 0, "Set sweep.rerun=N to train the winner"),
        ("model.name=concat,bclstm", "concat", "cannot be searched"),
        ("training.metric=a,b", None, "cannot be searched"),
        ("sweep.trials=1,2", 1, "cannot be searched"),
    ],
)
def test_ranges_that_make_no_sense(text: str, default: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        typed(text, default)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "found 3. Write {low"),
        ({"low": 1}, "Write {low"),
        ({"low": 1, "high": "x"}, "Write {low"),
        ({"low": True, "high": 2}, "Write {low"),
        ({"low": 1, "hihg": 2}, "unknown key 'hihg'. Did you mean 'high'"),
        ({"choices": []}, "Write {choices"),
        ({"choices": [1], "low": 0}, "Write {choices"),
        ({"low": 1e-3, "high": 1.0, "log": True, "step": 0.1}, "log or step, not both"),
        ({"low": 0.0, "high": 1.0, "step": 0}, "step is 0. Set it above 0"),
    ],
)
def test_entries_of_files_that_make_no_sense(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"mine.yaml: model.dropout.*{message}"):
        space.read_dimension("model.dropout", entry, "mine.yaml: ")


def test_one_form() -> None:
    read = {"low": 0, "high": 0.5, "step": 0.2}
    assert space.read_dimension("model.dropout", read, "") == {"low": 0.0, "high": 0.4, "step": 0.2}
    assert space.read_dimension("model.past", {"low": 1, "high": 8, "step": 3}, "")["high"] == 7


UNIT, LOG = {"low": 0.1, "high": 0.5}, {"low": 1e-3, "high": 1e-1, "log": True}
GRID, WHOLE = {"low": 0.1, "high": 0.6, "step": 0.05}, {"low": 0, "high": 15, "step": 5}


@pytest.mark.parametrize(
    ("dimension", "value", "expected"),
    [
        (UNIT, 0.3, UNIT),
        (UNIT, 0.7, {"low": 0.1, "high": 0.7}),
        (GRID, 0.4, GRID),
        (GRID, 0.7, {**GRID, "high": 0.7}),
        (GRID, 0.33, {"low": 0.1, "high": 0.6}),
        (WHOLE, 10, WHOLE),
        (WHOLE, 7, {"low": 0, "high": 15}),
        (WHOLE, 20, {**WHOLE, "high": 20}),
        (WHOLE, 0.5, None),
        (LOG, 0.02, LOG),
        (LOG, 1.0, {"low": 0.1, "high": 10.0, "log": True}),
        (LOG, 0.0, None),
        ({"choices": [64, 128]}, 100, {"choices": [64, 100, 128]}),
        ({"choices": ["a", True]}, "b", {"choices": ["a", True, "b"]}),
        (UNIT, "text", None),
    ],
)
def test_a_space_comes_to_hold_the_settings_that_it_begins_with(
    dimension: space.Dimension, value: Any, expected: space.Dimension | None
) -> None:
    found = space.stretched(dimension, value)
    assert found == expected
    assert found is None or space.holds(found, value)


@pytest.mark.parametrize(
    ("dimension", "value", "expected"),
    [
        (UNIT, 0.9, 0.5),
        (UNIT, "text", 0.1),
        (GRID, 0.33, 0.35),
        (WHOLE, 8, 10),
        (WHOLE, -3, 0),
        ({"choices": [1, 4, 9]}, 5, 4),
        ({"choices": ["a", "b"]}, "z", "a"),
    ],
)
def test_the_nearest_value(dimension: space.Dimension, value: Any, expected: Any) -> None:
    found = space.clipped(dimension, value)
    assert found == pytest.approx(expected) if isinstance(expected, float) else found == expected
    assert space.holds(dimension, found)


def test_true_is_not_one() -> None:
    assert not space.holds({"choices": [1, 2]}, True)
    assert not space.holds({"low": 0, "high": 2}, True)


def test_settings_of_a_trial_are_short_and_the_defaults_exact() -> None:
    dimensions = {
        "optimizer.lr": {"low": 1e-5, "high": 1.0, "log": True},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.1},
        "data.modalities": {"choices": [["text"], ["text", "audio"]]},
    }
    config = {"optimizer": {"lr": 0.123456789}, "model": {"dropout": 0.4}, "data": {"modalities": None}}
    params = {
        "optimizer.lr": 0.123456789,
        "model.dropout": 0.30000000000000004,
        "data.modalities": space.encoded(["text", "audio"]),
    }
    found = space.trial_settings(dimensions, params, config)
    assert found == {"optimizer.lr": 0.123456789, "model.dropout": 0.3, "data.modalities": ["text", "audio"]}
    changed = space.with_settings(config, found)
    assert changed["data"]["modalities"] == ["text", "audio"]
    assert config["data"]["modalities"] is None


def test_optuna_takes_every_form() -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    forms = [UNIT, LOG, GRID, WHOLE, {"choices": [["a"], ["b"]]}, {"low": 1, "high": 64, "log": True}]
    dimensions = {f"x.{number}": dimension for number, dimension in enumerate(forms)}
    trial = study.ask()
    for key, dimension in dimensions.items():
        space.suggest(trial, key, dimension)
    params = dict(trial.params)
    for key, dimension in dimensions.items():
        space.suggest(trial, key, dimension)  # once more, as a trial that is taken over
    assert trial.params == params
    values = space.trial_settings(dimensions, params, {"x": dict.fromkeys(map(str, range(6)))})
    assert all(space.holds(dimensions[key], value) for key, value in values.items())
