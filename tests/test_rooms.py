"""Which module of the package may import which: rooms import downwards, and nothing is imported in a circle."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import ercfusion

ROOT = Path(ercfusion.__file__).parent

# From bottom to top, as in CONTRIBUTING.md. ``conf`` holds no code. Modules next to the rooms are the commands: on top.
ROOMS = (
    *("conf", "_core", "config", "batch", "ops", "layers", "losses", "metrics", "models", "tasks", "data", "testing"),
    *("features", "records", "tables", "plots", "training", "search"),
)
COMMANDS = "the commands"
# ``ercfusion`` itself offers fit() and load(): it is above the commands, and no module imports from it.
TOP = "ercfusion"
ORDER = (*ROOMS, COMMANDS, TOP)

# Packages whose import takes long, or that need not be installed, with those that they load themselves. Our modules
# that load them may be imported inside a function; all others are imported at the top of a module.
SLOW = {
    "numpy": (),  # 0.1 s: the commands' help does without
    "torch": ("numpy",),  # 1 s and more
    "scipy": ("numpy",),  # 0.4 s
    "matplotlib": ("numpy",),  # 0.3 s
    "pandas": ("numpy",),  # 0.5 s, optional
    "pyarrow": ("numpy",),  # 0.3 s
    "safetensors": ("numpy",),  # loads NumPy
    "pytorch_lightning": ("torch", "numpy", "scipy", "matplotlib"),  # 2 s; scipy and matplotlib through torchmetrics
    "pydantic": (),  # 0.2 s: the commands' help does without
    "rich": (),  # 0.1 s
    "hydra": ("omegaconf",),  # 0.4 s
    "omegaconf": (),  # 0.2 s
    "optuna": ("numpy",),  # 0.5 s, optional
    "triton": (),  # optional; only where there is a GPU
    "mamba_ssm": ("torch", "numpy"),  # optional
    "opensmile": ("numpy", "pandas"),  # optional
    "av": ("numpy",),  # optional
    "feat": ("torch", "numpy", "pandas"),  # optional
    "h5py": ("numpy",),  # optional
    "sentence_transformers": ("torch", "numpy", "scipy"),  # optional
    "distributed": (),  # optional
    "tensorboard": (),  # optional
}


class Import(NamedTuple):
    """An import of a module of the package by another one."""

    by: str
    of: str
    kind: str  # top, function or typing
    line: int

    def __str__(self) -> str:
        return f"{self.by} (line {self.line}, {self.kind}) imports {self.of}"


class Graph(NamedTuple):
    """All imports of the package, and third-party packages by the module that loads them at its top."""

    modules: frozenset[str]
    imports: tuple[Import, ...]
    packages: dict[str, frozenset[str]]


def read_graph(sources: dict[str, str]) -> Graph:
    """The imports in the sources of modules, by their names."""
    imports: list[Import] = []
    packages: dict[str, set[str]] = {name: set() for name in sources}

    def add(by: str, name: str, kind: str, line: int) -> None:
        first = name.partition(".")[0]
        if first == "ercfusion":
            while name not in sources:  # a class or function of a module
                name = name.rpartition(".")[0]
            if name != by:
                imports.append(Import(by, name, kind, line))
        elif kind == "top" and first in SLOW:
            packages[by].update((first, *SLOW[first]))

    def walk(by: str, node: ast.AST, kind: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                continue  # no expression imports anything, and most of a file are expressions
            inner = kind
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = "typing"
            if isinstance(child, ast.Import):
                for alias in child.names:
                    add(by, alias.name, inner, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{by}: a relative import"
                for alias in child.names:
                    add(by, f"{child.module}.{alias.name}", inner, child.lineno)
            else:
                walk(by, child, inner)

    for name, text in sources.items():
        walk(name, ast.parse(text), "top")
    return Graph(frozenset(sources), tuple(imports), {name: frozenset(found) for name, found in packages.items()})


@cache
def graph() -> Graph:
    """Of the package as it is."""
    sources = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return read_graph(sources)


def room(module: str) -> str:
    """The room that a module is in."""
    parts = module.split(".")
    if len(parts) == 1:
        return TOP
    return parts[1] if parts[1] in ROOMS else COMMANDS


def upwards(found: Graph) -> list[str]:
    """Imports of a higher room."""
    return [str(one) for one in found.imports if ORDER.index(room(one.of)) > ORDER.index(room(one.by))]


def circles(found: Graph) -> list[list[str]]:
    """Modules that import each other, directly or through others; imports for annotations only are left out."""
    below: dict[str, set[str]] = {name: set() for name in found.modules}
    for one in found.imports:
        if one.kind != "typing":
            below[one.by].add(one.of)
    left = {name: set(others) for name, others in below.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    # What is left is in a circle or above one.
    while above := [name for name in left if not any(name in left[other] for other in left if other != name)]:
        for name in above:
            del left[name]
    return [sorted(left)] if left else []


def loaded(found: Graph) -> dict[str, frozenset[str]]:
    """The slow packages that importing a module loads, by module: its own and those of what it imports at the top."""
    tops: dict[str, set[str]] = {name: set() for name in found.modules}
    for one in found.imports:
        if one.kind == "top":
            tops[one.by].add(one.of)

    def reach(name: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            module = waiting.pop()
            if module in found.modules and module not in seen:
                seen.add(module)
                waiting += [*tops[module], module.rpartition(".")[0]]
        return frozenset().union(*(found.packages[module] for module in seen))

    return {name: reach(name) for name in found.modules}


def needless(found: Graph) -> list[str]:
    """Imports inside functions that keep no slow or optional package out."""
    slow = loaded(found)
    return [str(one) for one in found.imports if one.kind == "function" and not slow[one.of] - slow[one.by]]


def test_rooms_import_downwards() -> None:
    found = upwards(graph())
    assert not found, "\n".join(found)


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.rglob("*/*.py")}
    assert folders <= set(ROOMS), f"no place in the order of the rooms: {sorted(folders - set(ROOMS))}"


def test_the_page_for_contributors_is_true() -> None:
    """It lists the rooms in their order, and files and folders that exist."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.search(r"From bottom to top: (.*?), the commands", text, re.DOTALL)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(ROOMS[1:])
    named = [*re.findall(r"`([\w./]+/[\w./]*)`", text), *re.findall(r"\]\((.*?)\)", text)]
    # What NAME stands for is found by hand; the example of a test's place is no file.
    places = [name for name in named if "NAME" not in name and "/a/" not in name]
    assert len(places) > 5
    missing = [name for name in places if not (ROOT.parent / name).exists()]
    assert not missing, f"CONTRIBUTING.md names {', '.join(missing)}"


