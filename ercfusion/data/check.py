"""What the doctor looks at in every corpus: counts, labels, speakers, leaks between splits, and features.

The functions here compute and return; printing is the command's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ercfusion.data.conversation import Conversation, Turn, count_label_shifts
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable
from ercfusion.data.task import TaskSpec
from ercfusion.errors import CorpusFormatError

_BLOCK = 4096
"""Rows of a feature table looked at together: tables may be memory-mapped and larger than memory."""
_SHOWN = 3
"""Examples named in one finding."""
_LEAK_WORDS = 8
"""Words that a conversation needs for its repetition to be no chance."""


def check_corpus(corpus: Corpus, protocol: Protocol, tables: Sequence[FeatureTable] = ()) -> list[Finding]:
    """All checks of a corpus under a protocol, and those that the corpus makes itself.

    Args:
        corpus: Is read once for the checks here, and once more for its own.
        protocol: Decides on the splits and on the targets that are looked at.
        tables: Features to be checked against the conversations, if any.
    """
    splits = corpus.conversations(protocol)
    findings = check_counts(splits, corpus.card)
    for split, conversations in splits.items():
        findings += check_split(split, conversations, protocol.task)
    findings += check_unseen_labels(splits, protocol.task)
    findings += check_overlap(splits)
    for table in tables:
        findings += check_table(splits, table)
    return findings + corpus.findings(protocol)


def check_counts(splits: Splits, card: CorpusCard) -> list[Finding]:
    """Conversations and utterances of every split, against the card where it states them."""
    findings = []
    for split in dict.fromkeys([*splits, *card.counts]):
        conversations = splits.get(split, [])
        found = {"conversations": len(conversations), "utterances": sum(map(len, conversations))}
        text = f"{split}: {_counted(found)}"
        expected = {what: card.counts.get(split, {}).get(what, number) for what, number in found.items()}
        if split not in card.counts:
            findings.append(Finding("note", "counts", f"{text} (the card does not say how many there should be)"))
        elif found == expected:
            findings.append(Finding("ok", "counts", text))
        else:
            text = f"{text}, but the release has {_counted(expected)}: files are cut off, edited, or of another release"
            findings.append(Finding("fault", "counts", text))
    return findings


def check_split(split: str, conversations: Sequence[Conversation], task: TaskSpec) -> list[Finding]:
    """Labels, lengths, speakers, label shifts and texts of one split."""
    if not conversations:
        return [Finding("fault", "counts", f"{split}: no conversations")]
    turns = [turn for conversation in conversations for turn in conversation.turns]
    lengths = [len(conversation) for conversation in conversations]
    speakers = [len(conversation.speakers) for conversation in conversations]
    findings = [
        *_check_targets(split, turns, task),
        Finding(
            "ok",
            "lengths",
            f"{split}: {np.mean(lengths):.1f} utterances a conversation, at most {max(lengths)}; "
            f"{lengths.count(1)} conversations have one utterance",
        ),
        Finding(
            "ok",
            "speakers",
            f"{split}: {len({turn.speaker for turn in turns})} names; at most {max(speakers)} speakers a conversation, "
            f"{sum(number > 2 for number in speakers)} have more than two",
        ),
    ]
    if task.kind == "single_label":
        own = count_label_shifts(conversations, task.name, same_speaker=True)
        adjacent = count_label_shifts(conversations, task.name, same_speaker=False)
        text = (
            f"{split}: {own} changes from a speaker's utterance to the next of the same, {adjacent} between neighbours"
        )
        findings.append(Finding("ok", "label shifts", text))
    silent = sum(turn.text is None for turn in turns)
    empty = sum(turn.text is not None and not turn.text.strip() for turn in turns)
    if silent:
        findings.append(Finding("note", "texts", f"{split}: {silent} of {len(turns)} utterances have no text"))
    if empty:
        findings.append(Finding("note", "texts", f"{split}: {empty} utterances have an empty text"))
    return findings


def _check_targets(split: str, turns: Sequence[Turn], task: TaskSpec) -> list[Finding]:
    values = [target.value for turn in turns if (target := turn.targets.get(task.name)) and target.value is not None]
    findings = []
    missing = len(turns) - len(values)
    if not values:
        return [Finding("fault", "labels", f"{split}: no utterance is labelled for the task {task.name!r}")]
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
                text += f"; the task allows {task.low:g} to {task.high:g}"
            findings.append(Finding("ok" if inside else "fault", "labels", text))
        return findings
    mass: Counter[str] = Counter()
    for value in values:
        mass.update(_mass(value))
    counted = {label: mass.get(label, 0) for label in task.schema.labels}
    foreign = sorted(set(mass) - set(task.schema.labels) - set(task.schema.synonyms))
    shown = ", ".join(f"{label} {number:g}" for label, number in counted.items())
    if task.kind == "distribution":
        shown = ", ".join(f"{label} {number / len(values):.1%}" for label, number in counted.items())
    findings.append(Finding("ok", "labels", f"{split}: {shown}"))
    if foreign:
        text = f"{split}: values that are no labels of {task.schema.name}: {_some(foreign)}"
        findings.append(Finding("fault", "labels", text))
    return findings


def _mass(value: object) -> dict[str, float]:
    # How much a target adds to each label's count.
    if isinstance(value, str):
        return {value: 1}
    if isinstance(value, frozenset):
        return {str(label): 1 for label in value}
    if isinstance(value, Mapping):
        return {str(label): float(share) for label, share in value.items()}
    raise CorpusFormatError(f"{value!r} is no target of a task with labels")


def check_unseen_labels(splits: Splits, task: TaskSpec) -> list[Finding]:
    """Labels of the schema that the training split has no example of."""
    if task.schema is None or "train" not in splits:
        return []
    seen = {
        task.schema.canonical(label)
        for conversation in splits["train"]
        for turn in conversation.turns
        if (target := turn.targets.get(task.name)) and target.value is not None
        for label, share in _mass(target.value).items()
        if share > 0 and label in task.schema
    }
    unseen = [label for label in task.schema.labels if label not in seen]
    if not unseen:
        return []
    return [Finding("note", "labels", f"train: no example of {', '.join(unseen)}: no model can learn it")]


def check_overlap(splits: Splits) -> list[Finding]:
    """Conversations and speakers that more than one split has.

    The same sequence of texts in two splits is a leak. A few words ("Hey!", "Hi!") may repeat by chance, so that is
    only noted. Sharing speakers is usual, but decides on what may be claimed.
    """
    texts: dict[tuple[str, ...], dict[str, str]] = {}
    speakers: dict[str, set[str]] = {}
    occurrences: Counter[str] = Counter()
    for split, conversations in splits.items():
        for conversation in conversations:
            occurrences[conversation.id] += 1
            speakers.setdefault(split, set()).update(conversation.speakers)
            words = tuple((turn.text or "").strip() for turn in conversation.turns)
            if any(words) and not conversation.synthetic:  # placeholder texts repeat and mean nothing
                texts.setdefault(words, {}).setdefault(split, conversation.id)
    findings = []
    if twice := [identifier for identifier, number in occurrences.items() if number > 1]:
        text = f"{len(twice)} conversation ids occur more than once: {_some(twice)}"
        findings.append(Finding("fault", "overlap", text))
    leaked: list[str] = []
    chance: list[str] = []
    for words, places in texts.items():
        if len(places) > 1:
            long = len(" ".join(words).split()) >= _LEAK_WORDS
            (leaked if long else chance).append(" = ".join(places.values()))
    if leaked:
        text = f"{len(leaked)} conversations have the same texts in two splits: {_some(leaked)}"
        findings.append(Finding("fault", "leakage", text))
    else:
        text = f"no conversation of {_LEAK_WORDS} or more words is in two splits"
        findings.append(Finding("ok", "leakage", text))
    if chance:
        text = f"{len(chance)} conversations of fewer than {_LEAK_WORDS} words are in two splits: {_some(chance)}"
        findings.append(Finding("note", "leakage", text))
    train = speakers.get("train", set())
    for split, names in speakers.items():
        if split != "train" and train:
            both = sorted(names & train)
            text = f"{split}: {len(both)} of {len(names)} speakers also speak in train"
            findings.append(Finding("note" if both else "ok", "speaker overlap", text))
    return findings


def check_table(splits: Splits, table: FeatureTable) -> list[Finding]:
    """Missing turns, numbers that are not finite, and constant columns of one modality."""
    findings = []
    for split, conversations in splits.items():
        keys = [(conversation.id, turn.id) for conversation in conversations for turn in conversation.turns]
        groups = table.rows(keys)
        missing = np.flatnonzero(groups < 0)
        if len(missing):
            text = f"{split}: {len(missing)} of {len(keys)} utterances have none (first: {'/'.join(keys[missing[0]])})"
            findings.append(
                Finding("fault" if len(missing) == len(keys) else "note", f"features {table.modality}", text)
            )
        else:
            text = f"{split}: all {len(keys)} utterances, {table.width} dimensions"
            findings.append(Finding("ok", f"features {table.modality}", text))
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
            findings.append(Finding("fault", f"features {table.modality}", text))
        held = int((groups >= 0).sum())
        # A single utterance makes every column constant; that says nothing.
        if split == "train" and held > 1 and (dead := int((low >= high).sum())):
            text = f"{split}: {dead} of {table.width} columns are constant"
            findings.append(Finding("fault" if dead == table.width else "note", f"features {table.modality}", text))
    return findings


def _blocks(table: FeatureTable, groups: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    # For at most _BLOCK utterances at a time: their rows of values, and for each row the position in `groups`.
    held = np.flatnonzero(groups >= 0)
    for start in range(0, len(held), _BLOCK):
        owner = held[start : start + _BLOCK]
        rows = groups[owner]
        if table.offsets is not None:
            first, last = np.asarray(table.offsets[rows]), np.asarray(table.offsets[rows + 1])
            rows = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
            owner = np.repeat(owner, last - first)
        if len(rows):
            yield owner, np.asarray(table.values[rows], dtype=np.float64)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
