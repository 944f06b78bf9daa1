"""IEMOCAP: acted dialogues of two people in five sessions, rated by several observers (Busso et al. 2008).

Layout, counts and the published relabelling come from public repositories, which agree with each other; the release
was not available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ercfusion._core.errors import CorpusNotFoundError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.maps import map_between
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import RULES
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora._iemocap_files import (
    HIGH,
    LOW,
    NO_AGREEMENT,
    Dialogue,
    Utterance,
    dialogue_files,
    read_dialogue,
)
from ercfusion.data.corpora._iemocap_findings import some, times, transcripts
from ercfusion.data.corpora._iemocap_vad import ABOUT, EMOTIONS, EWE, OWN, VAD, with_emotions, with_estimates
from ercfusion.data.corpus import Corpus, CorpusCard, Finding, Protocol, Splits
from ercfusion.data.features import Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.permute import seeded_permutation
from ercfusion.data.vote_targets import vote_findings, vote_targets, vote_task

SESSIONS = (1, 2, 3, 4, 5)
UNPACKED = "IEMOCAP_full_release"
"""Folder made by the release's archive; ``data.raw`` may be this folder or its parent."""
DEV_SHARE = 0.1
DEV_SEED = 0
DIALOGUES = 151
UTTERANCES: Mapping[int, int] = {1: 1819, 2: 1811, 3: 2136, 4: 2103, 5: 2170}
"""Rated utterances of the release by session, 10,039 in all."""
_ORDER = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
LABELS: Mapping[int, Mapping[str, int]] = {
    1: dict(zip(_ORDER, (135, 194, 384, 229, 143, 280), strict=True)),
    2: dict(zip(_ORDER, (117, 197, 362, 137, 210, 325), strict=True)),
    3: dict(zip(_ORDER, (135, 305, 320, 240, 151, 382), strict=True)),
    4: dict(zip(_ORDER, (65, 143, 258, 327, 238, 481), strict=True)),
    5: dict(zip(_ORDER, (143, 245, 384, 170, 299, 381), strict=True)),
}
"""Utterances per label and session, from the release's evaluation files."""

PUBLISHED_HAPPY: frozenset[str] = frozenset(
    f"{dialogue}_{turn}"
    for dialogue, turns in {
        "Ses01F_impro03": "F007 F011 F014 M012",
        "Ses01F_impro06": "M017",
        "Ses01F_impro07": "F007",
        "Ses01M_impro03": "F000",
        "Ses01M_impro07": "F002",
        "Ses02F_impro03": "F002 F005 F006 F007 F020",
        "Ses02M_impro03": "F010 M026 M027",
        "Ses03F_impro02": "M003",
        "Ses03F_impro03": "F000 F003 F010 M003 M008 M013 M016 M019",
        "Ses03F_impro04": "M020",
        "Ses03F_impro07": "F000 F002 F006 M016 M020 M031",
        "Ses03M_impro02": "F001",
        "Ses03M_impro03": "F000 F019 M005 M006 M008 M009 M010 M024 M025 M026 M027 M034 M036 M037",
        "Ses03M_impro05a": "F017",
        "Ses03M_impro07": "F020 M001 M012 M021",
        "Ses05F_impro07": "M010",
    }.items()
    for turn in turns.split()
)
"""The 53 utterances without agreement which are ``happy`` in the feature files of DialogueRNN, MMGCN and COGMEN.

The reason is undocumented. The list (read-me of the public repository ``emodet``) explains exactly the difference
between the release (595 happy) and those files (648).
"""

Labels = Literal["six", "four", "happy_alone"]


@dataclass(frozen=True)
class _Plan:
    # Session of test, set of labels, and use of the published files' labels.
    test: int
    labels: Labels = "six"
    published: bool = False


