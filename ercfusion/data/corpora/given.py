"""Writes utterances in memory as a user's own corpus (:mod:`ercfusion.data.corpora.custom`)."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.data.conversation import Conversation, TargetValue, Turn
from ercfusion.data.corpora._custom import DEFAULT_TARGET, TABLE, Settings
from ercfusion.data.corpora._custom_table import REQUIRED, other_names
from ercfusion.data.corpora.custom import PACKS, SETTINGS, CustomCorpus
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack import write_pack
from ercfusion.data.storage import first_not_finite
from ercfusion.data.tabular import lacking, to_rename
from ercfusion.tasks.kinds.multi_label import NOTHING, SEPARATOR

if TYPE_CHECKING:
    import pandas

Conversations = Sequence[Conversation] | Mapping[str, Sequence[Conversation]]
"""Conversations, or conversations by split (``train``, ``dev``, ``test``)."""

Features = Sequence[FeatureTable] | Mapping[str, NDArray[Any]]
"""Feature tables, or arrays (N, D) by modality with one row per utterance."""

_TOOL, _VERSION = "ercfusion.fit", "1"


def write_given(
    place: Path,
    data: Conversations | pandas.DataFrame,
    features: Features = (),
    targets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write utterances and their features as a folder for ``data=custom data.raw=FOLDER``.

    The folder is named after a checksum of its content: equal utterances are written once.

    Args:
        place: Parent folder.
        data: Conversations, or conversations by split, or a data frame with the columns of ``utterances.csv``.
        features: Tables, or arrays (N, D) by modality, with one row per utterance in the order of ``data``.
        targets: ``targets`` of ``corpus.yaml``.

    Raises:
        ConfigError: another type of argument, no utterances, missing columns, a target that cannot be written, another
            number of rows, or a value that is not finite.
    """
    check_utterances(data)
    check_features(features)
    rows = _frame_rows(data, targets) if hasattr(data, "columns") else _conversation_rows(data)
    if not rows:
        raise ConfigError("data has no utterances. Give at least one conversation for each of train, dev and test.")
    keys = [(str(row["conversation"]), str(row["turn"])) for row in rows]
    tables = _tables(features, keys)
    content = _content(rows, targets, synthetic=_is_synthetic(data))
    digest = hashlib.sha256(repr(sorted(content.items())).encode())
    for table in tables:
        for part in (repr((table.modality, table.keys)).encode(), np.ascontiguousarray(table.values).tobytes()):
            digest.update(part)
        digest.update(b"" if table.offsets is None else np.ascontiguousarray(table.offsets).tobytes())
    folder = place / digest.hexdigest()[:12]
    if folder.is_dir():
        return folder
    place.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".", dir=place))
    try:
        for name, text in content.items():
            (building / name).write_text(text, encoding="utf-8")
        corpus = CustomCorpus(building)
        for table in tables:
            write_pack(
                building / PACKS / table.modality,
                table,
                tool=_TOOL,
                tool_version=_VERSION,
                settings={},
                corpus=corpus.name,
                fingerprint=corpus.source_fingerprint(),
            )
        building.rename(folder)  # the folder appears complete or not at all
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return folder


def check_utterances(data: Any) -> None:
    """Raise :class:`ConfigError` unless ``data`` is a data frame, conversations, or conversations by split."""
    if hasattr(data, "columns"):
        if not hasattr(data, "iloc"):
            raise ConfigError(f"data has the type {_type(data)}. Convert it to a pandas data frame.")
        return
    if isinstance(data, os.PathLike):
        raise ConfigError(path_advice(os.fspath(data)))
    by_split = isinstance(data, Mapping)
    for split, conversations in data.items() if by_split else [("", data)]:
        name = f"data[{split!r}]" if by_split else "data"
        if isinstance(conversations, str) or not isinstance(conversations, Sequence):
            raise ConfigError(f"{name} has the type {_type(conversations)}. {_DATA}")
        for one in conversations:
            if not isinstance(one, Conversation):
                raise ConfigError(
                    f"{name} contains the type {_type(one)}. {_ROWS if isinstance(one, Mapping) else _DATA}"
                )


def path_advice(path: str) -> str:
    """The message for ``data=PATH``."""
    if path.lower().endswith((".csv", ".tsv")):
        folder = os.path.dirname(path) or "."
        return (
            f"data={path!r} is a file. Read it with pandas.read_csv and give the data frame, or give "
            f"data='custom' with **{{'data.raw': {folder!r}}} for a folder with utterances.csv."
        )
    return f"data={path!r} is a path. Give data='custom' with **{{'data.raw': {path!r}}}."


