"""How the settings of a table's rows were chosen, and how long they were trained.

The first comments of ``conf/tuned/MODEL-DATA.yaml`` describe the search: a line ``# - name: words`` for each name of
:data:`KNOWN`. A model's preset has a line ``# - chosen: words``.
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
_ADVICE = "Correct the file."
_CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass(frozen=True)
class Tuning:
    """The choice of a row's settings.

    Args:
        kind: ``none`` (nothing to learn), ``default``, ``preset`` (with training settings of the model) or ``tuned``.
        known: The words of :data:`KNOWN` (``tuned``), or ``chosen``.
        changed: Settings of the row differing from that.
        schedule: Epochs, patience and scheduler.
        early: Whether runs can stop before the last epoch.
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
        """The choice in one word, and the changed settings."""
        word = "nothing to tune" if self.kind == "none" else self.kind
        return f"{word}, but {', '.join(self.changed)}" if self.changed else word

    @property
    def origin(self) -> str:
        """Facts about the choice; empty if none are known."""
        if self.kind != "tuned":
            return f"chosen {self.known['chosen']}" if "chosen" in self.known else ""
        missing = [name for name in ("space", "trials") if self.known[name] == UNKNOWN]
        facts = [f"{name} {self.known[name]}" for name in ("space", "trials") if name not in missing]
        if missing:
            facts.append(f"{' and '.join(missing)} {UNKNOWN}")
        return f"tuned on {self.known['split']}, seeds: {self.known['seeds']}; {'; '.join(facts)}"

    @property
    def words(self) -> str:
        """The choice with its origin, for tables without notes."""
        if self.kind == "none":
            return self.brief
        parts = [] if self.kind == "tuned" else [self.kind]
        text = ", ".join([*parts, *([self.origin] if self.origin else [])])
        return f"{text}, but {', '.join(self.changed)}" if self.changed else text

    @property
    def trained(self) -> str:
        """The schedule in a table cell."""
        least, most = self.ran
        return f"{self.schedule}; ran {least}" if least == most else f"{self.schedule}; ran {least} to {most}"


def tuning_of(line: Line, config_dir: str | None = None) -> Tuning:
    """The choice of a row's settings and its schedule; ``config_dir/tuned`` is searched before the library's."""
    record = line.group.records[0]
    config = record["config"]
    settings = flat(config)
    typed = dict.fromkeys(setting.partition("=")[0].lstrip("+") for setting in line.row.settings)
    training, name = config["training"], config["scheduler"]["name"]
    patience = int(training["patience"])
    epochs = [int(member["selection"]["epochs"]) for member in line.group.records]
    most = int(training["max_epochs"])
    schedule = f"{most} epoch{'s' * (most > 1)}, {f'patience {patience}' if patience else 'no early stop'}, {name}"
    changed = tuple(
        f"{key}={_short(settings.get(key))}" for key in typed if key in settings and not _is_place_or_sample(key)
    )
    kind, known = "default", {}
    model, data = str(config["preset"]["model"]), str(config["preset"]["data"])
    tuned = _tuned(model, data, config_dir)
    if config["model"]["name"] == "majority":
        kind = "none"
    elif tuned is not None and all(key in typed or _same(settings.get(key), value) for key, value in tuned[0].items()):
        kind, known = "tuned", tuned[1]
    else:
        own, chosen = _preset(model)
        kind, known = ("preset" if own else "default"), ({"chosen": chosen} if chosen else {})
    return Tuning(kind, schedule, patience > 0, (min(epochs), max(epochs)), known, changed)


def tuning_cells(table: Table, brief: bool = True) -> list[list[str]]:
    """One line per row: how its settings were chosen (if ``brief`` in one word), and how long its runs were trained."""
    rows = [["model", "settings", "schedule"]]
    for line in table.lines:
        tuning = tuning_of(line, table.preset.config_dir)
        rows.append([line.row.name, tuning.brief if brief else tuning.words, tuning.trained])
    return rows


