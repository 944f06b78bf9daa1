"""Layouts with one item per video segment: MMSA's dictionaries, the six-emotion MOSEI of TAILOR and CARAT.

Train, valid and test have one array per modality, (segments, T, D), padded to a common T. Padding is removed by the
file's lengths, or by cutting frames of zeros at both ends; a segment of zeros lacks the modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora import corpus_class
from ercfusion.data.corpus import SPLITS
from ercfusion.data.features import Key
from ercfusion.features.imports._checks import (
    Imported,
    LayoutError,
    disjoint,
    fail,
    identifier,
    mapping,
    numbers,
    sequence,
    table,
    text,
    whole,
)

PARTS: Mapping[str, str] = {"train": "train", "dev": "valid", "test": "test"}
"""Split to its name in the files."""
POLARITY = LabelSchema("polarity3", ("negative", "neutral", "positive"), neutral="neutral")

_MMSA_MODALITIES: Mapping[str, str] = {"text": "text", "audio": "audio", "visual": "vision"}
_MMSA_NEEDED = ("id", "raw_text", "audio", "vision", "text", "regression_labels")
_MMSA_KNOWN = (
    *_MMSA_NEEDED, "text_bert", "audio_lengths", "vision_lengths", "annotations", "classification_labels",
    "regression_labels_T", "regression_labels_A", "regression_labels_V",
)  # fmt: skip
_BETWEEN = "$_$"
_CARAT_MODALITIES: Mapping[str, str] = {"text": "src-text", "audio": "src-audio", "visual": "src-visual"}
_CARAT_FIRST = 4
"""Number of the first emotion of the schema ``mosei6``; smaller ones are the decoder's marks."""


@dataclass(frozen=True)
class Segments:
    """A layout of segments.

    Args:
        title: Description of the file.
        corpus: Empty if several have the layout.
        origin: Public code in which the fields were read.
        citation: The paper.
        low, high: Range of sentiment scores.
    """

    title: str
    corpus: str
    origin: str
    citation: str
    low: float = -3.0
    high: float = 3.0


_MMSA_ORIGIN = "thuiar/MMSA, src/MMSA/data_loader.py (MMDataset)"
_YU = "Yu et al. Learning Modality-Specific Representations with Self-Supervised Multi-Task Learning. AAAI 2021."
MMSA: Mapping[str, Segments] = {
    "mmsa": Segments(
        "aligned_50.pkl or unaligned_50.pkl of MMSA: MOSI or MOSEI, sentiment from -3 to 3, sequences",
        "", _MMSA_ORIGIN, _YU,
    ),
    "mmsa-sims": Segments(
        "unaligned_39.pkl of MMSA: CH-SIMS, sentiment from -1 to 1, sequences", "", _MMSA_ORIGIN,
        "Yu et al. CH-SIMS: A Chinese Multimodal Sentiment Analysis Dataset. ACL 2020.", -1.0, 1.0,
    ),
}  # fmt: skip
CARAT: Mapping[str, Segments] = {
    "tailor": Segments(
        "aligned MOSEI of TAILOR: six emotions, several per segment, sequences",
        "mosei", "kniter1/TAILOR, src/dataloaders/cmu_dataloader.py (AlignedMoseiDataset)",
        "Zhang et al. Tailor Versatile Multi-modal Learning for Multi-label Emotion Recognition. AAAI 2022.",
    ),
    "carat": Segments(
        "aligned MOSEI of CARAT: six emotions, several per segment, sequences",
        "mosei", "chengzju/CARAT, dataloaders/cmu_dataloader.py (AlignedMoseiDataset)",
        "Peng et al. CARAT: Contrastive Feature Reconstruction and Aggregation for Multi-Modal Multi-Label Emotion "
        "Recognition. AAAI 2024.",
    ),
}  # fmt: skip


def mmsa_fits(content: Any) -> bool:
    """Whether the content has MMSA's fields."""
    return _parts_have(content, _MMSA_NEEDED)


def carat_fits(content: Any) -> bool:
    """Whether the content has TAILOR's fields."""
    return _parts_have(content, (*_CARAT_MODALITIES.values(), "tgt"))


def _parts_have(content: Any, names: Sequence[str]) -> bool:
    if not isinstance(content, dict) or not set(PARTS.values()) <= set(content):
        return False
    return all(isinstance(content[part], dict) and set(names) <= set(content[part]) for part in PARTS.values())


