"""The tables of the repository are complete, current, compact, and hold nothing that must not be shared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import command, environment

from docs.computed.tables import tables
from ercfusion import reproduce
from ercfusion.models import ARCHITECTURES
from ercfusion.tables.preset import TablePreset, preset_folder, read_preset
from ercfusion.training.tables import archive_path, read_table_records

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module", params=PRESETS)
def preset(request) -> TablePreset:
    return read_preset(FOLDER / f"{request.param}.yaml")


@pytest.fixture(scope="module")
def records(preset) -> dict:
    """The recorded runs by row, which are looked at and not changed."""
    return read_table_records(preset, [FOLDER / preset.name])


def test_presets_are_found_from_a_checkout():
    assert preset_folder() == FOLDER


STUDIES = {
    *("meld-curriculum", "meld-emotion", "meld-sentiment", "mosi-fusion", "mosi-fusion-score", "mosi-losses"),
    *("demo-missing", "demo-multilabel", "demo-vad", "emodb-guided", "friends-votes", "mosi-guided", "mosi-missing"),
}
"""Tables that answer one question with some architectures, and need not grow with the zoo."""

TRAINED_FOR_VECTORS = {"utterance_encoder"}
"""Architectures that are trained for the vectors they make, not for recognition: a row of their classifiers' scores
beside conversation models would compare what is not meant to be compared. docs/metric-learning.md has their figures."""

MADE_FOR_STUDIES = {"carat", "emotx", "bridge", "inconvad", "mplmm", "mult"}
"""Architectures for label sets, ratings or missing modalities: the other tables leave them out, studies have them."""


def test_every_architecture_is_in_every_table(preset):
    names = {preset.config(row, row.seeds[0])["model"]["name"] for row in preset.rows}
    assert names <= set(ARCHITECTURES)
    assert names == set(ARCHITECTURES) - TRAINED_FOR_VECTORS - MADE_FOR_STUDIES or preset.name in STUDIES


def test_architectures_made_for_studies_are_in_one():
    presets = [read_preset(FOLDER / f"{name}.yaml") for name in STUDIES]
    names = {preset.config(row, row.seeds[0])["model"]["name"] for preset in presets for row in preset.rows}
    assert names >= MADE_FOR_STUDIES


@pytest.mark.slow
def test_tables_are_complete_and_current(preset, capsys, monkeypatch):
    # The command computes the table that the tests of the documentation need as well.
    monkeypatch.setattr("ercfusion.tables.table.compute_tables", lambda found, records: tables(found.name))
    status, out, _ = command(reproduce.main, [str(preset.path), "--check"], capsys)
    assert status == 0, out


@pytest.mark.slow
def test_five_seeds_of_one_state_of_the_sources(records):
    for row, runs in records.items():
        assert len(runs) >= 5, row
        for record in runs.values():
            assert record["environment"]["revision"]["dirty"] is False, f"{row}: run from changed sources"


@pytest.mark.slow
def test_every_row_has_its_optimism(records):
    found = {
        (record["task"]["name"], record["optimism"]["metric"]) for runs in records.values() for record in runs.values()
    }
    assert len(found) == len({task for task, _ in found}), (
        "the diagnostic of a row is of another score than the table's"
    )


def test_records_are_compact(preset):
    sizes = [archive_path(FOLDER / preset.name, row).stat().st_size for row in preset.rows]
    # Scores and sums under 15 laws more per run.
    laws = 30_000 * sum(len(row.seeds) for row in preset.rows) if preset.robustness else 0
    assert sum(sizes) < 1_100_000 * max(1, len(preset.views) / 1.5) + laws
    assert max(path.stat().st_size for path in (FOLDER / preset.name).rglob("*") if path.is_file()) < (
        260_000 if preset.robustness else 200_000  # pictures of every model
    )


def test_no_path_of_a_machine(preset):
    for path in (FOLDER / preset.name).rglob("*"):
        if path.is_file():
            found = re.search(r"(?<![\w.:/])/(root|home|tmp|work|mnt|Users)/", path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found}"


def test_no_other_files(preset):
    known = {archive_path(FOLDER / preset.name, row) for row in preset.rows}
    known |= {FOLDER / preset.name / name for name in reproduce.FILES}
    assert {path for path in (FOLDER / preset.name).rglob("*") if path.is_file()} == known


@pytest.mark.slow
def test_a_row_is_added_without_a_clone(tmp_path):
    """The commands of the page, in an empty folder, with a package as a wheel installs it."""
    package, place = tmp_path / "site" / "ercfusion", tmp_path / "place"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(FOLDER.parent / "ercfusion", package, ignore=unwanted)
    for source, target in (("features", "recipes"), ("experiments", "experiments")):
        shutil.copytree(FOLDER.parent / source, package / target)
    place.mkdir()
    page = (FOLDER.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    section = page.partition("## Add a row to a recorded table\n")[2].partition("\n## ")[0]
    (commands,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    shell = environment(PYTHONPATH=str(package.parent), PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=place, env=shell, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    assert "2 of 77 runs have no record yet" in run.stderr
    rows = {line.partition(",")[0].strip('"') for line in (place / "mine" / "table.csv").read_text().splitlines()[1:]}
    assert rows >= {"concat", "bclstm", "m2fnet"}
    assert '"concat, narrow",concat,weighted_f1,' in (place / "mine" / "table.csv").read_text()
    recorded = package / "experiments" / "demo" / "records"
    for archive in recorded.iterdir():
        assert (place / "mine" / "records" / archive.name).read_bytes() == archive.read_bytes()
    assert sorted(path.name for path in place.iterdir()) == ["mine", "mine.yaml", "outputs"]
