"""Every row of a table says how its settings were chosen and how long its runs were trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_records import record

from docs.computed.tables import table as recorded
from ercfusion.plots.page import as_page
from ercfusion.tables.preset import EVIDENCE, Row, TablePreset, known_presets, read_preset
from ercfusion.tables.render import as_markdown, published_legend, score_cells
from ercfusion.tables.table import Table, compute_table
from ercfusion.tables.tuning import KNOWN, UNKNOWN, tuning_cells, tuning_note, tuning_of

TUNED = Path(__file__).resolve().parents[2] / "ercfusion" / "conf" / "tuned"


def made(*rows: Row, config_dir: str | None = None) -> Table:
    preset = TablePreset(Path("made.yaml"), "A made table", "demo", (), rows, config_dir=config_dir)
    return compute_table(
        preset, {row.name: [record(row.model, seed, 0.5, *row.settings) for seed in row.seeds] for row in rows}
    )


def test_each_row_states_its_settings_and_schedule() -> None:
    found = made(
        Row("concat", "concat", (), (0, 1)),
        Row("narrow", "concat", ("model.hidden=8", "data.modalities=[text]"), (0, 1)),
        Row("cogmen", "cogmen", (), (1, 2)),
        Row("cogmen, longer", "cogmen", ("training.max_epochs=50",), (3,)),
        Row("released", "cogmen_released", (), (0,)),
        Row("majority", "majority", (), (0,)),
    )
    assert tuning_cells(found)[1:] == [
        ["concat", "default", "30 epochs, patience 10, cosine; ran 3"],
        ["narrow", "default, but model.hidden=8", "30 epochs, patience 10, cosine; ran 3"],
        [
            "cogmen",
            "tuned",
            "40 epochs, no early stop, cosine; ran 3",
        ],
        [
            "cogmen, longer",
            "tuned, but training.max_epochs=50",
            "50 epochs, no early stop, cosine; ran 3",
        ],
        ["released", "preset", "55 epochs, no early stop, plateau; ran 3"],
        ["majority", "nothing to tune", "1 epoch, patience 10, cosine; ran 3"],
    ]
    note = tuning_note(found)
    assert (
        "`cogmen` and `cogmen, longer`: tuned on dev of demo/balanced, seeds: 0 and 1; space and trials not recorded."
        in note
    )
    assert tuning_cells(found, brief=False)[3][1].startswith("tuned on dev of demo/balanced, seeds: 0 and 1; space")
    assert "The settings of `cogmen` and `cogmen, longer` were tuned on dev of this corpus" in note
    assert "The seeds used to tune `cogmen` and `cogmen, longer` are among the reported ones." in note
    assert "The learning rate of the tuned rows falls to its minimum" in note
    assert "can stop earlier (patience 10, cosine of 30 epochs)" in note
    assert note.endswith("as a comparison of architectures.")
    brief = tuning_note(found, brief=True)
    assert len(brief) < len(note)
    assert brief.endswith("as a comparison of architectures.")
    assert "seeds: 0 and 1" in note
    assert "seeds: 0 and 1" not in brief
    for text in (as_markdown(found), as_page(found)):
        assert "as a comparison of architectures" in text
        assert "seeds: 0 and 1; space and trials not recorded" in text
    assert score_cells(found)[0][-2:] == ["settings", "schedule"]


def test_a_run_from_before_the_tuning_is_not_called_tuned() -> None:
    entry = record("cogmen")
    entry["config"]["optimizer"]["lr"] = 1e-3
    row = Row("cogmen", "cogmen", (), (0,))
    table = compute_table(TablePreset(Path("made.yaml"), "T", "demo", (), (row,)), {"cogmen": [entry]})
    assert tuning_of(table.lines[0]).words == "default"


def test_what_a_tuned_file_of_ones_own_says(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "concat-demo.yaml").write_text(
        "# @package _global_\n# - seeds: 7\n# - trials: 50\n# - space: concat\ntraining:\n  patience: 10\n"
    )
    found = made(Row("concat", "concat", (), (0,)), config_dir=str(tmp_path))
    words = tuning_of(found.lines[0], str(tmp_path)).words
    assert words == "tuned on not recorded, seeds: 7; space concat; trials 50"
    assert tuning_note(found) == ""  # one row: nothing is compared


def test_rows_with_one_schedule_need_no_warning() -> None:
    assert tuning_note(made(Row("a", "concat", (), (0,)), Row("b", "bclstm", (), (0,)))) == ""


@pytest.mark.parametrize("path", sorted(TUNED.glob("*.yaml")), ids=lambda path: path.stem)
def test_tuned_files_say_what_is_known_of_the_search(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    told = dict(line[4:].split(": ", 1) for line in lines if line.startswith("# - "))
    assert tuple(told) == KNOWN
    assert all(told.values())
    assert UNKNOWN in told["trials"] or int(told["trials"])


@pytest.mark.slow
def test_published_numbers_of_the_library_say_where_they_were_seen() -> None:
    """No paper is at hand, so none may be called read."""
    entries = [entry for name in known_presets() for row in read_preset(name).rows for entry in row.published]
    assert {entry.evidence for entry in entries} == {"secondary source", "not found"}
    assert set(EVIDENCE) > {entry.evidence for entry in entries}
    known = {(entry.score, entry.evidence) for entry in entries}
    quoted = (0.5644, 0.5703, 0.581, 0.5865, 0.6365, 0.6671)
    assert known == {*((score, "secondary source") for score in quoted), (0.781, "not found"), (0.803, "not found")}


@pytest.mark.slow
def test_the_recorded_table_of_meld() -> None:
    table = recorded("meld")
    told = {name: settings for name, settings, _ in tuning_cells(table)}
    tuned = {name for name, settings in told.items() if settings.startswith("tuned")}
    assert tuned == {"concat", "bclstm", "cogmen", "cogmen, class weights"}
    assert "†: quoted in a secondary source" in published_legend(table)


def test_the_commands_of_records_do_not_matter() -> None:
    """Archives of records leave the command out: a table is the same before and after it is archived."""
    entry = record("concat", 0, 0.5)
    row = Row("concat", "concat", (), (0,))
    preset = TablePreset(Path("made.yaml"), "T", "demo", (), (row,))
    typed = {**entry, "command": {"overrides": ["model=concat", "optimizer.lr=0.1"], "command": "train"}}
    tables = [compute_table(preset, {"concat": [one]}) for one in (entry, typed)]
    assert as_markdown(tables[0]) == as_markdown(tables[1])
