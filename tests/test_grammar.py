"""One grammar for all commands: parsing, messages, help and the list of commands, from what each command declares."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest
from runs import command, python, refused

from ercfusion.__main__ import NAMES, declared, main
from ercfusion._core.errors import ConfigError
from ercfusion.grammar import COMMON_FLAGS, COMMON_KEYS, Command, Flag, Key, Positional, columns, program_name

OWN = Command(
    "own",
    "Do something",
    (("RUN", "an example"),),
    positional=(Positional("RUN", most=None), Positional("PRESET")),
    keys=(
        Key("split", "which split", default="test", choices=("train", "dev", "test")),
        Key("data.packs.MODALITY", "a pack", "path"),
        Key("workers", "processes", "whole"),
        Key("columns", "several", "names"),
    ),
    flags=(Flag("fresh", "begin again"), Flag("many", "several", "m")),
)


def test_keys_flags_and_positional_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "split=dev").mkdir()
    words = ["a", "split=dev", "-m", "workers=2", "columns=[audio, visual]", "data.packs.audio=~/p", "split=train"]
    typed = OWN.parse(words)
    assert typed.positional == ("a", "split=dev")  # what exists is a path
    assert typed.flags == {"many"}
    assert typed.keys == {
        "split": "train",
        "workers": 2,
        "columns": ["audio", "visual"],
        "data.packs.audio": "/home/ada/p",
    }
    assert typed.below("data.packs.") == {"audio": "/home/ada/p"}
    assert typed.settings == ()
    assert typed.words == tuple(words)
    assert OWN.parse(["a", "b", "split=test", "split=dev"]).positional == ("a", "b", "split=dev")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "own takes RUN [RUN ...] PRESET, found 1: 'a'"),
        (["a", "b", "splt=dev"], "own has no setting 'splt' and there is no such path. Did you mean 'split'?"),
        (["a", "b", "split=tset"], "'split=tset': no such value. Did you mean 'test'?"),
        (["a", "b", "workers=0"], "workers takes a whole number of at least 1, not '0'"),
        (["a", "b", "workers=2.5"], "workers takes a whole number of at least 1, not '2.5'"),
        (["a", "b", "data.packs.audio="], "data.packs.audio needs a value"),
        (["a", "b", "data.packs=x"], "own has no setting 'data.packs'"),
        (["a", "b", "fresh=true"], "fresh is a flag without a value. Write --fresh, or omit it."),
        (["a", "b", "--fresh=true"], "'--fresh=true': a flag has no value. Write --fresh, or omit it."),
        (["a", "b", "--fersh"], "unknown flag '--fersh'. Did you mean '--fresh'?"),
        (["a", "b", "--workers", "2"], "A key with a value has no dashes. Write workers=2"),
        (["a", "b", "--workers"], "A key with a value has no dashes. Write workers=VALUE"),
        (["a", "b", "--config-dir=x"], "A key with a value has no dashes. Write config_dir=x"),
        (["a", "b", "config_dir=/nowhere"], "config_dir=/nowhere is not a folder"),
        (["a", "b", "imports=no_such_module"], "imports: no module 'no_such_module'"),
        (["a", "b", "-x"], "unknown flag '-x'. Choose from: --fresh, --many, --help."),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OWN.parse(words)
    assert message in str(caught.value)


def test_a_key_of_a_command_next_to_settings_of_the_configuration() -> None:
    train = declared("train")
    typed = train.parse(["model=concat", "-m", "seed=0,1", "workers=2", "imports=[json]"])
    assert typed.settings == ("model=concat", "seed=0,1", "imports=[json]")
    assert typed.keys == {"workers": 2, "imports": ["json"]}
    with pytest.raises(ConfigError, match=r"train has no setting 'worker'. Did you mean 'workers'"):
        train.parse(["worker=2"])
    with pytest.raises(ConfigError, match="multirun is a flag"):
        train.parse(["multirun=true"])
    with pytest.raises(ConfigError, match=r"doctor has no setting 'dat'. Did you mean 'data'"):
        declared("doctor").parse(["dat=meld"])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_declared_in_the_same_way(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = declared(name)
    assert own.name == name
    for typed, about in own.examples:
        assert about
        own.parse([word for word in shlex.split(typed) if not word.startswith("imports=")])
    entry: Callable[[list[str]], int] = lambda argv: main([name, *argv])  # noqa: E731
    status, out, err = command(entry, ["--help", "nonsense=1"], capsys)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"{own.about}."
    assert max(map(len, out.splitlines())) <= 120
    for each in (*own.keys, *COMMON_KEYS, *own.flags, *COMMON_FLAGS):
        assert f"\n  {each.sign}" in out, each.name
    # Nothing is both, and no key has dashes.
    assert not {key.name for key in own.all_keys} & {flag.name for flag in own.all_flags}
    assert not [key.name for key in own.all_keys if "-" in key.name]
    if not own.bare:
        assert command(entry, [], capsys) == (2, out, "")


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(main, ["--help"], capsys)
    assert status == 0
    for name in NAMES:
        assert f"\n  {name}" in out
        assert declared(name).about.split()[0] in out
    assert command(main, [], capsys) == (2, out, "")
    assert "no command 'trian'. Did you mean 'train'?" in refused(main, ["trian", "model=concat"], capsys)
    assert "no command '--version'" in refused(main, ["--version"], capsys)
    status, out, _ = command(main, ["train", "--cfg", "model=bclstm", "seed=3"], capsys)
    assert status == 0
    assert "seed: 3" in out


def test_the_console_script_is_installed_as_declared() -> None:
    config = ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    assert config["options.entry_points"]["console_scripts"].strip() == "ercfusion = ercfusion.__main__:console"
    done = python("-m", "ercfusion", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no command 'trian'. Did you mean 'train'?\n"


def test_the_help_names_the_program_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for started, name in (
        ("/usr/bin/ercfusion", "ercfusion train"),
        ("/x/ercfusion/__main__.py", "ercfusion train"),
        ("/x/ercfusion/train.py", "python -m ercfusion.train"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        assert program_name("train") == name


def test_columns() -> None:
    assert columns([("a=1", "one"), ("long", "two"), ("empty", "")]) == "  a=1    one\n  long   two\n  empty"
    wide = columns([("x" * 70, "far"), ("y", "words " * 40)])
    assert wide.splitlines()[0] == "  " + "x" * 70
    assert max(map(len, wide.splitlines())) <= 118


STARTS = ("import ercfusion", "ercfusion --help", "ercfusion train --help", "ercfusion doctor --help")


@pytest.mark.parametrize("start", STARTS)
def test_what_a_start_loads(start: str) -> None:
    """Neither torch nor the packages that are slow to load."""
    program = "import json, sys\nimport ercfusion\n"
    if not start.startswith("import"):
        program += f"from ercfusion.__main__ import main\nmain({start.split()[1:]!r})\n"
    done = python("-c", program + "print(json.dumps(sorted(sys.modules)))")
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    slow = {"torch", "pytorch_lightning", "pandas", "pyarrow", "scipy", "matplotlib", "sklearn", "optuna"}
    assert not loaded & slow
    if start in STARTS[:2]:
        assert not loaded & {"numpy", "hydra", "omegaconf"}
