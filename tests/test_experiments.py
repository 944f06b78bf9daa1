"""The tables of the repository are complete, current, compact, and hold nothing that must not be shared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runs import command

from docs.computed.tables import table
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


STUDIES = {"meld-curriculum", "meld-emotion", "meld-sentiment", "mosi-fusion", "mosi-fusion-score"}
"""Tables that answer one question with some architectures, and need not grow with the zoo."""

TRAINED_FOR_VECTORS = {"utterance_encoder"}
"""Architectures that are trained for the vectors they make, not for recognition: a row of their classifiers' scores
beside conversation models would compare what is not meant to be compared. docs/metric-learning.md has their figures."""


def test_every_architecture_is_in_every_table(preset):
    names = {preset.config(row, row.seeds[0])["model"]["name"] for row in preset.rows}
    assert names <= set(ARCHITECTURES)
    assert names == set(ARCHITECTURES) - TRAINED_FOR_VECTORS or preset.name in STUDIES


@pytest.mark.slow
def test_tables_are_complete_and_current(preset, capsys, monkeypatch):
    # The command computes the table that the tests of the documentation need as well.
    monkeypatch.setattr("ercfusion.tables.table.compute_table", lambda found, records: table(found.name))
    status, out, _ = command(reproduce.main, [str(preset.path), "--check"], capsys)
    assert status == 0, out


def test_five_seeds_of_one_state_of_the_sources(records):
    for row, runs in records.items():
        assert len(runs) >= 5, row
        for record in runs.values():
            assert record["environment"]["revision"]["dirty"] is False, f"{row}: run from changed sources"


def test_every_row_has_its_optimism(records):
    found = {record["optimism"]["metric"] for runs in records.values() for record in runs.values()}
    assert len(found) == 1, "the diagnostic of a row is of another score than the table's"


def test_records_are_compact(preset):
    sizes = [archive_path(FOLDER / preset.name, row).stat().st_size for row in preset.rows]
    assert sum(sizes) < 1_100_000
    assert max(path.stat().st_size for path in (FOLDER / preset.name).rglob("*") if path.is_file()) < 200_000


def test_no_path_of_a_machine(preset):
    for path in (FOLDER / preset.name).rglob("*"):
        if path.is_file():
            found = re.search(r"(?<![\w.:/])/(root|home|tmp|work|mnt|Users)/", path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found}"


def test_no_other_files(preset):
    known = {archive_path(FOLDER / preset.name, row) for row in preset.rows}
    known |= {FOLDER / preset.name / name for name in reproduce.FILES}
    assert {path for path in (FOLDER / preset.name).rglob("*") if path.is_file()} == known
