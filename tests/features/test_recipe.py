"""Recipes: those that come with the library can be read and their tools exist; others are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ercfusion._core.errors import ConfigError, MissingExtraError
from ercfusion.features.extractor import EXTRACTORS
from ercfusion.features.recipe import Recipe, read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_library(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.tool in EXTRACTORS
    assert recipe.about
    try:
        extractor = recipe.extractor()
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert extractor.modality in ("text", "audio", "visual")
    assert ("(sequence)" in recipe.about) == (extractor.level == "sequence")


def test_settings_are_changed_from_outside() -> None:
    recipe = read_recipe("egemaps").with_settings({"rate": 8000})
    assert recipe.settings["rate"] == 8000
    assert read_recipe("egemaps").settings["rate"] == 16000
    nested = Recipe("mine", "opensmile", {"detector": {"version": "v1"}}).with_settings({"detector.version": "v2"})
    assert nested.settings == {"detector": {"version": "v2"}}
    with pytest.raises(
        ConfigError, match=r"features\.rate\.x: 'rate' is not a group of settings in the recipe 'egemaps'"
    ):
        read_recipe("egemaps").with_settings({"rate.x": 1})


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntool: opensmile\nsettings: {feature_set: IS09}\n")
    assert read_recipe(str(path)).settings == {"feature_set": "IS09"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\ntool: [", "line 2: not valid YAML"),
        ("- a list", "a mapping .key: value. is expected"),
        ("name: mine\ntool: opensmile\nsetings: {}", "there is no key 'setings'. Did you mean 'settings'"),
        ("name: mine\ntool: 3", "key 'tool': found 3, but a text is expected"),
        ("tool: opensmile", "'name' is missing"),
        ("name: a/b\ntool: opensmile", "cannot be the beginning of a folder's name"),
    ],
)
def test_faults_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(str(path))
    assert str(path) in str(caught.value)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'egemaps'"):
        read_recipe("egemap")
    with pytest.raises(ConfigError, match="no such file"):
        read_recipe(str(tmp_path / "absent.yaml"))
    with pytest.raises(ConfigError, match=r"no extraction tool 'opensmil'\. Did you mean 'opensmile'"):
        Recipe("mine", "opensmil").extractor()
    with pytest.raises(ConfigError, match="cannot be imported"):
        Recipe("mine", "no_such_module:Tool").extractor()
