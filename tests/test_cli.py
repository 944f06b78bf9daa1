"""What a user types: composing, mistakes that are named, flags, and failing without a traceback."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from quick import first
from runs import TINY, command, environment, refused

from ercfusion._core.errors import ConfigError, ErcfusionError
from ercfusion.cli import run_command
from ercfusion.config.architectures import complete_model
from ercfusion.config.choices import CHOICES
from ercfusion.config.compose import Composer
from ercfusion.config.settings import defaults_of, flat
from ercfusion.train import main


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer("train")


# Mistakes, and what is said about them. Nothing here may get as far as training.
MISTAKES = [
    # a key, a group or a choice that does not exist
    ("modle=cogmen", "Did you mean 'model'?"),
    ("model=cogmem", "no such choice of model. Did you mean 'cogmen'?"),
    ("model=xyz", "no such choice of model. Choose from: bclstm"),
    ("data=dmo", "no such choice of data. Did you mean 'demo'?"),
    ("data=demo/fra", "no protocol 'demo/fra'. Did you mean 'demo/far'?"),
    ("scheduler=cosin", "no such choice of scheduler. Did you mean 'cosine'?"),
    ("training=null", "no such choice of training"),
    ("optimizer.lrr=1", "there is no setting 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
    ("lr=1", "Did you mean 'optimizer.lr'?"),
    ("batch_size=8", "Did you mean 'training.batch_size'?"),
    ("model.droput=0.1", "Did you mean 'model.dropout'?"),
    ("trainer.zzzzzz=1", "Choose from: trainer.accelerator"),
    ("+model.hiddn=3", "Did you mean 'model.hidden'?"),
    ("++seeed=3", "Did you mean 'seed'?"),
    ("optimizer.momentum=0.9", "there is no setting 'optimizer.momentum'. Choose from: optimizer.name"),
    ("training.lr=0.9", "Did you mean 'optimizer.lr'?"),
    ("objective.weight.task=1", "Did you mean 'objective.weights.task'?"),
    ("data.optoins.train=8", "there is no setting 'data.optoins.train'. Did you mean 'data.options.train'?"),
    ("data.packz.audio=x", "Did you mean 'data.packs.audio'?"),
    ("modle.dropout=0.1", "Did you mean 'model.dropout'?"),
    ("trainign.max_epocs=2", "Did you mean 'training.max_epochs'?"),
    ("training.epochs=2", "there is no setting 'training.epochs'. Did you mean 'training.max_epochs'?"),
    ("epochs=2", "Did you mean 'training.max_epochs'?"),
    ("imports=[foo.py]", "imports: 'foo.py' is a file name. Write 'foo', without .py."),
    ("objective.weights.foo=1", "objective.weights: no term 'foo'. Choose from: task"),
    ("objective.class_weights=balance", "one of none, balanced, effective; found 'balance'. Choose one, or give"),
    ("optimizer.name=adan", "optimizer.name='adan' is unknown. Did you mean 'adam'?"),
    ("data.options.trian=8", "no setting 'trian'"),
    # a value of the wrong type
    ("optimizer.lr=fast", "optimizer.lr takes a number (default: 0.00"),
    ("optimizer.lr=null", ", not null"),
    ("optimizer.lr=[1]", "not a list"),
    ("seed=abc", "seed takes a whole number (default: 0), not the text 'abc'"),
    ("seed=1.5", "not a number"),
    ("seed=true", "not true or false"),
    ("seed=null", "not null"),
    ("training.length_aware=1", "takes true or false (default: True), not a whole number"),
    ("training.keep_every_epoch=yes", "not the text 'yes'"),
    ("training.threads=many", "training.threads takes a whole number, not the text 'many'"),
    ("training.metric=[a]", "training.metric takes a text, not a list"),
    ("output=null", "output takes a text (default: outputs), not null"),
    ("data.modalities=3", "data.modalities takes a list, not a whole number"),
    ("data.modalities={a: 1}", "not a section"),
    ("data.packs=3", "data.packs takes a section"),
    ("objective.weights.aux=x", "objective.weights.aux takes a number, not the text 'x'"),
    ("data.packs.audio=[a]", "[a]: there is no such folder"),
    # a value out of its range
    ("training.batch_size=0", "training.batch_size must be from 1 to 1000000, found 0"),
    ("training.max_epochs=0", "training.max_epochs must be from 1 to 1000000, found 0"),
    ("training.max_epochs=-1", "training.max_epochs must be from 1 to 1000000, found -1"),
    ("training.patience=-1", "training.patience must be from 0 to 1000000, found -1"),
    ("training.threads=0", "training.threads must be from 1 to 4096"),
    ("training.bootstrap=0", "training.bootstrap must be from 1 to 1000000"),
    ("objective.label_smoothing=2", "objective.label_smoothing must be from 0 to 1, found 2"),
    ("optimizer.lr=-1", "optimizer.lr must be at least 0, found -1"),
    ("model.dropout=2", "model.dropout must be from 0 to 1, found 2 (model 'concat')"),
    # what this machine or this corpus cannot do
    ("trainer.accelerator=abacus", "a trainer with accelerator=abacus"),
    ("trainer.strategy=magic", "a trainer with accelerator=cpu"),
    ("trainer.precision=64-true", "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed; found '64-true'"),
    ("trainer.precision=32", "found '32'"),
    ("data.modalities=[text,smell]", "demo/balanced has no 'smell', only text, audio"),
    ("data.modalities=[]", "data.modalities: empty list"),
    ("training.metric=mae", "'mae' is not a metric of the single_label task 'emotion'"),
    ("training.metric=weighted", "Did you mean 'weighted_f1'?"),
    ("training.metric=5", "'5' is not a metric"),
    ("data.protocol=5", "corpus 'demo' has no protocol '5'"),
    (
        "data.raw=/tmp",
        "is generated and reads no files, but data.raw is '/tmp'. Add data=custom for your own utterances",
    ),
    ("data.packs.audio=/nowhere/at/all", "/nowhere/at/all"),
    ("output=/proc/nowhere", "/proc/nowhere: No such file or directory"),
    # several values, deletion, and what is no key=value at all
    ("seed=0,1", "has several values. Add -m to run them all"),
    ("model=concat,bclstm", "Add -m"),
    ("~seed", "deletes a setting"),
    ("cogmen", "'cogmen' is not of the form key=value. Write model=cogmen."),
    ("demo/far", "'demo/far' is not of the form key=value. Write data=demo/far."),
    ("nonsense", "'nonsense' is not of the form key=value. Use --help for the keys."),
    ("model.dropout=a'b", "cannot be read"),
    ("optimizer.lr=interval(1e-4,1e-2)", "python -m ercfusion.sweep searches ranges"),
    ("--mulitrun", "unknown flag '--mulitrun'. Did you mean '--multirun'?"),
    ("--model", "unknown flag '--model'. Choose from: --cfg, --multirun, --help."),
    ("--optimizer.lr=1e-3", "unknown flag '--optimizer.lr'. A key with a value has no dashes. Write optimizer.lr=1e-3"),
    ("config_dir=", "config_dir needs a value"),
    ("config_dir=/nowhere", "config_dir=/nowhere is not a folder"),
    ("resume=/nowhere", "'data.options.train=6' cannot be changed now"),
]


@pytest.mark.parametrize(("argument", "message"), MISTAKES, ids=[argument for argument, _ in MISTAKES])
def test_mistakes_are_named(
    argument: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    assert message in refused(main, [*TINY, "model=concat", argument], capsys)
    # A run that never began leaves no folder behind.
    assert not list(tmp_path.rglob("config.json"))


def test_a_corpus_without_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERCFUSION_DATA", raising=False)
    for arguments, place in (
        (["data=meld"], "Set data.raw=FOLDER"),
        (["data=meld", "data.raw=/nowhere"], "data.raw=/nowhere is not a folder"),
        (["data=mosi", f"data.raw={tmp_path}"], f"not found in {tmp_path}"),
    ):
        message = refused(main, arguments, capsys)
        assert place in message
        assert "How to get them: " in message
        assert "Licence: " in message
        assert "Expected files: " in message
    monkeypatch.setenv("ERCFUSION_DATA", str(tmp_path))
    assert f"{tmp_path}/emorynlp (from the environment variable ERCFUSION_DATA)" in refused(
        main, ["data=emorynlp"], capsys
    )
    assert not list(tmp_path.rglob("config.json"))


# Composing


def test_texts_that_look_like_numbers(composer: Composer) -> None:
    arguments = ["run=2024", "data.raw=007", "data.packs.audio=1e3", "data.encoder=12", "output=3.10"]
    config = composer.compose(arguments)
    assert (config["run"], config["output"]) == ("2024", "3.10")
    assert config["data"]["raw"] == "007"
    assert config["data"]["packs"] == {"audio": "1e3"}
    assert config["data"]["encoder"] == "12"


def test_open_sections_take_new_entries(composer: Composer) -> None:
    config = composer.compose(
        [
            *("data.packs.gaze=/p", "+data.packs.audio=/q", "data.options.train=5"),
            *("objective.weights.aux=0.25", "objective.weights.task=2"),
        ]
    )
    assert config["data"]["packs"] == {"gaze": "/p", "audio": "/q"}
    assert config["data"]["options"]["train"] == 5
    assert config["objective"]["weights"] == {"task": 2, "unimodal": 0.0, "aux": 0.25}


@pytest.mark.parametrize("key", ["data.options.train", "training.max_epochs", "seed"])
def test_the_last_of_several_values_counts(key: str, composer: Composer) -> None:
    config = composer.compose([f"{key}=5", f"{key}=7"])
    for name in key.split("."):
        config = config[name]
    assert config == 7


def test_one_modality_needs_no_brackets(composer: Composer) -> None:
    assert composer.compose(["data.modalities=text"])["data"]["modalities"] == ["text"]
    assert composer.compose(["data.modalities=[text,audio]"])["data"]["modalities"] == ["text", "audio"]
    assert composer.compose(["data.modalities=null"])["data"]["modalities"] is None


@pytest.mark.parametrize("value", ["null", "/some/where", "'/with space/x'", "rel/./a-b_c.d"])
def test_paths(value: str, composer: Composer) -> None:
    expected = None if value == "null" else value.strip("'")
    assert composer.compose([f"data.raw={value}"])["data"]["raw"] == expected


def test_numbers_as_people_write_them(composer: Composer) -> None:
    config = composer.compose(["optimizer.lr=1e-3", "model.dropout=0", "training.gradient_clip=.5", "seed=-3"])
    assert config["optimizer"]["lr"] == 0.001
    assert config["model"]["dropout"] == 0
    assert config["training"]["gradient_clip"] == 0.5
    assert config["seed"] == -3


def test_the_configuration_holds_plain_containers(composer: Composer) -> None:
    def check(value: object) -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None)), type(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(composer.compose(["data.modalities=[text]", "data.packs.audio=x"]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=cogmen_released", "data=meld", "optimizer.lr=1e-3", "data.packs.audio=egemaps"],
        ["model=dialoguernn_released", "data=mosi", "training.max_epochs=3"],
    ],
)
def test_composed_as_hydra_does_and_the_same_twice(overrides: list[str], composer: Composer) -> None:
    """What was composed before is kept; neither another configuration nor its user changes it."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    found = composer.compose(overrides)
    preset = found.pop("preset")
    with initialize_config_module("ercfusion.conf", version_base="1.3"):
        added = ["+" + text if text.startswith("data.packs.") else text for text in overrides]
        plain = compose("train", added)
    complete_model(plain)  # the defaults of a model's options are in its class
    plain = flat(OmegaConf.to_container(plain, resolve=True))
    # What no file says has its default.
    for key, value in flat(found).items():
        if key in plain:
            assert value == plain[key], key
        else:
            section = key.partition(".")[0] if "." in key else ""
            name = found[section]["name"] if section in CHOICES else None
            assert value == flat(defaults_of(section, name), f"{section}." if section else "")[key], key
    assert {key for key, value in plain.items() if value != {}} <= set(flat(found))
    assert found != {**composer.compose(overrides[:2]), "preset": preset}
    found["model"]["hidden"] = found["data"]["packs"] = "changed"
    preset["model"] = "changed"
    composer.groups()["model"].clear()
    again = composer.compose(overrides)
    assert again["model"]["hidden"] != "changed"
    assert again["data"]["packs"] != "changed"
    assert again["preset"] == {"model": overrides[0][6:], "data": again["data"]["name"]}


