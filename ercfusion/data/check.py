"""Checks of ``doctor`` for every corpus; :mod:`ercfusion.data.check_media` checks recordings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.task import TaskSpec
from ercfusion.data.check_media import check_clips, some
from ercfusion.data.conversation import Conversation, TargetValue, Turn, count_label_shifts
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key

_BLOCK = 4096
"""Rows of a feature table checked at a time."""
_LEAK_WORDS = 8
"""Words from which on a repetition is not chance."""
_PROMPTED = 4
"""Conversations per different text from which on sentences are prompted."""


def check_corpus(
    corpus: Corpus,
    protocol: Protocol,
    tables: Sequence[FeatureTable] = (),
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    media: bool = True,
) -> list[Finding]:
    """All checks of a corpus under a protocol.

    Args:
        corpus: The corpus.
        protocol: Defines splits and targets.
        tables: Features to check.
        names: Modality to the names of its dimensions.
        media: Check recordings.
    """
    splits = corpus.conversations(protocol)
    findings = check_counts(splits, corpus.card, default=protocol.id == corpus.protocol().id)
    viewed = protocol.viewed(splits)
    findings += check_label_counts(viewed, corpus.card, protocol)
    for split, conversations in splits.items():
        findings += check_split(split, conversations, protocol.task, None if viewed is splits else viewed[split])
    findings += check_unseen_labels(viewed, protocol.task)
    findings += check_overlap(splits)
    for table in tables:
        findings += check_table(splits, table, (names or {}).get(table.modality))
        findings += check_duplicates(splits, table)
    findings += check_modalities(splits, tables)
    if not tables and (lack := corpus.missing_inputs(protocol)) is not None:
        advice = "Add texts, recordings or a feature pack."
        findings.append(replace(lack, text=f"{lack.text}: a model has no input. {advice}"))
    if media:
        findings += check_clips(corpus, protocol, splits)
    return findings + corpus.notes(protocol) + corpus.findings(protocol)


def check_counts(splits: Splits, card: CorpusCard, *, default: bool = True) -> list[Finding]:
    """Conversations and utterances of every split, compared with the card.

    With ``default=False`` the protocol may split the same conversations differently: then only the total is compared.
    """
    sizes = {split: _sizes(splits.get(split, [])) for split in dict.fromkeys([*splits, *card.counts])}
    expected = {split: {**sizes[split], **card.counts.get(split, {})} for split in sizes}
    findings = []
    if not default and card.counts and sizes != expected:
        total, stated = _added(sizes), _added(expected)
        for split, counts in sizes.items():
            findings.append(Finding("ok", "counts", f"{split}: {_counted(counts)}"))
        text = f"all splits: {_counted(total)}"
        if total == stated:
            return [*findings, Finding("ok", "counts", f"{text}, as many as the release has")]
        return [*findings, Finding("fault", "counts", f"{text}, {_unlike(stated)}")]
    for split, counts in sizes.items():
        text = f"{split}: {_counted(counts)}"
        if split not in card.counts:
            findings.append(Finding("note", "counts", f"{text} (the card states no counts)"))
        elif counts == expected[split]:
            findings.append(Finding("ok", "counts", text))
        else:
            findings.append(Finding("fault", "counts", f"{text}, {_unlike(expected[split])}"))
    return findings


def _sizes(conversations: Sequence[Conversation]) -> dict[str, int]:
    return {"conversations": len(conversations), "utterances": sum(map(len, conversations))}


def _added(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in sizes.values():
        total.update(counts)
    return dict(total)


def _unlike(expected: Mapping[str, int]) -> str:
    return (
        f"but the release has {_counted(expected)}: files are cut off, edited, or of another release. Get the files "
        "again."
    )


def check_label_counts(splits: Splits, card: CorpusCard, protocol: Protocol) -> list[Finding]:
    """Utterances per label and split, compared with the card."""
    findings = []
    for split, expected in card.labels.get(protocol.id, {}).items():
        counts: Counter[str] = Counter()
        for value in _values([turn for one in splits.get(split, []) for turn in one.turns], protocol.task):
            counts.update(_mass(value, protocol.task))
        wrong = [label for label in dict.fromkeys([*expected, *counts]) if counts[label] != expected.get(label, 0)]
        if not wrong:
            findings.append(Finding("ok", "label counts", f"{split}: those of the release"))
            continue
        shown = [f"{label} {counts[label]:g} (the release has {expected.get(label, 0):g})" for label in wrong]
        text = f"{split}: the counts of {len(wrong)} labels differ: {some(shown)}. Get the files again."
        findings.append(Finding("fault", "label counts", text))
    return findings


def check_split(
    split: str, conversations: Sequence[Conversation], task: TaskSpec, entities: Sequence[Conversation] | None = None
) -> list[Finding]:
    """Labels, lengths, speakers, label shifts and texts of one split.

    ``entities`` are the conversations with the targets, if the protocol has a view.
    """
    if not conversations:
        return [Finding("fault", "counts", f"{split}: no conversations")]
    turns = [turn for conversation in conversations for turn in conversation.turns]
    lengths = [len(conversation) for conversation in conversations]
    speakers = [len(conversation.speakers) for conversation in conversations]
    targeted = turns if entities is None else [turn for one in entities for turn in one.turns]
    findings = [
        *_check_targets(split, targeted, task),
        Finding(
            "ok",
            "lengths",
            f"{split}: {np.mean(lengths):.1f} utterances per conversation, at most {max(lengths)}; "
            f"{lengths.count(1)} conversations have one utterance",
        ),
        Finding(
            "ok",
            "speakers",
            f"{split}: {len({turn.speaker for turn in turns})} names; at most {max(speakers)} speakers per "
            f"conversation, {sum(number > 2 for number in speakers)} have more than two",
        ),
    ]
    if entities is not None:
        text = f"{split}: {len(targeted)} entities (scenes or speakers) are predicted; labels above are theirs"
        findings.append(Finding("ok", "entities", text))
    if task.rules.changes:
        own = count_label_shifts(conversations, task.name, same_speaker=True)
        adjacent = count_label_shifts(conversations, task.name, same_speaker=False)
        text = f"{split}: {own} changes between consecutive utterances of a speaker, {adjacent} between neighbours"
        findings.append(Finding("ok", "label shifts", text))
    silent = sum(turn.text is None for turn in turns)
    empty = sum(turn.text is not None and not turn.text.strip() for turn in turns)
    if silent:
        findings.append(Finding("note", "texts", f"{split}: {silent} of {len(turns)} utterances have no text"))
    if empty:
        findings.append(Finding("note", "texts", f"{split}: {empty} utterances have an empty text"))
    return findings


def _check_targets(split: str, turns: Sequence[Turn], task: TaskSpec) -> list[Finding]:
    values = _values(turns, task)
    findings = []
    missing = len(turns) - len(values)
    if not values and split == "test":
        return [Finding("note", "labels", f"test: not labelled for the task {task.name!r}: predicted, not scored")]
    if not values:
        text = f"{split}: no utterance is labelled for the task {task.name!r}. Check the column of the labels."
        return [Finding("fault", "labels", text)]
    if missing:
        text = f"{split}: {missing} of {len(turns)} utterances are not labelled; they serve as context only"
        findings.append(Finding("note", "unlabelled", text))
    if task.schema is None:
        numbers = np.array([value if isinstance(value, tuple) else (value,) for value in values], dtype=float)
        for column, name in enumerate(task.dimensions):
            low, high = numbers[:, column].min(), numbers[:, column].max()
            inside = bool(task.low <= low <= high <= task.high)
            text = f"{split}: {name} from {low:g} to {high:g}, mean {numbers[:, column].mean():.3f}"
            if not inside:
                text += f"; the task allows {task.low:g} to {task.high:g}. Correct the values, or low and high."
            findings.append(Finding("ok" if inside else "fault", "labels", text))
        return findings
    mass: Counter[str] = Counter()
    for value in values:
        mass.update(_mass(value, task))
    counted = {label: mass.get(label, 0) for label in task.schema.labels}
    foreign = sorted(set(mass) - set(task.schema.labels) - set(task.schema.synonyms))
    shown = ", ".join(f"{label} {task.rules.count_text(number, len(values))}" for label, number in counted.items())
    findings.append(Finding("ok", "labels", f"{split}: {shown}"))
    if foreign:
        text = f"{split}: values which are not labels of {task.schema.name}: {some(foreign)}. Correct them."
        findings.append(Finding("fault", "labels", text))
    return findings


def _values(turns: Sequence[Turn], task: TaskSpec) -> list[TargetValue]:
    # Target values of the labelled turns.
    targets = (turn.targets.get(task.name) for turn in turns)
    return [target.value for target in targets if target is not None and target.value is not None]


def _mass(value: object, task: TaskSpec) -> Mapping[str, float]:
    try:
        return task.rules.label_mass(value)
    except TypeError as error:
        raise CorpusFormatError(
            f"{value!r} is not a target of the {task.kind} task {task.name!r}: {error}. Correct the value."
        ) from error


def check_unseen_labels(splits: Splits, task: TaskSpec) -> list[Finding]:
    """Labels of the schema without an example in the training split."""
    if task.schema is None or "train" not in splits:
        return []
    trained = {
        task.schema.canonical(label)
        for conversation in splits["train"]
        for turn in conversation.turns
        if (target := turn.targets.get(task.name)) and target.value is not None
        for label, share in _mass(target.value, task).items()
        if share > 0 and label in task.schema
    }
    unseen = [label for label in task.schema.labels if label not in trained]
    if not unseen:
        return []
    return [Finding("note", "labels", f"train: no example of {', '.join(unseen)}: no model can learn it")]


def check_overlap(splits: Splits) -> list[Finding]:
    """Conversations and speakers in more than one split.

    The same texts in two splits are a leak; short texts repeat by chance, prompted sentences by intention. Shared
    speakers are usual, but limit the claims.
    """
    texts: dict[tuple[str, ...], dict[str, str]] = {}
    speakers: dict[str, set[str]] = {}
    occurrences: Counter[str] = Counter()
    with_words = 0
    for split, conversations in splits.items():
        for conversation in conversations:
            occurrences[conversation.id] += 1
            speakers.setdefault(split, set()).update(conversation.speakers)
            words = tuple((turn.text or "").strip() for turn in conversation.turns)
            if any(words) and not conversation.synthetic:  # placeholder texts repeat without meaning
                texts.setdefault(words, {}).setdefault(split, conversation.id)
                with_words += 1
    findings = []
    if twice := [identifier for identifier, number in occurrences.items() if number > 1]:
        text = f"{len(twice)} conversation ids occur more than once: {some(twice)}. Rename or remove them."
        findings.append(Finding("fault", "overlap", text))
    leaked: list[str] = []
    chance: list[str] = []
    prompted = bool(texts) and with_words >= _PROMPTED * len(texts)
    if prompted:
        text = f"{with_words} conversations have only {len(texts)} different texts: prompted sentences, not a leak"
        findings.append(Finding("note", "leakage", text))
    for words, places in texts.items():
        if len(places) > 1 and not prompted:
            long = len(" ".join(words).split()) >= _LEAK_WORDS
            (leaked if long else chance).append(" = ".join(places.values()))
    if leaked:
        text = f"{len(leaked)} conversations have the same texts in two splits: {some(leaked)}. Remove them from one."
        findings.append(Finding("fault", "leakage", text))
    elif not prompted:
        text = f"no conversation of {_LEAK_WORDS} or more words is in two splits"
        findings.append(Finding("ok", "leakage", text))
    if chance:
        text = f"{len(chance)} conversations of fewer than {_LEAK_WORDS} words are in two splits: {some(chance)}"
        findings.append(Finding("note", "leakage", text))
    train = speakers.get("train", set())
    for split, names in speakers.items():
        if split != "train" and train:
            both = sorted(names & train)
            text = f"{split}: {len(both)} of {len(names)} speakers also speak in train"
            findings.append(Finding("note" if both else "ok", "speaker overlap", text))
    return findings


def check_table(splits: Splits, table: FeatureTable, names: Sequence[str] | None = None) -> list[Finding]:
    """Missing turns, values that are not finite, and constant columns of one modality; ``names`` are of dimensions."""
    topic = f"features {table.modality}"
    findings = []
    for split, conversations in splits.items():
        keys = _keys(conversations)
        groups = table.rows(keys)
        missing = np.flatnonzero(groups < 0)
        if len(missing):
            text = f"{split}: {len(missing)} of {len(keys)} utterances have none (first: {'/'.join(keys[missing[0]])})"
            findings.append(Finding("fault" if len(missing) == len(keys) else "note", topic, text))
        else:
            text = f"{split}: all {len(keys)} utterances, {table.width} dimensions"
            findings.append(Finding("ok", topic, text))
        bad: list[int] = []
        low = np.full(table.width, np.inf)
        high = np.full(table.width, -np.inf)
        for owner, block in _blocks(table, groups):
            finite = np.isfinite(block)
            bad += [int(position) for position in np.unique(owner[~finite.all(axis=1)])]
            low = np.fmin(low, np.where(finite, block, np.inf).min(axis=0))
            high = np.fmax(high, np.where(finite, block, -np.inf).max(axis=0))
        if bad:
            first = "/".join(keys[bad[0]])
            text = f"{split}: {len(set(bad))} utterances have values that are not finite (first: {first})"
            text += ". Correct the extraction."
            findings.append(Finding("fault", topic, text))
        present = int((groups >= 0).sum())
        # A single utterance makes every column constant.
        if split == "train" and present > 1 and (low >= high).any():
            findings.append(_constant(topic, split, low, high, names))
    return findings


def _constant(
    topic: str, split: str, low: NDArray[np.float64], high: NDArray[np.float64], names: Sequence[str] | None
) -> Finding:
    # Zeros are typical of a detector without detections.
    same = low >= high
    kinds = {
        "always 0": same & (low == 0) & (high == 0),
        "with another value": same & (low == high) & (low != 0),
        "without a finite value": low > high,
    }
    parts = []
    for kind, columns in kinds.items():
        if constant := [int(column) for column in np.flatnonzero(columns)]:
            shown = some([str(column) if names is None else names[column] for column in constant])
            parts.append(f"{len(constant)} {kind} ({'column ' if names is None else ''}{shown})")
    number = int(same.sum())
    text = f"{split}: {number} of {len(same)} columns are constant: {', '.join(parts)}"
    return Finding("fault" if number == len(same) else "note", topic, text)


def check_duplicates(splits: Splits, table: FeatureTable) -> list[Finding]:
    """Different utterances (for ``text``: different texts) with equal values; a fault for more than half of them."""
    groups: dict[bytes, list[tuple[str, str, bool]]] = {}
    present = 0
    for split, conversations in splits.items():
        turns = [turn for conversation in conversations for turn in conversation.turns]
        keys = _keys(conversations)
        for key, turn, row in zip(keys, turns, table.rows(keys), strict=True):
            if row < 0:
                continue
            first, last = (row, row + 1) if table.offsets is None else table.offsets[row : row + 2]
            values = np.ascontiguousarray(table.values[first:last])
            present += 1
            if len(values):
                # Most encoders ignore case and the width of spaces.
                words = " ".join((turn.text or "").casefold().split()) if table.modality == "text" else ""
                digest = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
                place = f"{split} {'/'.join(key)}"
                groups.setdefault(digest, []).append((place, words or place, not values.any()))
    same, zero, examples = 0, 0, []
    for members in groups.values():
        if len({words for _, words, _ in members}) > 1:
            same += len(members)
            zero += members[0][2] * len(members)
            examples.append(f"{members[0][0]} = {next(place for place, words, _ in members if words != members[0][1])}")
    if not same:
        return []
    zeros = f", {zero} of them zeros only" if zero else ""
    text = f"{same} of {present} utterances have the same values as another{zeros}: {some(examples)}"
    return [Finding("fault" if 2 * same > present else "note", f"features {table.modality}", text)]


def check_modalities(splits: Splits, tables: Sequence[FeatureTable]) -> list[Finding]:
    """Utterances without one of the modalities, or without all of them."""
    if len(tables) < 2:
        return []
    findings = []
    for split, conversations in splits.items():
        keys = _keys(conversations)
        absent = {table.modality: table.rows(keys) < 0 for table in tables}
        if not any(column.any() for column in absent.values()):
            text = f"{split}: every utterance has {', '.join(absent)}"
            findings.append(Finding("ok", "modalities", text))
            continue
        every = np.logical_and.reduce(list(absent.values()))
        lacking = [f"{int(column.sum())} lack {name}" for name, column in absent.items() if column.any()]
        text = f"{split}: of {len(keys)} utterances {', '.join(lacking)}, and {int(every.sum())} lack all"
        if every.any():
            text += f" (first: {'/'.join(keys[int(np.flatnonzero(every)[0])])})"
        findings.append(Finding("fault" if every.all() else "note", "modalities", text))
    return findings


def _keys(conversations: Sequence[Conversation]) -> list[Key]:
    return [key for conversation in conversations for key in conversation.keys()]  # noqa: SIM118


def _blocks(table: FeatureTable, groups: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    # For each row of values the position in `groups`, and the values; at most _BLOCK utterances at a time.
    present = np.flatnonzero(groups >= 0)
    for start in range(0, len(present), _BLOCK):
        owner = present[start : start + _BLOCK]
        rows = groups[owner]
        if table.offsets is not None:
            first, last = np.asarray(table.offsets[rows]), np.asarray(table.offsets[rows + 1])
            rows = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
            owner = np.repeat(owner, last - first)
        if len(rows):
            yield owner, np.asarray(table.values[rows], dtype=np.float64)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {unit}" for unit, number in counts.items())
