from __future__ import annotations

from pathlib import Path

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion._core.registry import Registry, adding, loaded_function


def registry() -> Registry[object]:
    return Registry("thing", {"path": "pathlib:Path"})


def test_loads_on_use() -> None:
    assert registry().load("path") is Path
    with pytest.raises(ConfigError, match=r"no thing 'paht'. Did you mean 'path'\?"):
        registry().load("paht")


class Own:
    class Inner:
        """A class without a name in any registry."""


def test_a_class_or_its_place_will_do() -> None:
    names = registry()
    assert names.load(Own) is Own
    for found in (Own, Own.Inner):
        place = f"{__name__}:{found.__qualname__}"
        assert names.name_of(found) == place
        assert names.name_of(place) == place
        assert names.load(place) is found
    with pytest.raises(ConfigError, match=f"thing '{__name__}:Owm': the module {__name__} has no class 'Owm'"):
        names.load(f"{__name__}:Owm")


def test_a_registered_class_is_named_as_registered() -> None:
    names = registry()
    names.register("mine", f"{__name__}:Own")
    assert names.name_of(Own) == names.name_of(f"{__name__}:Own") == names.name_of("mine") == "mine"


def test_a_module_that_only_a_text_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from_a_folder.py").write_text("raise SystemExit('was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="thing 'from_a_folder:Thing': its module is not imported"):
        registry().load("from_a_folder:Thing")


def test_register() -> None:
    names = registry()
    names.register("fraction", "fractions:Fraction")
    names.register("fraction", "fractions:Fraction")  # a module that is imported twice does no harm
    assert names.load("fraction")(1, 2) == 0.5  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="the thing name 'path' belongs to pathlib:Path"):
        names.register("path", "os:PathLike")
    assert names["path"] == "pathlib:Path"


def test_adding_classes() -> None:
    classes: dict[str, type] = {}
    assert adding("thing", "own", classes)(Own) is Own
    again = type("Own", (), {"__module__": Own.__module__, "__qualname__": Own.__qualname__})
    assert adding("thing", "own", classes)(again) is again, "its module is imported again"
    assert classes == {"own": again}
    for known, others in ((classes, {}), ({}, classes)):
        with pytest.raises(ConfigError, match=f"the thing name 'own' belongs to {__name__}:Own. Choose another name"):
            adding("thing", "own", known, others)(Own.Inner)
    assert classes == {"own": again}


def test_functions_by_place() -> None:
    assert loaded_function("pathlib:Path") is Path
    assert loaded_function(len) is len


@pytest.mark.parametrize("package", ["ercfusion.models", "ercfusion.data.corpora"])
def test_public_registration(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module(package)
    names = module.ARCHITECTURES if package.endswith("models") else module.CORPORA
    taken = next(iter(names))
    with pytest.raises(ConfigError, match="belongs to"):
        module.register(taken, "somewhere:Else")
    monkeypatch.setitem(names, "mine", "somewhere:Mine")
    module.register("mine", "somewhere:Mine")
    with pytest.raises(ModuleNotFoundError, match="somewhere"):
        names.load("mine")