_PLANS: dict[str, _Plan] = {
    "6way-ses5": _Plan(5),
    "4way-ses5": _Plan(5, "four"),
    "6way-cogmen": _Plan(5, published=True),
    "4way-cogmen": _Plan(5, "happy_alone", published=True),
    **{f"6way-ses{session}": _Plan(session) for session in SESSIONS[:-1]},
    **{f"4way-ses{session}": _Plan(session, "four") for session in SESSIONS[:-1]},
    "vad-ses5": _Plan(5),
    "vad-ewe-ses5": _Plan(5),
    "vad-emotions-ses5": _Plan(5),
    "votes-ses5": _Plan(5),
    **{f"{name}-ses5": _Plan(5) for name in ("majority", "plurality", "votes-smoothed", "all-inclusive")},
}
_NINE = get_schema("iemocap9")
_RULES: Mapping[str, str] = {
    "votes": "distribution",
    "votes_majority": "majority",
    "votes_plurality": "plurality",
    "votes_smoothed": "smoothed",
    "votes_all": "all_inclusive",
}
# Further tasks with the release's targets, by the protocol's name without the session; the others are those of
# ``emotion``.
_TASKS: Mapping[str, TaskSpec] = {
    "vad": VAD,
    "vad-ewe": EWE,
    "vad-emotions": EMOTIONS,
    "votes": vote_task("votes", "distribution", _NINE),
    "majority": vote_task("votes_majority", "majority", _NINE),
    "plurality": vote_task("votes_plurality", "plurality", _NINE),
    "votes-smoothed": vote_task("votes_smoothed", "smoothed", _NINE),
    "all-inclusive": vote_task("votes_all", "all_inclusive", _NINE),
}


def _protocol(name: str, plan: _Plan) -> Protocol:
    emotion = TaskSpec("emotion", "single_label", get_schema("iemocap6" if plan.labels == "six" else "iemocap4"))
    description = {
        "six": "six emotions",
        "four": "four emotions, excited counts as happy",
        "happy_alone": "four emotions, without excited",
    }[plan.labels]
    if plan.published:
        description += "; labels and turns of the published feature files"
    task = _TASKS.get(name.rpartition("-")[0], emotion)
    if task.name in ABOUT:
        description = ABOUT[task.name]
    elif task.name == "votes":
        description = "shares of the raters' votes for nine emotions"
    elif task.name in _RULES:
        description = f"nine emotions: {RULES[_RULES[task.name]].description}"
    return Protocol(
        id=f"iemocap/{name}",
        task=task,
        description=f"{description}; session {plan.test} is test",
        dev_source=f"the first {DEV_SHARE:.0%} of the training dialogues in a seeded order (seed {DEV_SEED})",
        modalities=("text",),
        others=tuple(other for other in (emotion, *_TASKS.values()) if other.name not in (task.name, *OWN)),
    )


def _card_labels() -> dict[str, dict[str, dict[str, int]]]:
    # Test only: the dev dialogues' counts are unknown.
    labels = {}
    for name, plan in _PLANS.items():
        if name.rpartition("-")[0] in _TASKS:
            continue
        counts = dict(LABELS[plan.test])
        if plan.published:
            counts["happy"] += sum(identifier.startswith(f"Ses0{plan.test}") for identifier in PUBLISHED_HAPPY)
        if plan.labels != "six":
            counts["happy"] += counts["excited"] if plan.labels == "four" else 0
            counts = {label: counts[label] for label in get_schema("iemocap4").labels}
        labels[f"iemocap/{name}"] = {"test": counts}
    return labels


