from __future__ import annotations

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion._core.registry import Registry


def registry() -> Registry[object]:
    return Registry("thing", {"path": "pathlib:Path"})


def test_loads_on_use() -> None:
    from pathlib import Path

    assert registry().load("path") is Path
    with pytest.raises(ConfigError, match=r"no thing 'paht'. Did you mean 'path'\?"):
        registry().load("paht")


def test_register() -> None:
    names = registry()
    names.register("fraction", "fractions:Fraction")
    names.register("fraction", "fractions:Fraction")  # a module that is imported twice does no harm
    assert names.load("fraction")(1, 2) == 0.5  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="the thing name 'path' is taken by pathlib:Path"):
        names.register("path", "os:PathLike")
    assert names["path"] == "pathlib:Path"


@pytest.mark.parametrize("package", ["ercfusion.models", "ercfusion.data.corpora"])
def test_public_registration(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module(package)
    names = module.ARCHITECTURES if package.endswith("models") else module.CORPORA
    taken = next(iter(names))
    with pytest.raises(ConfigError, match="is taken by"):
        module.register(taken, "somewhere:Else")
    monkeypatch.setitem(names, "mine", "somewhere:Mine")
    module.register("mine", "somewhere:Mine")
    with pytest.raises(ModuleNotFoundError, match="somewhere"):
        names.load("mine")