@dataclass
class _Repairs:
    # Changes of numbers, counted in segments by modality.
    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, modality: str, what: str) -> None:
        self.counts[modality, what] = self.counts.get((modality, what), 0) + 1

    def notes(self) -> list[str]:
        return [f"{modality}: {what} in {count} segments" for (modality, what), count in self.counts.items()]


def _part(content: Any, layout: str, split: str, needed: Sequence[str], known: Sequence[str], notes: list[str]) -> Any:
    part = mapping(mapping(content, f"layout {layout!r}").get(PARTS[split]), f"key {PARTS[split]!r}")
    for name in needed:
        if name not in part:
            raise LayoutError(
                f"key {PARTS[split]!r}: no field {name!r}, only {', '.join(part)}. Check that layout= is the file's "
                f"layout."
            )
    other = [name for name in part if name not in known]
    note = f"ignored fields: {', '.join(other)}"
    if other and note not in notes:
        notes.append(note)
    return part


def _steps(value: Any, length: int | None, modality: str, where: str, repairs: _Repairs) -> NDArray[Any] | None:
    # One segment's frames (T, D) without padding, or None.
    frames = numbers(value, where, 2)
    broken = ~np.isfinite(frames)
    if broken.any():
        if (frames == np.inf).any():
            fail(where, np.inf, "a finite number, NaN or -inf (which the original loader sets to 0)")
        frames = np.where(broken, np.float32(0), frames)
        repairs.count(modality, "NaN or -inf became 0")
    real: NDArray[np.bool_] = (frames != 0).any(axis=1)
    if not real.any():
        repairs.count(modality, "all frames are zero, so the modality is absent")
        return None
    first, last = int(real.argmax()), len(real) - int(real[::-1].argmax())
    if length is None:
        return frames[first:last]
    length = min(length, len(frames))
    if not real[length:].any():
        return frames[:length]
    if not real[: len(frames) - length].any():
        return frames[len(frames) - length :]  # padded in front
    repairs.count(modality, "non-zero frames beyond the stated length were dropped")
    return frames[:length]


def _lengths(part: Mapping[str, Any], modality: str, count: int, where: str) -> list[int | None]:
    name = f"{_MMSA_MODALITIES[modality]}_lengths"
    if modality == "text" and "text_bert" in part:
        # (segments, 3, T): token numbers, mask, kind of token.
        tokens = sequence(part["text_bert"], f"{where}, field 'text_bert'", count)
        masks = [numbers(row, f"{where}, field 'text_bert', segment {index}", 2) for index, row in enumerate(tokens)]
        for index, mask in enumerate(masks):
            if len(mask) != 3 or not np.isin(mask[1], (0, 1)).all():
                place = f"{where}, field 'text_bert', segment {index}"
                fail(place, mask, "three rows (tokens, mask of 0 and 1, kinds)")
        return [max(1, int(mask[1].sum())) for mask in masks]
    if name not in part:
        return [None] * count
    values = sequence(part[name], f"{where}, field {name!r}", count)
    lengths = [whole(value, f"{where}, field {name!r}, segment {index}") for index, value in enumerate(values)]
    if min(lengths, default=1) < 0:
        fail(f"{where}, field {name!r}", min(lengths), "a length that is not negative")
    return [max(1, length) for length in lengths]


