"""Every setting says what it is, and the typed configuration is the plain one."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config import sections
from ercfusion.config.choices import CHOICES
from ercfusion.config.compose import Composer
from ercfusion.config.fields import Field, fields_of, setting
from ercfusion.config.schema import run_config
from ercfusion.config.sections import SECTIONS
from ercfusion.config.settings import (
    Config,
    check_settings,
    decides,
    defaults_of,
    field_of,
    fields_in,
    flat,
    is_path,
    names_of,
    section_of,
)

FIELDS = [field for section in ("", *SECTIONS, *CHOICES) for field in fields_in(section).values()]


@pytest.mark.parametrize("field", FIELDS, ids=[field.key for field in FIELDS])
def test_every_setting_says_what_it_is(field: Field) -> None:
    assert field.known.meaning
    assert "\n" not in field.known.meaning
    assert field.types
    assert set(field.types) <= {bool, int, float, str, list, dict}
    assert field.default is not None or field.nullable
    assert not field.problem(field.default), "the default is out of its range"
    numbers = {int, float} & set(field.types)
    if numbers and bool not in field.types:
        assert field.range != "a finite number", "a number needs a range"
    assert field.values


def test_every_section_lists_its_dataclass() -> None:
    for name, section in SECTIONS.items():
        own = {field.name for field in dataclasses.fields(section) if "setting" in field.metadata}
        assert {f"{name}.{key}" for key in own} <= set(fields_in(name))
        assert own == set(fields_of(section))


@pytest.mark.parametrize("choices", [[], ["optimizer=sgd", "curriculum=weighted_shift"], ["task=metric_learning"]])
def test_a_typed_configuration_is_the_plain_one(choices: list[str]) -> None:
    composed = Composer().compose([*choices, "data.packs.audio=x", "data.modalities=[text]"])
    config = Config.from_dict(composed)
    assert config.to_dict() == composed
    assert Config.from_dict(config.to_dict()) == config
    assert config.training.batch_size == composed["training"]["batch_size"]
    assert config.data.modalities == ("text",)
    run_config().model_validate(config.to_dict(), strict=True)


def test_ranges() -> None:
    for key, value, message in (
        ("training.limit_train_batches", 1.5, "a share above 0.0 and up to 1.0, or a whole number"),
        ("training.limit_train_batches", 0, "a share above 0.0"),
        ("training.gradient_clip", math.inf, "at least 0"),
        ("optimizer.betas", [0.9, 1.0], "at least 0 and below 1, found 1.0"),
        ("trainer.precision", "16", "one of 32-true, bf16-mixed, 16-mixed; found '16'"),
    ):
        config = Composer().compose([])
        section, _, name = key.partition(".")
        config[section][name] = value
        with pytest.raises(ConfigError, match=message):
            check_settings(config)
    for value in (1.0, 0.1, 10, None):
        assert section_of("training", {"limit_train_batches": value}).limit_train_batches == value


def test_settings_by_key() -> None:
    assert field_of("model.dropout") is None
    assert field_of("optimizer.nothing") is None
    entry = field_of("objective.weights.mine")
    assert entry is not None
    assert entry.types == (float,)
    assert is_path("data.packs.audio")
    assert not is_path("data.packs")
    assert [decides(key) for key in ("seed", "output", "optimizer.lr", "model.hidden", "preset.model")] == [
        *("run", "nothing", "result", "result", "run")
    ]


def test_a_new_setting_touches_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing, checks, schema, space and comparison follow from the field."""
    from ercfusion.config import schema
    from ercfusion.search.space import check_searchable

    @dataclasses.dataclass(frozen=True)
    class Training(sections.Training):
        """With one setting more."""

        warm: int = setting(3, "epochs before anything", low=1)

    monkeypatch.setattr("ercfusion.config.compose._BASES", {})
    monkeypatch.setattr("ercfusion.config.settings.SECTIONS", {**SECTIONS, "training": Training})
    monkeypatch.setattr(schema, "SECTIONS", {**SECTIONS, "training": Training})
    composed = Composer().compose(["model=concat", "training.warm=5"])
    assert composed["training"]["warm"] == 5
    assert Config.from_dict(composed).training.warm == 5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"training\.warm takes a whole number \(default: 3\), not the text 'x'"):
        Composer().compose(["model=concat", "training.warm=x"])
    with pytest.raises(ConfigError, match=r"training\.warm must be at least 1, found 0"):
        check_settings(Composer().compose(["model=concat", "training.warm=0"]))
    check_searchable("training.warm")
    assert decides("training.warm") == "result"
    assert "warm" in schema._section("training").model_fields


def test_defaults_of_every_choice_are_settings_of_it() -> None:
    for section in CHOICES:
        for name in names_of(section):
            assert set(flat(defaults_of(section, name), f"{section}.")) == set(fields_in(section, name))
    with pytest.raises(ConfigError, match=r"optimizer\.name='lion' is unknown"):
        defaults_of("optimizer", "lion")
