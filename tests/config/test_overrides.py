"""Arguments: whatever a folder is called, what we write is read back, by a shell and by our parser."""

from __future__ import annotations

import os
import random
import shlex
from pathlib import Path

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config.compose import Composer
from ercfusion.config.hints import command
from ercfusion.config.overrides import is_path, literal_text, override_text, parse, shown, typed_path

NASTY = [
    *("étude 1", "a b", " a ", "[a]", "(a)", "{a}", "{a: 1}", "a,b", "a=b", "seed=0", "a#b", "#a", "a&b", "a;b", "a|b"),
    *(
        "a'b",
        'a"b',
        "'a'",
        '"a"',
        "'",
        '"',
        "''",
        "a'",
        "'a",
        "a\\",
        "a\\'b",
        "\\",
        "\\\\'",
        "a\tb",
        "a\nb",
        "$HOME",
        "`a`",
    ),
    *(
        "${seed}",
        "\\${seed}",
        "\\\\${a}",
        "${",
        "a!b",
        "a?b",
        "*",
        "a%b",
        "a@b",
        "a:b",
        "a+b",
        "-a",
        "--help",
        "~",
        "a~",
    ),
    *(
        "null",
        "NULL",
        "true",
        "1",
        "1e3",
        "2024",
        "nan",
        "",
        "日本語",
        "😀",
        "e\u0301",
        "a\u00a0b",
        "interval(1,2)",
        "choice(a)",
    ),
    *(
        "range(1,3)",
        "data.raw=x",
        "C:\\x",
        "\x01",
        "\udce9x",
        "ß",
        "a.b",
        "a/b/../c",
        "1_000",
        "0x1f",
        "<a>",
        "^a",
        "é,è",
    ),
]
LETTERS = "ab1é日 '\"\\,=[](){}#&;$|~!*?:.-+\n\t/"


def random_names(count: int) -> list[str]:
    chance = random.Random(0)
    return ["".join(chance.choices(LETTERS, k=chance.randint(1, 8))) for _ in range(count)]


def read_back(line: str) -> str:
    """The value of the only argument of a printed command."""
    *_, argument = shlex.split(line)
    (parsed,) = parse([argument])
    assert not parsed.is_sweep_override()
    value = parsed.value()
    if isinstance(value, str) and "${" in value:
        from omegaconf import OmegaConf

        value = OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True)["x"]  # type: ignore[index,call-overload]
    assert isinstance(value, str)
    return value


@pytest.mark.parametrize("key", ["resume", "data.packs.audio", "sweep.name", "data.protocol"])
def test_every_name_is_read_back(key: str) -> None:
    for name in [*NASTY, *random_names(300)]:
        home = name.startswith("~") and key in ("resume", "data.packs.audio")
        assert read_back(command("interrupted run", "train", settings={key: name})) == ("./" * home) + name


def test_a_plain_path_stays_readable() -> None:
    assert command("interrupted run", "train", settings={"resume": "/a/b-c_d.e"}) == (
        "python -m ercfusion.train resume=/a/b-c_d.e"
    )
    assert override_text("resume", "/étude 1 [x]") == "resume=/étude 1 [x]"


def test_the_composer_takes_every_name() -> None:
    names = ["étude 1", "a,b", "[a]", "a#b&c=d", "a'b", "{a: 1}", "(x)", "${seed}", "'a'", "a\\", "日本", "~", "null"]
    packs = {f"m{number}": name for number, name in enumerate(names)}
    typed = ["output=ét [1] (2), 'x' & #3=4", "data.raw=[a]", "run={b}", "resume='a b'"]
    config = Composer("train").compose([*typed, *(literal_text(f"data.packs.{key}", packs[key]) for key in packs)])
    assert config["data"]["packs"] == packs | {"m11": "./~"}
    assert (config["output"], config["run"], config["resume"]) == ("ét [1] (2), 'x' & #3=4", "{b}", "a b")
    assert config["data"]["raw"] == "[a]"


def test_a_comma_separates_paths_only_with_m_and_where_there_is_no_such_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    composer = Composer("train")
    two = composer.expand(["data.packs.audio=é 1,~/b"])
    values = [composer.compose(entry)["data"]["packs"]["audio"] for entry in two]
    assert values == ["é 1", os.path.expanduser("~/b")]
    (tmp_path / "a,b").mkdir()
    assert composer.expand(["data.raw=a,b", "seed=1,2"]) == [["data.raw=a,b", "seed=1"], ["data.raw=a,b", "seed=2"]]


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for typed in ("~/MELD", "'~/MELD'", '"~/MELD"'):
        for key in ("data.raw", "run", "output", "resume", "data.encoder", "data.packs.audio"):
            (parsed,) = parse([f"{key}={typed}"])
            assert parsed.value() == "/home/ada/MELD", (key, typed)
        assert typed_path(typed) == "/home/ada/MELD"
    assert not is_path("data.packs.")
    assert not is_path("model.name")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        pytest.param("optimizer.lr=" + "1" * 5000, "too many digits", id="digits of a number"),
        pytest.param("seed=[" + "1" * 5000 + "]", "too many digits", id="digits in a list"),
        pytest.param("seed=" + "1" * 400, "the number is too large for seed", id="no 64-bit number"),
        pytest.param("optimizer.lr=" + "1" * 400, "the number is too large for optimizer.lr", id="no float"),
        pytest.param("model=" + "x" * 5000, "no such choice of model", id="long choice"),
        pytest.param("x" * 5000 + "=1", "there is no setting", id="long key"),
        pytest.param("optimizer.lr=interval(1e-4,1e-2)", "python -m ercfusion.sweep searches ranges", id="range"),
        pytest.param("optimizer.lr=interval(1," + "9" * 5000 + ")", "too many digits", id="digits in a range"),
    ],
)
def test_mistakes_take_a_short_line(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Composer("train").compose([argument])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lr=interval(1e-4,1e-2)", "python -m ercfusion.sweep searches ranges"),
        ("model=glob(*)", "is not a list of values"),
        ("seed=range(0,1000000000000)", "more than 10,000 combinations"),
    ],
)
def test_what_a_multirun_cannot_list(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Composer("train").expand(["seed=1,2", argument])


def test_long_arguments_are_shortened_in_messages() -> None:
    assert shown("a=1") == "'a=1'"
    assert shown("a" * 101) == f"'{'a' * 50}... (101 characters)'"


def test_a_mapping_adds_keys_to_an_open_setting() -> None:
    composer = Composer("train")
    typed = ["objective.weights={vad: 0.5}", "objective.dimension_weights={valence: 1, arousal: 0.5}"]
    objective = composer.compose([*typed, "objective.dimension_weights.arousal=2"])["objective"]
    assert objective["weights"] == {"task": 1.0, "unimodal": 0.0, "vad": 0.5}
    assert objective["dimension_weights"] == {"valence": 1, "arousal": 2}
    with pytest.raises(ConfigError, match=r"objective\.weights\.vad takes a number"):
        composer.compose(["objective.weights={vad: high}"])
