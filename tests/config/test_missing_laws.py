"""Laws of missing modalities: text, ranges and messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config.fields import setting
from ercfusion.config.missing_laws import (
    LARGEST,
    LAWS,
    Block,
    Complete,
    Law,
    Pattern,
    Patterns,
    Rate,
    Rmfm,
    argument_of,
    in_order,
    law,
    meaning,
    parse,
    syntax,
)

MODALITIES = ("text", "audio", "visual")


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("none", "none"),
        ("pattern:visual+text", "pattern:text+visual"),
        ("pattern:zither+audio+gait", "pattern:audio+gait+zither"),
        ("patterns:0.70", "patterns:0.7"),
        (" rate: .5 ", "rate:0.5"),
        ("rate:1.0", "rate:1"),
        ("rate:-0", "rate:0"),
        ("rate:1e-7", "rate:1e-07"),
        ("rmm:5E-1", "rmm:0.5"),
        ("rmfm", "rmfm"),
        ("rmfm:0.25", "rmfm:0.25"),
        ("rmfm-released", "rmfm-released"),
        ("tmfm:0.1", "tmfm:0.1"),
        ("stmfm:0", "stmfm:0"),
        ("block:1", "block:1"),
    ],
)
def test_canonical_text(typed: str, canonical: str) -> None:
    parsed = parse(typed)
    assert str(parsed) == canonical
    assert parse(canonical) == parsed
    assert type(parsed) is LAWS[canonical.partition(":")[0]]


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("rat:0.5", "no law has the name 'rat'. Did you mean 'rate'?"),
        ("", "no law has the name ''. Choose from: none, pattern"),
        ("Rate:0.5", "Did you mean 'rate'?"),
        ("none:1", "none takes no argument. Write none."),
        ("rmfm-released:0.5", "takes no argument. Write rmfm-released."),
        ("rate", "rate needs an argument (probability per utterance and modality). Write rate:RATE."),
        ("rate:", "'' is not a number. Write rate:RATE, from 0 to 1."),
        ("rate:half", "'half' is not a number"),
        ("rate:1_0", "'1_0' is not a number"),
        ("rmfm:", "'' is not a number. Write rmfm[:RATE], from 0 to 1."),
        ("rate:0.5:0.5", "'0.5:0.5' is not a number"),
        ("rate:-0.1", "rate must be from 0 to 1, found -0.1. Correct the number."),
        ("rmm:1.001", "rate must be from 0 to 1, found 1.001"),
        ("rate:nan", "rate must be from 0 to 1, found nan"),
        ("rmfm:inf", "rate must be from 0 to 1, found inf"),
        ("pattern", "pattern needs an argument (modalities present). Write pattern:MODALITY+...."),
        ("pattern:", "leaves nothing. Name the modalities to keep: pattern:MODALITY+..."),
        ("pattern:text++audio", "a name is empty"),
        ("pattern:text+text", "names 'text' twice. Remove one."),
    ],
)
def test_wrong_texts(typed: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(typed, "missing.eval")
    assert str(error.value).startswith(f"missing.eval '{typed}'")
    assert problem in str(error.value)


def test_modalities_are_checked() -> None:
    for text in ("none", "rate:0.5", "rmfm", "rmfm:1", "patterns:1", "pattern:audio", "pattern:text+audio+visual"):
        parse(text).check(MODALITIES)
    with pytest.raises(
        ConfigError, match=r"'pattern:text\+visul': no modality 'visul' here, only text, audio, visual. Did"
    ):
        parse("pattern:text+visul").check(MODALITIES)
    with pytest.raises(ConfigError, match=r"^missing.train 'pattern:text'.* Choose from: audio."):
        parse("pattern:text").check(["audio"], "missing.train")
    with pytest.raises(ConfigError, match=r"leaves nothing. Name at least one"):
        Pattern(()).check(MODALITIES)
    many = [f"m{number}" for number in range(LARGEST + 1)]
    Patterns(0.5).check(many[1:])
    Rate(0.5).check(many)
    with pytest.raises(ConfigError, match=r"at most 12 modalities, here 13. Use rate"):
        Patterns(0.5).check(many)


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan, math.inf, None])
def test_laws_made_in_python_are_checked(value: float) -> None:
    with pytest.raises(ConfigError, match=r"rate must be from 0 to 1, found"):
        Rate(value).check(MODALITIES)
    with pytest.raises(ConfigError, match=r"rate must be from 0 to 1, found"):
        Patterns(value).check(MODALITIES)


def test_what_is_left() -> None:
    assert parse("pattern:visual+text").left(("visual", "audio", "text")) == ("visual", "text")
    assert parse("rate:0.5").left(MODALITIES) == MODALITIES
    assert [str(one) for one in map(parse, ("none", "rate:0", "rmfm:0")) if not one.hides_nothing] == []
    assert not any(parse(text).hides_nothing for text in ("rmfm", "rmfm-released", "rate:0.1", "pattern:text"))


@pytest.mark.parametrize(
    ("typed", "one", "two"),
    [
        ("none", True, True),
        ("rate:0", True, True),
        ("rate:0.5", True, False),
        ("rmm:0.5", False, False),
        ("block:0", True, True),
        ("pattern:audio+text", True, True),
        ("pattern:text", True, False),
    ],
)
def test_laws_without_holes(typed: str, one: bool, two: bool) -> None:
    assert parse(typed).leaves_all(["text"]) is one
    assert parse(typed).leaves_all(["text", "audio"]) is two


def test_every_law_is_described() -> None:
    assert list(LAWS) == [
        *("none", "pattern", "patterns", "rate", "rmm", "rmfm", "rmfm-released", "tmfm", "stmfm", "block"),
    ]
    for name, section in LAWS.items():
        assert section.name == name
        assert meaning(section).endswith(".")
        assert bool(section.paper) == bool(section.published)
        assert syntax(section).startswith(name)
        assert callable(section.load())
    assert syntax(Rmfm) == "rmfm[:RATE]"
    assert syntax(Block) == "block:RATE"
    assert syntax(Pattern) == "pattern:MODALITY+..."
    assert argument_of(Complete) is None


def test_order_of_modalities() -> None:
    assert in_order({"visual", "b", "audio", "text", "a"}) == ["text", "audio", "visual", "a", "b"]


def test_own_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ercfusion.config.missing_laws.LAWS", dict(LAWS))

    @law("first_turns")
    @dataclass(frozen=True)
    class FirstTurns(Law):
        """The first turns are complete."""

        function = len
        share: float = setting(None, "share of complete turns", above=0, below=1)

    assert str(parse("first_turns:0.3")) == "first_turns:0.3"
    assert FirstTurns.load() is len
    with pytest.raises(ConfigError, match=r"share must be above 0 and below 1, found 1.0"):
        parse("first_turns:1")
    with pytest.raises(ConfigError, match=r"'rate' belongs to ercfusion.config.missing_laws:Rate. Choose another"):
        law("rate")(FirstTurns)
    with pytest.raises(ConfigError, match=r"'Law 1' is not a name"):
        law("Law 1")(FirstTurns)
    assert FirstTurns.name == "first_turns"

    @dataclass(frozen=True)
    class Two(Rate):
        """Two arguments."""

        other: float = setting(0.0, "another number")

    with pytest.raises(ConfigError, match=r"has 2 fields. Give it at most one"):
        law("two")(Two)
