"""Scores of a finished run on another corpus, through a map between the labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ercfusion._core.errors import ConfigError, ErcfusionError
from ercfusion._core.files import write_json
from ercfusion.batch.batch import TaskTargets
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.shared import SharedLabels, Unmapped, shared_labels
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing import split_law
from ercfusion.config.sections import Data
from ercfusion.config.settings import section_from
from ercfusion.data.conversation import Conversation
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpus import Corpus, Protocol
from ercfusion.data.features import FeatureTable
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData
from ercfusion.features.recipe import recipe_names
from ercfusion.metrics.classification import per_class
from ercfusion.records.missing import Scoring, recorded_missing, unseen_lines
from ercfusion.records.predictions import prediction_file, read_predictions, write_predictions
from ercfusion.records.record import rounded_scores, split_record, task_record
from ercfusion.tasks.recognizer import Recognizer

# Settings of a pack that do not decide how a text or recording becomes a vector.
_OF_ONE_CORPUS = ("texts", "torch", "transformers")
_LEAST_WORDS = 4
"""Shorter utterances ("Oh my God!") are common to unrelated dialogues."""


@dataclass(frozen=True)
class Pairing:
    """A task of the run, and the task of the other corpus that its outputs are scored against."""

    own: TaskSpec
    other: TaskSpec
    shared: SharedLabels


@dataclass(frozen=True)
class Crossing:
    """Scores of one task on another corpus.

    Args:
        predictions: In the shared labels.
        report: The content of the JSON file.
        file: The Parquet file.
        missing: Missing modalities in words, for a title.
    """

    predictions: Predictions
    report: Mapping[str, Any]
    file: Path
    missing: str = ""


def pair_tasks(
    record: Mapping[str, Any], tasks: Sequence[TaskSpec], corpus: Corpus, protocol: Protocol, unmapped: Unmapped
) -> list[Pairing]:
    """For every task of a run, the first task of a protocol with the same kind and a map.

    Raises:
        ConfigError: there is none for any task.
    """
    pairs: list[Pairing] = []
    problem: ConfigError | None = None
    for own in tasks:
        for other in protocol.tasks:
            if other.rules is not own.rules or own.schema is None or other.schema is None:
                continue
            try:
                shared = shared_labels(own.schema, other.schema, unmapped)
            except ConfigError as error:
                problem = problem or error
                continue
            pairs.append(Pairing(own, other, shared))
            break
    if pairs:
        return pairs
    if problem is not None:
        raise problem
    kinds = [task.rules for task in tasks if task.schema is not None]
    fitting = [name for name, each in corpus.protocols.items() if any(task.rules in kinds for task in each.tasks)]
    have = ", ".join(f"{task.name} ({task.kind})" for task in protocol.tasks)
    advice = f"Use data={fitting[0]}." if fitting else "Use another corpus."
    raise ConfigError(
        f"the run on {record['protocol']} predicts {', '.join(f'{task.name} ({task.kind})' for task in tasks)}, and "
        f"{protocol.id} has {have}: no task of one kind with labels. {advice}"
    )


def other_data(record: Mapping[str, Any], settings: Data, visible: Sequence[str]) -> Data:
    """The settings for another corpus, with the run's encoder and recipes.

    Args:
        record: Of the run.
        settings: As typed.
        visible: Modalities to load.
    """
    own = section_from("data", record["config"]["data"])
    # A recipe's name finds the other corpus's pack; a folder holds the run's corpus.
    recipes = {name: place for name, place in own.packs.items() if place in recipe_names() and name in visible}
    return replace(settings, encoder=own.encoder, modalities=tuple(visible), packs={**recipes, **settings.packs})


def check_same_features(record: Mapping[str, Any], tables: Sequence[FeatureTable], corpus: Corpus) -> list[str]:
    """Compare the features of another corpus with the run's.

    Returns:
        Modalities without known settings, whose equality cannot be checked.

    Raises:
        ConfigError: other width, level, tool or settings.
    """
    recorded = {one["modality"]: one for one in record["features"]}
    unknown = []
    for table in tables:
        own = recorded[table.modality]
        sides = (own["width"], own["level"]), (table.width, table.level)
        made = [_made(one) for one in (own["source"], table.source)]
        if sides[0] != sides[1]:
            described = [f"{width} dimensions per {level}" for width, level in sides]
        elif made[0] != made[1]:
            keys = [key for key in {**made[0], **made[1]} if made[0].get(key) != made[1].get(key)]
            described = [", ".join(f"{key} {side.get(key)}" for key in keys) for side in made]
        else:
            if not made[0] and corpus.name != record["corpus"]["name"]:
                unknown.append(table.modality)
            continue
        others = "+".join(name for name in recorded if name != table.modality)
        instead = f", or score without: missing.eval=pattern:{others}" if others else ""
        raise ConfigError(
            f"{table.modality} features of {corpus.name}: {described[1]}; the run was trained with {described[0]}. "
            f"Make them with the same recipe and give data.packs.{table.modality}=FOLDER{instead}."
        )
    return unknown


def _made(source: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in source.get("settings", {}).items() if key not in _OF_ONE_CORPUS}
    return {**({"tool": source["tool"]} if "tool" in source else {}), **settings}


def cross(
    folder: Path,
    record: Mapping[str, Any],
    recognizer: Recognizer,
    data: LoadedData,
    pairs: Sequence[Pairing],
    split: str,
    scoring: Scoring,
    unmapped: Unmapped,
) -> list[Crossing]:
    """Score a run on a split of another corpus; writes a JSON and a Parquet file per task.

    Args:
        folder: Of the run.
        record: Its record.
        recognizer: Its model.
        data: The other corpus, with the tasks of ``pairs``.
        pairs: From :func:`pair_tasks`.
        split: Of the other corpus.
        scoring: Missing modalities.
        unmapped: See :func:`ercfusion.batch.shared.shared_labels`.
    """
    store = scoring.store(data.store(split), split)
    missing = scoring.report(store)
    targets = dict(store.targets)
    outputs = recognizer.predict_all(_without_targets(store, recognizer.tasks))
    known = training_texts(record)
    crossings = []
    for pair in pairs:
        assert pair.own.schema is not None
        values = targets[pair.other.name]
        valid = values.valid.numpy()
        scored = pair.shared.of(outputs[pair.own.name], (values.value.numpy(), valid))
        protocol = data.protocol_of(pair.other.name)
        lost = _lost(pair, values, scored)
        own = task_record(record, pair.own.name)
        recorded = read_predictions(folder / prediction_file(record, pair.own.name), pair.own).get("test")
        own_mapped = None if recorded is None else pair.shared.of(recorded)
        label_map = pair.shared.label_map
        report: dict[str, Any] = {
            "split": split,
            "protocol": protocol,
            **missing,
            "map": {
                "source": label_map.source,
                "target": label_map.target,
                "mapping": dict(label_map.mapping),
                "note": label_map.note,
                "mapped": "outputs" if label_map.source == pair.own.schema.name else "targets",
                "unmapped": unmapped,
            },
            "labels": list(pair.shared.schema.labels),
            "utterances_of_split": len(valid),
            "labelled": int(valid.sum()),
            "dropped": int(valid.sum()) - int(scored.valid.sum()),
            "dropped_labels": lost,
            "overlap": _overlap(scored, data.splits[split], known),
            "metrics": rounded_scores(scored),
            "own": {
                "protocol": own["protocol"],
                "split": "test",
                "metrics": {} if own_mapped is None else rounded_scores(own_mapped),
                "per_class": {} if own_mapped is None or not own_mapped.valid.any() else per_class(own_mapped),
                "recorded": own["metrics"].get("test", {}),
            },
            **split_record(scored),
        }
        parts = [protocol.replace("/", "-"), split, *scoring.file_parts]
        parts += [] if pair.own.name == recognizer.task.name else [pair.own.name]
        target = folder / "evaluation" / "-".join(parts)
        target.parent.mkdir(exist_ok=True)
        file = write_predictions(Path(f"{target}.parquet"), {split: scored})
        write_json(f"{target}.json", report, indent=1)
        crossings.append(Crossing(scored, report, file, scoring.words))
    return crossings


def _without_targets(store: ConversationStore, tasks: Sequence[TaskSpec]) -> ConversationStore:
    """The same features for other tasks: labels of the other corpus may not be labels of the run."""
    blank, count = copy(store), store.num_utterances
    blank.tasks, blank.targets = list(tasks), {}
    for task in tasks:
        value = torch.zeros(count, dtype=torch.long) if task.rules.index_targets else torch.zeros(count, task.size)
        blank.targets[task.name] = TaskTargets(value, torch.zeros(count, dtype=torch.bool))
    return blank


def _lost(pair: Pairing, targets: TaskTargets, scored: Predictions) -> dict[str, float]:
    """What labelled utterances have of labels without counterpart, by label."""
    assert pair.other.schema is not None
    mass = pair.other.rules.class_mass(targets.value[targets.valid], pair.other)
    if mass is None or not len(mass):
        return {}
    sums = mass.double().sum(0).tolist()
    gone = pair.shared.targets.sum(axis=1) == 0
    return {
        label: round(count, 6)
        for label, count, lost in zip(pair.other.schema.labels, sums, gone, strict=True)
        if lost and count
    }


# Shared utterances


def training_texts(record: Mapping[str, Any]) -> set[str]:
    """Texts of at least four words of the run's training split; empty without its files or texts."""
    settings = section_from("data", record["config"]["data"])
    try:
        corpus = open_corpus(settings.name, settings.raw, **settings.options)
        if corpus.fingerprint() != record["corpus"]["fingerprint"]:
            return set()
        trained = corpus.conversations(corpus.protocol(settings.protocol))["train"]
    except ErcfusionError:
        return set()
    return {text for conversation in trained for text in _texts(conversation)}


