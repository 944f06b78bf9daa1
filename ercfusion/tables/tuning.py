"""How the settings of a table's rows were chosen and how long they were trained, computed from records and files.

A file ``conf/tuned/MODEL-DATA.yaml`` says in its first comments what is known of the search that chose its settings,
one line each of the form ``# - name: words``, for the names in :data:`KNOWN`. What it does not say is not recorded. The
preset of a model says in a line ``# - chosen: words`` how its settings were chosen, if that is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError
from ercfusion._core.schemas.reading import read_yaml
from ercfusion.config.settings import decides, flat
from ercfusion.tables.table import Line, Table

KNOWN = ("split", "seeds", "space", "trials")
UNKNOWN = "not recorded"
_CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass(frozen=True)
class Tuning:
    """The choice of a row's settings.

    Args:
        kind: ``none`` (a model that does not learn), ``default``, ``preset`` (the model's preset brings a training of
            its own) or ``tuned``.
        known: For ``tuned``, the words of :data:`KNOWN`; for the others ``chosen``, if the preset says it.
        changed: Settings of the row that differ from that.
        schedule: Epochs, patience and scheduler.
        early: Whether a run may be stopped before its last epoch.
        ran: Fewest and most epochs of the row's runs.
    """

    kind: str
    schedule: str
    early: bool
    ran: tuple[int, int]
    known: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    @property
    def brief(self) -> str:
        """The choice in one word, and the settings that differ."""
        word = "nothing to tune" if self.kind == "none" else self.kind
        return f"{word}, but {', '.join(self.changed)}" if self.changed else word

    @property
    def origin(self) -> str:
        """What is known of the choice; empty if nothing is."""
        if self.kind != "tuned":
            return f"chosen {self.known['chosen']}" if "chosen" in self.known else ""
        missing = [name for name in ("space", "trials") if self.known[name] == UNKNOWN]
        told = [f"{name} {self.known[name]}" for name in ("space", "trials") if name not in missing]
        if missing:
            told.append(f"{' and '.join(missing)} {UNKNOWN}")
        return f"tuned on {self.known['split']}, seeds: {self.known['seeds']}; {'; '.join(told)}"

    @property
    def words(self) -> str:
        """The whole choice, for a table that has no notes."""
        if self.kind == "none":
            return self.brief
        parts = [] if self.kind == "tuned" else [self.kind]
        text = ", ".join([*parts, *([self.origin] if self.origin else [])])
        return f"{text}, but {', '.join(self.changed)}" if self.changed else text

    @property
    def trained(self) -> str:
        """The schedule in a cell of a table."""
        least, most = self.ran
        return f"{self.schedule}; ran {least}" if least == most else f"{self.schedule}; ran {least} to {most}"


def tuning_of(line: Line, config_dir: str | None = None) -> Tuning:
    """The choice of a row's settings and its schedule.

    Args:
        line: The row and its records.
        config_dir: A folder whose ``tuned/`` is read before that of the library.
    """
    record = line.group.records[0]
    config = record["config"]
    settings = flat(config)
    typed = dict.fromkeys(entry.partition("=")[0].lstrip("+") for entry in line.row.settings)
    training, name = config["training"], config["scheduler"]["name"]
    patience = int(training["patience"])
    epochs = [int(entry["selection"]["epochs"]) for entry in line.group.records]
    most = int(training["max_epochs"])
    schedule = f"{most} epoch{'s' * (most > 1)}, {f'patience {patience}' if patience else 'no early stop'}, {name}"
    changed = tuple(f"{key}={_short(settings.get(key))}" for key in typed if key in settings and not _is_no_choice(key))
    kind, known = "default", {}
    model, data = str(config["preset"]["model"]), str(config["preset"]["data"])
    found = _tuned(model, data, config_dir)
    if config["model"]["name"] == "majority":
        kind = "none"
    elif found is not None and all(key in typed or _same(settings.get(key), value) for key, value in found[0].items()):
        kind, known = "tuned", found[1]
    else:
        own, chosen = _preset(model)
        kind, known = ("preset" if own else "default"), ({"chosen": chosen} if chosen else {})
    return Tuning(kind, schedule, patience > 0, (min(epochs), max(epochs)), known, changed)


def tuning_cells(table: Table, brief: bool = True) -> list[list[str]]:
    """One line a row: how its settings were chosen, and how long its runs were trained.

    Args:
        table: Its rows.
        brief: One word for the choice; :func:`tuning_note` says the rest.
    """
    rows = [["model", "settings", "schedule"]]
    for line in table.lines:
        found = tuning_of(line, table.preset.config_dir)
        rows.append([line.row.name, found.brief if brief else found.words, found.trained])
    return rows


def tuning_note(table: Table) -> str:
    """How the settings were chosen, and what different choices mean for reading the table; empty if all rows agree."""
    found = {line.row.name: tuning_of(line, table.preset.config_dir) for line in table.lines}
    rivals = {name: entry for name, entry in found.items() if entry.kind != "none"}
    tuned = {name: entry for name, entry in rivals.items() if entry.kind == "tuned"}
    if len({(entry.kind, entry.schedule) for entry in rivals.values()}) < 2:
        return ""
    parts = []
    if tuned:
        parts.append(
            f"The settings of {_listed(tuned)} were tuned on dev for this corpus; *default* and *preset* are those of "
            "the model's file."
        )
        parts += _seed_sentences(table, tuned)
    else:
        parts.append("Nothing was tuned for this corpus, but presets bring schedules of their own.")
    for origin in dict.fromkeys(entry.origin for entry in rivals.values() if entry.origin):
        names = [name for name, entry in rivals.items() if entry.origin == origin]
        parts.append(f"{_listed(names)}: {origin}.")
    cosine = {name: entry for name, entry in rivals.items() if entry.schedule.endswith("cosine")}
    whole = {name: entry for name, entry in cosine.items() if not entry.early}
    stopped = {name: entry for name, entry in cosine.items() if entry.early}
    if whole and stopped:
        who = "the tuned rows" if set(whole) == set(tuned) else _listed(whole)
        longest = sorted({re.split(",", entry.schedule)[0] for entry in stopped.values()})
        patience = sorted({re.split(", ", entry.schedule)[1] for entry in stopped.values()})
        parts.append(
            f"The learning rate of {who} falls over all epochs of the schedule; the other rows with a cosine schedule "
            f"can be stopped by {' or '.join(patience)} inside a cosine of {' or '.join(longest)}, before theirs has "
            "fallen as far."
        )
    parts.append(
        "So the order of rows with different tuning or schedules must not be read as a comparison of architectures."
    )
    return " ".join(parts)


def _seed_sentences(table: Table, tuned: Mapping[str, Tuning]) -> list[str]:
    reported = {seed for line in table.lines if line.row.name in tuned for seed in line.group.seeds}
    told = {name: {int(one) for one in re.findall(r"\d+", entry.known["seeds"])} for name, entry in tuned.items()}
    among = [name for name in tuned if reported & told[name]]
    doubt = [name for name in tuned if not told[name]]
    sentences = []
    if among:
        sentences.append(f"Seeds that chose them for {_listed(among)} are among the reported ones.")
    if doubt:
        sentences.append(
            f"Which seeds chose them{f' for {_listed(doubt)}' if among else ''} is {UNKNOWN}; they may be among the "
            "reported ones."
        )
    return sentences


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _is_no_choice(key: str) -> bool:
    """Whether a setting names a place or a sample, and chooses nothing."""
    return key.partition(".")[0] in ("data", "imports") or decides(key) != "result"


def _short(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _same(found: Any, value: Any) -> bool:
    try:
        return float(found) == float(value)
    except (TypeError, ValueError):
        return bool(found == value)


def _tuned(model: str, data: str, config_dir: str | None) -> tuple[dict[str, Any], dict[str, str]] | None:
    for folder in [*([Path(config_dir)] if config_dir else []), _CONF]:
        if (path := folder / "tuned" / f"{model}-{data}.yaml").is_file():
            return _read(path)
    return None


@cache
def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    told = dict(re.findall(r"(?m)^# - (\w+): (.+)$", text))
    content = read_yaml(path, error=ConfigError, text=text, floats=True) or {}
    return flat(content), {name: told.get(name, UNKNOWN).rstrip(".") for name in KNOWN}


@cache
def _preset(model: str) -> tuple[bool, str]:
    """Whether a model's preset brings more than options of its architecture, and how it was chosen."""
    path = _CONF / "model" / f"{model}.yaml"
    if not path.is_file():  # a preset of the user's own
        return False, ""
    text = path.read_text(encoding="utf-8")
    chosen = re.search(r"(?m)^# - chosen: (.+)$", text)
    return bool(set(read_yaml(path, error=ConfigError, text=text)) - {"model"}), chosen[1] if chosen else ""
