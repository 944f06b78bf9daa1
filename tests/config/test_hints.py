"""Every command that a message tells a user to type: found in the message, typed, and it does what is said."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import TINY, command, refused, stub_text_encoder

import ercfusion
from ercfusion import compare, doctor, evaluate, extract, reproduce, sweep, train, verify
from ercfusion._core.errors import RunError
from ercfusion.config.compose import Composer
from ercfusion.config.hints import PLACES
from ercfusion.config.overrides import parse
from ercfusion.config.sections import Data
from ercfusion.config.settings import section_from
from ercfusion.testing.twins import write_twin

# A folder as people call them, and worse.
NASTY = "étude 1 [a] (b) #&,='\"{c}"
# In what a sweep's config.json says of the command that was typed, and what a help text calls the program.
RECORDED = ("python -m ercfusion.sweep", "python -m ercfusion.")
ROOT = Path(ercfusion.__file__).parent


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; packs and cache are in it."""
    folder = tmp_path / NASTY
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for name in ("ERCFUSION_PACKS", "ERCFUSION_DATA"):
        monkeypatch.delenv(name, raising=False)
    return folder


def printed(text: str, module: str) -> list[str]:
    """The arguments of the one command of ours in a text, as a shell passes them."""
    (found,) = re.findall(rf"python -m ercfusion\.{module}(.*)", text)
    return shlex.split(found)


def done(entry: Callable[[list[str]], int], arguments: list[str], capsys: Any) -> tuple[str, str]:
    status, out, err = command(entry, arguments, capsys)
    assert status == 0, err
    return out, err


# Where the commands are