def _texts(conversation: Conversation) -> list[str]:
    words = (re.findall(r"\w+", (turn.text or "").casefold()) for turn in conversation.turns)
    return [" ".join(each) for each in words if len(each) >= _LEAST_WORDS]


def _overlap(scored: Predictions, conversations: Sequence[Conversation], known: set[str]) -> dict[str, Any] | None:
    """Utterances with a training text, and the scores on conversations without one."""
    texts = [_texts(conversation) for conversation in conversations]
    if not known or not any(texts):
        return None
    seen = [sum(text in known for text in each) for each in texts]
    unseen = [place for place, count in enumerate(seen) if not count]
    return {
        "words": _LEAST_WORDS,
        "texts": sum(map(len, texts)),
        "in_training": sum(seen),
        "conversations": len(conversations),
        "unseen_conversations": len(unseen),
        "unseen_metrics": rounded_scores(scored.take(unseen)) if unseen else {},
    }


# In words


def crossing_text(crossing: Crossing, record: Mapping[str, Any], relation: str | None, unknown: Sequence[str]) -> str:
    """The scores on the other corpus, compared with those of the run's own test split.

    Args:
        crossing: From :func:`cross`.
        record: Of the run.
        relation: What the two corpora share, from their cards.
        unknown: Modalities whose features could not be compared.
    """
    report = crossing.report
    own, label_map, labels = report["own"], report["map"], report["labels"]
    lines = [
        f"{record['config']['preset']['model']} trained on {own['protocol']}, on {report['protocol']}, "
        f"{report['split']} split{crossing.missing}",
        f"  label map {label_map['source']} -> {label_map['target']}: {label_map['note']}",
        f"  {len(labels)} shared labels: {', '.join(labels)}",
        f"  {report['utterances']:,} of {report['utterances_of_split']:,} utterances scored; "
        f"{report['utterances_of_split'] - report['labelled']:,} without a label, {report['dropped']:,} dropped"
        + _dropped(report["dropped_labels"]),
    ]
    if relation:
        lines.append(f"  warning: {relation}. Scores may rest on utterances seen in training.")
    overlap = report["overlap"]
    seen = overlap is not None and overlap["in_training"] > 0
    if seen:
        lines.append(
            f"  warning: {overlap['in_training']:,} of {overlap['texts']:,} texts of at least {_LEAST_WORDS} words are "
            f"in the run's training split; {overlap['unseen_conversations']:,} of {overlap['conversations']:,} "
            "conversations have none"
        )
    if unknown:
        lines.append(f"  warning: {', '.join(unknown)} features have no recorded recipe: check that they are the same")
    lines += unseen_lines(report)
    if not report["metrics"]:
        return "\n".join([*lines, "  no labels in this split: predictions only"])
    columns = ["own test", "own, shared", report["protocol"].partition("/")[0]]
    parts = [own["recorded"], own["metrics"], report["metrics"]]
    if seen:
        columns.append("unseen")
        parts.append(overlap["unseen_metrics"])
    lines.append(f"  {'':<28}" + "".join(f"{column:>16}" for column in columns))
    for name in report["metrics"]:
        cells = [f"{part[name]:.4f}" if name in part else "-" for part in parts]
        lines.append(f"  {name:<28}" + "".join(f"{cell:>16}" for cell in cells))
    lines.append(f"  {'F1 of a label (utterances)':<28}")
    elsewhere = report.get("per_class", {})
    for label in elsewhere:
        cells = [_cell(own["per_class"].get(label)), _cell(elsewhere[label])]
        lines.append(f"  {label:<28}{'':>16}" + "".join(f"{cell:>16}" for cell in cells))
    law = str(split_law(recorded_missing(record), "test"))
    same = report.get("missing", {}).get("law", "none") == law
    holes = "" if same else f"; this column and own test are under missing {law}"
    lines.append(f"own, shared: the run's test split in the shared labels, by the same rules{holes}")
    if seen:
        lines.append("unseen: conversations without a text of the run's training split")
    return "\n".join(lines)


def _cell(row: Mapping[str, float] | None) -> str:
    return "-" if row is None else f"{row['f1']:.4f} ({row['support']:,.0f})"


def _dropped(labels: Mapping[str, float]) -> str:
    if not labels:
        return ""
    counts = ", ".join(f"{label} {count:,g}" for label, count in labels.items())
    return f" (labels without counterpart: {counts})"
