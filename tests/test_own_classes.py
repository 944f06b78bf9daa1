"""A corpus and a model of one's own, registered in one module, by name in every command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import REGISTRIES, TINY, command, python, read, refused, restored
from sweeps import in_process

import ercfusion
from ercfusion import compare, doctor, evaluate, extract, reproduce, sweep, train, verify
from ercfusion._core.registry import Registry
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.config.compose import Composer
from ercfusion.testing.twins import write_twin

__all__ = ["in_process"]  # a fixture

OWN = """
from ercfusion.data.corpora import register as register_corpus
from ercfusion.data.corpora.custom import CustomCorpus
from ercfusion.models import register as register_model
from ercfusion.models.concat import Concat


class Gated(Concat):
    \"\"\"A model of one's own.

    Args:
        inputs: As in the base class.
        hidden: As there.
        dropout: As there.
        input_dropout: As there.
    \"\"\"

    search_space = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


class Calls(CustomCorpus):
    \"\"\"A corpus of one's own.\"\"\"


register_corpus("calls", "my_own:Calls")
register_model("gated", "my_own:Gated")
"""
TRAINING = ("training.batch_size=2", "training.bootstrap=20", "training.threads=1", "training.max_epochs=1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the module; what it registers is forgotten."""
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    importlib.invalidate_caches()
    with restored("my_own"):
        yield tmp_path


