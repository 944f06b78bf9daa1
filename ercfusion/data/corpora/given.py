"""Writes utterances in memory as a user's own corpus (:mod:`ercfusion.data.corpora.custom`)."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError
from ercfusion.data.conversation import Conversation, TargetValue, Turn
from ercfusion.data.corpora._custom import TABLE
from ercfusion.data.corpora.custom import PACKS, SETTINGS, CustomCorpus
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack import write_pack
from ercfusion.tasks.kinds.multi_label import NOTHING, SEPARATOR

if TYPE_CHECKING:
    import pandas

Conversations = Sequence[Conversation] | Mapping[str, Sequence[Conversation]]
Features = Sequence[FeatureTable] | Mapping[str, NDArray[Any]]
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
        ConfigError: no utterances, missing columns, a target that cannot be written, or another number of rows.
    """
    rows = _frame_rows(data) if hasattr(data, "columns") else _conversation_rows(data)
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


def _frame_rows(frame: Any) -> list[dict[str, Any]]:
    for column in ("conversation", "turn"):
        if column not in frame.columns:
            columns = ", ".join(map(str, frame.columns))
            raise ConfigError(f"data has no column {column!r} (it has {columns}). Add the ids of every utterance.")
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
        return list(features)
    tables = []
    for modality, values in features.items():
        values = np.asarray(values)
        if values.ndim != 2 or len(values) != len(keys):
            raise ConfigError(
                f"features[{modality!r}] has the shape {values.shape}, but data has {len(keys)} utterances. Give a "
                "matrix with one row per utterance."
            )
        tables.append(FeatureTable(modality, keys, values))
    return tables
