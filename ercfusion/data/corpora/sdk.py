"""CMU-MOSEI and CMU-MOSI from the files of the CMU Multimodal SDK: monologues with word and frame features.

The ``.csd`` files (:mod:`ercfusion.data.corpora._csd`) have labels, words and features with times. File names, columns,
ranges and binarisation are those of the SDK's repository, CMU-MultiComp-Lab/CMU-MultimodalSDK, folder
``mmsdk/mmdatasdk/dataset/standard_datasets``. Tested on generated files only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, did_you_mean
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora._csd import EPSILON, ComputationalSequence, overlapping, read_folds, spoken_text
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key

EMOTIONS = get_schema("mosei6")
"""Columns 1 to 6 of MOSEI's labels; column 0 is the sentiment."""
SPLITS_FILE = "splits.json"
MOSEI_FEATURES: Mapping[str, Mapping[str, str]] = {
    "text": {
        "GloVe": "CMU_MOSEI_TimestampedWordVectors.csd",
        "GloVe_with_SP": "CMU_MOSEI_TimestampedGloveVectors_with_SP.csd",
    },
    "audio": {"COVAREP": "CMU_MOSEI_COVAREP.csd"},
    "visual": {"Facet42": "CMU_MOSEI_VisualFacet42.csd", "OpenFace2": "CMU_MOSEI_VisualOpenFace2.csd"},
}
"""Modality to its kinds of features and their files; the first is the default."""
MOSI_FEATURES: Mapping[str, Mapping[str, str]] = {
    "text": {"GloVe": "CMU_MOSI_TimestampedWordVectors.csd"},
    "audio": {
        "COVAREP": "CMU_MOSI_COVAREP.csd",
        "openSMILE_IS09": "CMU_MOSI_openSMILE_IS09.csd",
        "OpenSmile_EB10": "CMU_MOSI_OpenSmile_EB10.csd",
    },
    "visual": {
        "Facet42": "CMU_MOSI_Visual_Facet_42.csd",
        "Facet41": "CMU_MOSI_Visual_Facet_41.csd",
        "OpenFace1": "CMU_MOSI_Visual_OpenFace_1.csd",
        "OpenFace2": "CMU_MOSI_Visual_OpenFace_2.csd",
    },
}
_FOLDS_ADDRESS = (
    "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK, folder mmsdk/mmdatasdk/dataset/standard_datasets"
)
_TOLERANCE = 1e-4  # scores are stored as 32-bit numbers