def test_all_combinations_in_order(composer: Composer) -> None:
    assert composer.expand(["seed=0,1", "trainer=cpu", "model=concat,cogmen"]) == [
        ["seed=0", "trainer=cpu", "model=concat"],
        ["seed=0", "trainer=cpu", "model=cogmen"],
        ["seed=1", "trainer=cpu", "model=concat"],
        ["seed=1", "trainer=cpu", "model=cogmen"],
    ]
    assert composer.expand(["data.modalities=[text],[audio,text]"]) == [
        ["data.modalities=[text]"],
        ["data.modalities=[audio,text]"],
    ]
    assert composer.expand(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert composer.expand(["missing.train=none,rate:0.5"]) == [["missing.train=none"], ["missing.train=rate:0.5"]]
    assert composer.expand([]) == [[]]


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    preset = "# @package _global_\nmodel:\n  name: concat\n  hidden: 8\n  dropout: 0.1\n  input_dropout: 0.0\n"
    (tmp_path / "model" / "mine.yaml").write_text(preset + "training:\n  max_epochs: 2\n")
    composer = Composer("train", str(tmp_path))
    assert "mine" in composer.groups()["model"]
    config = composer.compose(["model=mine", "model.dropout=0.3"])
    assert config["model"] == {
        "name": "concat",
        "hidden": 8,
        "dropout": 0.3,
        "input_dropout": 0.0,
        "activation": "gelu",
    }
    assert config["training"]["max_epochs"] == 2
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        composer.compose(["model=mien"])
    assert "mine" not in Composer("train").groups()["model"]


# Modules and groups of one's own, the same for every command

COMMANDS = {
    "train": [*TINY, "model=concat"],
    "sweep": [*TINY, "model=concat", "sweep.trials=1"],
    "extract": ["data=demo", "features=logmel"],
    "doctor": ["data=demo"],
    "evaluate": ["RUN"],
    "reproduce": ["demo"],
    "verify": ["RUN", "demo"],
    "compare": ["RUN", "RUN"],
    "conflicts": ["RUN", "RUN", "RUN"],
}


def entry_of(name: str) -> Callable[[list[str]], int]:
    entry: Callable[[list[str]], int] = importlib.import_module(f"ercfusion.{name}").main
    return entry


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_imports_modules(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module, message in (
        ("no_such_module", "imports: no module 'no_such_module'"),
        ("[json,no_such_module]", "imports: no module 'no_such_module'"),
        ("my_models.py/x", "is not a module name. Write it without .py, for example my_models."),
    ):
        assert message in refused(entry_of(name), [*COMMANDS[name], f"imports={module}"], capsys)
    assert "unknown flag '--confg-dir'" in refused(entry_of(name), [*COMMANDS[name], "--confg-dir=x"], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("evaluate", "compare", "conflicts")])
def test_every_command_that_composes_takes_a_folder_of_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*COMMANDS[name], "config_dir=/nowhere"]
    assert "config_dir=/nowhere is not a folder" in refused(entry_of(name), arguments, capsys)


# Running a command


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (ErcfusionError("no good\nsecond line"), 2, "error: no good\nsecond line\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "error: /root/x: Permission denied\n"),
        (None, 0, ""),
    ],
)
def test_failures_become_a_status(
    raised: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def entry(arguments: list[str]) -> int:
        assert arguments == ["a=1"]
        if raised is not None:
            raise raised
        return 0

    assert command(entry, ["a=1"], capsys) == (status, "", said)


@pytest.mark.parametrize("raised", [ValueError("a defect"), OSError("of ours")])
def test_defects_are_not_hidden(raised: Exception) -> None:
    def entry(arguments: list[str]) -> int:
        raise raised

    with pytest.raises(type(raised)):
        run_command(entry, [])


@pytest.mark.parametrize("arguments", first(1, [["--help"], ["--cfg"]]))
def test_a_reader_that_has_gone(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ercfusion.train", *arguments],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            env=environment(),
        )
    finally:
        os.close(write_end)
    assert done.returncode == 141
    assert done.stderr == ""


def test_help_and_refusals_need_no_torch() -> None:
    script = (
        "import sys; from ercfusion.cli import run_command; from ercfusion.train import main; "
        "run_command(main, ['--help']); run_command(main, ['modle=x']); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), timeout=120
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
