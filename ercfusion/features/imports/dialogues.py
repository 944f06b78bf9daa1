"""Layouts with one item per conversation: tuples of the DialogueRNN line of work, COGMEN's lists of samples.

A tuple has dictionaries by conversation (speakers, labels, features, sentences) and the lists of the splits.
"""

from __future__ import annotations

import re
from collections import Counter
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
from ercfusion.data.permute import seeded_permutation
from ercfusion.features.imports._checks import (
    Imported,
    LayoutError,
    disjoint,
    fail,
    identifier,
    mapping,
    numbers,
    same_ids,
    sequence,
    table,
    text,
    whole,
)
from ercfusion.features.imports.rebuild import Record

DEV_SHARE = 0.1
DEV_SEED = 0
_NUMBER = re.compile(r"[0-9]{1,9}")
MELD_STARTS: Mapping[str, int] = {"train": 0, "dev": 1039, "test": 1153}
"""First dialogue of each split in MELD's pickles (60 is absent, the last is 1432), as in public loaders."""

_IEMOCAP6 = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
_MELD7 = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
_MELD3 = ("neutral", "positive", "negative")
_MELD_SENTIMENT: Mapping[str, frozenset[str]] = {
    "neutral": frozenset({"neutral"}),
    "joy": frozenset({"positive"}),
    "surprise": frozenset({"positive", "negative"}),
    **{name: frozenset({"negative"}) for name in ("fear", "sadness", "disgust", "anger")},
}
"""Sentiments per emotion in all 13,708 utterances of MELD; others reveal a wrong label order."""


