"""Presets of tables: models, settings, seeds, and published scores.

A preset is a YAML file in ``experiments/``::

    title: MELD, seven emotions, text only
    data: meld                       # a corpus or protocol (demo/far), as for train
    settings: {data.encoder: ...}    # of all rows, as on the command line
    seeds: [0, 1, 2, 3, 4]
    metric: weighted_f1              # headline; default: that of the protocol
    also: [macro_f1, accuracy]       # further scores
    against: concat                  # compare all rows with this one; default: all pairs except majority
    pairs: [[cogmen, concat]]        # or: compare only these
    per_label: true                  # compare these pairs by the F1 of every label too
    robustness: true                 # compare them with missing modalities too; needs missing.grid in settings. A list
                                     # names the laws at which they are tested: [rate:0.5]; true: all
    variants:                        # every row with each of these settings: rows "cogmen, plain", "cogmen, dropout"
      plain: {}
      dropout: {training.modality_dropout: 0.5}
    task: valence                    # a further task or a view; or a table of each, with its own headline:
    views: {emotion: macro_f1, emotion_distribution: kl}     # or a list: the metrics of the tasks
    notes: Facts for the reader.
    rows:
      cogmen: {model: cogmen}
      cogmen, one layer:
        model: cogmen
        settings: {model.layers: 1}
        variants: []                 # only these variants; an empty list: the row itself
        note: a sentence about the row
        published:
          - score: 0.5644
            source: "Poria et al. (2019), text"
            evidence: secondary source
            selection: dev
            differs: [features]
            note: further facts about the number

In ``pairs`` a ``*`` is the name of a row without its variant: ``["*, dropout", "*, plain"]`` compares the two of every
row.

``differs`` lists why the published number is not comparable: ``features``, ``split``, ``selection``, ``metric`` or
``model``. ``evidence`` is ``paper read`` (seen in the paper), ``secondary source`` (quoted elsewhere) or ``not found``
(the default).
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, ErcfusionError, did_you_mean
from ercfusion._core.files import expanded, shipped_folder
from ercfusion._core.schemas.reading import failure, read_yaml, shown
from ercfusion.config.compose import Composer
from ercfusion.config.missing_laws import parse
from ercfusion.config.overrides import expand_protocol

DIFFERENCES = ("features", "split", "selection", "metric", "model")
SELECTIONS = ("dev", "test", "last", "unknown")
EVIDENCE = ("paper read", "secondary source", "not found")


@dataclass(frozen=True)
class Published:
    """A published score in the metric's own unit; the module has the format."""

    score: float
    source: str
    selection: str = "unknown"
    differs: tuple[str, ...] = ()
    evidence: str = "not found"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the table; its name is unique, and ``settings`` are as on the command line."""

    name: str
    model: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    note: str = ""
    published: tuple[Published, ...] = ()

    @property
    def slug(self) -> str:
        """The name in letters, digits and hyphens, for files."""
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class TablePreset:
    """One table, or one per task of ``views``; the module has the format of its file.

    Args:
        views: Task or view, and its headline; None for the task's metric.
        config_dir: A folder of configuration groups.
        robustness: Whether rows are compared with missing modalities.
        laws: Laws at which they are tested; empty for all of the records.
    """

    path: Path
    title: str
    data: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    metric: str | None = None
    also: tuple[str, ...] = ()
    against: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    notes: str = ""
    config_dir: str | None = None
    task: str | None = None
    views: Mapping[str, str | None] = field(default_factory=dict)
    per_label: bool = False
    robustness: bool = False
    laws: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def typed(self) -> str:
        """The preset on a command line: its name if it comes with the library, else its file."""
        return self.name if self.path.resolve().parent == preset_folder().resolve() else self.path.name

    @property
    def installed(self) -> bool:
        """Whether its file is inside the installed package, which users cannot write to."""
        return self.path.resolve().parent == Path(__file__).resolve().parents[1] / "experiments"

    def arguments(self, row: Row, seed: int) -> list[str]:
        """Arguments of ``python -m ercfusion.train`` for one run of the table."""
        return [f"model={row.model}", f"data={self.data}", *self.settings, *row.settings, f"seed={seed}"]

    def config(self, row: Row, seed: int, extra: tuple[str, ...] = ()) -> dict[str, Any]:
        """The resolved configuration of one run.

        Raises:
            ConfigError: a wrong setting; the message has file and row.
        """
        typed = (*self.arguments(row, seed), *extra)
        try:
            return _compose(typed, self.config_dir) if self.config_dir else copy.deepcopy(_composed(typed))
        except ConfigError as error:
            raise failure(ConfigError, self.path, f", row {shown(row.name)}: {error}") from error


@lru_cache(maxsize=4096)
def _composed(typed: tuple[str, ...]) -> dict[str, Any]:
    # A table composes the same configurations many times, 0.1 s each.
    return _compose(typed, None)


def _compose(typed: tuple[str, ...], config_dir: str | None) -> dict[str, Any]:
    return Composer("train", config_dir).compose([part for argument in typed for part in expand_protocol(argument)])


def preset_folder() -> Path:
    """Folder of the library's presets: in the installed package, or in a checkout."""
    return shipped_folder("experiments", "experiments")


