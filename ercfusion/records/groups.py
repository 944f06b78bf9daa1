"""Groups of runs that differ in nothing but their seed, and what two runs or groups differ in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import RunError
from ercfusion._core.files import expanded
from ercfusion.batch.task import TaskSpec
from ercfusion.config.fields import typed_text
from ercfusion.config.settings import decides, flat
from ercfusion.metrics.sums import SUMS
from ercfusion.records.archive import read_archive
from ercfusion.records.record import read_record, record_sums, require_test_scores

PROCESSOR = ("processor", "instructions that torch uses")
"""Entries of :func:`environment_of` that are left out where the system does not tell them."""


@dataclass(frozen=True)
class Group:
    """Runs of one model with the same settings on the same data, one a seed.

    Args:
        name: For people.
        records: At least one, by seed.
    """

    name: str
    records: tuple[Mapping[str, Any], ...]

    @cached_property
    def task(self) -> TaskSpec:
        """What was predicted."""
        return TaskSpec.from_dict(dict(self.records[0]["task"]))

    @property
    def metric(self) -> str:
        """The score that chose the checkpoints."""
        return str(self.records[0]["selection"]["metric"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(int(record["seed"]) for record in self.records)

    def values(self, metric: str, split: str = "test") -> NDArray[np.float64]:
        """(S) scores; NaN where a run has none."""
        return np.array([record["metrics"][split].get(metric, np.nan) for record in self.records], dtype=np.float64)

    @cached_property
    def _sums(self) -> tuple[list[str], dict[str, NDArray[Any]]]:
        parts = [record_sums(record, "test") for record in self.records]
        ids = parts[0][0]
        if any(other != ids for other, _ in parts[1:]):
            raise RunError(f"the runs of {self.name} were tested on different conversations")
        keys = [key for key in parts[0][1] if all(key in sums for _, sums in parts)]
        found = {key: np.stack([sums[key] for _, sums in parts]) for key in keys}
        if any(_unlike(SUMS[key].truth(sums), SUMS[key].truth(sums[:1])).any() for key, sums in found.items()):
            raise RunError(f"the runs of {self.name} were tested on different labels")
        return ids, found

    @property
    def conversations(self) -> list[str]:
        """Ids of the B test conversations."""
        return self._sums[0]

    def sums(self, key: str) -> NDArray[Any] | None:
        """(S, B, ...) sums of the test conversations (:func:`ercfusion.metrics.inputs.conversation_sums`), or None."""
        return self._sums[1].get(key)

    def unlike_truth(self, other: Group) -> list[str]:
        """Ids of the test conversations whose labels are others in the other group; both have the same ids."""
        unlike = np.zeros(len(self.conversations), dtype=bool)
        for key, sums in self._sums[1].items():
            if (theirs := other.sums(key)) is not None:
                unlike |= _unlike(SUMS[key].truth(sums[:1]), SUMS[key].truth(theirs[:1]))
        return [name for name, differs in zip(self.conversations, unlike, strict=True) if differs]


def _unlike(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """(B) whether (S, B, ...) sums of the truth differ; moments are recorded with nine digits."""
    equal = np.isclose(one, other, rtol=1e-6, atol=1e-6)
    return ~equal.all(axis=(0, *range(2, equal.ndim)))


# Settings


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by dotted key that make an experiment: not those of a single run, a place or a machine."""
    return {key: value for key, value in flat(config).items() if decides(key) == "result"}