@dataclass(frozen=True)
class Family:
    """A layout of tuples.

    Args:
        title: Description of the file.
        corpus: Its corpus.
        fields: In order: ``ids``, ``speakers``, ``sentences``, ``train``, ``dev``, ``test``, ``=NAME`` for labels,
            ``~NAME`` for features, ``?`` for ignored fields.
        labels: Task to (schema, names of the indices 0, 1, ...).
        origin: Public code in which the order was read.
        citation: The paper.
        widths: Widths of the published file; others are noted.
        meld: Dialogues have the numbers of MELD's pickles.
    """

    title: str
    corpus: str
    fields: tuple[str, ...]
    labels: Mapping[str, tuple[str, tuple[str, ...]]]
    origin: str
    citation: str
    widths: Mapping[str, int] = field(default_factory=dict)
    meld: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the feature fields."""
        return tuple(name[1:] for name in self.fields if name.startswith("~"))


_TRIPLE = ("~text", "~audio", "~visual", "sentences")
_NINE = ("ids", "speakers", "=emotion", *_TRIPLE, "train", "test")
_ROBERTA = ("~text", "~roberta2", "~roberta3", "~roberta4", "sentences", "train", "test", "dev")
_MAJUMDER = "Majumder et al. DialogueRNN. AAAI 2019."
_GHOSAL = (
    "Ghosal et al. COSMIC: COmmonSense knowledge for eMotion Identification in Conversations. EMNLP Findings 2020."
)
_HU = "Hu et al. MMGCN. ACL 2021."
_JOSHI = "Joshi et al. COGMEN: COntextualized GNN based Multimodal Emotion recognitioN. NAACL 2022."
_EMOTION6 = {"emotion": ("iemocap6", _IEMOCAP6)}
_EMOTION4 = {"emotion": ("iemocap4", _IEMOCAP6[:4])}
_MELD_LABELS = {"emotion": ("meld7", _MELD7), "sentiment": ("meld3", _MELD3)}
_LARGE = dict.fromkeys(("text", "roberta2", "roberta3", "roberta4"), 1024)

FAMILIES: Mapping[str, Family] = {
    "dialoguernn-iemocap": Family(
        "IEMOCAP_features_raw.pkl of DialogueRNN and bc-LSTM: six emotions, three modalities",
        "iemocap", _NINE, _EMOTION6, "declare-lab/conv-emotion, DialogueRNN/dataloader.py (IEMOCAPDataset)", _MAJUMDER,
        {"text": 100, "audio": 100, "visual": 512},
    ),
    "dialoguernn-iemocap4": Family(
        "IEMOCAP_features_4.pkl of COGMEN: four emotions, three modalities",
        "iemocap", _NINE, _EMOTION4, "Exploration-Lab/COGMEN, preprocess.py (get_iemocap)", _JOSHI,
        {"text": 100, "audio": 100, "visual": 512},
    ),
    "dialoguernn-meld": Family(
        "MELD_features_raw.pkl of DialogueRNN and bc-LSTM: seven emotions and sentiment, text and audio",
        "meld",
        ("ids", "speakers", "=emotion", "~text", "~audio", "sentences", "train", "test", "=sentiment"),
        _MELD_LABELS, "declare-lab/conv-emotion, DialogueRNN/dataloader.py (MELDDataset)", _MAJUMDER,
        {"text": 600, "audio": 300}, meld=True,
    ),
    "mmgcn-iemocap": Family(
        "IEMOCAP_features.pkl of MMGCN: six emotions, three modalities",
        "iemocap", _NINE, _EMOTION6, "hujingwen6666/MMGCN, dataloader.py (IEMOCAPDataset)", _HU,
        {"text": 100, "audio": 1582, "visual": 342},
    ),
    "mmgcn-meld": Family(
        "MELD_features_raw1.pkl of MMGCN: seven emotions and sentiment, three modalities",
        "meld", (*_NINE, "=sentiment"), _MELD_LABELS, "hujingwen6666/MMGCN, dataloader.py (MELDDataset)", _HU,
        {"text": 600, "audio": 300, "visual": 342}, meld=True,
    ),
    "cosmic-iemocap": Family(
        "iemocap_features_roberta.pkl of COSMIC: six emotions, four layers of RoBERTa",
        "iemocap", ("speakers", "=emotion", *_ROBERTA), _EMOTION6,
        "declare-lab/conv-emotion, COSMIC/erc-training/dataloader.py (IEMOCAPRobertaCometDataset)", _GHOSAL, _LARGE,
    ),
    "cosmic-meld": Family(
        "meld_features_roberta.pkl of COSMIC: seven emotions and sentiment, four layers of RoBERTa",
        "meld", ("speakers", "=emotion", "=sentiment", *_ROBERTA), _MELD_LABELS,
        "declare-lab/conv-emotion, COSMIC/erc-training/dataloader.py (MELDRobertaCometDataset)", _GHOSAL, _LARGE,
        meld=True,
    ),
    "cosmic-emorynlp": Family(
        "emorynlp_features_roberta.pkl of COSMIC: seven emotions, four layers of RoBERTa",
        "emorynlp", ("speakers", "=emotion", *_ROBERTA),
        {"emotion": ("emorynlp7", ("joyful", "mad", "peaceful", "neutral", "sad", "powerful", "scared"))},
        "declare-lab/conv-emotion, COSMIC/erc-training/dataloader.py (EmoryNLPRobertaCometDataset)", _GHOSAL, _LARGE,
    ),
}  # fmt: skip
"""The layouts of tuples by name."""


@dataclass(frozen=True)
class _Labels:
    task: str
    schema: LabelSchema
    names: tuple[str, ...]

    def read(self, value: Any, where: str) -> str:
        index = whole(value, where)
        if not 0 <= index < len(self.names):
            fail(where, index, f"a label index from 0 to {len(self.names) - 1} ({', '.join(self.names)})")
        return self.schema.canonical(self.names[index])


def fields_fit(name: str, content: Any) -> bool:
    """Whether the content is a tuple with the layout's dictionaries and lists."""
    family = FAMILIES[name]
    if not isinstance(content, tuple | list) or len(content) != len(family.fields):
        return False
    return all(
        isinstance(value, list | tuple | set | frozenset | np.ndarray) == (role in SPLITS)
        for role, value in zip(family.fields, content, strict=True)
        if role != "?"
    )


