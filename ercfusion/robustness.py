"""``python -m ercfusion.robustness RUN...``: scores with missing modalities, and comparisons of runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, RunError, did_you_mean
from ercfusion._core.files import atomic_write, expanded
from ercfusion._core.registry import require_trusted
from ercfusion.cli import run_command
from ercfusion.config.hints import command, naming
from ercfusion.config.missing import grid_laws
from ercfusion.config.settings import section_from
from ercfusion.evaluate import with_paths
from ercfusion.grammar import Command, Flag, Key, Positional, Typed
from ercfusion.records.missing import check_same_holes, modalities_of
from ercfusion.records.words import named_run

if TYPE_CHECKING:
    from ercfusion.config.sections import Data
    from ercfusion.data.store import ConversationStore
    from ercfusion.features.loading import LoadedData
    from ercfusion.records.groups import Group
    from ercfusion.tables.robustness import RobustTable

COMMAND = Command(
    "robustness",
    "Score runs with missing modalities and compare them: patterns, rates, area under the curve",
    (
        ("RUN", "one run, under all patterns and rates"),
        ("outputs/train/mult-mosi outputs/train/concat-mosi", "all runs in two folders: tests and intervals"),
        ("RUN RUN laws=[rmm:0,rmm:0.5,pattern:text]", "laws of your choice"),
        ("experiments/demo-missing/records/mult-plain.json", "recorded runs: nothing is computed again"),
        ("RUN RUN out=DIR", "write the table and the figure into a folder"),
    ),
    positional=(Positional("RUN", most=None),),
    keys=(
        Key(
            "laws",
            "laws of missing modalities; standard: all patterns, and the rates 0 to 0.7 (default: those of "
            "earlier commands and the record, else standard)",
            "names",
            value="LAW,LAW",
        ),
        Key("metric", "score to compare (default: the one that selected the checkpoints)"),
        Key("task", "task to compare, for runs with several (default: the first)"),
        Key("against", "compare all with this group, by its name in the table (default: all pairs of at most six)"),
        Key("out", "folder for README.md, table.csv, table.tex and robustness.png", "path"),
        Key("data.raw", "folder of the corpus files, if it has moved", "path"),
        Key("data.packs.MODALITY", "feature pack of a modality, if it has moved", "path"),
    ),
    flags=(Flag("markdown", "print Markdown tables"),),
    details="""
A RUN is a run folder, a folder with run folders, or an archive of records. Runs that differ only in the seed are one
group. Runs with missing.grid have recorded scores. For others the test split is scored here, with its features loaded
once, and RUN/evaluation/robustness.json keeps the laws and the scores: after an interruption the same command, or one
without laws=, continues from there.
""",
    notes="""
