"""Groups of runs that differ only in their seed, and differences between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ErcfusionError, RunError
from ercfusion._core.files import expanded, sha256_of
from ercfusion._core.schemas.reading import read_json
from ercfusion.batch.task import TaskSpec
from ercfusion.config.fields import typed_text
from ercfusion.config.missing_laws import Pattern, parse
from ercfusion.config.settings import decides, flat
from ercfusion.metrics.sums import SUMS
from ercfusion.records.archive import read_archive
from ercfusion.records.feature_tables import table_digest, table_identity, table_in_words
from ercfusion.records.missing import modalities_of
from ercfusion.records.record import RECORD, read_record, record_sums, require_test_scores

PROCESSOR = ("processor", "instructions that torch uses")
"""Keys of :func:`environment_of` that may be missing."""


@dataclass(frozen=True)
class Group:
    """Runs of one model, settings and data, one per seed.

    Args:
        records: At least one, sorted by seed.
    """

    name: str
    records: tuple[Mapping[str, Any], ...]

    @cached_property
    def task(self) -> TaskSpec:
        """The predicted task."""
        return TaskSpec.from_dict(dict(self.records[0]["task"]))

    @property
    def metric(self) -> str:
        """The score that chose the checkpoints."""
        return str(self.records[0]["selection"]["metric"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Sorted."""
        return tuple(int(record["seed"]) for record in self.records)

    def values(self, metric: str, split: str = "test") -> NDArray[np.float64]:
        """(S) scores; NaN for a run without the score."""
        return np.array([record["metrics"][split].get(metric, np.nan) for record in self.records], dtype=np.float64)

    @cached_property
    def _sums(self) -> tuple[list[str], dict[str, NDArray[Any]]]:
        parts = [record_sums(record, "test") for record in self.records]
        ids = parts[0][0]
        if any(other != ids for other, _ in parts[1:]):
            raise RunError(
                f"the runs of {self.name} were tested on different conversations. Repeat them on the same corpus files."
            )
        keys = [key for key in parts[0][1] if all(key in sums for _, sums in parts)]
        stacked = {key: np.stack([sums[key] for _, sums in parts]) for key in keys}
        if any(_unlike(SUMS[key].truth(sums), SUMS[key].truth(sums[:1])).any() for key, sums in stacked.items()):
            raise RunError(
                f"the runs of {self.name} were tested on different labels. Repeat them on the same corpus files."
            )
        return ids, stacked

    @property
    def conversations(self) -> list[str]:
        """Ids of the B test conversations."""
        return self._sums[0]

    def sums(self, key: str) -> NDArray[Any] | None:
        """(S, B, ...) sums of the test conversations (:func:`ercfusion.metrics.inputs.conversation_sums`), or None."""
        return self._sums[1].get(key)

    def unlike_truth(self, other: Group) -> list[str]:
        """Test conversations with other labels in the other group, which has the same ids."""
        unlike = np.zeros(len(self.conversations), dtype=bool)
        for key, sums in self._sums[1].items():
            if (others := other.sums(key)) is not None:
                unlike |= _unlike(SUMS[key].truth(sums[:1]), SUMS[key].truth(others[:1]))
        return [name for name, differs in zip(self.conversations, unlike, strict=True) if differs]


def _unlike(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """(B) whether (S, B, ...) sums of the truth differ; moments have nine digits."""
    equal = np.isclose(one, other, rtol=1e-6, atol=1e-6)
    return ~equal.all(axis=(0, *range(2, equal.ndim)))


# Settings


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide results, by dotted key."""
    return {key: value for key, value in flat(config).items() if decides(key) == "result"}


def changed_settings(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences of two configurations that prevent a resume, as (first's, second's)."""

    def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in flat(config).items() if decides(key) != "nothing"}

    return differences(deciding(was), deciding(now))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Unequal values as (first's, second's); None for a missing one."""
    keys = dict.fromkeys([*first, *second])
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def data_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Identity of a run's protocol, corpus and features, by readable names."""
    entries: dict[str, Any] = {
        "protocol": record["protocol"],
        "corpus": record["corpus"]["name"],
        "corpus fingerprint": record["corpus"]["fingerprint"],
    }
    for table in record["features"]:
        name = f"features {table['modality']}"
        entries.update({f"{name}: {key}": value for key, value in flat(table_identity(table)).items()})
    entries.update({name: origin.words for name, origin in _origins(record).items()})
    return entries | record.get("conventions", {})