def read_tuple(name: str, content: Any) -> Imported:
    """Read a layout of :data:`FAMILIES`.

    Raises:
        LayoutError: a wrong type, length or width, or a label out of range.
    """
    family = FAMILIES[name]
    if not isinstance(content, tuple | list) or len(content) != len(family.fields):
        fail(f"layout {name!r}", content, f"a tuple of {len(family.fields)} fields ({', '.join(family.fields)})")
    parts_by_role = dict(zip(family.fields, content, strict=True))
    fields = {
        role: mapping(value, f"field {position} ({role.lstrip('=~')})")
        for position, (role, value) in enumerate(parts_by_role.items())
        if role not in SPLITS
    }
    names = {split: _names(parts_by_role[split], split) for split in SPLITS if split in parts_by_role}
    notes: list[str] = []
    parts = _splits(names, family, notes)
    disjoint(parts)
    wanted = [conversation for split in SPLITS for conversation in parts[split]]
    same_ids(fields, wanted)
    unused = sorted(set(fields["speakers"]) - set(wanted))
    if unused:
        notes.append(f"{len(unused)} conversations without a split were omitted (first: {unused[0]!r})")

    labels = [_Labels(task, get_schema(schema), order) for task, (schema, order) in family.labels.items()]
    rows: dict[str, dict[Key, NDArray[Any]]] = {modality: {} for modality in family.modalities}
    splits: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    positions = "ids" not in fields or not _own_ids(fields["ids"], fields["speakers"], wanted, family, notes)
    for split in SPLITS:
        for conversation in parts[split]:
            values = {role: field[conversation] for role, field in fields.items()}
            turns = _turns(conversation, values, labels, positions)
            splits[split].append(Conversation(conversation, tuple(turns)))
            for modality, table_rows in rows.items():
                where = f"field {modality!r}, conversation {conversation!r}"
                vectors = sequence(values[f"~{modality}"], where, len(turns))
                for turn, vector in zip(turns, vectors, strict=True):
                    table_rows[conversation, turn.id] = numbers(vector, f"{where}, utterance {turn.id!r}", 1)
    if family.meld:
        _check_sentiment(splits)
    tables = {modality: table(modality, vectors) for modality, vectors in rows.items()}
    for modality, width in family.widths.items():
        if tables[modality].width != width:
            notes.append(f"{modality}: width {tables[modality].width}, {width} in the published file")
    if positions:
        notes.append("utterances are numbered by position")
    return _imported(name, family, labels, splits, tables, positions, notes)


def _imported(
    name: str,
    family: Family,
    labels: Sequence[_Labels],
    splits: Mapping[str, list[Conversation]],
    tables: Mapping[str, Any],
    positions: bool,
    notes: Sequence[str],
) -> Imported:
    return Imported(
        layout=name,
        corpus=family.corpus,
        title=family.title,
        licence=f"{corpus_class(family.corpus).card.licence} The features come from third parties.",
        citation=family.citation,
        tasks=tuple(TaskSpec(label.task, "single_label", label.schema) for label in labels),
        splits=splits,
        tables=tables,
        positions=positions,
        notes=tuple(notes),
    )


def _names(value: Any, split: str) -> list[str]:
    if isinstance(value, set | frozenset):
        # The order of a set of strings differs from run to run.
        return sorted(identifier(name, f"split {split!r}") for name in value)
    return [identifier(name, f"split {split!r}") for name in sequence(value, f"split {split!r}")]


def _splits(names: Mapping[str, list[str]], family: Family, notes: list[str]) -> dict[str, list[str]]:
    parts = {split: list(names.get(split, [])) for split in SPLITS}
    if "dev" in names:
        if parts["dev"]:
            return parts
        notes.append("the file's dev split is empty")
    disjoint({"train": parts["train"], "test": parts["test"]})
    if family.meld:
        if not all(_NUMBER.fullmatch(name) for name in parts["train"]):
            raise LayoutError(
                "split 'train': dialogues without MELD's numbers. Check that layout= is the file's layout."
            )
        dev = [name for name in parts["train"] if MELD_STARTS["dev"] <= int(name) < MELD_STARTS["test"]]
        if dev:
            parts["dev"] = dev
            parts["train"] = [name for name in parts["train"] if name not in set(dev)]
            notes.append(
                f"dev: the {len(dev)} dialogues {MELD_STARTS['dev']} to {MELD_STARTS['test'] - 1} of the file's train "
                f"list, MELD's own dev split"
            )
            return parts
    order = seeded_permutation(parts["train"], DEV_SEED)
    if len(order) < 2:
        raise LayoutError(f"split 'train': {len(order)} conversations, too few for a dev split. Add conversations.")
    drawn = set(order[-max(1, round(DEV_SHARE * len(order))) :])
    parts["dev"] = [name for name in parts["train"] if name in drawn]
    parts["train"] = [name for name in parts["train"] if name not in drawn]
    notes.append(
        f"no dev split in the file: dev is {len(drawn)} of {len(order)} training conversations, drawn with the seed "
        f"{DEV_SEED}"
    )
    return parts


def _own_ids(
    ids: Mapping[str, Any], speakers: Mapping[str, Any], wanted: Sequence[str], family: Family, notes: list[str]
) -> bool:
    # IEMOCAP's ids are the release's and required. MELD's are undocumented: if there is not one per utterance,
    # positions are used.
    if not family.meld:
        return True
    for conversation in wanted:
        names, count = ids[conversation], len(sequence(speakers[conversation], f"speakers of {conversation!r}"))
        usable = isinstance(names, list | tuple | np.ndarray) and len(names) == count
        if not usable or not all(isinstance(name, str | bytes | int | np.integer) for name in names):
            notes.append("utterance ids were ignored: not one per utterance")
            return False
    return True