The masks depend on missing.seed, the split and the law only: all runs have the same holes. AUILC is the area under the
curve of a score over the rates, divided by the width of the grid, so it has the scale of the score.
""",
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    from ercfusion.records.groups import group_records
    from ercfusion.records.record import task_record
    from ercfusion.tables.robust_render import as_text
    from ercfusion.tables.robustness import compute_robustness

    records = scored_records(typed)
    groups = group_records([task_record(record, typed.keys.get("task")) for record in records])
    table = compute_robustness(groups, typed.keys.get("metric"), _pairs(groups, typed.keys.get("against")))
    first = groups[0].records[0]
    about = (
        f"{first['protocol']}, {len(groups[0].conversations)} test conversations, "
        f"{len(records)} run{'s' * (len(records) > 1)}, masks of seed {table.seed}"
        + (" (synthetic corpus)" if first["corpus"]["synthetic"] else "")
    )
    print(about, as_text(table, markdown="markdown" in typed.flags), sep="\n\n")
    if "out" in typed.keys:
        for path in write_files(table, expanded(typed.keys["out"]), about, synthetic=first["corpus"]["synthetic"]):
            print(path)
    return 0


def _pairs(groups: Sequence[Group], against: str | None) -> list[tuple[str, str]] | None:
    """Names of the groups to compare; None for all pairs."""
    names = [group.name for group in groups]
    if against is None:
        return None if len(names) <= MOST_GROUPS else [(name, names[0]) for name in names[1:]]
    if against not in names:
        raise ConfigError(f"against: no group {against!r}. {did_you_mean(against, names)}")
    return [(name, against) for name in names if name != against]


MOST_GROUPS = 6
"""More are compared with the first only."""


def scored_records(typed: Typed) -> list[dict[str, Any]]:
    """The records of all runs, with the part ``robustness``; runs without it are scored.

    Raises:
        ConfigError: A law does not exist or does not fit the modalities of a run.
        RunError: A path without a finished run, a record without scores and without its folder, or runs that cannot be
            compared.
    """
    from ercfusion._core.progress import track
    from ercfusion.records.groups import read_places
    from ercfusion.records.robust_runs import asked_laws, has_laws, recorded_laws, stored, with_results

    places = read_places(typed.positional)
    _check_first(typed, [record for _, record in places])
    known = [(record, recorded_laws(record)) if folder is None else stored(folder, record) for folder, record in places]
    records = [record for record, _ in known]
    laws = asked_laws(typed.keys.get("laws"), records, [earlier for _, earlier in known])
    lacking = [place for place, record in enumerate(records) if not has_laws(record, laws)]
    for place in lacking:
        if places[place][0] is None:
            raise RunError(
                f"{named_run(records[place])} has no scores under these laws, and an archive has no model. "
                "Give the folder of the run, or other laws."
            )
    scorer = _Scorer(typed, laws)
    for place in track(lacking, "scoring runs") if len(lacking) > 1 else lacking:
        folder = places[place][0]
        assert folder is not None
        records[place] = scorer.score(folder, records[place])
    return [with_results(record, laws) for record in records]


def _check_first(typed: Typed, records: Sequence[Mapping[str, Any]]) -> None:
    """Check everything that needs no scores: they may take long."""
    from ercfusion.metrics.registry import check_metric
    from ercfusion.records.groups import check_comparable, group_records
    from ercfusion.records.record import task_record
    from ercfusion.records.robust_runs import scored_tasks

    task = typed.keys.get("task")
    groups = group_records([task_record(record, task) for record in records])
    for record in records:
        if task is not None and task not in scored_tasks(record):
            raise RunError(
                f"{named_run(record)} has no scores of the task {task!r} with missing modalities: it did not learn the "
                f"task, or the test split has no labels. Choose from: {', '.join(scored_tasks(record))}."
            )
    check_comparable(groups)
    check_same_holes(records)
    if "metric" in typed.keys:
        check_metric(groups[0].task, typed.keys["metric"])
    _pairs(groups, typed.keys.get("against"))
    modalities = modalities_of(records[0])
    for name in typed.below("data.packs."):
        if name not in modalities:
            raise ConfigError(
                f"data.packs.{name}: the runs have only {', '.join(modalities)}. {did_you_mean(name, modalities)}"
            )
    if "out" in typed.keys:
        folder = expanded(typed.keys["out"])
        created: list[Path] = []
        try:
            created += [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out={folder} cannot be a folder: {error.strerror}. Give another one.") from error
        finally:
            for one in created:  # only a check: scoring may fail
                with suppress(OSError):
                    one.rmdir()


class _Scorer:
    """Scores runs; the features of runs with the same data are loaded once."""

    def __init__(self, typed: Typed, laws: Sequence[str]) -> None:
        self.typed, self.laws = typed, laws
        self._loaded: tuple[Data, LoadedData, ConversationStore] | None = None

    def score(self, folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record with the scores under all laws; needs the run's modules, model and data."""
        from ercfusion.records.robust_runs import MODEL, score_run
        from ercfusion.tasks.recognizer import Recognizer

        names = record["config"]["imports"]
        again = [word for word in self.typed.words if not word.startswith("imports=")]
        require_trusted(names, command("modules of a folder", "robustness", *again, *naming(names)))
        data, store = self._data(record)
        laws = grid_laws(self.laws, store.inputs.modalities)
        return score_run(folder, record, Recognizer.from_pretrained(folder / MODEL), data, store, laws)

    def _data(self, record: Mapping[str, Any]) -> tuple[LoadedData, ConversationStore]:
        from ercfusion.data.corpora import open_corpus
        from ercfusion.features.loading import load_data
        from ercfusion.records.robust_runs import check_own_features, check_same_files

        settings: Data = section_from("data", record["config"]["data"])
        settings = replace(with_paths(settings, self.typed), modalities=tuple(modalities_of(record)))
        # Before text features are computed for another version of the corpus.
        check_same_files(record, open_corpus(settings.name, settings.raw, **settings.options))
        if self._loaded is None or self._loaded[0] != settings:
            data = load_data(settings, refuse_changed=False)
            self._loaded = settings, data, data.store("test")
        check_own_features(record, self._loaded[1].tables)
        return self._loaded[1], self._loaded[2]


def write_files(table: RobustTable, folder: Path, about: str, *, synthetic: bool) -> list[Path]:
    """Write the comparison as Markdown, CSV, LaTeX and a figure; returns the paths."""
    from ercfusion.plots.robustness import plot_robustness
    from ercfusion.tables.robust_render import as_csv, as_latex, as_text

    texts = {
        "README.md": f"# Robustness to missing modalities\n\n{about}.\n\n{as_text(table, markdown=True)}\n",
        "table.csv": as_csv(table),
        "table.tex": as_latex(table),
    }
    paths = []
    for name, text in texts.items():
        with atomic_write(folder / name) as stream:
            stream.write(text)
        paths.append(folder / name)
    plot_robustness(table, folder / "robustness.png", synthetic=synthetic)
    return [*paths, folder / "robustness.png"]


if __name__ == "__main__":
    sys.exit(run_command(main))