def _default_files(kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [f"{next(iter(files.values()))} (for {modality})" for modality, files in kinds.items()]


def _protocols(corpus: str, *more: Protocol) -> dict[str, Protocol]:
    dev = f"the SDK's standard_valid_fold, or the list 'valid' of {SPLITS_FILE}"
    both = (
        Protocol(
            id=f"{corpus}/binary",
            task=TaskSpec("sentiment", "single_label", get_schema("sentiment2"), metric="accuracy"),
            description="negative (score < 0) or non-negative (score >= 0, called positive), the SDK's folds, accuracy",
            dev_source=dev,
            modalities=("text", "audio", "visual"),
        ),
        Protocol(
            id=f"{corpus}/score",
            task=TaskSpec("sentiment_score", "regression", dimensions=("sentiment",), low=-3.0, high=3.0, metric="mae"),
            description="sentiment from -3 to 3, the SDK's folds, mean absolute error",
            dev_source=dev,
            modalities=("text", "audio", "visual"),
        ),
    )
    return {protocol.id: replace(protocol, dev_source=dev) for protocol in (*more, *both)}


@dataclass(frozen=True)
class _Counts:
    # Steps read, steps with values that are not finite, words without frames.
    steps: int
    replaced: int
    empty_words: int


class _SdkCorpus(Corpus):
    """Common part of the two corpora.

    Args:
        raw: Folder with the files or subfolders of them.
        text: ``GloVe`` (300 dimensions per word), ``GloVe_with_SP`` (also with steps for pauses), a file's name, or
            None for features of the words by ``data.encoder``.
        level: ``utterance``: the mean over a segment's steps; ``sequence``: all its steps.
        align: With ``level=sequence``: all frames (``none``; for COVAREP gigabytes of memory), or one step per word
            (``words``).
    """

    labels_file: ClassVar[str]
    words_file: ClassVar[str]
    folds_file: ClassVar[str]
    kinds: ClassVar[Mapping[str, Mapping[str, str]]]
    columns: ClassVar[tuple[str, ...]]
    _has_emotions: ClassVar[bool]

    def __init__(
        self,
        raw: str | os.PathLike[str] | None = None,
        *,
        text: str | None = "GloVe",
        audio: str | None = "COVAREP",
        visual: str | None = "Facet42",
        level: Literal["utterance", "sequence"] = "utterance",
        align: Literal["none", "words"] = "none",
    ) -> None:
        super().__init__(raw)
        if align == "words" and level == "utterance":
            raise ConfigError(
                f"corpus {self.name!r}: align=words gives one step per word, but level=utterance one vector per turn. "
                f"Set data.options.level=sequence, or omit align."
            )
        if align == "words" and text is None:
            raise ConfigError(
                f"corpus {self.name!r}: align=words takes words' times from the text features, but text is null. "
                f"Set data.options.text=GloVe, or omit align."
            )
        self._level = level
        self._align = align
        self._sources: dict[str, str] = {}
        for modality, kind in {"text": text, "audio": audio, "visual": visual}.items():
            kinds = self.kinds[modality]
            if kind is not None and kind not in kinds and not str(kind).endswith(".csd"):
                raise ConfigError(
                    f"corpus {self.name!r}: {modality}={kind!r}. {did_you_mean(str(kind), kinds)} Or give the name of "
                    f"a .csd file in the raw folder."
                )
            if kind is not None:
                self._sources[modality] = kinds.get(kind, kind)
        self._counts: dict[str, _Counts] = {}

    def protocol(self, identifier: str | None = None) -> Protocol:
        """The protocol, with the modalities switched on; ``data.encoder`` replaces switched-off text features."""
        protocol = super().protocol(identifier)
        modalities = tuple(name for name in protocol.modalities if name == "text" or name in self._sources)
        return replace(protocol, modalities=modalities)

    def files(self) -> list[Path]:
        """Labels, words and splits; hashing the feature files would take minutes."""
        self.root()
        return [self._place(self.labels_file), self._place(self.words_file), self._folds()]

    def conversations(self, protocol: Protocol) -> Splits:
        """Videos of each fold, sorted by id, with their segments in order of time."""
        labels, words, folds = self.files()
        split_of = {video: split for split, videos in read_folds(folds).items() for video in videos}
        splits: Splits = {"train": [], "dev": [], "test": []}
        with ComputationalSequence(labels) as labelled, ComputationalSequence(words) as spoken:
            for video in sorted(set(labelled.videos()) & set(split_of)):
                splits[split_of[video]].append(self._conversation(video, labelled, spoken))
        for split, videos in splits.items():
            if not videos:
                raise CorpusFormatError(
                    f"{folds}: no video of {split} is in {labels.name}: they are of different corpora. Get both again."
                )
        return splits

    def features(self, protocol: Protocol) -> dict[str, FeatureTable]:
        """The chosen features of every segment, by modality.

        A segment has the steps overlapping it (:func:`~ercfusion.data.corpora._csd.overlapping`); without any it lacks
        the modality. Values that are not finite (COVAREP at silence) become 0; ``source["replaced"]`` counts their
        steps. With ``align=words`` a word has the mean of its overlapping frames, or zeros (the SDK's ``align`` and
        ``impute``).

        Raises:
            CorpusNotFoundError: a file is missing.
            CorpusFormatError: a file is damaged, or has rows of different widths.
        """
        videos = [video for part in self.conversations(protocol).values() for video in part]
        paths = {modality: self._feature_file(modality) for modality in self._sources}
        return {modality: self._table(modality, paths, videos) for modality in paths}

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Videos without fold or labels, segments without duration or words, scores of 0, replaced values."""
        if not self._counts:
            self.features(protocol)
        labels, _, folds = self.files()
        listed = {video for videos in read_folds(folds).values() for video in videos}
        with ComputationalSequence(labels) as labelled:
            labelled_videos = set(labelled.videos())
        findings = []
        for text, videos in (
            (f"videos with labels are in no fold of {folds.name} and are omitted", labelled_videos - listed),
            (f"videos of {folds.name} have no labels", listed - labelled_videos),
        ):
            if videos:
                findings.append(Finding("note", "folds", f"{len(videos)} {text} (first: {min(videos)})"))
        if not findings:
            findings.append(Finding("ok", "folds", f"every video with labels is in one fold of {folds.name}"))
        for split, part in self.conversations(protocol).items():
            turns = [turn for video in part for turn in video.turns]
            counts = {
                "segments have the sentiment 0 and count as positive in the binary protocol": sum(
                    turn.targets["sentiment_score"].value == 0 for turn in turns
                ),
                "segments have no duration, and therefore neither words nor features": sum(
                    (turn.end or 0.0) - (turn.start or 0.0) <= EPSILON for turn in turns
                ),
                "segments start before the end of the previous one": sum(
                    (after.start or 0.0) < (before.end or 0.0) - EPSILON
                    for video in part
                    for before, after in zip(video.turns, video.turns[1:], strict=False)
                ),
            }
            findings += [
                Finding("note", "segments", f"{split}: {count} {text}") for text, count in counts.items() if count
            ]
        for modality, read in self._counts.items():
            text = f"{read.replaced} of {read.steps} steps had values that are not finite; they were set to 0"
            findings.append(Finding("note" if read.replaced else "ok", f"features {modality}", text))
            if read.empty_words:
                text = f"{read.empty_words} words have no frames of their own; their features are 0"
                findings.append(Finding("note", f"features {modality}", text))
        return findings

    def _conversation(self, video: str, labelled: ComputationalSequence, spoken: ComputationalSequence) -> Conversation:
        times, scores = labelled.intervals(video), labelled.numbers(video)
        if scores.shape[1] != len(self.columns):
            labelled.fail(
                video, f"{scores.shape[1]} columns, but {len(self.columns)} are expected ({', '.join(self.columns)})"
            )
        words = spoken.words(video) if video in spoken else []
        word_times = spoken.intervals(video) if video in spoken else np.zeros((0, 2))
        turns = []
        for number, ((start, end), row) in enumerate(zip(times.tolist(), scores.tolist(), strict=True)):
            if not (np.isfinite(start) and np.isfinite(end)):
                labelled.fail(video, f"segment {number} (from 0) lasts from {start} to {end} seconds")
            low = (-3.0,) + (0.0,) * (len(row) - 1)
            for column, value, least in zip(self.columns, row, low, strict=True):
                if not least - _TOLERANCE <= value <= 3.0 + _TOLERANCE:
                    labelled.fail(video, f"segment {number} (from 0), {column}: {value:g} is not from {least:g} to 3")
            inside = overlapping(word_times, start, end)
            turns.append(
                Turn(
                    id=str(number),
                    speaker=video,
                    text=spoken_text([words[step] for step in inside]),
                    start=start,
                    end=end,
                    targets=self._targets(row),
                )
            )
        return Conversation(video, tuple(turns))

    def _targets(self, row: list[float]) -> dict[str, Target]:
        score = min(max(row[0], -3.0), 3.0)
        targets = {
            "sentiment": Target("negative" if score < 0 else "positive"),
            "sentiment_score": Target(score),
        }
        if self._has_emotions:
            present = (label for label, value in zip(EMOTIONS.labels, row[1:], strict=True) if value > 0)
            targets["emotions"] = Target(frozenset(present))
        return targets

    def _table(self, modality: str, paths: Mapping[str, Path], videos: list[Conversation]) -> FeatureTable:
        # Times first, to allocate the matrix once; then values.
        path = paths[modality]
        with ExitStack() as stack:
            sequence = stack.enter_context(ComputationalSequence(path))
            text: ComputationalSequence | None = None
            if self._align == "words" and modality != "text":
                text = stack.enter_context(ComputationalSequence(paths["text"]))
            plan = self._plan(sequence, text, videos)
            keys = [key for steps in plan.values() for key in steps]
            sizes = [len(groups) for steps in plan.values() for groups in steps.values()]
            values: NDArray[np.float32] | None = None
            filled = used = replaced = empty = 0
            for video, steps in plan.items():
                numbers = sequence.numbers(video)
                if values is None:
                    values = np.empty((sum(sizes), numbers.shape[1]), dtype=np.float32)
                if numbers.shape[1] != values.shape[1]:
                    sequence.fail(video, f"{numbers.shape[1]} columns, but {values.shape[1]} in other videos")
                finite = np.isfinite(numbers)
                numbers[~finite] = 0.0
                for groups in steps.values():
                    rows = np.concatenate(groups)
                    used += len(rows)
                    replaced += int((~finite[rows].all(axis=1)).sum())
                    for group in groups:
                        values[filled] = numbers[group].mean(axis=0) if len(group) else 0.0
                        empty += not len(group)
                        filled += 1
        if values is None:
            raise CorpusFormatError(
                f"{path}: no step of it is in a labelled segment; it is not of {self.card.title}. Get it again."
            )
        self._counts[modality] = _Counts(used, replaced, empty)
        source = {
            "corpus": self.name,
            "files": [path.name],
            "level": self._level,
            "align": self._align,
            "replaced": replaced,
        }
        offsets = None if self._level == "utterance" else np.concatenate([[0], np.cumsum(sizes)])
        return FeatureTable(modality, keys, values, offsets, source)

    def _plan(
        self, sequence: ComputationalSequence, text: ComputationalSequence | None, videos: list[Conversation]
    ) -> dict[str, dict[Key, list[NDArray[np.int64]]]]:
        # By video and turn: groups of steps, one per row.
        plan: dict[str, dict[Key, list[NDArray[np.int64]]]] = {}
        for video in videos:
            if video.id not in sequence:
                continue
            times = sequence.intervals(video.id)
            words = text.intervals(video.id) if text is not None and video.id in text else np.zeros((0, 2))
            steps: dict[Key, list[NDArray[np.int64]]] = {}
            for turn in video.turns:
                start, end = float(turn.start or 0.0), float(turn.end or 0.0)
                inside = overlapping(times, start, end)
                if self._level == "utterance":
                    groups = [inside]
                elif text is None:
                    groups = [inside[step : step + 1] for step in range(len(inside))]
                else:
                    spoken = words[overlapping(words, start, end)].tolist()
                    groups = [overlapping(times, max(first, start), min(last, end)) for first, last in spoken]
                if any(map(len, groups)):
                    steps[(video.id, turn.id)] = groups
            if steps:
                plan[video.id] = steps
        return plan

    def _feature_file(self, modality: str) -> Path:
        name = self._sources[modality]
        try:
            return self._place(name)
        except CorpusNotFoundError as error:
            instead = (
                "data.options.text=null uses features of the words by data.encoder"
                if modality == "text"
                else f"data.options.{modality}=null omits {modality} features"
            )
            kinds = ", ".join(f"{kind} ({file})" for kind, file in self.kinds[modality].items())
            raise CorpusNotFoundError(
                f"{error}\nChoose another kind of {modality} features: {kinds}; {instead}."
            ) from error

    def _folds(self) -> Path:
        for name in (SPLITS_FILE, self.folds_file):
            if self._places(name):
                return self._place(name)
        raise CorpusNotFoundError(
            f"{self.card.title}: neither {SPLITS_FILE} nor {self.folds_file} found in {self.root()}. Copy the latter "
            f"from {_FOLDS_ADDRESS}, or write the ids of the videos into "
            f'{SPLITS_FILE}: {{"train": [...], "valid": [...], "test": [...]}}.'
        )

    def _places(self, name: str) -> list[Path]:
        # Also in subfolders: the SDK's downloader makes them.
        root = self.root()
        return [path for path in (root / name, *sorted(root.glob(f"*/{Path(name).name}"))) if path.is_file()]

    def _place(self, name: str) -> Path:
        places = self._places(name)
        return places[0] if places else self.require([name])[0]


class MoseiCorpus(_SdkCorpus):
    """Reader of CMU-MOSEI's ``.csd`` files: videos with labelled segments, numbered from 0 in order of time.

    Targets: ``emotions`` (those of six with a score above 0), ``sentiment`` (negative below 0, else positive) and
    ``sentiment_score`` (-3 to 3).

    Args:
        audio: ``COVAREP`` (74 dimensions per frame), a file's name, or None for no audio features.
        visual: ``Facet42`` (35 dimensions per frame), ``OpenFace2``, a file's name, or None for no visual features.
    """

    labels_file = "CMU_MOSEI_Labels.csd"
    words_file = "CMU_MOSEI_TimestampedWords.csd"
    folds_file = "cmu_mosei_std_folds.py"
    kinds = MOSEI_FEATURES
    columns = ("sentiment", *EMOTIONS.labels)
    _has_emotions = True

    card: ClassVar[CorpusCard] = CorpusCard(
        name="mosei",
        title="CMU-MOSEI",
        licence="Research use; the SDK states no licence for the data, and the videos belong to their authors.",
        obtain=(
            f"{_FOLDS_ADDRESS}/CMU_MOSEI: addresses of the .csd files (features 1.5 to 17 GB each) in cmu_mosei.py, "
            f"the split in cmu_mosei_std_folds.py."
        ),
        citation=(
            "Bagher Zadeh, Liang, Poria, Cambria, Morency. Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset "
            "and Interpretable Dynamic Fusion Graph. ACL 2018."
        ),
        layout=(
            labels_file,
            words_file,
            f"{folds_file} or {SPLITS_FILE}",
            *_default_files(MOSEI_FEATURES),
        ),
        known_issues=(
            "Emotions are multi-label: a mean score above 0 over three annotators. Papers with the strongest emotion "
            "as a single label are not comparable.",
            "The sentiment 0 counts as positive in mosei/binary (the convention before 2019); acc2_non0 of mosei/score "
            "omits it.",
            "A segment without overlapping words or frames lacks the modality. The SDK's own pipeline drops such "
            "segments: published numbers of utterances are lower (16,326 / 1,871 / 4,659 in CARAT). For its aligned "
            "features set data.options.level=sequence data.options.align=words.",
            "COVAREP has values that are not finite; they become 0.",
            "Each conversation has one speaker.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = _protocols(
        "mosei",
        Protocol(
            id="mosei/emotions",
            task=TaskSpec("emotions", "multi_label", EMOTIONS, metric="micro_f1"),
            description="the set of emotions with a score above 0, of six, the SDK's folds",
            dev_source="",
            modalities=("text", "audio", "visual"),
        ),
    )


class MosiSdkCorpus(_SdkCorpus):
    """Reader of CMU-MOSI's ``.csd`` files: videos with labelled segments, numbered from 0 in order of time.

    Targets: ``sentiment`` (negative below 0, else positive) and ``sentiment_score`` (-3 to 3).

    Args:
        audio: ``COVAREP``, ``openSMILE_IS09``, ``OpenSmile_EB10``, a file's name, or None for no audio features.
        visual: ``Facet42``, ``Facet41``, ``OpenFace1``, ``OpenFace2``, a file's name, or None for no visual features.
    """

    labels_file = "CMU_MOSI_Opinion_Labels.csd"
    words_file = "CMU_MOSI_TimestampedWords.csd"
    folds_file = "cmu_mosi_std_folds.py"
    kinds = MOSI_FEATURES
    columns = ("sentiment",)
    _has_emotions = False

    card: ClassVar[CorpusCard] = CorpusCard(
        name="mosi_sdk",
        title="CMU-MOSI (files of the CMU Multimodal SDK)",
        licence="Research use; the SDK states no licence for the data, and the videos belong to their authors.",
        obtain=(
            f"{_FOLDS_ADDRESS}/CMU_MOSI: addresses of the .csd files in cmu_mosi.py, the split in "
            f"cmu_mosi_std_folds.py."
        ),
        citation="Zadeh, Zellers, Pincus, Morency. MOSI: Multimodal Corpus of Sentiment Intensity. 2016.",
        layout=(
            labels_file,
            words_file,
            f"{folds_file} or {SPLITS_FILE}",
            *_default_files(MOSI_FEATURES),
        ),
        known_issues=(
            "The score 0 counts as positive in mosi_sdk/binary (the convention before 2019); acc2_non0 of "
            "mosi_sdk/score omits it.",
            "A segment without overlapping words or frames lacks the modality.",
            "93 videos of 89 speakers: some speakers may be in two folds.",
            "COVAREP has values that are not finite; they become 0.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = _protocols("mosi_sdk")