def _turns(conversation: str, fields: Mapping[str, Any], labels: Sequence[_Labels], positions: bool) -> list[Turn]:
    where = f"conversation {conversation!r}"
    speakers = [
        _speaker(value, f"field 'speakers', {where}, utterance {index}")
        for index, value in enumerate(sequence(fields["speakers"], f"field 'speakers', {where}"))
    ]
    count = len(speakers)
    if not count:
        raise LayoutError(f"field 'speakers', {where}: no utterances. Remove the conversation.")
    sentences = sequence(fields["sentences"], f"field 'sentences', {where}", count)
    ids = [str(index) for index in range(count)]
    if not positions:
        ids = [
            _turn_id(conversation, identifier(value, f"field 'ids', {where}, utterance {index}"))
            for index, value in enumerate(sequence(fields["ids"], f"field 'ids', {where}", count))
        ]
        twice, times = Counter(ids).most_common(1)[0]
        if times > 1:
            raise LayoutError(f"field 'ids', {where}: the utterance {twice!r} occurs {times} times. Rename the others.")
    targets: list[dict[str, Target]] = [{} for _ in ids]
    for label in labels:
        values = sequence(fields[f"={label.task}"], f"field {label.task!r}, {where}", count)
        for index, value in enumerate(values):
            place = f"field {label.task!r}, {where}, utterance {ids[index]!r}"
            targets[index][label.task] = Target(label.read(value, place))
    return [
        Turn(turn, speaker, _sentence(sentence, f"field 'sentences', {where}, utterance {turn!r}"), targets=target)
        for turn, speaker, sentence, target in zip(ids, speakers, sentences, targets, strict=True)
    ]


def _turn_id(conversation: str, name: str) -> str:
    # IEMOCAP's utterance ids start with the dialogue: Ses01F_impro01_F000.
    return name.removeprefix(f"{conversation}_") or name


def _sentence(value: Any, where: str) -> str:
    # COGMEN's MOSEI variants have lists of words.
    if isinstance(value, list | tuple):
        return " ".join(text(word, where) for word in value)
    return text(value, where)


def _speaker(value: Any, where: str) -> str:
    if isinstance(value, str | bytes | int | np.integer):
        return identifier(value, where)
    vector = numbers(value, where, 1)
    if not (np.isin(vector, (0, 1)).all() and vector.sum() == 1):
        fail(where, vector, "a name, or a vector with one 1 and zeros", text=str(vector[:9].tolist()))
    return f"speaker {int(vector.argmax())}"


def _check_sentiment(splits: Mapping[str, list[Conversation]]) -> None:
    for conversations in splits.values():
        for conversation in conversations:
            for turn in conversation.turns:
                emotion, sentiment = (str(turn.targets[task].value) for task in ("emotion", "sentiment"))
                if sentiment not in _MELD_SENTIMENT[emotion]:
                    raise LayoutError(
                        f"conversation {conversation.id!r}, utterance {turn.id!r}: no {emotion} with "
                        f"{sentiment} sentiment occurs in MELD. Check that layout= is the file's layout: labels have "
                        f"another order, or the label fields are swapped."
                    )


# COGMEN

COGMEN_FIELDS = ("vid", "speaker", "label", "text", "audio", "visual", "sentence")
_COGMEN_TITLE = "data_{0}.pkl of COGMEN: {1} emotions, three modalities and sentence embeddings"
COGMEN: Mapping[str, Family] = {
    "cogmen": Family(
        _COGMEN_TITLE.format("iemocap", "six"), "iemocap", COGMEN_FIELDS, _EMOTION6,
        "Exploration-Lab/COGMEN, preprocess.py and cogmen/Sample.py", _JOSHI,
    ),
    "cogmen-4way": Family(
        _COGMEN_TITLE.format("iemocap_4", "four"), "iemocap", COGMEN_FIELDS, _EMOTION4,
        "Exploration-Lab/COGMEN, preprocess.py and cogmen/Sample.py", _JOSHI,
    ),
}  # fmt: skip
"""COGMEN's files: ``{"train": [...], "dev": [...], "test": [...]}`` with one sample per conversation."""

_SBERT = "sbert_sentence_embeddings"