@dataclass(frozen=True)
class _Origin:
    """A finished model that a run began with, or learned from.

    Args:
        words: Model, and its protocol or modalities.
        sha256: Of its weights.
        folder: As typed; None for an archived record.
    """

    words: str
    sha256: str | None
    folder: str | None

    def settings(self) -> dict[str, Any] | None:
        """Settings that decided about the model; None if its folder is gone, unreadable, or has another model now."""
        if self.folder is None:
            return None
        try:
            folder = expanded(self.folder)
            if sha256_of(folder / "model" / "model.safetensors") != self.sha256:
                return None
            content = read_json(folder / "config.json")
        except (OSError, ErcfusionError):
            return None
        return settings_of(content) if isinstance(content, dict) else None


def _origins(record: Mapping[str, Any]) -> dict[str, _Origin]:
    """Initial weights and teacher by readable names. Stages of the run itself follow from its settings."""
    training = record["config"]["training"]
    stages = (record["config"].get("recipe") or {}).get("stages") or {}
    origins = {}
    if (start := record.get("start") or {}).get("source") and "recipe" not in record:
        words = start["model"] or start["source"]
        origins["initial weights"] = _Origin(words, start["sha256"], training.get("start_from"))
    if (teacher := record.get("teacher")) and training.get("teacher") not in stages:
        words = f"{teacher['model']} on {', '.join(teacher['modalities'])}"
        origins["teacher"] = _Origin(words, teacher["sha256"], training.get("teacher"))
    return origins


def other_packs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Packs with different values in two runs, by modality: name, checksum, processor."""
    tables = [{table["modality"]: table["source"] for table in record["features"]} for record in (first, second)]
    packs = {}
    for modality, source in tables[0].items():
        sources = (source, tables[1].get(modality, {}))
        checksums = [one.get("sha256") for one in sources]
        if None not in checksums and checksums[0] != checksums[1]:
            own, others = (_pack_in_words(one) for one in sources)
            packs[modality] = (own, others)
    return packs


def _pack_in_words(source: Mapping[str, Any]) -> str:
    machine = source.get("machine") or {}
    made = ", ".join(str(machine[key]) for key in ("processor", "instructions") if machine.get(key))
    name = Path(str(source.get("pack", ""))).name
    return (f"{name} " if name else "") + str(source["sha256"]) + (f" (made on {made})" if made else "")


def environment_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Processor, versions and machine of a run, as far as known."""
    environment = record["environment"]
    revision = environment.get("revision") or {}
    processor = zip(PROCESSOR, (environment["processor"], environment["instructions"]), strict=True)
    return {
        **{key: value for key, value in processor if value is not None},
        "ercfusion": environment["ercfusion"],
        "ercfusion commit": (revision.get("commit") or "unknown")[:12],
        "ercfusion sources changed since": revision.get("dirty", "unknown"),
        "python": environment["python"],
        "system": environment["system"],
        "processor cores": environment["cpus"],
        "device": record["device"],
        "threads": record["config"]["training"]["threads"],
        **environment["versions"],
    }


# Reading