def read_mmsa(name: str, content: Any) -> Imported:
    """Read MMSA's ``aligned_50.pkl``, ``unaligned_50.pkl`` or ``unaligned_39.pkl``.

    Ids are ``video$_$segment``: a conversation is a video with one speaker. Targets: ``sentiment_score`` (field
    ``regression_labels``) and, with ``annotations``, ``polarity`` (negative, neutral, positive). ``text`` has BERT or
    GloVe vectors. Lengths are ``audio_lengths``, ``vision_lengths`` and BERT's mask. NaN and -inf become 0, as in
    MMSA's loader.

    Raises:
        LayoutError: a field is missing, not as long as ``id``, or out of range.
    """
    layout = MMSA[name]
    notes: list[str] = []
    repairs = _Repairs()
    rows: dict[str, dict[Key, NDArray[Any]]] = {modality: {} for modality in _MMSA_MODALITIES}
    splits: dict[str, list[Conversation]] = {}
    annotated: set[bool] = set()
    parts = {split: _part(content, name, split, _MMSA_NEEDED, _MMSA_KNOWN, notes) for split in SPLITS}
    keys = _segments(parts, notes)
    for split, part in parts.items():
        where = f"key {PARTS[split]!r}"
        ids = keys[split]
        annotated.add("annotations" in part)
        turns = _mmsa_turns(part, ids, layout, where)
        for modality, source in _MMSA_MODALITIES.items():
            values = sequence(part[source], f"{where}, field {source!r}", len(ids))
            lengths = _lengths(part, modality, len(ids), where)
            for key, value, length in zip(ids, values, lengths, strict=True):
                place = f"{where}, field {source!r}, segment {_BETWEEN.join(key)!r}"
                if (frames := _steps(value, length, modality, place, repairs)) is not None:
                    rows[modality][key] = frames
        splits[split] = _videos(ids, turns)
    disjoint({split: [conversation.id for conversation in conversations] for split, conversations in splits.items()})
    if len(annotated) > 1:
        raise LayoutError("field 'annotations': in some of train, valid and test only. Add it to all, or remove it.")
    score = TaskSpec("sentiment_score", "regression", None, ("sentiment",), layout.low, layout.high)
    tasks = (score, TaskSpec("polarity", "single_label", POLARITY)) if annotated == {True} else (score,)
    tables = {modality: table(modality, vectors, "sequence") for modality, vectors in rows.items()}
    return Imported(
        name, layout.corpus, layout.title, "Terms of the file's corpus; research use only.",
        layout.citation, tasks, splits, tables, False, (*notes, *repairs.notes()),
    )  # fmt: skip


def _segments(parts: Mapping[str, Any], notes: list[str]) -> dict[str, list[Key]]:
    # Ids of every split as (video, segment).
    keys = {
        split: [
            _segment(segment, f"key {PARTS[split]!r}, field 'id', segment {index}")
            for index, segment in enumerate(sequence(part["id"], f"key {PARTS[split]!r}, field 'id'"))
        ]
        for split, part in parts.items()
    }
    splits: dict[str, set[str]] = {}
    for split, ids in keys.items():
        for video, _ in ids:
            splits.setdefault(video, set()).add(split)
    torn = {video for video, places in splits.items() if len(places) > 1}
    if torn:
        notes.append(
            f"{len(torn)} videos have segments in several splits (first: {min(torn)!r}) and become a conversation in "
            f"each, VIDEO@SPLIT, so a speaker may be in train and test"
        )
    return {
        split: [(f"{video}@{split}" if video in torn else video, segment) for video, segment in ids]
        for split, ids in keys.items()
    }


def _segment(value: Any, where: str) -> Key:
    name = identifier(value, where)
    # As in CH-SIMS, too. MOSI's video names may have an underscore.
    video, between, segment = name.rpartition(_BETWEEN)
    if not between or not video or not segment:
        fail(where, name, f"VIDEO{_BETWEEN}SEGMENT, for example 03bSnISJMiM{_BETWEEN}11")
    return video, segment


def _mmsa_turns(part: Mapping[str, Any], ids: Sequence[Key], layout: Segments, where: str) -> dict[Key, Turn]:
    texts = sequence(part["raw_text"], f"{where}, field 'raw_text'", len(ids))
    scores = sequence(part["regression_labels"], f"{where}, field 'regression_labels'", len(ids))
    polarities = [None] * len(ids)
    if "annotations" in part:
        polarities = sequence(part["annotations"], f"{where}, field 'annotations'", len(ids))
    turns: dict[Key, Turn] = {}
    for key, words, score, polarity in zip(ids, texts, scores, polarities, strict=True):
        place = f"{where}, segment {_BETWEEN.join(key)!r}"
        if key in turns:
            raise LayoutError(f"{place}: the id occurs twice in field 'id'. Remove one.")
        number = _score(score, f"{place}, field 'regression_labels'")
        if not layout.low <= number <= layout.high:
            fail(f"{place}, field 'regression_labels'", number, f"a number from {layout.low:g} to {layout.high:g}")
        targets = {"sentiment_score": Target(number)}
        if polarity is not None:
            label = text(polarity, f"{place}, field 'annotations'").lower()
            if label not in POLARITY:
                fail(f"{place}, field 'annotations'", label, "Negative, Neutral or Positive")
            targets["polarity"] = Target(label)
        turns[key] = Turn(key[1], key[0], text(words, f"{place}, field 'raw_text'"), targets=targets)
    return turns


