import re
import wave

import numpy as np
import pytest
import torch

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data import open_corpus
from ercfusion.data.bound import bound_protocol, differences_from_card
from ercfusion.data.check import check_corpus
from ercfusion.data.corpora._iemocap_files import read_dialogue
from ercfusion.data.corpora._iemocap_vad import VAD
from ercfusion.data.corpora.iemocap import LABELS, PUBLISHED_HAPPY, UTTERANCES, IemocapCorpus
from ercfusion.data.label_mixture import mixture_of
from ercfusion.data.media import Clip
from ercfusion.data.raters import evaluator_weighted_estimate, evaluator_weights
from ercfusion.data.store import encode_targets
from ercfusion.testing.twins.iemocap import NAMES, write_iemocap

EVALUATION = "Session5/dialog/EmoEvaluation/Ses05F_impro01.txt"
TRANSCRIPTION = "Session5/dialog/transcriptions/Ses05F_impro01.txt"
# Three utterances as the release writes them: a fourth line of each is the actor's own answer.
RATED = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[10.5000 - 12.2500]\tSes05F_impro01_F001\txxx\t[2.5000, 3.0000, 3.5000]
C-E1:\tFrustration; Anger;\t()
C-E2:\tSadness;\t(tired; or: bored)
C-E4:\tNeutral;\t()
C-F1:\tFrustration;\t()
A-E3:\tval 2; act 3; dom  3;\t()
A-F1:\tval 1; act ; dom  5;\t()

[6.2901 - 8.2357]\tSes05F_impro01_F000\tfru\t[2.0000, 4.0000, 1.0000]
C-E1:\tFrustration; Anger;\t()
C-E2:\tFrustration;\t()
C-E4:\tOther;\t()
C-F1:\tHappiness;\t()

