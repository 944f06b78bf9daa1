"""The tables of ``experiments/``, each computed once: their paired tests take up to half a minute."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from filelock import FileLock

import ercfusion
from docs.computed.registry import ROOT
from ercfusion._core.files import atomic_write, user_cache
from ercfusion.metrics.comparison import Comparison
from ercfusion.tables.preset import read_preset
from ercfusion.tables.table import Table, compute_tables
from ercfusion.training.tables import read_table_records, wanted_records

EXPERIMENTS = ROOT / "experiments"
FOLDER: Path | None = None
"""Folder of the computed tables; None for the user's cache folder."""


def table(name: str) -> Table:
    """The first table of ``experiments/NAME.yaml``."""
    return tables(name)[0]


@cache
def tables(name: str) -> list[Table]:
    """The tables of ``experiments/NAME.yaml``, computed from the records next to it or read from :data:`FOLDER`."""
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f"table-{name}.lock"):
        if not path.is_file():
            preset = read_preset(EXPERIMENTS / f"{name}.yaml")
            records = read_table_records(preset, [EXPERIMENTS / name])
            computed = compute_tables(preset, wanted_records(preset, records))
            for old in path.parent.glob(f"table-{name}.*.pickle"):
                old.unlink()
            with atomic_write(path, "wb") as file:
                pickle.dump(computed, file)
        stored: list[Table] = pickle.loads(path.read_bytes())
    return stored


def prepare(names: Iterable[str]) -> None:
    """Computes the tables that are not in the folder, two at a time."""
    missing = sorted({name for name in names if not _path(name).is_file()})
    if len(missing) > 1:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            list(pool.map(_store, missing))


def _store(name: str) -> None:
    tables(name)


def _path(name: str) -> Path:
    """The file of a table: another one after each change of the package, of the preset and of the records."""
    return (FOLDER or user_cache() / "docs") / f"table-{name}.{_state(name)}.pickle"


@cache
def _state(name: str) -> str:
    package = Path(ercfusion.__file__).parent
    files = [
        *sorted(package.rglob("*.py")),
        EXPERIMENTS / f"{name}.yaml",
        *sorted((EXPERIMENTS / name).rglob("*.json")),
    ]
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def verdict(metric: str, pairs: Sequence[tuple[str, Comparison]]) -> str:
    """Smallest and largest difference of named pairs, and which of them are shown.

    The shown ones have their sizes if the smallest and the largest difference have different signs.
    """
    from ercfusion.metrics.registry import get_metric
    from ercfusion.tables.cells import number

    def size(pair: Comparison) -> str:
        return number(metric, pair.difference, sign=True)

    better = "higher is better" if get_metric(metric).higher_is_better else "lower is better"
    low, high = (pick(pairs, key=lambda item: item[1].difference) for pick in (min, max))
    if len(pairs) == 1:
        one = low[1]
        shown = ("shown" if one.shown else "not shown") + ("" if one.certain else " (not certain)")
        return f"{size(one)}, {better}; {shown}"
    mixed = low[1].difference < 0 < high[1].difference
    notes = [
        (name, [*([size(pair)] if mixed else []), *([] if pair.certain else ["not certain"])])
        for name, pair in pairs
        if pair.shown
    ]
    names = ", ".join(f"`{name}`" + (f" ({', '.join(words)})" if words else "") for name, words in notes)
    span = " to ".join(f"{size(pair)} (`{name}`)" for name, pair in (low, high))
    return f"{span}, {better}; " + (f"shown for {names}" if names else "none is shown")