def _score(value: Any, where: str) -> float:
    values = numbers(np.asarray(value).reshape(-1), where, 1)
    if len(values) != 1:
        fail(where, values, "one number", text=f"{len(values)} numbers")
    return float(values[0])


def _videos(ids: Sequence[Key], turns: Mapping[Key, Turn]) -> list[Conversation]:
    videos: dict[str, list[str]] = {}
    for video, segment in ids:
        videos.setdefault(video, []).append(segment)
    return [
        Conversation(video, tuple(turns[video, segment] for segment in sorted(segments, key=_in_order)))
        for video, segments in videos.items()
    ]


def _in_order(segment: str) -> tuple[bool, int, str]:
    return (False, int(segment), segment) if segment.isascii() and segment.isdigit() else (True, 0, segment)


def read_carat(name: str, content: Any) -> Imported:
    """Read the aligned MOSEI file of TAILOR and CARAT (``torch.save``).

    Without ids, every segment is a conversation of one turn. ``tgt`` has a begin mark, emotions, and an end mark; 4 to
    9 are happy, sad, anger, surprise, disgust and fear. -inf (COVAREP's logarithms) becomes 0, as in the original
    loaders.

    Raises:
        LayoutError: a field is missing, not as long as ``tgt``, or a label is out of range.
    """
    layout = CARAT[name]
    schema = get_schema("mosei6")
    notes: list[str] = []
    repairs = _Repairs()
    rows: dict[str, dict[Key, NDArray[Any]]] = {modality: {} for modality in _CARAT_MODALITIES}
    splits: dict[str, list[Conversation]] = {}
    needed = (*_CARAT_MODALITIES.values(), "tgt")
    for split in SPLITS:
        part = _part(content, name, split, needed, needed, notes)
        where = f"key {PARTS[split]!r}"
        labels = sequence(part["tgt"], f"{where}, field 'tgt'")
        names = [f"{split}-{index:05d}" for index in range(len(labels))]
        splits[split] = []
        for segment, marks in zip(names, labels, strict=True):
            emotions = _carat_labels(marks, schema, f"{where}, field 'tgt', segment {segment!r}")
            turn = Turn("0", "speaker", targets={"emotions": Target(emotions)})
            splits[split].append(Conversation(segment, (turn,)))
        for modality, source in _CARAT_MODALITIES.items():
            values = sequence(part[source], f"{where}, field {source!r}", len(names))
            for segment, value in zip(names, values, strict=True):
                place = f"{where}, field {source!r}, segment {segment!r}"
                if (frames := _steps(value, None, modality, place, repairs)) is not None:
                    rows[modality][segment, "0"] = frames
    disjoint({split: [conversation.id for conversation in conversations] for split, conversations in splits.items()})
    notes.append("no ids: segments are named by split and position, without context")
    tables = {modality: table(modality, vectors, "sequence") for modality, vectors in rows.items()}

    return Imported(
        layout=name,
        corpus=layout.corpus,
        title=layout.title,
        licence=f"{corpus_class(layout.corpus).card.licence} The features come from third parties.",
        citation=layout.citation,
        tasks=(TaskSpec("emotions", "multi_label", schema, metric="micro_f1"),),
        splits=splits,
        tables=tables,
        positions=True,
        notes=(*notes, *repairs.notes()),
    )


def _carat_labels(value: Any, schema: LabelSchema, where: str) -> frozenset[str]:
    marked = [whole(number, where) for number in sequence(value, where)]
    emotions = range(_CARAT_FIRST, _CARAT_FIRST + len(schema))
    inside = marked[1:-1]
    if len(marked) < 2 or marked[0] in emotions or marked[-1] in emotions:
        fail(where, marked, "a begin mark, emotions, and an end mark", text=str(marked[:10]))
    for number in inside:
        if number not in emotions:
            between = f"numbers from {emotions[0]} to {emotions[-1]} in between"
            fail(where, number, between, text=f"{number} in {marked[:10]}")
    return frozenset(schema.labels[number - _CARAT_FIRST] for number in inside)