def known_presets() -> list[str]:
    """Names of the presets of the library."""
    return sorted(file.stem for file in preset_folder().glob("*.yaml"))


def find_preset(name: str) -> Path:
    """The file of a preset: the name of a library preset, or a path.

    Raises:
        ConfigError: there is none.
    """
    known = known_presets()
    if name in known:
        return preset_folder() / f"{name}.yaml"
    path = expanded(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") and path.stem in known:
        raise ConfigError(f"there is no file {name}. Use {path.stem}, the name of the recorded table.")
    raise ConfigError(f"there is no table {name}. {did_you_mean(path.stem, known)} Or give the path of a table file.")


def read_preset(path: str | Path, config_dir: str | None = None) -> TablePreset:
    """Read and check a preset; every row's configuration is composed once.

    Raises:
        ConfigError: not YAML, a key missing, unknown or of the wrong type, or a wrong setting; with file and key.
    """
    path = find_preset(str(path))
    entries = _Entries(path, "", read_yaml(path, error=ConfigError, advice="Correct the file."))
    seeds = entries.get("seeds", list, [0, 1, 2, 3, 4])
    variants = _variants(entries)
    rows, bases = [], []
    for name, content in entries.need("rows", dict).items():
        own, varied = _row(str(name), _Entries(path, f"rows.{name}.", content), seeds, variants)
        bases += [str(name)] * varied
        rows += own
    robust = entries.get("robustness", bool | list, False)
    names = [row.name for row in rows]
    preset = TablePreset(
        path=path,
        title=entries.need("title", str),
        data=entries.need("data", str),
        settings=_settings(entries),
        rows=tuple(rows),
        metric=entries.get("metric", str, None),
        also=tuple(entries.texts("also")),
        against=entries.get("against", str, None),
        pairs=_pairs(entries, bases, names),
        notes=" ".join(entries.get("notes", str, "").split()),
        config_dir=config_dir,
        task=entries.get("task", str, None),
        views=_views(entries),
        per_label=entries.get("per_label", bool, False),
        robustness=robust is not False and robust != [],
        laws=_laws(entries, robust),
    )
    entries.done()
    if not rows:
        raise ConfigError(f"{path}: rows is empty. Add a row.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise failure(ConfigError, path, f": two rows have the name {shown(twice)}. Rename one.")
    if preset.against is not None and preset.against not in names:
        problem = f": against: no row {shown(preset.against)}. {did_you_mean(preset.against, names)}"
        raise failure(ConfigError, path, problem)
    for name in itertools.chain(*preset.pairs):
        if name not in names:
            raise failure(ConfigError, path, f": pairs: no row {shown(name)}. {did_you_mean(name, names)}")
    if preset.pairs and preset.against is not None:
        raise ConfigError(f"{path}: against and pairs exclude each other. Keep one.")
    if preset.per_label and not preset.pairs and preset.against is None:
        raise ConfigError(f"{path}: per_label compares named pairs. Add pairs or against.")
    if preset.views and (preset.task is not None or preset.metric is not None):
        raise ConfigError(f"{path}: views exclude task and metric. Write views: {{TASK: METRIC}}.")
    slugs: dict[str, str] = {}
    for row in rows:
        if row.slug in slugs:
            problem = f": the rows {shown(slugs[row.slug])} and {shown(row.name)} have the same files. Rename one."
            raise failure(ConfigError, path, problem)
        slugs[row.slug] = row.name
        config = preset.config(row, row.seeds[0])
        if preset.robustness and config.get("missing", {}).get("grid") is None:
            problem = (
                f": robustness: row {shown(row.name)} has no missing.grid. Add missing.grid: standard to settings."
            )
            raise failure(ConfigError, path, problem)
    return preset


def _variants(entries: _Entries) -> dict[str, tuple[str, ...]]:
    """Settings of the variants by name."""
    content = entries.get("variants", dict, {})
    parts = {str(name): _Entries(entries.path, f"variants.{name}.", {"settings": own}) for name, own in content.items()}
    return {name: _settings(part) for name, part in parts.items()}


def _laws(entries: _Entries, robust: Any) -> tuple[str, ...]:
    """Canonical texts of the laws in ``robustness``."""
    if isinstance(robust, bool):
        return ()
    if not robust or not all(isinstance(text, str) for text in robust):
        raise entries.wrong("robustness", f"found {shown(robust)}. Give true, or a list of laws: [rate:0.5].")
    try:
        return tuple(str(parse(text, "robustness")) for text in robust)
    except ConfigError as error:
        raise failure(ConfigError, entries.path, f": {error}") from error


def _row(
    name: str, entries: _Entries, seeds: list[Any], variants: Mapping[str, tuple[str, ...]]
) -> tuple[list[Row], bool]:
    """A row, or one per variant; and whether it has variants."""
    own = entries.get("seeds", list, seeds)
    if not own or not all(type(seed) is int and 0 <= seed < 1 << 63 for seed in own) or len(set(own)) < len(own):
        raise entries.wrong("seeds", f"found {shown(own)}. Give different whole numbers from 0 on.")
    published = []
    for number, content in enumerate(entries.get("published", list, [])):
        part = _Entries(entries.path, f"{entries.prefix}published[{number}].", content)
        paper = Published(
            score=float(part.need("score", int | float)),
            source=part.need("source", str),
            selection=part.get("selection", str, "unknown"),
            differs=tuple(part.texts("differs")),
            evidence=part.get("evidence", str, "not found"),
            note=" ".join(part.get("note", str, "").split()),
        )
        if "checked" in part.left:
            raise part.wrong("checked", f"not a key. Use evidence, one of {', '.join(EVIDENCE)}.")
        part.done()
        if paper.selection not in SELECTIONS:
            raise part.wrong("selection", did_you_mean(paper.selection, SELECTIONS))
        if paper.evidence not in EVIDENCE:
            raise part.wrong("evidence", did_you_mean(paper.evidence, EVIDENCE))
        for difference in paper.differs:
            if difference not in DIFFERENCES:
                text = shown(difference)
                raise part.wrong("differs", f"{text} is unknown. {did_you_mean(text, DIFFERENCES)}")
        published.append(paper)
    row = Row(
        name=name,
        model=entries.need("model", str),
        settings=_settings(entries),
        seeds=tuple(own),
        note=" ".join(entries.get("note", str, "").split()),
        published=tuple(published),
    )
    chosen = entries.get("variants", list, list(variants))
    for variant in chosen:
        if variant not in variants:
            raise entries.wrong("variants", f"no variant {shown(variant)}. {did_you_mean(str(variant), variants)}")
    entries.done()
    if not chosen:
        return [row], False
    return [
        replace(row, name=f"{name}, {variant}", settings=(*row.settings, *variants[variant])) for variant in chosen
    ], True


def _pairs(entries: _Entries, bases: Sequence[str], rows: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names of rows; those with a ``*`` once per row with variants that has both.

    Args:
        entries: Of the file.
        bases: Names of the rows with variants.
        rows: Names of all rows.
    """
    pairs = entries.get("pairs", list, [])
    for number, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and pair[0] != pair[1]):
            raise entries.wrong(
                f"pairs[{number}]", f"found {shown(pair)}. Give the names of two rows: [first, second]."
            )
    names: list[tuple[str, str]] = []
    for number, (first, second) in enumerate((str(first), str(second)) for first, second in pairs):
        if "*" not in first + second:
            names.append((first, second))
            continue
        made = [(first.replace("*", base), second.replace("*", base)) for base in bases]
        known = [pair for pair in made if set(pair) <= set(rows)]
        if not known:
            raise entries.wrong(
                f"pairs[{number}]", f"no row has both {shown(first)} and {shown(second)}. Correct them."
            )
        names += known
    if len({frozenset(pair) for pair in names}) < len(names):
        raise entries.wrong("pairs", "a pair is listed twice. Remove one.")
    return tuple(names)


def _views(entries: _Entries) -> dict[str, str | None]:
    views: Any = entries.get("views", list | dict, {})
    if isinstance(views, list):
        if len(set(map(str, views))) < len(views):
            raise entries.wrong("views", "a name is listed twice. Remove one.")
        views = dict.fromkeys(views)
    for name, metric in views.items():
        if not isinstance(name, str) or not (metric is None or isinstance(metric, str)):
            raise entries.wrong(
                "views", f"found {shown(name)}: {shown(metric)}. Write TASK: METRIC, or a list of tasks."
            )
    return dict(views)


def _settings(entries: _Entries) -> tuple[str, ...]:
    typed = []
    for key, value in entries.get("settings", dict, {}).items():
        if not isinstance(key, str) or len(key) > 200:  # Hydra looks for files by it
            raise entries.wrong("settings", f"{shown(key)} is not a setting. Write KEY: VALUE.")
        if isinstance(value, dict):
            raise entries.wrong(
                "settings", f"{key} holds a mapping. Write dots, as on the command line: {key}.NAME: VALUE"
            )
        typed.append(f"{key}={_typed(value)}")
    return tuple(typed)


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class _Entries:
    """A mapping of the file; keys are removed as they are read, so the rest are mistakes."""

    def __init__(self, path: Path, prefix: str, content: Any) -> None:
        self.path, self.prefix = path, prefix
        if not isinstance(content, Mapping):
            place = prefix.rstrip(".") or "the file"
            problem = f": {place}: found {shown(content)}. Write a mapping, NAME: VALUE."
            raise failure(ConfigError, path, problem)
        self.left = dict(content)
        self.known: list[str] = []

    def need(self, name: str, kind: Any) -> Any:
        if name not in self.left:
            raise failure(ConfigError, self.path, f": {self.prefix}{name} is missing. Add it.")
        return self.get(name, kind, None)

    def get(self, name: str, kind: Any, default: Any) -> Any:
        self.known.append(name)
        if name not in self.left:
            return default
        value = self.left.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, bool | list)):
            words = {
                str: "a text",
                list: "a list",
                dict: "a mapping, NAME: VALUE",
                bool: "true or false",
                bool | list: "true, false or a list",
                list | dict: "a list, or a mapping",
            }
            raise self.wrong(name, f"found {shown(value)}. Give {words.get(kind, 'a number')}.")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty by default."""
        values: list[str] = self.get(name, list, [])
        for value in values:
            if not isinstance(value, str):
                raise self.wrong(name, f"found {shown(value)} in it. Give a list of texts.")
        return values

    def done(self) -> None:
        for name in self.left:
            problem = f": {self.prefix}{shown(name)[1:-1]} is not a key. {did_you_mean(str(name)[:80], self.known)}"
            raise failure(ConfigError, self.path, problem)

    def wrong(self, name: str, reason: str) -> ErcfusionError:
        return failure(ConfigError, self.path, f": {self.prefix}{name}: {reason}")