def tuning_note(table: Table, brief: bool = False) -> str:
    """How the settings were chosen, and the consequence for comparisons; empty if all rows agree.

    ``brief``: without the origin of each choice and the differences between schedules.
    """
    tunings = {line.row.name: tuning_of(line, table.preset.config_dir) for line in table.lines}
    rivals = {name: tuning for name, tuning in tunings.items() if tuning.kind != "none"}
    tuned = {name: tuning for name, tuning in rivals.items() if tuning.kind == "tuned"}
    if len({(tuning.kind, tuning.schedule) for tuning in rivals.values()}) < 2:
        return ""
    parts = []
    if tuned:
        parts.append(
            f"The settings of {_listed(tuned)} were tuned on dev of this corpus; *default* and *preset*: from the "
            "model's file."
        )
        parts += _seed_sentences(table, tuned)
    else:
        parts.append("Nothing was tuned for this corpus, but presets have their own schedules.")
    for origin in () if brief else dict.fromkeys(tuning.origin for tuning in rivals.values() if tuning.origin):
        names = [name for name, tuning in rivals.items() if tuning.origin == origin]
        parts.append(f"{_listed(names)}: {origin}.")
    decaying = {name: tuning for name, tuning in rivals.items() if tuning.schedule.endswith(("cosine", "linear"))}
    complete = {name: tuning for name, tuning in decaying.items() if not tuning.early}
    stopped = {name: tuning for name, tuning in decaying.items() if tuning.early}
    if complete and stopped and not brief:
        who = "the tuned rows" if set(complete) == set(tuned) else _listed(complete)
        longest = sorted({re.split(",", tuning.schedule)[0] for tuning in stopped.values()})
        patience = sorted({re.split(", ", tuning.schedule)[1] for tuning in stopped.values()})
        shape = " or ".join(sorted({tuning.schedule.rpartition(", ")[2] for tuning in stopped.values()}))
        parts.append(
            f"The learning rate of {who} falls to its minimum. Other rows with a {shape} schedule can stop earlier "
            f"({' or '.join(patience)}, {shape} of {' or '.join(longest)})."
        )
    parts.append("Do not read the order of rows with different tuning or schedules as a comparison of architectures.")
    return " ".join(parts)


def _seed_sentences(table: Table, tuned: Mapping[str, Tuning]) -> list[str]:
    reported = {seed for line in table.lines if line.row.name in tuned for seed in line.group.seeds}
    chosen = {name: {int(seed) for seed in re.findall(r"\d+", tuning.known["seeds"])} for name, tuning in tuned.items()}
    among = [name for name in tuned if reported & chosen[name]]
    doubt = [name for name in tuned if not chosen[name]]
    sentences = []
    if among:
        sentences.append(f"The seeds used to tune {_listed(among)} are among the reported ones.")
    if doubt:
        sentences.append(
            f"The seeds used to tune {_listed(doubt) if among else 'them'} are {UNKNOWN} and may be among the reported "
            "ones."
        )
    return sentences


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _is_place_or_sample(key: str) -> bool:
    """Whether a setting is a path or a sample, not a choice."""
    return key.partition(".")[0] in ("data", "imports") or decides(key) != "result"


def _short(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _same(first: Any, second: Any) -> bool:
    try:
        return float(first) == float(second)
    except (TypeError, ValueError):
        return bool(first == second)


def _tuned(model: str, data: str, config_dir: str | None) -> tuple[dict[str, Any], dict[str, str]] | None:
    for folder in [*([Path(config_dir)] if config_dir else []), _CONF]:
        if (path := folder / "tuned" / f"{model}-{data}.yaml").is_file():
            return _read(path)
    return None


@cache
def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    facts = dict(re.findall(r"(?m)^# - (\w+): (.+)$", text))
    content = read_yaml(path, error=ConfigError, advice=_ADVICE, text=text, floats=True) or {}
    return flat(content), {name: facts.get(name, UNKNOWN).rstrip(".") for name in KNOWN}


@cache
def _preset(model: str) -> tuple[bool, str]:
    """Whether a model's preset has more than options of its architecture, and how it was chosen."""
    path = _CONF / "model" / f"{model}.yaml"
    if not path.is_file():  # a preset of the user's own
        return False, ""
    text = path.read_text(encoding="utf-8")
    chosen = re.search(r"(?m)^# - chosen: (.+)$", text)
    return bool(set(read_yaml(path, error=ConfigError, advice=_ADVICE, text=text)) - {"model"}), chosen[
        1
    ] if chosen else ""