def read_records(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read the records of run folders, of their parents, of archives, and of files ``record.json``.

    Raises:
        RunError: there is none, a run is not finished, or it has no test scores.
    """
    return [record for _, record in read_places(paths)]


def read_places(paths: Iterable[str | Path]) -> list[tuple[Path | None, dict[str, Any]]]:
    """As :func:`read_records`, each record with the folder of its run; None for a record of an archive."""
    places: list[tuple[Path | None, dict[str, Any]]] = []
    for name in paths:
        path = expanded(name)
        if path.is_file() and path.name == RECORD:
            places.append((path.parent, read_record(path.parent)))
        elif path.is_file():
            places += [(None, record) for record in read_archive(path)]
        elif not path.exists():
            raise RunError(f"{path} does not exist. Give the folder of a run or an archive.")
        elif path.is_dir() and not (path / "config.json").is_file():
            inside = sorted(file.parent for file in path.glob(f"**/{RECORD}"))
            if not inside:
                archive = next(filter(_is_archive, sorted(path.glob("*.json"))), None)
                advice = f"Give its files, such as {archive}" if archive else "Give the folder of a run or an archive"
                raise RunError(f"{path}: no finished run (no {RECORD} in or below it). {advice}.")
            places += [(folder, read_record(folder)) for folder in inside]
        else:
            places.append((path, read_record(path)))
    require_test_scores(record for _, record in places)
    return places


def _is_archive(path: Path) -> bool:
    try:
        return bool(read_archive(path))
    except RunError:
        return False


def group_records(records: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Group runs that differ only in the seed, in the order of their first run.

    A group is named by its model and what distinguishes it; no two have one name. Of two runs with one seed, the later
    counts. Runs with different initial weights or teachers are different groups, unless these differ only in the seed
    too: every seed has its own, made with equal settings as far as their folders are still there.
    """
    alike: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        identity = [record["config"]["preset"]["model"], settings_of(record["config"]), data_of(record)]
        key = json.dumps(identity, sort_keys=True)  # files may order keys differently
        alike.setdefault(key, []).append(number)
    members = []
    for numbers in sorted(part for same in alike.values() for part in _by_origins(records, same)):
        runs: dict[int, Mapping[str, Any]] = {}
        for record in (records[number] for number in numbers):
            earlier = runs.get(record["seed"])
            if earlier is None or earlier["finished"] <= record["finished"]:
                runs[record["seed"]] = record
        members.append(tuple(runs[seed] for seed in sorted(runs)))
    return [Group(name, group) for name, group in zip(_names(members), members, strict=True)]


def _by_origins(records: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> list[list[int]]:
    """Places of otherwise equal runs, divided by their initial weights and teachers."""
    origins = {number: _origins(records[number]).values() for number in numbers}
    weights = {number: str([origin.sha256 for origin in origins[number]]) for number in numbers}
    if len(set(weights.values())) == 1:
        return [list(numbers)]
    made = {number: [origin.settings() for origin in origins[number]] for number in numbers}
    texts = {number: json.dumps(own, sort_keys=True) for number, own in made.items() if None not in own}
    if len(texts) < len(numbers):
        one_recipe = len(set(texts.values())) < 2
        return [list(numbers)] if one_recipe and _one_each(records, numbers, weights) else _divided(numbers, weights)
    parts = _divided(numbers, texts)
    return [
        piece for part in parts for piece in ([part] if _one_each(records, part, weights) else _divided(part, weights))
    ]


def _one_each(records: Sequence[Mapping[str, Any]], numbers: Sequence[int], weights: Mapping[int, str]) -> bool:
    """Whether every seed has its own weights."""
    pairs = {(records[number]["seed"], weights[number]) for number in numbers}
    return len({seed for seed, _ in pairs}) == len({own for _, own in pairs}) == len(pairs)


def _divided(numbers: Sequence[int], by: Mapping[int, str]) -> list[list[int]]:
    parts: dict[str, list[int]] = {}
    for number in numbers:
        parts.setdefault(by[number], []).append(number)
    return list(parts.values())


def _names(members: Sequence[tuple[Mapping[str, Any], ...]]) -> list[str]:
    """Names by what differs; equal ones get checksums and conventions, and in the end numbers."""
    firsts = [group[0] for group in members]
    shown = [{**settings_of(record["config"]), **_shown_data(record)} for record in firsts]
    names = _distinguished(firsts, shown)
    longer = _distinguished(firsts, [{**own, **_details(record)} for own, record in zip(shown, firsts, strict=True)])
    names = [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
    taken = {name for name in names if names.count(name) == 1}
    for place, name in enumerate(names):
        if name not in taken:
            numbered = (f"{name} ({number})" for number in range(1, len(names) + len(taken) + 2))
            names[place] = next(text for text in numbered if text not in taken)
            taken.add(names[place])
    return names


def _distinguished(firsts: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    models = [record["config"]["preset"]["model"] for record in firsts]
    for place, (model, own) in enumerate(zip(models, shown, strict=True)):
        changed: dict[str, Any] = {}
        for number, other in enumerate(shown):
            if number == place or models[number] != model:
                continue
            differing = {key: value for key, (value, _) in differences(own, other).items()}
            # Use of a modality is a setting.
            both = own.keys() & other.keys()
            changed.update({k: v for k, v in differing.items() if k in both or not k.startswith("features ")})
        names.append(" ".join([model, *(f"{key}={typed_text(value)}" for key, value in changed.items())]))
    return names


def _shown_data(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "protocol": record["protocol"],
        "corpus fingerprint": record["corpus"]["fingerprint"][:8],
        **{f"features {table['modality']}": table_digest(table) for table in record["features"]},
        **{name: origin.words for name, origin in _origins(record).items()},
    }


def _details(record: Mapping[str, Any]) -> dict[str, Any]:
    checksums = {f"{name}: checksum": str(origin.sha256)[:8] for name, origin in _origins(record).items()}
    return checksums | record.get("conventions", {})


def features_of_groups(groups: Sequence[Group]) -> list[str] | None:
    """Each group's features as text; None if they are the same.

    Different features get width, tool or encoder, and checksum.
    """
    tables = [{table["modality"]: table for table in group.records[0]["features"]} for group in groups]
    forms: dict[str, set[str]] = {}
    for of_group in tables:
        for name, table in of_group.items():
            forms.setdefault(name, set()).add(json.dumps(table_identity(table), sort_keys=True))
    texts = []
    for of_group in tables:
        words = []
        for name, table in of_group.items():
            words.append(name if len(forms[name]) == 1 else f"{name} ({table_in_words(table)})")
        texts.append(", ".join(words))
    return texts if len(set(texts)) > 1 else None


def check_comparable(groups: Sequence[Group], *, test_scores: bool = False) -> None:
    """Raise an error unless a paired comparison is valid.

    Equal conversation ids are not enough: generated corpora and releases share them. Task, protocol, corpus fingerprint
    and labels must be equal for all runs of all groups.

    Args:
        groups: To compare.
        test_scores: Whether the recorded test scores are compared: then the law of missing modalities on test, and the
            seed of its masks, must be equal too.

    Raises:
        RunError: two runs differ; the message names them and the difference.
    """
    first = groups[0]
    protocols = {record["protocol"]: group.name for group in groups for record in group.records}
    if len(protocols) > 1:
        shown = ", ".join(f"{protocol} ({name})" for protocol, name in protocols.items())
        raise RunError(
            f"the runs follow different protocols, so their scores cannot be compared: {shown}. Choose runs of one."
        )
    for group in groups:
        for record in group.records:
            _check_same_data(first.name, first.records[0], group.name, record)
            if test_scores:
                _check_same_holes(first.name, first.records[0], group.name, record)
    for other in groups:
        if other.conversations != first.conversations:
            own, others = set(first.conversations), set(other.conversations)
            order = ", in another order" if own == others else ""
            raise RunError(
                f"{first.name} and {other.name} were tested on different conversations ({len(own - others)} only in "
                f"the first, {len(others - own)} only in the second{order}). Give runs on the same test data."
            )
        if unlike := first.unlike_truth(other):
            raise RunError(
                f"{first.name} and {other.name} were tested on different labels: those of {len(unlike)} conversations "
                f"differ, for example of {unlike[0]!r}. Give runs on the same test data."
            )


def _check_same_data(first: str, one: Mapping[str, Any], second: str, other: Mapping[str, Any]) -> None:
    def task(record: Mapping[str, Any]) -> dict[str, Any]:
        return TaskSpec.from_dict(dict(record["task"])).to_dict()

    if task(one) != task(other):
        raise RunError(
            f"{first} predicts {one['task']['name']!r} ({one['task']['kind']}), {second} predicts "
            f"{other['task']['name']!r} ({other['task']['kind']}): their scores cannot be compared. Give "
            "runs of one task."
        )
    prints = [str(record["corpus"]["fingerprint"])[:12] for record in (one, other)]
    if one["corpus"]["fingerprint"] != other["corpus"]["fingerprint"]:
        raise RunError(
            f"{first} (seed {one['seed']}) and {second} (seed {other['seed']}) were tested on different versions of "
            f"{one['corpus']['name']!r} (corpus fingerprints {prints[0]} and {prints[1]}), even if the conversation "
            "ids are equal. Give runs on the same test data."
        )


def _check_same_holes(first: str, one: Mapping[str, Any], second: str, other: Mapping[str, Any]) -> None:
    laws = [record.get("missing") or {"laws": {}, "seed": 0} for record in (one, other)]
    if laws[0]["laws"].get("test") == laws[1]["laws"].get("test") and laws[0]["seed"] == laws[1]["seed"]:
        return  # also laws of the user's modules, which are not imported here
    holes = [_test_holes(record) for record in (one, other)]
    if holes[0] != holes[1]:
        seeds = ["" if seed is None else f" (masks of seed {seed})" for _, seed in holes]
        words = [
            "complete" if law == "none" else f"with {law}{seed}" for (law, _), seed in zip(holes, seeds, strict=True)
        ]
        raise RunError(
            f"{first} (seed {one['seed']}) was tested {words[0]}, and {second} (seed {other['seed']}) {words[1]}: "
            "with other missing modalities, these are different test data. Use `robustness` to compare runs under the "
            "same laws, and `evaluate RUN missing.eval=LAW` for the scores of one run."
        )


def _test_holes(record: Mapping[str, Any]) -> tuple[str, int | None]:
    """Canonical law of the test split, ``none`` for complete data, and the seed of random masks."""
    missing = record.get("missing") or {"laws": {}, "seed": 0}
    text = missing["laws"].get("test", "none")
    law, own = parse(text), modalities_of(record)
    if law.hides_nothing or (isinstance(law, Pattern) and len(law.left(own)) == len(own)):
        return "none", None
    return str(law), None if isinstance(law, Pattern) else int(missing["seed"])