def changed_settings(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which a run must not be resumed and two configurations differ, as (first's, second's)."""

    def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in flat(config).items() if decides(key) != "nothing"}

    return differences(deciding(was), deciding(now))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Entries that are not equal, as (first's, second's); an entry that a side lacks is None there."""
    keys = dict.fromkeys([*first, *second])
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def data_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the data of a run: protocol, corpus and features, by a name for people."""
    entries: dict[str, Any] = {
        "protocol": record["protocol"],
        "corpus": record["corpus"]["name"],
        "corpus fingerprint": record["corpus"]["fingerprint"],
    }
    for table in record["features"]:
        name = f"features {table['modality']}"
        entries.update({f"{name}: {key}": value for key, value in flat(_identity(table)).items()})
    return entries | record.get("conventions", {})


def other_packs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Packs of two runs with other values, by modality: name, checksum and, if known, processor of either side.

    Features that one of the runs lacks, and those without a checksum, are left out.
    """
    tables = [{table["modality"]: table["source"] for table in record["features"]} for record in (first, second)]
    found = {}
    for modality, source in tables[0].items():
        sources = (source, tables[1].get(modality, {}))
        checksums = [one.get("sha256") for one in sources]
        if None not in checksums and checksums[0] != checksums[1]:
            here, there = (_pack_in_words(one) for one in sources)
            found[modality] = (here, there)
    return found


def _pack_in_words(source: Mapping[str, Any]) -> str:
    where = source.get("machine") or {}
    made = ", ".join(str(where[key]) for key in ("processor", "instructions") if where.get(key))
    name = Path(str(source.get("pack", ""))).name
    return (f"{name} " if name else "") + str(source["sha256"]) + (f" (made on {made})" if made else "")


def environment_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Processor, versions and machine of a run, by a name for people; what is not known is left out."""
    found = record["environment"]
    revision = found.get("revision") or {}
    known = zip(PROCESSOR, (found["processor"], found["instructions"]), strict=True)
    return {
        **{key: value for key, value in known if value is not None},
        "ercfusion": found["ercfusion"],
        "ercfusion commit": (revision.get("commit") or "unknown")[:12],
        "ercfusion sources changed since": revision.get("dirty", "unknown"),
        "python": found["python"],
        "system": found["system"],
        "processor cores": found["cpus"],
        "device": record["device"],
        "threads": record["config"]["training"]["threads"],
        **found["versions"],
    }


# Reading


def read_records(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Records of run folders, of folders of run folders, and of archives, in this order.

    Raises:
        RunError: nothing of the kind is there, or a run is not finished, or has no test scores.
    """
    records: list[dict[str, Any]] = []
    for entry in paths:
        path = expanded(entry)
        if path.is_file():
            records += read_archive(path)
        elif path.is_dir() and not (path / "config.json").is_file():
            inside = sorted(found.parent for found in path.glob("**/record.json"))
            if not inside:
                raise RunError(f"{path} holds no finished run (no record.json in it or below it)")
            records += [read_record(folder) for folder in inside]
        else:
            records.append(read_record(path))
    require_test_scores(records)
    return records


def group_records(records: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Put runs that differ in nothing but the seed together; groups come in the order of their first run.

    A group is named by its model and, where that is not enough to tell it from the others, by the settings in which it
    differs from them. Two runs with one seed are one run that was made twice: the later one is taken.
    """
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        identity = [record["config"]["preset"]["model"], settings_of(record["config"]), data_of(record)]
        key = json.dumps(identity, sort_keys=True)  # whatever order a file has its entries in
        runs = found.setdefault(key, {})
        known = runs.get(record["seed"])
        if known is None or known["finished"] <= record["finished"]:
            runs[record["seed"]] = record
    members = [tuple(runs[seed] for seed in sorted(runs)) for runs in found.values()]
    return [Group(name, group) for name, group in zip(_names(members), members, strict=True)]


def _names(members: Sequence[tuple[Mapping[str, Any], ...]]) -> list[str]:
    names = []
    for group in members:
        model = group[0]["config"]["preset"]["model"]
        rivals = [
            other[0] for other in members if other is not group and other[0]["config"]["preset"]["model"] == model
        ]
        own = {**settings_of(group[0]["config"]), **_shown_data(group[0])}
        changed: dict[str, Any] = {}
        for rival in rivals:
            other = {**settings_of(rival["config"]), **_shown_data(rival)}
            found = {key: value for key, (value, _) in differences(own, other).items()}
            # That a modality is used or not is among the settings.
            both = own.keys() & other.keys()
            changed.update({k: v for k, v in found.items() if k in both or not k.startswith("features ")})
        names.append(" ".join([model, *(f"{key}={typed_text(value)}" for key, value in changed.items())]))
    return names


def _shown_data(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "protocol": record["protocol"],
        "corpus fingerprint": record["corpus"]["fingerprint"][:8],
        **{f"features {table['modality']}": _digest(table) for table in record["features"]},
    }


def _identity(table: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies features, wherever and whenever they were made."""
    return {
        "width": table["width"],
        **{key: value for key, value in table["source"].items() if key not in ("pack", "created", "machine")},
    }


def _digest(table: Mapping[str, Any]) -> str:
    text = json.dumps(_identity(table), sort_keys=True)
    return str(table["source"].get("sha256") or hashlib.sha256(text.encode()).hexdigest())[:8]


def features_of_groups(groups: Sequence[Group]) -> list[str] | None:
    """What each group was trained on, in words; None if that is the same for all.

    A modality of which the groups have different features is named with width, tool or encoder, and checksum.
    """
    tables = [{entry["modality"]: entry for entry in group.records[0]["features"]} for group in groups]
    forms: dict[str, set[str]] = {}
    for of_group in tables:
        for name, entry in of_group.items():
            forms.setdefault(name, set()).add(json.dumps(_identity(entry), sort_keys=True))
    found = []
    for of_group in tables:
        words = []
        for name, entry in of_group.items():
            source = entry["source"]
            made = source.get("settings", {}).get("encoder") or source.get("tool")
            known = [f"{entry['width']}-d", *([str(made)] if made else []), _digest(entry)]
            words.append(name if len(forms[name]) == 1 else f"{name} ({' '.join(known)})")
        found.append(", ".join(words))
    return found if len(set(found)) > 1 else None


def check_comparable(groups: Sequence[Group]) -> None:
    """Refuse a paired comparison of runs that were not tested on the same data.

    Equal conversation ids are not enough: two generated corpora share them, and so do two releases of a corpus. Task,
    protocol, fingerprint of the corpus and the labels of every test conversation (which the sums of a record hold) must
    be equal for every run of every group.

    Raises:
        RunError: which two runs differ, and in what.
    """
    first = groups[0]
    protocols = {record["protocol"]: group.name for group in groups for record in group.records}
    if len(protocols) > 1:
        shown = ", ".join(f"{protocol} ({name})" for protocol, name in protocols.items())
        raise RunError(f"the runs follow different protocols, and their scores cannot be compared: {shown}")
    for group in groups:
        for record in group.records:
            _check_same_data(first.name, first.records[0], group.name, record)
    for other in groups:
        if other.conversations != first.conversations:
            here, there = set(first.conversations), set(other.conversations)
            order = ", in another order" if here == there else ""
            raise RunError(
                f"{first.name} and {other.name} were tested on different conversations ({len(here - there)} only in "
                f"the first, {len(there - here)} only in the second{order}): a paired comparison needs the same ones"
            )
        if unlike := first.unlike_truth(other):
            raise RunError(
                f"{first.name} and {other.name} were tested on different labels: those of {len(unlike)} conversations "
                f"differ, for example of {unlike[0]!r}. A paired comparison needs the same test data"
            )


def _check_same_data(first: str, one: Mapping[str, Any], second: str, other: Mapping[str, Any]) -> None:
    def task(record: Mapping[str, Any]) -> dict[str, Any]:
        return TaskSpec.from_dict(dict(record["task"])).to_dict()

    if task(one) != task(other):
        raise RunError(
            f"{first} predicts {one['task']['name']!r} ({one['task']['kind']}), {second} predicts "
            f"{other['task']['name']!r} ({other['task']['kind']}): their scores cannot be compared"
        )
    prints = [str(record["corpus"]["fingerprint"])[:12] for record in (one, other)]
    if one["corpus"]["fingerprint"] != other["corpus"]["fingerprint"]:
        raise RunError(
            f"{first} (seed {one['seed']}) and {second} (seed {other['seed']}) were tested on different versions of "
            f"{one['corpus']['name']!r} (corpus fingerprints {prints[0]} and {prints[1]}; the conversation ids may be "
            "equal all the same): a paired comparison needs the same data"
        )