def done(entry: Any, arguments: list[str], capsys: Any, *expected: int) -> str:
    status, out, err = command(entry, arguments, capsys)
    assert status in (expected or (0,)), out + err
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_every_command(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.features.executors import in_this_process

    monkeypatch.setattr("ercfusion.features.extraction._runner", lambda *arguments: in_this_process)
    raw = write_twin("custom", place / "recorded")
    own = ["imports=my_own", "data=calls", f"data.raw={raw}"]
    assert "findings:" in done(doctor.main, own, capsys, 0, 1)
    pack = done(extract.main, [*own, "features=logmel"], capsys).strip()
    assert Path(pack).is_dir()
    own += ["model=gated", "data.modalities=[audio]", "data.packs.audio=logmel", *TRAINING, "trainer=cpu"]
    for name, seed in (("a", 0), ("b", 1)):
        done(train.main, [*own, f"run={name}", f"seed={seed}"], capsys)
    config = read(place / "a" / "config.json")
    assert (config["model"]["name"], config["data"]["name"], config["imports"]) == ("gated", "calls", ["my_own"])
    assert "equal to the run's record" in done(evaluate.main, ["a", "imports=my_own"], capsys)
    assert "seed 1" in done(compare.main, ["a", "b", "imports=my_own"], capsys)
    done(sweep.main, [*own, "sweep.trials=1", "sweep.rerun=0", "sweep.workers=1", "run=s"], capsys)
    assert read(place / "s" / "summary.json")["trials"]
    settings = [word.replace("=", ": ", 1) for word in own[4:]]
    lines = ["title: Own", "data: calls", "settings:", *(f"  {line}" for line in settings), "seeds: [0, 1]", "rows:"]
    Path("calls.yaml").write_text("\n".join([*lines, "  plain: {model: gated}", ""]))
    again = ["calls.yaml", "imports=my_own", f"data.raw={raw}"]
    assert "README.md" in done(reproduce.main, [*again, "runs=r", "workers=1"], capsys)
    assert "all files up to date" in done(reproduce.main, [*again, "--check"], capsys)
    assert "inside" in done(verify.main, ["a", "calls.yaml", "imports=my_own"], capsys, 0, 1)


def test_registered_names_are_choices(place: Path, capsys: Any) -> None:
    assert "no such choice of model. " in refused(train.main, ["model=gated"], capsys)
    assert "no such choice of data. " in refused(doctor.main, ["data=calls"], capsys)
    out = done(train.main, ["model=gated", "data=calls", "imports=my_own", "--cfg"], capsys)
    assert "name: gated" in out
    assert "name: calls" in out
    assert {"gated", "calls"} <= {name for names in Composer().groups().values() for name in names}
    assert "gated" in done(train.main, ["--help", "imports=my_own"], capsys)


def test_a_file_of_a_registered_name_goes_first(place: Path, capsys: Any) -> None:
    (place / "groups" / "data").mkdir(parents=True)
    (place / "groups" / "data" / "calls.yaml").write_text("name: calls\nraw: here\nprotocol: null\noptions: {}\n")
    out = done(train.main, ["data=calls", "imports=my_own", "config_dir=groups", "model=concat", "--cfg"], capsys)
    assert "raw: here" in out


def test_a_class_has_one_name(place: Path, capsys: Any) -> None:
    out = done(train.main, ["model=my_own:Gated", "--cfg"], capsys)
    assert "name: gated\n" in out
    assert "model: gated\n" in out
    assert "imports:\n- my_own\n" in out
    assert "my_own:Gated" not in ARCHITECTURES
    out = done(train.main, ["model=ercfusion.models.concat:Concat", "--cfg"], capsys)
    assert "name: concat\n" in out
    assert "imports: []\n" in out


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("given", ["class", "gated", "my_own:Gated"])
def test_fit_with_a_class_that_has_a_name(place: Path, given: str) -> None:
    module = importlib.import_module("my_own")
    numbers = {**dict.fromkeys(["data.options.train", "data.options.dev", "data.options.test"], 3), "trainer": "cpu"}
    numbers |= {"training.max_epochs": 1, "training.bootstrap": 20, "training.threads": 1, "model.hidden": 4}
    run = ercfusion.fit(module.Gated if given == "class" else given, "demo", run="r", **numbers)
    assert (run.record["config"]["model"]["name"], run.record["config"]["imports"]) == ("gated", ["my_own"])
    assert read(place / "r" / "model" / "config.json")["architecture"] == "gated"
    assert ercfusion.load("r").recognizer.architecture.hidden_size


def test_a_class_without_a_name(place: Path, capsys: Any, tmp_path: Path) -> None:
    (place / "unnamed.py").write_text(OWN.partition("register_corpus(")[0])
    out = done(train.main, ["model=unnamed:Gated", "--cfg"], capsys)
    assert "name: unnamed:Gated" in out
    assert "imports:\n- unnamed\n" in out
    assert "has no class 'Gatde'" in refused(train.main, ["model=unnamed:Gatde"], capsys)
    assert "imports: no module 'unnmaed'" in refused(train.main, ["model=unnmaed:Gated"], capsys)
    sys.modules.pop("unnamed")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_fit_with_a_class(place: Path) -> None:
    (place / "unnamed.py").write_text(OWN.partition("register_corpus(")[0])
    module = importlib.import_module("unnamed")
    settings = dict(word.split("=", 1) for word in TINY)
    numbers = {key: int(value) if value.isdecimal() else value for key, value in settings.items()}
    run = ercfusion.fit(module.Gated, "demo", options={"hidden": 8}, **{**numbers, "training.max_epochs": 1})
    assert run.record["config"]["model"]["name"] == "unnamed:Gated"
    assert run.record["config"]["imports"] == ["unnamed"]
    assert type(run.recognizer.architecture).__name__ == "Gated"
    elsewhere = python("-c", f"import ercfusion; ercfusion.load({str(run.folder)!r}).recognizer")
    assert "import unnamed first" in elsewhere.stderr
    sys.modules.pop("unnamed")


def test_every_registry_is_restored() -> None:
    """Otherwise a page's or a test's own class would change the settings of later tests."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("ercfusion.")]
    registries = [value for module in modules for value in vars(module).values() if isinstance(value, Registry)]
    assert registries
    assert all(any(one is known for known in REGISTRIES) for one in registries)
    before = [dict(registry) for registry in REGISTRIES]
    with restored():
        for registry in REGISTRIES:
            registry["of_a_test"] = "a_test:Own"
    assert before == [dict(registry) for registry in REGISTRIES]
