"""Content of ``corpus.yaml`` of a user's own corpus."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from ercfusion._core.errors import CorpusFormatError, did_you_mean
from ercfusion._core.schemas.reading import failure, read_yaml, shown
from ercfusion.batch.kinds import KINDS, TaskKind, task_kind
from ercfusion.batch.labels import shown_pair, similar_names
from ercfusion.batch.votes import RULES
from ercfusion.data.tabular import read_text

Recordings = Literal["turn", "conversation"]
TABLE = "utterances.csv"
DEFAULT_TARGET = "emotion"
RESERVED = ("conversation", "turn", "speaker", "text", "split", "start", "end", "audio", "video")
"""Columns of ``utterances.csv`` with a fixed meaning."""
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "conversation": ("conversation_id", "conv_id", "dialogue", "dialogue_id", "dialog", "dialog_id"),
    "turn": ("turn_id", "number", "utterance_id", "utt_id", "index"),
    "speaker": ("speaker_id", "speaker_name", "name"),
    "text": ("utterance", "sentence", "transcript", "transcription"),
    "split": ("set", "partition", "fold", "subset"),
    DEFAULT_TARGET: ("emotion_label", "feeling", "label"),
}
"""Usual other names of the columns; they are suggested, not read."""

RATING_RULES = ("mean", "ewe")
"""Rules that combine numbers of raters; see :func:`ercfusion.data.raters.combine`."""

_KEYS: Mapping[str, type] = {
    "title": str, "licence": str, "citation": str, "synthetic": bool, "recordings": str, "targets": dict,
}  # fmt: skip
_COMMON: Mapping[str, type] = {"kind": str, "metric": str}
_LABELLED: Mapping[str, type] = {"labels": list, "synonyms": dict, "neutral": str}
_REGRESSED: Mapping[str, type] = {"low": float, "high": float, "dimensions": list}
_VOTED: Mapping[str, type] = {"rule": str, "votes": str, "raters": list}
_TYPES: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "a mapping (key: value)",
}


@dataclass(frozen=True)
class Settings:
    """Content of ``corpus.yaml``.

    Args:
        path: The file, if it exists.
        values: Values by key, without ``targets``.
        targets: Target name to its settings; None if the file names none.
    """

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def recordings(self) -> Recordings | None:
        """Whether a file holds one turn or a conversation; None decides per file."""
        return self.values.get("recordings")


def read_settings(path: Path) -> Settings:
    """Read ``corpus.yaml``.

    Raises:
        CorpusFormatError: not YAML, an unknown key, or a value of another type.
    """
    text = read_text(path, remedy="Save it as UTF-8.")
    content = read_yaml(path, error=CorpusFormatError, advice="Correct it.", text=text)
    settings = _checked(path, "", content, _KEYS)
    recordings = settings.get("recordings")
    if recordings is not None and recordings not in get_args(Recordings):
        fail(path, "recordings", f"found {shown(recordings)}. {did_you_mean(recordings, get_args(Recordings))}")
    targets = settings.pop("targets", None)
    if targets is not None:
        if not targets:
            fail(path, "targets", "the mapping is empty. Name a column of utterances.csv, or remove the key")
        # YAML reads "feeling:" with nothing below as null.
        targets = {
            name: _target_settings(path, name, {} if value is None else value) for name, value in targets.items()
        }
    return Settings(path, settings, targets)


def _target_settings(path: Path, name: Any, value: Any) -> dict[str, Any]:
    where = f"targets.{name}"
    # Names become parts of protocol ids and of names of weights.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        fail(path, where, "a target's name has letters, digits, _ and - only. Rename it and its column")
    if name in RESERVED:
        fail(path, where, f"the column {name!r} has another meaning. Give the target another name")
    entries = _checked(path, where, value, {**_COMMON, **_LABELLED, **_REGRESSED, **_VOTED})
    _check_rule(path, where, entries)
    kind = entries.setdefault("kind", "single_label")
    if kind not in KINDS:
        fail(path, f"{where}.kind", f"found {shown(kind)}. {did_you_mean(kind, KINDS)}")
    rules = task_kind(kind)
    foreign = ("dimensions",) if rules.scaled else _REGRESSED if rules.has_schema else _LABELLED
    for key in entries:
        if key in foreign:
            fail(path, f"{where}.{key}", f"a target of the kind {kind} has no such key. Remove it, or correct 'kind'")
    _check_names(path, where, entries, rules)
    if rules.scaled or not rules.has_schema:
        for key in ("low", "high"):
            if key not in entries:
                fail(path, where, f"the key {key!r} is missing. Give the range of the values of a {kind}: low, high")
        if not (math.isfinite(entries["low"]) and entries["low"] < entries["high"] < math.inf):
            fail(path, where, f"low is {entries['low']:g} and high {entries['high']:g}. Give a smaller low than high")
    return entries


def _check_rule(path: Path, where: str, entries: dict[str, Any]) -> None:
    """Check the keys of votes and raters, and set the kind that the rule gives."""
    if "rule" not in entries:
        for key in ("votes", "raters"):
            if key in entries:
                rules = ", ".join((*RULES, *RATING_RULES))
                fail(path, f"{where}.{key}", f"this key goes with 'rule'. Add 'rule', one of {rules}")
        return
    entries["rule"] = rule = entries["rule"].replace("-", "_")
    if rule not in (*RULES, *RATING_RULES):
        fail(path, f"{where}.rule", f"found {shown(rule)}. {did_you_mean(rule, (*RULES, *RATING_RULES))}")
    kind = RULES[rule].kind if rule in RULES else "regression"
    if entries.setdefault("kind", kind) != kind:
        fail(path, f"{where}.kind", f"the rule {rule!r} gives a target of the kind {kind}. Remove 'kind'")
    if rule in RATING_RULES and "votes" in entries:
        fail(path, f"{where}.votes", f"the rule {rule!r} combines ratings, not votes. Remove 'votes', or use 'raters'")
    for name in entries.get("raters", ()):
        if not isinstance(name, str) or not name.strip():
            fail(path, f"{where}.raters", f"found {shown(name)}, but a column is expected. Put the word in quotes")


def _check_names(path: Path, where: str, entries: Mapping[str, Any], rules: TaskKind) -> None:
    for key in ("labels", "dimensions"):
        names = entries.get(key)
        if names is None:
            continue
        for name in names:
            if not isinstance(name, str) or not name.strip() or name != name.strip():
                # YAML does not read unquoted no, off and 1 as text.
                fail(path, f"{where}.{key}", f"found {shown(name)}, but text is expected. Put the word in quotes")
            if rules.parts(name, [name]) != [name]:
                signs = " and ".join(map(repr, rules.signs))
                fail(path, f"{where}.{key}", f"{name!r} contains one of the signs {signs}. Choose another name")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            fail(path, f"{where}.{key}", f"{twice!r} is listed twice. Remove one")
        if pair := similar_names(names):
            text = f"{shown_pair(*pair)} differ only in case, blanks or Unicode form. Rename or remove one"
            fail(path, f"{where}.{key}", text)
        least = rules.least_labels if rules.has_schema else 1
        if len(names) < least:
            fail(path, f"{where}.{key}", f"{len(names)} names, but at least {least} are needed. Add the others")
    for spelling, label in entries.get("synonyms", {}).items():
        if not isinstance(spelling, str) or not isinstance(label, str):
            fail(
                path,
                f"{where}.synonyms",
                f"found {shown(spelling)}: {shown(label)}, but two words are expected. Put them in quotes",
            )


def _checked(path: Path, where: str, content: Any, keys: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(content, dict):
        fail(path, where, f"found {shown(content)}, but a mapping (key: value) is expected. Correct it")
    entries: dict[str, Any] = {}
    for key, value in content.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in keys:
            fail(path, place, f"there is no such key. {did_you_mean(str(key), keys)}")
        kind = keys[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            fail(path, place, f"found {shown(value)}, but {_TYPES[kind]} is expected. Correct it")
        entries[key] = value
    return entries


def fail(path: Path, key: str, problem: str) -> NoReturn:
    """Raise :class:`CorpusFormatError` for a key of ``corpus.yaml``."""
    place = f", key {shown(key)}" if key else ""
    raise failure(CorpusFormatError, path, f"{place}: {problem.rstrip('.')}.")
