"""Architectures are known by the names of their files, and a new one needs nothing but its file."""

from __future__ import annotations

import inspect
from pathlib import Path

import ercfusion.models
from ercfusion.config.architectures import ARCHITECTURES, architectures_in


def test_a_file_with_the_class_of_its_name_is_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "new_one.py").write_text("class Helper(Module):\n    pass\n\n\nclass NewOne(Architecture):\n    pass\n")
    (tmp_path / "base.py").write_text("class Architecture(Module):\n    pass\n")
    (tmp_path / "words.py").write_text('"""class Words(Architecture): is no class at the start of a line."""\n')
    assert architectures_in(tmp_path) == {"new_one": "ercfusion.models.new_one:NewOne"}


def test_the_files_of_the_package_are_its_architectures() -> None:
    folder = Path(ercfusion.models.__file__).parent
    found = architectures_in(folder)
    for name, target in found.items():
        cls = ARCHITECTURES.load(name)
        assert issubclass(cls, ercfusion.models.Architecture)
        assert target == f"{cls.__module__}:{cls.__name__}"
    # No class that can be built is left out.
    kinds, built = [ercfusion.models.Architecture], []
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("ercfusion.models.") and not inspect.isabstract(kind):
            built.append(f"{kind.__module__}:{kind.__name__}")
    assert set(built) == set(found.values())