def test_there_is_no_circle() -> None:
    found = circles(graph())
    shown = [str(one) for one in graph().imports if found and {one.by, one.of} <= set(found[0])]
    assert not found, "\n".join(shown)


def test_functions_import_slow_modules_only() -> None:
    found = needless(graph())
    assert not found, "import these at the top of the module:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("check", "sources", "expected"),
    [
        (upwards, {"ops.scan": "import ercfusion.layers.mamba", "layers.mamba": ""}, 1),
        (upwards, {"ops.scan": "", "layers.mamba": "def f():\n    from ercfusion.train import main", "train": ""}, 1),
        (upwards, {"ops.scan": "", "layers.mamba": "from ercfusion.ops import scan", "ops": ""}, 0),
        (circles, {"data.a": "from ercfusion.data.b import X", "data.b": "def f():\n    import ercfusion.data.a"}, 1),
        (circles, {"data.a": "from ercfusion.data.b import X", "data.b": "", "data.c": "import ercfusion.data.a"}, 0),
        (needless, {"data.a": "def f():\n    import ercfusion.data.b", "data.b": "import json"}, 1),
        (needless, {"data.a": "def f():\n    import ercfusion.data.b", "data.b": "import torch"}, 0),
        (needless, {"data.a": "import torch\ndef f():\n    import ercfusion.data.b", "data.b": "import torch"}, 1),
    ],
)
def test_the_checks_find_it(check, sources: dict[str, str], expected: int) -> None:
    found = read_graph({"ercfusion": "", **{f"ercfusion.{name}": text for name, text in sources.items()}})
    assert len(check(found)) == expected


CLEAN = """
import json, os, sys
import ercfusion
first = sorted(sys.modules)
import torch
reports = []
for room in ("layers", "losses"):
    reader, writer = os.pipe()
    if os.fork() == 0:
        __import__(f"ercfusion.{room}")
        with os.fdopen(writer, "w") as stream:
            json.dump(sorted(sys.modules), stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        reports.append(json.load(stream))
    os.wait()
print(json.dumps([first, *reports]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_small_parts_load_small_parts() -> None:
    """In a clean process; both rooms are what other projects import."""
    done = subprocess.run([sys.executable, "-c", CLEAN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    package, layers, losses = json.loads(done.stdout.splitlines()[-1])
    assert not {name.partition(".")[0] for name in package} & SLOW.keys()
    for modules, rooms in ((layers, ("ops", "layers")), (losses, ("ops", "layers", "losses"))):
        ours = {name for name in modules if name.startswith("ercfusion")}
        assert {room(name) for name in ours} <= {TOP, "_core", "batch", *rooms}
        assert {name.partition(".")[0] for name in modules} & SLOW.keys() <= {"torch", "numpy"}
