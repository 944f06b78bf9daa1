"""The API reference: one page per public package.

Public names are those of a package's ``__all__``, those that the Python examples of the pages import from a module of
the package, the architectures, and the extractors.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from docs.computed.registry import ROOT, register_built
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.features.extractor import EXTRACTORS


def examples() -> Iterator[str]:
    """The Python blocks of all pages."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for match in re.finditer(r"(?ms)^( *)```python\n(.*?)^ *```$", page.read_text(encoding="utf-8")):
            yield textwrap.dedent(match[2])


def imported() -> Iterator[tuple[str, str]]:
    """(module, name) of what the examples import from ercfusion."""
    for example in examples():
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ercfusion":
                yield from ((node.module or "", alias.name) for alias in node.names)


@cache
def public_names() -> dict[str, list[tuple[str, str]]]:
    """(module, name) of every public name, by package; each object once."""
    sources = [("ercfusion", name) for name in importlib.import_module("ercfusion").__all__]
    sources += [(package, name) for package in packages() for name in importlib.import_module(package).__all__]
    classes = [registry.load(name) for registry in (ARCHITECTURES, EXTRACTORS) for name in registry]
    sources += [(each.__module__, each.__name__) for each in classes]
    sources += imported()
    names: dict[str, list[tuple[str, str]]] = {}
    known: list[object] = []
    for module, name in sources:
        value = getattr(importlib.import_module(module), name)
        private = any(part.startswith("_") for part in [*module.split("."), name])
        if private or inspect.ismodule(value) or any(value is each for each in known):
            continue
        known.append(value)
        names.setdefault(".".join(module.split(".")[:2]), []).append((module, name))
    return dict(sorted(names.items()))


def packages() -> list[str]:
    """The packages that list their public names."""
    folders = sorted(path.parent.name for path in (ROOT / "ercfusion").glob("*/__init__.py"))
    return [f"ercfusion.{name}" for name in folders if hasattr(importlib.import_module(f"ercfusion.{name}"), "__all__")]


def directive(module: str, name: str) -> str:
    """The autodoc directive of a public name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        options = "" if issubclass(value, Exception) else "\n   :members:"
        options += "" if value.__bases__ == (object,) else "\n   :show-inheritance:"
        return f".. autoclass:: {module}.{name}{options}\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {module}.{name}\n"
    return f".. autodata:: {origin(module, name)}.{name}\n   :no-value:\n"


def origin(module: str, name: str) -> str:
    """The module that defines a value: its docstring is there."""
    source = importlib.import_module(module).__file__ or ""
    for node in ast.parse(Path(source).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return origin(node.module, name)
    return module


def package_pages() -> dict[str, str]:
    """The text of the page of every package, by name."""
    pages = {}
    for package, names in public_names().items():
        about = inspect.getdoc(importlib.import_module(package)) or ""
        parts = [package, "=" * len(package), "", about, "", *(directive(*each) for each in names)]
        pages[package.removeprefix("ercfusion.")] = "\n".join(parts)
    return pages


def package_list() -> list[str]:
    """One item per public package."""
    items = []
    for package, names in public_names().items():
        about = (inspect.getdoc(importlib.import_module(package)) or "").split("\n\n")[0]
        about = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", about).replace("``", "`").replace("\n", " ")
        items.append(f"- [`{package}`](api/{package.removeprefix('ercfusion.')}.rst): {len(names)} names. {about}")
    return items


register_built("packages", "docs/api.md", package_list)