[7.5000 - 9.0000]\tSes05F_impro01_M000\texc\t[5.5000, 3.0000, 3.0000]
C-E1:\tNeutral state;\t()
C-E2:\t;\t()
C-E4:\tOther;\t()
"""
SPOKEN = """Ses05F_impro01_F000 [006.2901-008.2357]: Where is it?
Ses05F_impro01_M000 [007.5000-009.0000]:  Up there: on the roof.
M: Mhm.
Ses05F_impro01_MXX0 [009.1000-009.4000]: [BREATHING]
Ses05F_impro01_F001 [010.5000-012.2500]: Again.
"""


@pytest.fixture
def twin(tmp_path):
    return write_iemocap(tmp_path / "iemocap", audio=False)


@pytest.fixture
def known(twin):
    (twin / EVALUATION).write_text(RATED, encoding="utf-8")
    (twin / TRANSCRIPTION).write_text(SPOKEN, encoding="utf-8")
    return twin


def load(folder, protocol=None):
    corpus = open_corpus("iemocap", folder)
    return corpus.conversations(corpus.protocol(protocol))


def dialogue(folder, protocol=None, name="Ses05F_impro01"):
    return next(one for part in load(folder, protocol).values() for one in part if one.id == name)


def findings(folder, topic, protocol=None):
    corpus = open_corpus("iemocap", folder)
    return [finding for finding in corpus.findings(corpus.protocol(protocol)) if finding.topic == topic]


def problem(folder, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        load(folder)
    assert str(caught.value).count("\n") <= 3
    return str(caught.value)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# What is read


def test_turns(known):
    first, second, third = dialogue(known).turns
    assert [turn.id for turn in (first, second, third)] == ["F000", "M000", "F001"]
    assert [turn.speaker for turn in (first, second, third)] == ["Ses05_F", "Ses05_M", "Ses05_F"]
    assert [turn.text for turn in (first, second, third)] == ["Where is it?", "Up there: on the roof.", "Again."]
    assert (first.start, first.end) == (6.2901, 8.2357)


def test_targets(known):
    first, second, third = dialogue(known).turns
    assert [turn.targets["emotion"].value for turn in (first, second, third)] == ["frustrated", "excited", None]
    # What the actor said of himself counts neither here nor in the released label.
    none = dict.fromkeys(get_schema("iemocap9").labels, 0)
    assert first.targets["votes"].votes == {**none, "frustrated": 2, "angry": 1}
    six = {label: count for label, count in first.targets["votes"].votes.items() if label in get_schema("iemocap6")}
    assert first.targets["emotion"].votes == six
    assert first.targets["votes"].value["frustrated"] == pytest.approx(2 / 3)
    assert third.targets["votes"].votes == {**none, "frustrated": 1, "angry": 1, "sad": 1, "neutral": 1}
    assert third.targets["votes"].value["sad"] == 0.25
    assert first.targets["vad"].value == (2.0, 4.0, 1.0)
    # A mean of 5.5 cannot come from ratings of 1 to 5.
    assert second.targets["vad"].value is None
    assert second.targets["votes"].value["neutral"] == 1


def test_votes_in_the_labels_of_the_protocol(known):
    edit(known / EVALUATION, "Frustration; Anger;", "Happiness; Excited; Fear;")
    edit(known / EVALUATION, "C-E2:\tSadness;", "C-E2:\tExcited;")

    def votes(protocol):
        found = {turn.id: turn.targets["emotion"].votes for turn in dialogue(known, protocol).turns}["F001"]
        return {label: count for label, count in found.items() if count}

    assert votes("6way-ses5") == {"happy": 1, "neutral": 1, "excited": 2}
    # One rater named both happy and excited, and is one vote for what they are merged into.
    assert votes("4way-ses5") == {"happy": 2, "neutral": 1}
    edit(known / EVALUATION, "_F001\txxx", "_F001\thap")
    assert votes("4way-cogmen") == {"happy": 1, "neutral": 1}


def test_targets_fit_the_tasks(twin):
    corpus = open_corpus("iemocap", twin)
    for protocol in corpus.protocols.values():
        for conversations in corpus.conversations(protocol).values():
            targets = encode_targets(conversations, protocol.task)
            assert targets.valid.any()
            labelled = targets.value[targets.valid]
            if protocol.task.kind == "distribution":
                assert torch.allclose(labelled.sum(1), torch.ones(len(labelled)))
            if protocol.task.kind == "regression":
                assert labelled.min() >= 1
                assert labelled.max() <= 5


def test_no_vote_for_a_label_is_no_distribution(known):
    edit(known / EVALUATION, "Neutral state;", "Other;")
    target = dialogue(known).turns[1].targets["votes"]
    assert target.value is None
    assert sum(target.votes.values()) == 0


@pytest.mark.parametrize(
    ("code", "six", "four", "cogmen"),
    [
        ("hap", "happy", "happy", "happy"),
        ("exc", "excited", "happy", None),
        ("fru", "frustrated", None, None),
        ("neu", "neutral", "neutral", "neutral"),
        ("fea", None, None, None),
        ("oth", None, None, None),
        ("xxx", None, None, None),
    ],
)
def test_labels_of_the_protocols(known, code, six, four, cogmen):
    edit(known / EVALUATION, "\tfru\t", f"\t{code}\t")

    def found(protocol):
        turns = [turn for turn in dialogue(known, protocol).turns if turn.id == "F000"]
        return turns[0].targets["emotion"].value if turns else "removed"

    assert (found("6way-ses5"), found("4way-ses5")) == (six, four)
    assert (found("vad-ses5"), found("votes-ses5")) == (six, six)
    # A sad turn keeps the dialogue from being empty, and so from being left out.
    edit(known / EVALUATION, "_M000\texc\t", "_M000\tsad\t")
    assert found("6way-cogmen") == (six or "removed")
    assert found("4way-cogmen") == (cogmen or "removed")


def test_published_files_have_no_unlabelled_turns_and_53_more_happy(twin):
    whole, published = dialogue(twin, name="Ses05F_impro07"), dialogue(twin, "6way-cogmen", name="Ses05F_impro07")
    kept = {turn.id: turn.targets["emotion"].value for turn in published.turns}
    given = {turn.id: turn.targets["emotion"].value for turn in whole.turns}
    assert given["M010"] is None
    assert {**{name: label for name, label in given.items() if label}, "M010": "happy"} == kept
    assert len(kept) < len(given)
    assert "13 of 53" in findings(twin, "relabelled", "4way-cogmen")[0].text
    assert not findings(twin, "relabelled")
    # With a label of its own, the release's label stays.
    path = twin / "Session5/dialog/EmoEvaluation/Ses05F_impro07.txt"
    edit(path, "Ses05F_impro07_M010\txxx", "Ses05F_impro07_M010\tsad")
    again = dialogue(twin, "6way-cogmen", name="Ses05F_impro07")
    assert next(turn for turn in again.turns if turn.id == "M010").targets["emotion"].value == "sad"
    assert "12 of 53" in findings(twin, "relabelled", "4way-cogmen")[0].text


def test_a_dialogue_without_a_labelled_turn_is_left_out_of_the_published_protocols(known):
    path = known / EVALUATION
    path.write_text(re.sub(r"\t(fru|exc)\t", "\txxx\t", path.read_text()))
    assert len(load(known)["test"]) == 4
    assert len(load(known, "4way-cogmen")["test"]) == 3
    assert {turn.targets["emotion"].value for turn in dialogue(known).turns} == {None}


# Splits and protocols


def test_a_session_is_test_and_dev_is_never_of_it(twin):
    corpus = open_corpus("iemocap", twin)
    assert corpus.protocol().id == "iemocap/6way-ses5"
    for session in range(1, 6):
        for labels in ("6way", "4way"):
            splits = load(twin, f"{labels}-ses{session}")
            assert {one.id[:5] for one in splits["test"]} == {f"Ses0{session}"}
            assert len(splits["test"]) == len(NAMES)
            assert [len(splits["train"]), len(splits["dev"])] == [14, 2]
            names = [one.id for part in splits.values() for one in part]
            assert len(set(names)) == 5 * len(NAMES)
            for part in splits.values():
                assert [one.id for one in part] == sorted(one.id for one in part)
    same = [[one.id for one in load(twin, name)["dev"]] for name in ("6way-ses5", "vad-ses5", "4way-cogmen")]
    assert same[0] == same[1] == same[2]


def test_tasks():
    tasks = {name.partition("/")[2]: protocol.task for name, protocol in IemocapCorpus.protocols.items()}
    assert (tasks["vad-ses5"].metric, tasks["vad-ses5"].dimensions[0]) == ("ccc", "valence")
    assert (tasks["votes-ses5"].kind, tasks["votes-ses5"].size) == ("distribution", 9)
    assert {task.size for name, task in tasks.items() if name.startswith("4way")} == {4}
    assert {task.size for name, task in tasks.items() if name in ("majority-ses5", "all-inclusive-ses5")} == {9}
    assert len(tasks) == 20


def test_every_protocol_offers_all_tasks():
    corpus = open_corpus("iemocap")
    names = {"emotion", "vad", "votes", "votes_majority", "votes_plurality", "votes_smoothed", "votes_all"}
    for protocol in corpus.protocols.values():
        own = {protocol.task.name} & {"vad_ewe", "vad_emotions"}
        assert {task.name for task in protocol.tasks} == names | own
        assert corpus.with_tasks(protocol, None).tasks == (protocol.task,)

    def identifier(protocol, *tasks):
        return corpus.with_tasks(corpus.protocol(protocol), tasks).id

    assert identifier("6way-ses5", "vad") == "iemocap/vad-ses5"
    assert identifier("votes-ses5", "emotion", "votes") == "iemocap/6way-ses5"
    assert identifier("4way-ses5", "votes_all") == "iemocap/all-inclusive-ses5"
    # Another session of test, or other turns, are another protocol.
    assert identifier("6way-ses1", "vad") == "iemocap/6way-ses1-vad"
    assert identifier("6way-cogmen", "votes") == "iemocap/6way-cogmen-votes"


def test_rules_of_votes(known):
    targets = {turn.id: turn.targets for turn in dialogue(known).turns}
    # Frustrated by two of three raters, of whom one also named anger and the third another emotion.
    assert targets["F000"]["votes_majority"].value == targets["F000"]["votes_plurality"].value == "frustrated"
    assert targets["F000"]["votes_all"].value == {"frustrated", "angry"}
    assert targets["F000"]["votes_smoothed"].value["angry"] == pytest.approx(0.95 / 3 + 2 / 3 * 0.05 / 8)
    # Four emotions by three raters: no label is alone.
    assert targets["F001"]["votes_majority"].value is None
    assert targets["F001"]["votes_plurality"].value is None
    assert targets["F001"]["votes_all"].value == {"frustrated", "angry", "sad", "neutral"}
    # One vote for neutral, two raters without one: the most votes, but not the majority of the raters.
    assert targets["M000"]["votes_majority"].value is None
    assert targets["M000"]["votes_plurality"].value == "neutral"


def test_the_doctor_counts_what_each_rule_keeps(twin):
    notes = [one.text for one in findings(twin, "votes") if "labelled by the rule" in one.text]
    assert [text.partition(":")[0] for text in notes] == ["train", "dev", "test"]
    splits = load(twin)
    for split, text in zip(splits, notes, strict=True):
        turns = [turn for one in splits[split] for turn in one.turns]
        unique = sum(turn.targets["votes_plurality"].valid for turn in turns)
        assert f"plurality {unique}," in text


def test_order_of_speech_whatever_the_order_in_the_file(twin):
    for part in load(twin).values():
        for one in part:
            starts = [turn.start for turn in one.turns]
            assert starts == sorted(starts)
            assert set(one.speakers) == {f"{one.id[:5]}_F", f"{one.id[:5]}_M"}
            assert all(turn.text for turn in one.turns)


def test_the_unpacked_folder_may_lie_in_the_raw_folder(twin, tmp_path):
    expected = load(twin)
    outer = tmp_path / "outer"
    outer.mkdir()
    twin.rename(outer / "IEMOCAP_full_release")
    assert load(outer) == expected


def test_what_macos_leaves_and_folders_of_single_raters_are_passed_over(twin):
    expected = load(twin)
    for kind in ("EmoEvaluation", "transcriptions"):
        (twin / "Session1/dialog" / kind / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07")
    folder = twin / "Session1/dialog/EmoEvaluation/Categorical"
    folder.mkdir()
    (folder / "Ses01F_impro01_e2_cat.txt").write_text("Ses01F_impro01_F000 :Neutral state; ()\n")
    assert load(twin) == expected
    assert len(open_corpus("iemocap", twin).files()) == 2 * 5 * len(NAMES)


def test_the_twin_is_the_same_for_the_same_seed(tmp_path):
    def content(name, seed):
        folder = write_iemocap(tmp_path / name, seed)
        return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    assert content("one", 3) == content("two", 3) != content("three", 4)


def test_windows_line_ends(known):
    expected = dialogue(known)
    for name in (EVALUATION, TRANSCRIPTION):
        path = known / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert dialogue(known) == expected


# Recordings


def test_audio(tmp_path):
    folder = write_iemocap(tmp_path)
    corpus = open_corpus("iemocap", folder)
    found = corpus.clips(corpus.protocol(), "audio")
    assert list(found) == [(one.id, turn.id) for part in load(folder).values() for one in part for turn in one.turns]
    clip = found["Ses01M_impro03", "F000"]
    assert clip == Clip(folder / "Session1/sentences/wav/Ses01M_impro03/Ses01M_impro03_F000.wav")
    turn = next(one for one in dialogue(folder, name="Ses01M_impro03").turns if one.id == "F000")
    with wave.open(str(clip.path)) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(turn.end - turn.start, abs=0.001)
    assert [finding.level for finding in findings(folder, "clips")] == ["ok"]
    clip.path.unlink()
    # The place is named whether the file is there or not.
    assert corpus.clips(corpus.protocol(), "audio")["Ses01M_impro03", "F000"] == clip
    note = findings(folder, "clips")[0]
    assert note.level == "note"
    assert "missing: 1 (Ses01M_impro03_F000.wav)" in note.text


@pytest.mark.slow
def test_videos(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: no videos can be written")
    folder = write_iemocap(tmp_path, audio=False, videos=True)
    corpus = open_corpus("iemocap", folder)
    found = corpus.clips(corpus.protocol("4way-cogmen"), "visual")
    turn = dialogue(folder, "4way-cogmen").turns[1]
    clip = found["Ses05F_impro01", turn.id]
    assert clip == Clip(folder / "Session5/dialog/avi/DivX/Ses05F_impro01.avi", turn.start, turn.end)
    assert clip.path.is_file()
    assert turn.start > 0
    assert [finding.text for finding in findings(folder, "clips")] == ["visual: 20 of 20 files exist"]


@pytest.mark.parametrize(("kind", "where"), [("audio", "sentences/wav"), ("visual", "avi/DivX")])
def test_text_alone_is_complete_but_has_no_recordings(twin, kind, where):
    corpus = open_corpus("iemocap", twin)
    with pytest.raises(CorpusNotFoundError, match=where) as caught:
        corpus.clips(corpus.protocol(), kind)
    assert "sail.usc.edu" in str(caught.value)
    assert not findings(twin, "clips")


# Findings


def test_findings_of_the_twin(twin):
    corpus = open_corpus("iemocap", twin)
    faults = [finding for finding in check_corpus(corpus, corpus.protocol()) if finding.level == "fault"]
    assert {finding.topic for finding in faults} == {"counts", "label counts"}
    assert "20 dialogues in five sessions; the release has 151" in [finding.text for finding in faults]
    assert sum("rated utterances; the release has" in finding.text for finding in faults) == 5
    assert [finding.level for finding in findings(twin, "votes")] == ["ok", "note", "note", "note"]
    assert "20 transcribed pieces (XX) and 20 lines" in findings(twin, "transcripts")[1].text


def test_counts_as_released_are_ok(monkeypatch, twin):
    turns = [one for part in load(twin).values() for one in part]
    counts = {session: sum(len(one) for one in turns if one.id[:5] == f"Ses0{session}") for session in range(1, 6)}
    monkeypatch.setattr("ercfusion.data.corpora.iemocap.UTTERANCES", counts)
    monkeypatch.setattr("ercfusion.data.corpora.iemocap.DIALOGUES", 20)
    assert {finding.level for finding in findings(twin, "counts")} == {"ok"}


def test_a_session_that_was_cut_off_gives_another_protocol(monkeypatch, twin):
    """The card has no counts of train and dev; those by session are known."""
    corpus = open_corpus("iemocap", twin)
    protocol = corpus.protocol("vad-ses5")  # without label counts
    splits = corpus.conversations(protocol)
    everyone = [one for part in splits.values() for one in part]
    counts = {session: sum(len(one) for one in everyone if one.id[4] == str(session)) for session in range(1, 6)}
    monkeypatch.setattr("ercfusion.data.corpora.iemocap.UTTERANCES", counts)
    monkeypatch.setattr("ercfusion.data.corpora.iemocap.DIALOGUES", len(everyone))
    assert bound_protocol(corpus, protocol, splits) is protocol
    splits["train"] = splits["train"][1:]
    assert bound_protocol(corpus, protocol, splits).id == "iemocap/vad-ses5-other"
    found = differences_from_card(corpus, protocol, splits)
    assert [finding.topic for finding in found] == ["counts", "counts"]


def test_times_of_thousands_of_digits(known):
    edit(known / EVALUATION, "[6.2901", "[" + "9" * 5000)
    assert "but [START - END], name, label and [V, A, D] are expected" in problem(known)


def test_oddities_are_found(known):
    edit(known / TRANSCRIPTION, "Ses05F_impro01_F001", "Ses05F_impro01_F002")
    texts = [finding.text for finding in findings(known, "transcripts")]
    assert "rated utterances without a transcript: 1 (Ses05F_impro01_F001)" in texts
    assert "transcribed utterances without a rating: 1 (Ses05F_impro01_F002)" in texts
    assert dialogue(known).turns[2].text is None
    # F000 is frustrated by two of three; M000 is excited by none, but no label has more than half of the votes.
    assert findings(known, "votes")[0].level == "ok"
    edit(known / EVALUATION, "\tfru\t", "\thap\t")
    assert "not that of most raters: 1 (Ses05F_impro01_F000)" in findings(known, "votes")[0].text
    edit(known / EVALUATION, "\thap\t", "\txxx\t")
    assert "although most raters agree: 1 (Ses05F_impro01_F000)" in findings(known, "votes")[0].text
    assert "1 (Ses05F_impro01_M000)" in findings(known, "ratings")[0].text


def test_times(known):
    overlaps = int(findings(known, "times")[0].text.split()[0])
    edit(known / EVALUATION, "[7.5000 - 9.0000]", "[8.5000 - 8.5000]")
    after = findings(known, "times")
    assert int(after[0].text.split()[0]) == overlaps - 1
    assert "do not end after they start: 1 (Ses05F_impro01_M000)" in after[1].text


# The card


def test_facts_of_the_card_agree_with_each_other():
    totals = {label: sum(LABELS[session][label] for session in LABELS) for label in LABELS[1]}
    expected = {"happy": 595, "sad": 1084, "neutral": 1708, "angry": 1103, "excited": 1041, "frustrated": 1849}
    assert totals == expected
    assert sum(UTTERANCES.values()) == 10039
    # No agreement, and the four other labels.
    assert 10039 - sum(totals.values()) == 2507 + 107 + 40 + 2 + 3
    assert len(PUBLISHED_HAPPY) == 53
    labels = {name: part["test"] for name, part in IemocapCorpus.card.labels.items()}
    assert sum(labels["iemocap/6way-ses5"].values()) == 1622
    assert sum(labels["iemocap/6way-cogmen"].values()) == 1623
    assert sum(labels["iemocap/4way-cogmen"].values()) == 943
    assert sum(sum(labels[f"iemocap/4way-ses{session}"].values()) for session in range(1, 6)) == 5531
    for name, counts in labels.items():
        assert tuple(counts) == IemocapCorpus.protocols[name].task.schema.labels


# Files that are not as released


def test_missing_files(twin, tmp_path):
    assert "is not a folder" in problem(tmp_path / "nowhere", CorpusNotFoundError)
    (twin / TRANSCRIPTION).unlink()
    message = problem(twin, CorpusNotFoundError)
    assert TRANSCRIPTION in message
    assert "sail.usc.edu" in message
    (twin / "Session2").rename(twin / "Session9")
    message = problem(twin, CorpusNotFoundError)
    assert "2 (Session2/dialog/EmoEvaluation, Session2/dialog/transcriptions)" in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\tfru\t", "\tfrus\t", "line 11: 'frus' is not a label of IEMOCAP. Did you mean 'fru'?"),
        ("[6.2901 - 8.2357]", "[6.2901 - ]", "line 11: found '[6.2901 - ]"),
        ("4.0000, 1.0000]", "4.0000]", "line 11: found"),
        ("4.0000, 1.0000]", "4.0000, nan]", "line 11: found"),
        ("_F000\tfru", "_F001\tfru", "line 11: 'Ses05F_impro01_F001' is also on line 3"),
        ("impro01_F000", "impro02_F000", "line 11: found 'Ses05F_impro02_F000', but an utterance of Ses05F_impro01"),
        ("_F000", "_X000", "line 11: found 'Ses05F_impro01_X000'"),
        ("C-E2:\tSadness;", "C-E2:\tSadnes;", "line 5: C-E2: 'sadnes' is not a choice of raters. Did"),
        ("C-E2:\tSadness;", "C-E2 Sadness;", "line 5: found 'C-E2 Sadness;"),
        ("A-E3:", "B-E3:", "line 8: found 'B-E3:"),
        ("% [START", "C-E1:\tAnger;\t()\n% [START", "line 1: there is a rating before the first utterance"),
    ],
)
def test_bad_evaluations(known, old, new, words):
    edit(known / EVALUATION, old, new)
    message = problem(known)
    assert EVALUATION in message
    assert words in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[006.2901-008.2357]:", "006.2901-008.2357:", "line 1: found 'Ses05F_impro01_F000 006.2901"),
        ("Ses05F_impro01_M000", "Ses05F_impro01_F000", "line 2: 'Ses05F_impro01_F000' is also on line 1"),
        ("Ses05F_impro01_M000", "Ses05M_impro01_M000", "line 2: found 'Ses05M_impro01_M000'"),
    ],
)
def test_bad_transcriptions(known, old, new, words):
    edit(known / TRANSCRIPTION, old, new)
    message = problem(known)
    assert TRANSCRIPTION in message
    assert words in message


def test_bad_files(known):
    path = known / EVALUATION
    path.write_text(RATED.splitlines()[0])
    assert "has no utterance" in problem(known)
    path.write_bytes(RATED.replace("tired", "fatigué").encode("latin-1"))
    assert "line 5, byte" in problem(known)
    path.write_bytes(b"")
    assert "is empty" in problem(known)
    path.unlink()
    for kind in ("EmoEvaluation", "transcriptions"):
        (known / f"Session4/dialog/{kind}/Ses04F_impro01.txt").rename(
            known / f"Session5/dialog/{kind}/Ses04F_impro01.txt"
        )
    assert "not that of a dialogue of session 5" in problem(known)


def test_unknown_protocol(twin):
    with pytest.raises(ConfigError, match="Did you mean 'iemocap/6way-ses"):
        load(twin, "6way-ses6")


# Targets from the raters' numbers


def test_ratings_of_a_file(known):
    dialogue = read_dialogue(known / EVALUATION, known / TRANSCRIPTION, 5)
    ratings = {utterance.id: dict(utterance.ratings) for utterance in dialogue.utterances}
    assert ratings == {"F001": {"E3": (2.0, 3.0, 3.0)}, "F000": {}, "M000": {}}
    edit(known / EVALUATION, "val 2; act 3; dom  3", "val 9; act ; dom 3.5")
    (rating,) = read_dialogue(known / EVALUATION, known / TRANSCRIPTION, 5).utterances[-1].ratings.values()
    assert np.isnan(rating[:2]).all()
    assert rating[2] == 3.5


def test_raters_are_weighted_by_agreement(twin):
    corpus = IemocapCorpus(twin)
    protocol = corpus.protocol("vad-ewe-ses5")
    splits = corpus.conversations(protocol)
    turns = [turn for part in splits.values() for conversation in part for turn in conversation.turns]
    keys = [key for part in splits.values() for conversation in part for key in conversation.keys()]  # noqa: SIM118
    files = [(dialogue.name, utterance) for dialogue in corpus._dialogues() for utterance in dialogue.utterances]
    ratings = {(name, one.id): [one.ratings[rater] for rater in ("E3", "E4", "E6")] for name, one in files}
    table = np.array([ratings[key] for key in keys])
    weights = evaluator_weights(table)
    assert (weights[0] > weights[2]).all(), "the third rater of the twin is the noisiest"
    expected = evaluator_weighted_estimate(table, weights)
    found = np.array([turn.targets["vad_ewe"].value for turn in turns])
    np.testing.assert_allclose(found, expected)
    assert np.isnan(table).any()
    assert all("vad_ewe" not in turn.targets for turn in corpus.conversations(corpus.protocol())["test"][0].turns)


def test_emotions_as_gaussians_of_the_ratings(twin):
    corpus = IemocapCorpus(twin)
    protocol = corpus.protocol("vad-emotions-ses5")
    splits = corpus.conversations(protocol)
    mixture = mixture_of(splits["train"], TaskSpec("emotion", "single_label", get_schema("iemocap6")), VAD)
    turns = [turn for conversation in splits["test"] for turn in conversation.turns]
    for turn in turns:
        shares = turn.targets["vad_emotions"].value
        assert sum(shares.values()) == pytest.approx(1)
        np.testing.assert_allclose(list(shares.values()), mixture.distribution([turn.targets["vad"].value])[0])
    assert len(turns) == sum(map(len, splits["test"]))


def test_ratings_that_cannot_be_combined(twin):
    for path in twin.rglob("EmoEvaluation/*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("A-")]
        path.write_text("\n".join(lines) + "\n")
    corpus = IemocapCorpus(twin)
    assert corpus.conversations(corpus.protocol("vad-ses5"))
    with pytest.raises(CorpusFormatError, match="have no ratings of single raters"):
        corpus.conversations(corpus.protocol("vad-ewe-ses5"))
