"""``missing.*``: which law applies where, the standard grid, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config.compose import Composer
from ercfusion.config.missing import (
    STANDARD,
    canonical_laws,
    check_laws,
    grid_laws,
    split_law,
    training_law,
)
from ercfusion.config.sections import Missing
from ercfusion.config.settings import Config
from ercfusion.config.stages import stage_configs
from ercfusion.search.config import compose_sweep
from ercfusion.search.space import setting, with_settings

MODALITIES = ("text", "audio", "visual")


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


@pytest.mark.parametrize(
    ("settings", "laws"),
    [
        ({}, ("none", "none", "none")),
        ({"train": "rate:0.5"}, ("rate:0.5",) * 3),
        ({"train": "rate:0.5", "dev": "none"}, ("rate:0.5", "none", "rate:0.5")),
        ({"train": "rate:0.5", "eval": "pattern:text"}, ("rate:0.5", "rate:0.5", "pattern:text")),
        ({"eval": "rmm:1"}, ("none", "none", "rmm:1")),
    ],
)
def test_dev_and_test_have_the_training_law_by_default(settings: dict[str, str], laws: tuple[str, ...]) -> None:
    missing = Missing(**settings)
    assert (str(training_law(missing)), *(str(split_law(missing, split)) for split in ("dev", "test"))) == laws
    assert split_law(missing, "train") == split_law(missing, "test")  # a split that is scored, not trained on


def test_the_standard_grid_has_all_patterns_and_rates() -> None:
    assert [str(law) for law in grid_laws(STANDARD, MODALITIES)] == [
        *("pattern:text", "pattern:audio", "pattern:visual"),
        *("pattern:text+audio", "pattern:text+visual", "pattern:audio+visual", "pattern:text+audio+visual"),
        *("rate:0", "rate:0.1", "rate:0.2", "rate:0.3", "rate:0.4", "rate:0.5", "rate:0.6", "rate:0.7"),
    ]
    assert [str(law) for law in grid_laws(STANDARD, ["audio"])][:2] == ["pattern:audio", "rate:0"]
    assert grid_laws([STANDARD], MODALITIES) == grid_laws(STANDARD, MODALITIES)
    assert grid_laws(None, MODALITIES) == []
    assert [str(law) for law in grid_laws(["rate:.5", "rmfm", "rate:0.50"], MODALITIES)] == ["rate:0.5", "rmfm"]
    assert [str(law) for law in grid_laws("rmm:1", MODALITIES)] == ["rmm:1"]
    with pytest.raises(ConfigError, match=r"^missing\.grid=standard: it has all patterns of at most 12 modalities"):
        grid_laws(STANDARD, [f"m{number}" for number in range(13)])


def test_groups_set_the_law_of_training(composer: Composer) -> None:
    names = composer.groups()["missing"]
    assert names == ["block", "none", "pattern", "rate", "rmfm", "rmm"]
    laws = [composer.compose([f"missing={name}"]).get("missing") for name in names]
    train = ["block:0.5", None, "patterns:0.7", "rate:0.5", "rmfm", "rmm:0.5"]
    assert laws == [law if law is None else {"train": law} for law in train]
    assert composer.compose(["missing=rate", "missing.train=rate:0.3"])["missing"] == {"train": "rate:0.3"}


def test_the_configuration_has_canonical_texts(composer: Composer) -> None:
    typed = ["missing.train=rate:.50", "missing.eval=pattern:audio+text", "missing.grid=[rmm:1.0, rate:0.5]"]
    config = composer.compose(typed)
    assert config["missing"] == {"train": "rate:0.5", "eval": "pattern:text+audio", "grid": ["rmm:1", "rate:0.5"]}
    assert Config.from_dict(config).missing == Missing(
        "rate:0.5", None, "pattern:text+audio", grid=("rmm:1", "rate:0.5")
    )
    assert Config.from_dict(config).to_dict()["missing"] == config["missing"]
    assert composer.compose(["missing.grid=rmfm"])["missing"] == {"grid": ["rmfm"]}
    for typed in ("standard", "[standard]"):
        assert composer.compose([f"missing.grid={typed}"])["missing"] == {"grid": "standard"}
    assert composer.compose(["missing.policy=learned", "missing.seed=0"])["missing"] == {"policy": "learned"}
    assert canonical_laws({}) == {}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("missing.train=rates:0.5", "missing.train 'rates:0.5': no law has the name 'rates'. Did you mean 'rate'?"),
        ("missing.dev=rate:1.5", "missing.dev 'rate:1.5': rate must be from 0 to 1, found 1.5"),
        ("missing.eval=pattern:", "missing.eval 'pattern:' leaves nothing"),
        ("missing.grid=[rate:0.1,rat]", "missing.grid 'rat': no law has the name 'rat'"),
        ("missing.grid=[]", "missing.grid is empty. Give laws, or standard, or null."),
        ("missing.grid=", "missing.grid is empty. Give laws, or standard, or null."),
        ("missing.grid=standrad", "missing.grid 'standrad': no law has the name 'standrad'. Did you mean 'standard'?"),
        ("missing.grid=[standard,rmm:0]", "missing.grid: standard is not one law among others. Give only it"),
        ("missing.seed=-1", "missing.seed must be from 0"),
        ("missing.policy=nothing", "missing.policy must be one of zero, mean, learned, skip; found 'nothing'"),
        ("missing.rate=0.5", "there is no setting 'missing.rate'. "),
        ("missing=rat", "'missing=rat': no such choice of missing. Did you mean 'rate'?"),
        ("missing=rate:0.3", "'missing=rate:0.3': no such choice of missing. Write missing.train=rate:0.3."),
        ("missing.train=standrad", "no law has the name 'standrad'. Choose from: none"),
        ("missing.train=0.5", "missing.train '0.5': no law has the name '0.5'"),
    ],
)
def test_mistakes_are_named(typed: str, message: str, composer: Composer) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(composer.compose([typed]))
    assert message in str(caught.value)


def test_a_mistake_in_a_settings_file_names_the_file(composer: Composer, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("missing: {train: rates}\n")
    with pytest.raises(ConfigError, match=r"settings\.yaml: missing\.train 'rates': no law"):
        composer.compose(composer.settings(str(path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train": "pattern:mocap"},
            "missing.train 'pattern:mocap': no modality 'mocap' here, only text, audio, visual",
        ),
        ({"dev": "pattern:txt"}, "missing.dev 'pattern:txt': no modality 'txt' here"),
        ({"grid": ("none", "pattern:text+mocap")}, "missing.grid 'pattern:text+mocap': no modality 'mocap' here"),
    ],
)
def test_laws_fit_the_modalities(settings: dict[str, Any], message: str) -> None:
    check_laws(Missing("rate:0.5", grid=STANDARD), MODALITIES)
    with pytest.raises(ConfigError) as caught:
        check_laws(Missing(**settings), MODALITIES)
    assert message in str(caught.value)


def test_a_stage_may_have_another_law(composer: Composer) -> None:
    stages = stage_configs(
        composer.compose(
            ["missing=rate", "recipe.stages.first.missing.train=none", "recipe.stages.second.missing.dev=rmm:.5"]
        )
    )
    assert [stage["missing"] for stage in stages.values()] == [
        {"train": "none"},
        {"train": "rate:0.5", "dev": "rmm:0.5"},
    ]
    # A run without laws has no section to change.
    (own,) = stage_configs(composer.compose(["recipe.stages.first.missing.train=rate:.5"])).values()
    assert own["missing"] == {"train": "rate:0.5"}
    with pytest.raises(ConfigError, match=r"recipe\.stages\.first: missing\.train 'rates': no law"):
        composer.compose(["recipe.stages.first.missing.train=rates"])


def test_laws_are_searched_as_choices() -> None:
    composer = Composer("sweep")
    typed = ["missing.train=none,rate:0.5,rmfm", "sweep.only=[missing.train]"]
    with pytest.raises(ConfigError, match=r"trials would not be comparable\. Set missing\.dev"):
        compose_sweep(composer, [], typed)
    config = compose_sweep(composer, [], [*typed, "missing.dev=rate:0.5"])
    assert config["space"] == {"missing.train": {"choices": ["none", "rate:0.5", "rmfm"]}}
    assert config["missing"] == {"dev": "rate:0.5"}
    assert setting(config, "missing.train") is None
    assert with_settings(config, {"missing.train": "rmfm"})["missing"] == {"dev": "rate:0.5", "train": "rmfm"}
    plain = {key: value for key, value in config.items() if key != "missing"}
    assert with_settings(plain, {"missing.train": "rmfm"})["missing"] == {"train": "rmfm"}
    with pytest.raises(ConfigError, match=r"missing\.train 'rate:2': rate must be from 0 to 1"):
        compose_sweep(composer, [], ["missing.train=none,rate:2"])
    with pytest.raises(ConfigError, match=r"missing\.eval cannot be searched"):
        compose_sweep(composer, [], ["missing.eval=none,rate:0.5"])