class IemocapCorpus(Corpus):
    """Reader of the full release; text needs two folders of text files only.

    A conversation is a dialogue (``Ses01F_impro01``), a turn a rated utterance (``F000``), in order of start; turns may
    overlap. The speaker is session and sex (``Ses01_F``) by the letter in the utterance's name. The letter in the
    dialogue's name is the person with the markers.

    Targets under every protocol:

    - ``emotion``: in the protocol's labels (six under protocols with another first task);
    - ``votes``: shares of the labels of ``iemocap9``, without actors' own answers and "other";
    - ``votes_majority``, ``votes_plurality``, ``votes_smoothed``, ``votes_all``: from the same votes by the rules of
      :mod:`ercfusion.batch.votes`; a majority is one of the raters, who may name several labels;
    - ``vad``: released means of valence, activation and dominance, 1 to 5.

    Their own protocols have ``vad_ewe`` (the raters' numbers, weighted) and ``vad_emotions`` (a distribution).
    """

    card: ClassVar[CorpusCard] = CorpusCard(
        name="iemocap",
        title="IEMOCAP (Interactive Emotional Dyadic Motion Capture)",
        licence="Individual release form of USC SAIL; research only, no redistribution.",
        obtain=(
            "Fill in the release form at https://sail.usc.edu/iemocap/iemocap_release.htm and extract the archive. "
            "Text needs only dialog/EmoEvaluation and dialog/transcriptions of every session."
        ),
        citation=(
            "Busso, Bulut, Lee, Kazemzadeh, Mower, Kim, Chang, Lee, Narayanan. IEMOCAP: Interactive Emotional Dyadic "
            "Motion Capture Database. Language Resources and Evaluation 42, 2008."
        ),
        layout=(
            "Session{1..5}/dialog/EmoEvaluation/*.txt",
            "Session{1..5}/dialog/transcriptions/*.txt",
            "Session{1..5}/sentences/wav/*/*.wav (for audio)",
            "Session{1..5}/dialog/avi/DivX/*.avi (for video)",
        ),
        labels=_card_labels(),
        known_issues=(
            "151 dialogues and 10,039 rated utterances (1,819 / 1,811 / 2,136 / 2,103 / 2,170 by session). 2,507 have "
            "no majority, and 152 are labelled fear, surprise, disgust or other: unlabelled context for six and four "
            "emotions (for four also the 1,849 frustrated).",
            "The feature files behind most published numbers (DialogueRNN, MMGCN, COGMEN) label 53 utterances without "
            "majority happy, 1 of them in session 5, and omit all unlabelled utterances: 7,433 utterances instead of "
            "7,380, test 1,623 instead of 1,622. The protocols ending in -cogmen follow them.",
            "Published partitions with nine labels keep 6,890 utterances with a majority, 7,497 with a plurality, and "
            "all 10,039 with the all-inclusive rule (Chou); the doctor counts yours.",
            "Numbers with excited merged into happy (5,531 utterances) and without excited (4,490; 4,543 in the "
            "published files) are both called four-way, but are not comparable.",
            "There is no official split. Both speakers of a session are in one split. The scripted half repeats three "
            "plays in every session: its sentences are in train and in test.",
            "Turns of the two speakers overlap in time.",
            "Transcribed lines without a name (M: ...) and pieces with XX in their name are omitted: they were not "
            "rated.",
            "Videos show both people; no file names the halves.",
        ),
    )
    protocols: ClassVar[Mapping[str, Protocol]] = {
        protocol.id: protocol for protocol in (_protocol(name, plan) for name, plan in _PLANS.items())
    }

    def files(self) -> list[Path]:
        """Evaluation and transcription of every dialogue, by session and name."""
        return [path for _, *paths in self._pairs() for path in paths]

    def conversations(self, protocol: Protocol) -> Splits:
        """The dialogues, sorted by name within each split."""
        dialogues = self._dialogues()
        plan = _PLANS[protocol.id.partition("/")[2]]
        training = [dialogue.name for dialogue in dialogues if dialogue.session != plan.test]
        dev = set(seeded_permutation(training, DEV_SEED)[: max(1, round(DEV_SHARE * len(training)))])
        splits: Splits = {"train": [], "dev": [], "test": []}
        for dialogue in dialogues:
            split = "test" if dialogue.session == plan.test else "dev" if dialogue.name in dev else "train"
            turns = tuple(
                _turn(dialogue, utterance, plan)
                for utterance in dialogue.utterances
                if not plan.published or _emotion(dialogue, utterance, plan) is not None
            )
            # Without its unlabelled utterances a dialogue may be empty.
            if turns:
                splits[split].append(Conversation(dialogue.name, turns))
        if protocol.task == EWE:
            return with_estimates(splits, dialogues)
        return with_emotions(splits, protocol.others[0]) if protocol.task == EMOTIONS else splits

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recording of every turn.

        ``audio``: the turn's file below ``sentences/wav``. ``visual``: the dialogue's video below ``dialog/avi/DivX``
        with the turn's times. It shows both people; public readers take the left half for the person with the markers
        (unconfirmed).

        Raises:
            CorpusNotFoundError: none of the recordings exists.
        """
        clips = self._places(protocol, kind)
        if not any(path.is_file() for path in _paths(clips)):
            pattern = "sentences/wav/DIALOGUE/*.wav" if kind == "audio" else "dialog/avi/DivX/*.avi"
            raise CorpusNotFoundError(
                f"{self.card.title}: no {kind} recording was found below {self._release()} (searched: "
                f"Session{{1..5}}/{pattern}). Extract the full release.\n"
                f"{self._how_to_get()}"
            )
        return clips

    def findings(self, protocol: Protocol) -> list[Finding]:
        """Counts by session, transcripts, labels against votes, times, and recordings if there are any."""
        dialogues = self._dialogues()
        plan = _PLANS[protocol.id.partition("/")[2]]
        default = self.protocol()
        findings = self.other_counts(default, self.conversations(default))
        findings += transcripts(dialogues)
        findings += _votes(dialogues)
        for split, part in self.conversations(default).items():
            findings += vote_findings(split, part, _RULES)
        findings += times(dialogues)
        if plan.published:
            without_majority = {
                f"{dialogue.name}_{one.id}"
                for dialogue in dialogues
                for one in dialogue.utterances
                if one.code == NO_AGREEMENT
            }
            text = (
                f"{len(PUBLISHED_HAPPY & without_majority)} of {len(PUBLISHED_HAPPY)} utterances without majority are "
                f"happy here, as in the published feature files"
            )
            findings.append(Finding("note", "relabelled", text))
        for kind in ("audio", "visual"):
            findings += self._recordings(protocol, kind)
        return findings

    def other_counts(self, protocol: Protocol, splits: Splits) -> list[Finding]:
        """Dialogues and rated utterances by session; not for the published feature files."""
        if _PLANS[protocol.id.partition("/")[2]].published:
            return []
        return _counts([dialogue for part in splits.values() for dialogue in part])

    def _protocol_of(self, protocol: Protocol, task: TaskSpec) -> str:
        # Protocols share tasks, but not the session of test or the turns.
        if task == protocol.task:
            return protocol.id
        plan = _PLANS[protocol.id.partition("/")[2]]
        for name, other in _PLANS.items():
            if self.protocol(name).task == task and (other.test, other.published) == (plan.test, plan.published):
                return self.protocol(name).id
        return f"{protocol.id}-{task.name}"

    def _places(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        # Paths of the release for every turn.
        release = self._release()
        clips: dict[Key, Clip] = {}
        for conversations in self.conversations(protocol).values():
            for conversation in conversations:
                session = release / f"Session{conversation.id[4]}"
                for turn in conversation.turns:
                    if kind == "audio":
                        name = f"{conversation.id}_{turn.id}.wav"
                        clip = Clip(session / "sentences" / "wav" / conversation.id / name)
                    else:
                        video = session / "dialog" / "avi" / "DivX" / f"{conversation.id}.avi"
                        clip = Clip(video, turn.start or 0.0, turn.end)
                    clips[conversation.id, turn.id] = clip
        return clips

    def _recordings(self, protocol: Protocol, kind: MediaKind) -> list[Finding]:
        paths = _paths(self._places(protocol, kind))
        missing = [path.name for path in paths if not path.is_file()]
        if len(missing) == len(paths):
            # A copy for text only is complete.
            return []
        text = f"{kind}: {len(paths) - len(missing)} of {len(paths)} files exist"
        if missing:
            text += f"; missing: {some(missing)}"
        return [Finding("note" if missing else "ok", "clips", text)]

    def _release(self) -> Path:
        root = self.root()
        return root / UNPACKED if (root / UNPACKED).is_dir() else root

    def _pairs(self) -> list[tuple[int, Path, Path]]:
        # Session, evaluation and transcription of every dialogue.
        release = self._release()
        folders = {session: release / f"Session{session}" / "dialog" for session in SESSIONS}
        missing = [
            f"Session{session}/dialog/{name}"
            for session, folder in folders.items()
            for name in ("EmoEvaluation", "transcriptions")
            if not (folder / name).is_dir() or not dialogue_files(folder / name)
        ]
        pairs = []
        if not missing:
            for session, folder in folders.items():
                for evaluation in dialogue_files(folder / "EmoEvaluation"):
                    pairs.append((session, evaluation, folder / "transcriptions" / evaluation.name))
            missing = [
                f"Session{session}/dialog/transcriptions/{path.name}"
                for session, _, path in pairs
                if not path.is_file()
            ]
        if missing:
            raise CorpusNotFoundError(
                f"{self.card.title}: {some(missing)} not found (or without a dialogue) in {release}. Add the files, "
                f"or correct the path.\n"
                f"{self._how_to_get()}"
            )
        return pairs

    def _dialogues(self) -> list[Dialogue]:
        return [read_dialogue(evaluation, spoken, session) for session, evaluation, spoken in self._pairs()]


def _paths(clips: Mapping[Key, Clip]) -> list[Path]:
    return list(dict.fromkeys(clip.path for clip in clips.values()))


def _label(label: str, plan: _Plan) -> str | None:
    # Name under the protocol of one of the nine labels, or None.
    if label not in get_schema("iemocap6"):
        return None
    if plan.labels == "four":
        return map_between("iemocap6", "iemocap4")(label)
    return label if plan.labels == "six" or label in get_schema("iemocap4") else None


def _emotion(dialogue: Dialogue, utterance: Utterance, plan: _Plan) -> str | None:
    nine = get_schema("iemocap9")
    if plan.published and utterance.code == NO_AGREEMENT and f"{dialogue.name}_{utterance.id}" in PUBLISHED_HAPPY:
        return "happy"
    return _label(nine.canonical(utterance.code), plan) if utterance.code in nine else None


def _emotion_votes(utterance: Utterance, plan: _Plan) -> dict[str, int]:
    # Merged labels (happy and excited) count once per rater.
    ballots = [{_label(label, plan) for label in ballot} for ballot in utterance.ballots]
    labels = get_schema("iemocap6" if plan.labels == "six" else "iemocap4").labels
    return {label: sum(label in ballot for ballot in ballots) for label in labels}


def _turn(dialogue: Dialogue, utterance: Utterance, plan: _Plan) -> Turn:
    return Turn(
        id=utterance.id,
        speaker=f"Ses0{dialogue.session}_{utterance.id[0]}",
        text=dialogue.texts.get(utterance.id),
        start=utterance.start,
        end=utterance.end,
        targets={
            "emotion": Target(_emotion(dialogue, utterance, plan), _emotion_votes(utterance, plan)),
            **vote_targets(utterance.votes, _RULES, _NINE.labels, len(utterance.ballots)),
            "vad": Target(utterance.vad),
        },
    )


def _counts(dialogues: list[Conversation]) -> list[Finding]:
    text = f"{len(dialogues)} dialogues in five sessions"
    good = len(dialogues) == DIALOGUES
    findings = [Finding("ok" if good else "fault", "counts", text if good else f"{text}; the release has {DIALOGUES}")]
    for session, expected in UTTERANCES.items():
        number = sum(len(dialogue) for dialogue in dialogues if dialogue.id[4] == str(session))
        text = f"session {session}: {number} rated utterances"
        if number == expected:
            findings.append(Finding("ok", "counts", text))
        else:
            text = (
                f"{text}; the release has {expected}: files are cut off, edited, or of another release. Get them again."
            )
            findings.append(Finding("fault", "counts", text))
    return findings


def _votes(dialogues: list[Dialogue]) -> list[Finding]:
    nine = get_schema("iemocap9")
    against, agreed, outside = [], [], []
    for dialogue in dialogues:
        for one in dialogue.utterances:
            name = f"{dialogue.name}_{one.id}"
            if one.code == NO_AGREEMENT:
                agreed += [name] * (one.majority is not None)
            elif one.majority is not None:
                label = nine.canonical(one.code) if one.code in nine else "other"
                against += [name] * (one.majority != label)
            outside += [name] * (one.vad is None)
    findings = []
    if against:
        text = f"utterances whose label is not that of most raters: {some(against)}"
        findings.append(Finding("note", "votes", text))
    if agreed:
        text = f"utterances without a label although most raters agree: {some(agreed)}"
        findings.append(Finding("note", "votes", text))
    if not against and not agreed:
        findings.append(Finding("ok", "votes", "no label contradicts the raters' majority"))
    if outside:
        text = f"utterances with a mean rating outside {LOW:g} to {HIGH:g}, without a vad target: {some(outside)}"
        findings.append(Finding("note", "ratings", text))
    return findings