def samples_fit(content: Any) -> bool:
    """Whether the content is COGMEN's: lists of samples by split."""
    if not isinstance(content, dict) or set(map(str, content)) != set(SPLITS):
        return False
    samples = [sample for part in content.values() if isinstance(part, list | tuple) for sample in part]
    return bool(samples) and all(set(COGMEN_FIELDS) <= set(_attributes(sample)) for sample in samples)


def _attributes(sample: Any) -> dict[str, Any]:
    return sample.fields if isinstance(sample, Record) else sample if isinstance(sample, dict) else {}


def read_samples(name: str, content: Any) -> Imported:
    """Read a layout of :data:`COGMEN`.

    ``text`` is the sentence embedding used by COGMEN's models, ``text_cnn`` the 100 dimensions of the earlier pickle;
    without embeddings, the latter are ``text``. Dev is the file's: the first tenth of the training list.

    Raises:
        LayoutError: as in :func:`read_tuple`, or labels of the sibling layout.
    """
    family = COGMEN[name]
    parts = mapping(content, f"layout {name!r}")
    if set(parts) != set(SPLITS):
        fail(f"layout {name!r}", parts, "train, dev and test", text=f"the keys {', '.join(parts)}")
    label_list = [_Labels(task, get_schema(schema), order) for task, (schema, order) in family.labels.items()]
    rows: dict[str, dict[Key, NDArray[Any]]] = {}
    splits: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    embedded: bool | None = None
    highest = 0
    for split in SPLITS:
        for index, sample in enumerate(sequence(parts[split], f"split {split!r}")):
            attributes = _attributes(sample)
            if missing := [field for field in COGMEN_FIELDS if field not in attributes]:
                fail(f"split {split!r}, sample {index}", sample, f"a sample with the attribute {missing[0]!r}")
            conversation = identifier(attributes["vid"], f"split {split!r}, sample {index}, 'vid'")
            names[split].append(conversation)
            if embedded is None:
                embedded = _SBERT in attributes
            elif embedded != (_SBERT in attributes):
                fail(f"conversation {conversation!r}", sample, f"{_SBERT} in all samples or in none")
            fields = {
                "speakers": attributes["speaker"], "sentences": attributes["sentence"], "=emotion": attributes["label"],
            }  # fmt: skip
            turns = _turns(conversation, fields, label_list, True)
            highest = max([highest, *(_index(turn, label_list[0]) for turn in turns)])
            splits[split].append(Conversation(conversation, tuple(turns)))
            sources = {"text": _SBERT, "text_cnn": "text"} if embedded else {"text": "text"}
            for modality, attribute in {**sources, "audio": "audio", "visual": "visual"}.items():
                where = f"attribute {attribute!r}, conversation {conversation!r}"
                vectors = sequence(attributes[attribute], where, len(turns))
                target = rows.setdefault(modality, {})
                for turn, vector in zip(turns, vectors, strict=True):
                    target[conversation, turn.id] = numbers(vector, f"{where}, utterance {turn.id!r}", 1)
    disjoint(names)
    if name == "cogmen" and highest < len(_EMOTION4["emotion"][1]):
        raise LayoutError("layout=cogmen: no utterance is excited or frustrated. Use layout=cogmen-4way.")
    notes = ["utterances are numbered by position", "dev: the first tenth of the training list, as COGMEN cuts it"]
    if not embedded:
        notes.append(f"the samples have no {_SBERT}: text is the 100-dimensional set, not used by COGMEN's models")
    tables = {modality: table(modality, vectors) for modality, vectors in rows.items()}
    return _imported(name, family, label_list, splits, tables, True, notes)


def _index(turn: Turn, labels: _Labels) -> int:
    # The file's number of a turn's label.
    return labels.names.index(str(turn.targets[labels.task].value))


def meld_place(name: str) -> tuple[str, int] | None:
    """Split and MELD's own number of a dialogue of the pickles; None if not a number."""
    if not _NUMBER.fullmatch(name):
        return None
    number = int(name)
    split = [split for split, start in MELD_STARTS.items() if number >= start][-1]
    return split, number - MELD_STARTS[split]


def scene_name(name: str) -> str | None:
    """EmoryNLP's scene name, without the split, of ``1_4_8`` or ``s01_e04_c08``; else None."""
    match = re.fullmatch(r"[A-Za-z]*0*(\d+)[_\-]?[A-Za-z]*0*(\d+)[_\-]?[A-Za-z]*0*(\d+)", name)
    if match is None or len(re.findall(r"\d+", name)) != 3:
        return None
    return "s{:02d}e{:02d}c{:02d}".format(*map(int, match.groups()))
