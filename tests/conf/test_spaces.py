"""Every search space is one that its architecture can be trained in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from ercfusion.batch.inputs import InputSpec
from ercfusion.config.architectures import space_of
from ercfusion.config.compose import Composer
from ercfusion.config.overrides import override_text
from ercfusion.config.settings import Config
from ercfusion.models import ARCHITECTURES
from ercfusion.search.config import check_candidate, compose_sweep
from ercfusion.search.space import ends, holds, setting, with_settings

SPACES = [name for name in ARCHITECTURES if space_of(name)]
INPUTS = InputSpec({"text": 12, "audio": 7})


@pytest.fixture(scope="module")
def composer() -> Composer:
    composer = Composer("sweep")
    groups = composer.groups()
    composer.groups = lambda: groups  # type: ignore[method-assign]  # the same for all, and half of the time
    return composer


def test_every_architecture_that_learns_has_a_space() -> None:
    assert set(SPACES) == set(ARCHITECTURES) - {"majority"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_both_ends_of_every_range_are_settings_that_the_model_takes(name: str, composer: Composer) -> None:
    config = compose_sweep(composer, [], [f"model={name}"])
    # With the defaults no entry is dropped, stretched or moved: the class says what is searched.
    content = space_of(name)
    assert list(config["space"]) == list(content)
    for key, dimension in config["space"].items():
        if "choices" in dimension:
            assert dimension["choices"] == content[key]["choices"]
        else:
            assert (dimension["low"], dimension["high"]) == (float(content[key]["low"]), float(content[key]["high"]))
        assert holds(dimension, setting(config, key)), f"{key}: the default is not in the space"
        for value in ends(dimension):
            check_candidate(Config.from_dict(with_settings(config, {key: value})), INPUTS)
    # The command line takes them, too: all first values at once, all second ones, ...
    for place in range(max(len(ends(dimension)) for dimension in config["space"].values())):
        values = {key: ends(dimension)[place % len(ends(dimension))] for key, dimension in config["space"].items()}
        composed = composer.compose([f"model={name}", *(override_text(key, value) for key, value in values.items())])
        assert {key: setting(composed, key) for key in values} == values
    # Widths and heads have to go together: all corners, not one end at a time.
    structural = [key for key in config["space"] if key.startswith("model.") and "choices" in config["space"][key]]
    for corner in itertools.product(*(ends(config["space"][key]) for key in structural)):
        changed = with_settings(config, dict(zip(structural, corner, strict=True)))
        check_candidate(Config.from_dict(changed), INPUTS)


@pytest.mark.parametrize("arguments", [["model=cogmen", "data=meld"], ["model=bclstm", "data=meld"], ["data=demo"]])
def test_tuned_settings_are_where_the_search_begins(arguments: list[str], composer: Composer) -> None:
    config: dict[str, Any] = compose_sweep(composer, [], arguments)
    trained = Composer("train").compose(arguments)
    for key, dimension in config["space"].items():
        assert setting(config, key) == setting(trained, key)
        assert holds(dimension, setting(config, key))


def test_another_preset_moves_the_space_to_its_own_settings(composer: Composer) -> None:
    config = compose_sweep(composer, [], ["model=cogmen_released"])
    assert config["space"]["optimizer.lr"] == {"low": 2e-05, "high": 0.0005, "log": True}
    assert config["space"]["model.hidden"] == {"choices": [32, 64, 100, 128]}
    config = compose_sweep(composer, [], ["model=concat", "optimizer=sgd", "scheduler=plateau"])
    assert config["space"]["optimizer.lr"] == {"low": 0.005, "high": 0.5, "log": True}
    assert "optimizer.weight_decay" not in config["space"]  # 0, which no logarithmic range holds


def test_a_space_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text(
        "model.hidden: {choices: [8, 16]}\nscheduler.factor: {low: 0.1, high: 0.9}\n"
    )
    composer = Composer("sweep", str(tmp_path))
    config = compose_sweep(composer, [], ["model=concat", "space=mine", "model.dropout=interval(0.1,0.2)"])
    # The default schedule has no such setting.
    assert config["space"] == {
        "model.hidden": {"choices": [8, 16, 256]},
        "model.dropout": {"low": 0.1, "high": 0.2},
    }