def check_features(features: Any) -> None:
    """Raise :class:`ConfigError` unless ``features`` are feature tables, or arrays by modality."""
    if isinstance(features, Mapping):
        if unnamed := [name for name in features if not isinstance(name, str)]:
            raise ConfigError(f"features: {unnamed[0]!r} is not the name of a modality. Use a text such as 'audio'.")
    elif isinstance(features, str) or not isinstance(features, Sequence):
        shape = f" of shape {tuple(features.shape)}" if hasattr(features, "shape") else ""
        raise ConfigError(f"features has the type {_type(features)}{shape}. {_FEATURES}")
    elif unusual := [table for table in features if not isinstance(table, FeatureTable)]:
        raise ConfigError(f"features contains the type {_type(unusual[0])}. {_FEATURES}")


_DATA = "Give a corpus name, a pandas data frame, a list of Conversation objects, or such lists by split."
_ROWS = "Give pandas.DataFrame(data) with the columns of utterances.csv, or a list of Conversation objects."
_FEATURES = "Give arrays by modality, for example features={'audio': ARRAY}, or a list of FeatureTable objects."


def _type(value: object) -> str:
    return type(value).__name__


def _content(
    rows: Sequence[Mapping[str, Any]], targets: Mapping[str, Mapping[str, Any]] | None, *, synthetic: bool
) -> dict[str, str]:
    import yaml

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    settings: dict[str, Any] = {"title": "Utterances given to ercfusion.fit", "synthetic": synthetic}
    if targets is not None:
        settings["targets"] = {name: dict(target) for name, target in targets.items()}
    return {TABLE: table.getvalue(), SETTINGS: yaml.safe_dump(settings, sort_keys=False)}


def _is_synthetic(data: Any) -> bool:
    return not hasattr(data, "columns") and any(one.synthetic for part in _parts(data).values() for one in part)


def _parts(data: Conversations) -> Mapping[str, Sequence[Conversation]]:
    return data if isinstance(data, Mapping) else {"": data}


def _frame_rows(frame: Any, targets: Mapping[str, Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    columns = [str(name) for name in frame.columns]
    names = other_names(Settings(targets=targets))
    if missing := [column for column in REQUIRED if column not in columns]:
        raise ConfigError(
            f"the data frame has {lacking(missing)} (it has {', '.join(columns)}). Rename or add: "
            f"{to_rename(missing, columns, names)}."
        )
    if targets is None and DEFAULT_TARGET not in columns:
        raise ConfigError(
            f"the data frame has no column {DEFAULT_TARGET!r} (it has {', '.join(columns)}). Rename or add: "
            f"{to_rename([DEFAULT_TARGET], columns, names)}; or describe other targets with targets={{...}}."
        )
    return [
        {str(name): "" if value is None or value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _conversation_rows(data: Conversations) -> list[dict[str, Any]]:
    rows = []
    for split, conversations in _parts(data).items():
        for conversation in conversations:
            for turn in conversation.turns:
                row: dict[str, Any] = {"conversation": conversation.id, "turn": turn.id, "speaker": turn.speaker}
                row |= {"split": split} if split else {}
                row |= {name: value for name in ("text", "start", "end") if (value := getattr(turn, name)) is not None}
                row |= {
                    name: _cell(turn, name, target.value)
                    for name, target in turn.targets.items()
                    if target.value is not None
                }
                rows.append(row)
    return rows


def _cell(turn: Turn, name: str, value: TargetValue) -> str | float:
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, frozenset):
        return SEPARATOR.join(sorted(value)) or NOTHING
    raise ConfigError(
        f"turn {turn.id!r}: the target {name!r} is {value!r}; a label, a frozenset of labels or a number is expected. "
        "Write other targets into utterances.csv (docs/own-corpus.md) and give data='custom'."
    )


def _tables(features: Features, keys: Sequence[Key]) -> list[FeatureTable]:
    if not isinstance(features, Mapping):
        tables = list(features)
    else:
        tables = [FeatureTable(name, keys, _matrix(name, values, len(keys))) for name, values in features.items()]
    for table in tables:
        with np.errstate(over="ignore"):  # values too large for float32 become infinite
            values = table.values.astype(np.float32, copy=False)
        if fault := first_not_finite(values, table.keys, table.offsets, None):
            raise ConfigError(
                f"features {table.modality!r}: {fault}. Correct the value; for an utterance without this "
                "modality, give a FeatureTable without its key."
            )
    return tables


def _matrix(modality: str, values: Any, count: int) -> NDArray[Any]:
    """The values of a modality as numbers (N, D)."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            array = array.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"features[{modality!r}] has no numbers ({error}). Give numbers (N, D).") from error
    if array.ndim != 2 or len(array) != count:
        raise ConfigError(
            f"features[{modality!r}] has the shape {array.shape}, but data has {count} utterances. Give a matrix "
            "with one row per utterance."
        )
    return array