def messages(path: Path) -> list[str]:
    """Texts of a module that a user may see: not its docstrings, and not the declared help, which has its own tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: list[ast.AST] = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    skipped += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(getattr(target, "id", "") in ("COMMAND", "_RANGE") for target in node.targets)
    ]
    inside = {id(inner) for node in skipped for inner in ast.walk(node)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
    ]


def test_all_commands_come_from_one_function() -> None:
    used: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "hints.py":
            continue
        texts = messages(path)
        assert not [text for text in texts if "python -m ercfusion." in text and text not in RECORDED], path
        used |= set(texts) & set(PLACES)
    assert used == set(PLACES)
    tests = Path(__file__).read_text(encoding="utf-8")
    assert not [place for place in PLACES if f"# place: {place}\n" not in tests]


# Runs and sweeps


def test_an_interrupted_run(nasty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    from ercfusion.records.record import read_record
    from ercfusion.training import run

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    arguments = [*TINY, "model=concat", "training.max_epochs=1", "output=o"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "train", interrupted)
        status, _, err = command(train.main, arguments, capsys)
    assert status == 130
    # place: interrupted run
    again = printed(err, "train")
    folder = Path(parse(again)[0].value())
    assert folder.is_relative_to(nasty)
    # place: occupied run
    assert printed(refused(train.main, [*arguments, f"run={folder}"], capsys), "train") == again
    # place: unfinished run
    with pytest.raises(RunError) as caught:
        read_record(folder)
    assert printed(str(caught.value), "train") == again
    # place: run, not sweep
    assert printed(refused(sweep.main, [f"resume={folder}"], capsys), "train") == again
    out, _ = done(train.main, again, capsys)
    assert out.splitlines()[-1] == str(folder)
    assert read_record(folder)["seed"] == 0


def test_what_would_make_the_run_of_a_call_again(nasty: Path, capsys: Any) -> None:
    training = {"max_epochs": 1, "pictures": False, "bootstrap": 20}
    corpus = {"data.options.train": 6, "data.options.dev": 3, "data.options.test": 3}
    made = ercfusion.fit("majority", training=training, output=str(nasty / "o"), **corpus)
    # place: python entry
    out, _ = done(train.main, printed(made.record["command"]["command"], "train"), capsys)
    again = ercfusion.load(out.splitlines()[-1])
    assert again.folder != made.folder
    assert again.record["metrics"] == made.record["metrics"]


def test_no_command_for_a_folder_that_holds_something_else(nasty: Path, capsys: Any) -> None:
    (nasty / "notes.txt").write_text("mine")
    message = refused(train.main, [*TINY, "model=concat", f"run={nasty}"], capsys)
    assert "is not empty, and nothing is overwritten. Choose another folder." in message
    assert "python -m" not in message


def test_an_interrupted_sweep(nasty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.search import run

    found: list[Any] = []

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    def reopen(folder: str, changes: Any, imports: Any) -> Any:
        found.append((folder, changes))
        return SimpleNamespace(folder=Path(folder), storage=None)

    monkeypatch.setattr(run, "run_sweep", interrupted)
    monkeypatch.setattr(run, "reopen", reopen)
    status, _, err = command(sweep.main, [f"resume={nasty}"], capsys)
    assert status == 130
    # place: interrupted sweep
    command(sweep.main, printed(err, "sweep"), capsys)
    assert found == [(str(nasty), {})] * 2


def test_a_changed_run(nasty: Path, capsys: Any, no_pictures: None) -> None:
    done(train.main, [*TINY, "model=concat", "training.max_epochs=1", "run=r"], capsys)
    Path("r/record.json").unlink()
    config = json.loads(Path("r/config.json").read_text())
    Path("r/config.json").write_text(json.dumps({**config, "seed": 5}))
    typed = json.loads(Path("r/overrides.json").read_text())
    short = ["model=concat", "objective.weights={}"]  # a message has 300 letters
    Path("r/overrides.json").write_text(json.dumps({**typed, "overrides": [*short, "run=r"]}))
    # place: changed run
    again = printed(refused(train.main, ["resume=r"], capsys), "train")
    assert again == short
    out, _ = done(train.main, [*again, "--cfg"], capsys)
    assert "name: concat" in out


def test_modules_that_a_folder_names(
    nasty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    """None is imported, whatever is next to the folder, until the user's own command names it."""
    from ercfusion._core.errors import ConfigError
    from ercfusion.training.export import export_packs

    Path("stranger.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.syspath_prepend(str(nasty))
    importlib.invalidate_caches()
    settings = [*TINY, "model=concat", "training.max_epochs=1", "imports=[stranger]", "run=r"]

    def forgotten() -> bool:
        """Whether the module was imported since; as in a new process, it is not any more."""
        ran = Path("ran").exists()
        Path("ran").unlink(missing_ok=True)
        sys.modules.pop("stranger", None)
        return ran

    done(train.main, settings, capsys)
    assert forgotten()
    # place: modules of a folder
    message = refused(evaluate.main, ["r", "split=dev"], capsys)
    assert "the settings of this folder import stranger, which runs code" in message
    with pytest.raises(ConfigError, match="If you trust it: import stranger first"):
        export_packs("r")
    again = printed(message, "evaluate")
    assert again == ["r", "split=dev", "imports=[stranger]"]
    assert not forgotten()
    done(evaluate.main, again, capsys)
    assert forgotten()
    for entry in (verify.main, compare.main):
        command(entry, ["r", "r"], capsys)
        assert not forgotten()
    done(train.main, ["resume=r"], capsys)  # nothing is left to do, and nothing is imported
    assert not forgotten()
    Path("r/record.json").unlink()
    again = printed(refused(train.main, [f"resume={nasty / 'r'}"], capsys), "train")
    assert Path(parse(again)[0].value()) == nasty / "r"
    assert again[1:] == ["imports=[stranger]"]
    assert not forgotten()
    unknown = refused(train.main, [*again[:1], "imports=[stranger,other]"], capsys)
    assert "which do not import 'other'" in unknown
    assert not forgotten()
    for advice in (refused(train.main, settings, capsys), _unfinished("r")):
        assert printed(advice, "train")[1:] == again[1:]
    forgotten()
    done(train.main, again, capsys)
    assert forgotten()


def _unfinished(folder: str) -> str:
    from ercfusion.records.record import read_record

    with pytest.raises(RunError) as caught:
        read_record(Path(folder).resolve())
    return str(caught.value)


def test_the_best_settings(nasty: Path, capsys: Any) -> None:
    from ercfusion.search.results import write_best

    plan: Any = SimpleNamespace(
        typed={"data": "demo", "model": "concat"},
        run=SimpleNamespace(
            preset=SimpleNamespace(model="concat", data="demo"),
            root=SimpleNamespace(seed=0),
        ),
        metric="nll",
        name="mine",
        folder=nasty,
    )
    best: Any = SimpleNamespace(
        user_attrs={"result": {"settings": {"optimizer.lr": 0.25}, "epoch": 3}}, number=1, value=0.5
    )
    text = write_best(plan, best, 4).read_text(encoding="utf-8")
    # place: best settings
    out, _ = done(train.main, [*printed(text, "train"), "--cfg"], capsys)
    assert "lr: 0.25" in out
    assert "seed: 1\n" in out


# Packs


def trained_on(arguments: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The packs that a command of ``train`` would train on."""
    from ercfusion.features.loading import load_data
    from ercfusion.training import run

    class EnoughError(RunError):
        pass

    found: list[Path] = []

    def look(config: Any, folder: Path) -> None:
        tables = load_data(section_from("data", config["data"])).tables
        found.extend(Path(table.source["pack"]) for table in tables if table.modality == "audio")
        raise EnoughError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(run, "train", look)
        assert refused(train.main, arguments, capsys).endswith("error: enough\n")  # after notes on the twin
    return found


def test_a_stale_pack(nasty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.features.executors import in_this_process

    monkeypatch.setattr("ercfusion.features.extraction._runner", lambda *arguments: in_this_process)
    raw = write_twin("custom", nasty / "mine")
    arguments = ["data=custom", f"data.raw={raw}", "data.modalities=[audio]"]
    done(extract.main, [*arguments[:2], "features=logmel"], capsys)
    arguments += ["model=concat", "data.packs.audio=logmel"]
    assert trained_on(arguments, capsys, monkeypatch)
    first = sorted((raw / "recordings").rglob("*.wav"))[0]
    first.write_bytes(first.read_bytes() + b"....")
    message = refused(train.main, arguments, capsys)
    assert "recordings changed after extraction" in message
    # place: stale pack
    _, err = done(extract.main, printed(message, "extract"), capsys)
    assert f"1 recordings have changed since: recordings/{first.name}" in err
    assert trained_on(arguments, capsys, monkeypatch)


@pytest.mark.slow
def test_packs(nasty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packs of a recipe with other settings, one of a recipe file, one at a place of one's own."""
    raw = write_twin("emodb", nasty / "emodb,1")
    corpus = ["data=emodb", f"data.raw={raw}"]
    # place: missing pack
    message = refused(train.main, ["model=concat", *corpus, "data.packs.audio=logmel"], capsys)
    out, err = done(extract.main, [*printed(message, "extract"), "workers=1"], capsys)
    # place: new pack
    first = Path(out.splitlines()[-1])
    hint = printed(err, "train")
    assert hint[-1] == "data.packs.audio=logmel"
    assert trained_on(hint, capsys, monkeypatch) == [first]

    arguments = [*corpus, "features=logmel", "workers=1"]
    out, err = done(extract.main, [*arguments, "features.bands=8"], capsys)
    assert trained_on(printed(err, "train"), capsys, monkeypatch) == [Path(out.splitlines()[-1])] != [first]
    assert trained_on(hint, capsys, monkeypatch) == [first]

    Path("w2v.yaml").write_text("name: w2v\ntool: logmel\nsettings: {bands: 6}\n")
    out, err = done(extract.main, [*corpus, "features=w2v.yaml", "workers=1"], capsys)
    assert trained_on(printed(err, "train"), capsys, monkeypatch) == [Path(out.splitlines()[-1])]

    out, err = done(extract.main, [*arguments, "out=mine, too"], capsys)
    assert trained_on(printed(err, "train"), capsys, monkeypatch) == [nasty / "mine, too"]

    # A second pack that the name could mean is not taken silently.
    shutil.copytree(first, first.with_name("logmel-copied"))
    assert "2 packs of this recipe fit emodb. Give the folder of one: " in refused(train.main, hint, capsys)
    out, err = done(extract.main, arguments, capsys)
    assert "exists already" in err
    assert trained_on(printed(err, "train"), capsys, monkeypatch) == [first]


def test_an_imported_corpus(nasty: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.features import imports

    monkeypatch.setattr(imports, "import_pickle", lambda path, layout, out, **options: out)
    _, err = done(extract.main, ["import=a.pkl", "layout=mmsa", "out=my corpus"], capsys)
    # place: imported corpus
    config = Composer("train").compose(printed(err, "train"))
    assert (config["data"]["name"], config["data"]["raw"]) == ("custom", str(nasty / "my corpus"))


def test_recordings_without_packs(nasty: Path) -> None:
    from ercfusion.data.corpora.custom import CustomCorpus

    raw = nasty / "my corpus"
    raw.mkdir()
    (raw / "utterances.csv").write_text("conversation,turn,audio,emotion\nc,1,a.wav,joy\nc,2,b.wav,anger\n")
    corpus = CustomCorpus(raw)
    finding = corpus.missing_inputs(corpus.protocol())
    assert finding is not None
    # place: recordings without packs
    values = Composer("train").values(printed(finding.text, "extract"))
    assert values["data.raw"] == str(raw)
    assert values["out"] == str(raw / "packs" / "audio")


def test_another_release(
    nasty: Path, capsys: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ercfusion.features.loading import load_data

    stub_text_encoder(monkeypatch, nasty / "packs")
    raw = write_twin("meld", nasty / "meld")
    caplog.set_level("WARNING", "ercfusion")
    load_data(Data(name="meld", raw=str(raw), modalities=("text",)))
    # place: other release
    again = printed(caplog.text, "doctor")
    status, out, err = command(doctor.main, again, capsys)
    assert (status, err) == (1, "")
    assert "utterances" in out


def test_the_recipes(nasty: Path, capsys: Any) -> None:
    raw = write_twin("emodb", nasty / "emodb")
    message = refused(train.main, ["model=concat", "data=emodb", f"data.raw={raw}"], capsys)
    # place: recipes
    (flag,) = re.findall(r"python -m ercfusion\.extract (\S+) prints", message)
    out, _ = done(extract.main, [flag], capsys)
    assert "egemaps" in out


# Tables


PRESET = """
title: A tiny table
data: demo
settings: {data.options.train: 6, data.options.dev: 3, data.options.test: 12}
seeds: [0]
rows:
  plain: {model: concat}
"""


@pytest.fixture
def preset(nasty: Path) -> Path:
    """A preset with its recorded run and its files."""
    from made_records import record

    from ercfusion.records.archive import write_archive
    from ercfusion.tables.preset import read_preset
    from ercfusion.training.tables import archive_path

    path = nasty / "my table.yaml"
    path.write_text(PRESET)
    read = read_preset(path)
    sizes = ("data.options.train=6", "data.options.dev=3", "data.options.test=12")
    write_archive(archive_path(nasty / "my table", read.rows[0]), [record("concat", 0, 0.5, *sizes)])
    return path


def test_nothing_recorded(nasty: Path, capsys: Any, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(nasty / "my table")
    with pytest.raises(RunError) as caught:
        verify.recorded_groups("my table.yaml")
    found: list[str] = []
    monkeypatch.setattr(reproduce, "reproduce", lambda typed: found.append(typed.positional[0]) or 0)
    # place: no recorded run
    done(reproduce.main, printed(str(caught.value), "reproduce"), capsys)
    assert found == ["my table.yaml"]


def test_a_table_that_is_not_up_to_date(nasty: Path, capsys: Any, preset: Path) -> None:
    status, out, err = command(reproduce.main, [str(preset), "--check", "out=o 1"], capsys)
    assert status == 1, err
    # place: table not up to date
    again = printed(out, "reproduce")
    assert again == [str(preset), "out=o 1"]
    done(reproduce.main, again, capsys)
    done(reproduce.main, [str(preset), "--check", "out=o 1"], capsys)


def test_a_copied_table(nasty: Path, capsys: Any, preset: Path) -> None:
    status, out, err = command(reproduce.main, [str(preset), "copy=a copy"], capsys)
    assert status == 0, err
    # place: copied table
    done(reproduce.main, printed(out, "reproduce"), capsys)
    assert (nasty / "a copy" / "table.csv").is_file()


def test_the_page_of_a_table(nasty: Path, capsys: Any, preset: Path) -> None:
    from ercfusion.tables.preset import find_preset

    done(reproduce.main, [str(preset)], capsys)
    page = (nasty / "my table" / "README.md").read_text(encoding="utf-8")
    # place: table
    (made,) = re.findall(r"`python -m ercfusion\.reproduce (.*?)`", page)
    assert find_preset(*shlex.split(made)) == Path("my table.yaml")
    # place: row of a table
    (row,) = re.findall(r"`python -m ercfusion\.train (.*?)`", page)
    config = Composer("train").compose(shlex.split(row))
    assert (config["preset"], config["data"]["options"]["test"]) == ({"model": "concat", "data": "demo"}, 12)
