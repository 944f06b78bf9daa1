import csv
from collections import Counter

import pytest

from ercfusion._core.errors import CorpusFormatError, CorpusNotFoundError
from ercfusion.data import open_corpus
from ercfusion.data.check import check_corpus
from ercfusion.data.conversation import count_label_shifts
from ercfusion.data.corpora.meld import BAD_CLIPS, CLIP_FOLDERS, FILES
from ercfusion.data.media import Clip
from ercfusion.testing.twins import SIZES, write_meld
from ercfusion.testing.twins.meld_media import write_meld_media

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
ROW = '1,Hm.,Ada,neutral,neutral,0,0,1,1,"00:00:01,000","00:00:02,000"'


@pytest.fixture
def twin(tmp_path):
    return write_meld(tmp_path / "meld")


def load(folder, protocol=None):
    corpus = open_corpus("meld", folder)
    return corpus.conversations(corpus.protocol(protocol))


def problem(folder, error=CorpusFormatError):
    with pytest.raises(error) as caught:
        load(folder)
    assert str(caught.value).count("\n") <= 4
    return str(caught.value)


def keys(splits):
    return [(one.id, turn.id) for part in splits.values() for one in part for turn in one.turns]


def replace(folder, *lines, split="dev"):
    (folder / FILES[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_twin(twin):
    splits = load(twin)
    assert {split: len(conversations) for split, conversations in splits.items()} == SIZES
    first = splits["train"][0]
    assert (first.id, len(first), first.turns[0].id) == ("train/0", 1, "0")
    assert first.turns[0].end > first.turns[0].start > 0
    for conversation in splits["test"]:
        assert [turn.id for turn in conversation.turns] == [str(number) for number in range(len(conversation))]
        assert all(set(turn.targets) == {"emotion", "sentiment"} for turn in conversation.turns)


def test_the_twin_is_the_same_for_the_same_seed(tmp_path, twin):
    again, other = write_meld(tmp_path / "again"), write_meld(tmp_path / "other", seed=1)
    for name in FILES.values():
        assert (twin / name).read_bytes() == (again / name).read_bytes() != (other / name).read_bytes()


def test_both_protocols_see_both_targets(twin):
    assert load(twin, "7way") == load(twin, "meld/3way")
    assert open_corpus("meld").protocol().id == "meld/7way"


def test_rows_in_any_order_mark_and_windows_line_ends(twin):
    expected = load(twin)
    path = twin / FILES["train"]
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_bytes(("\ufeff" + "\r\n".join([header, *reversed(rows)]) + "\r\n").encode())
    assert load(twin) == expected


def test_a_twin_has_fewer_conversations_than_the_release(twin):
    corpus = open_corpus("meld", twin)
    faults = [finding for finding in check_corpus(corpus, corpus.protocol()) if finding.level == "fault"]
    assert Counter(finding.topic for finding in faults) == {"counts": 3, "label counts": 3}


def test_a_clean_file_has_no_oddities(twin):
    assert {finding.level for finding in open_corpus("meld", twin).findings(None)} == {"ok"}


def test_oddities_are_reported_and_kept(twin):
    def row(dialogue, utterance, start, end):
        return f'1,Hm.,Ada,neutral,neutral,{dialogue},{utterance},1,1,"00:{start}","00:{end}"'

    replace(
        twin,
        HEADER,
        row(1, 2, "05:00,000", "05:01,000"),
        row(1, 4, "04:00,000", "04:00,000"),
        row(3, 0, "05:00,000", "05:01,000"),
        row(3, 1, "06:00,000", "07:30,5"),
    )
    corpus = open_corpus("meld", twin)
    odd = corpus.oddities()["dev"]
    assert odd.absent_dialogues == (0, 2)
    assert odd.late_starts == odd.gaps == odd.time_steps_back == (1,)
    assert odd.repeated_clips == (("1", "1", 300.0, 301.0),)
    assert odd.no_duration == ("1/4",)
    assert odd.long_clips == {"3/1": 90.5}
    assert [len(conversation) for conversation in load(twin)["dev"]] == [2, 2]
    assert sum(finding.text.startswith("dev: ") for finding in corpus.findings(None)) == 7


def test_clips_in_two_splits(twin):
    replace(twin, HEADER, ROW)
    replace(twin, HEADER, ROW, split="test")
    corpus = open_corpus("meld", twin)
    assert corpus.shared_clips() == [("dev/0/0", "test/0/0")]
    assert any("dev/0/0 = test/0/0" in finding.text for finding in corpus.findings(None))


def test_missing_folder_and_missing_file(twin, tmp_path):
    message = problem(tmp_path / "nowhere", CorpusNotFoundError)
    assert "declare-lab/MELD" in message
    (twin / FILES["dev"]).unlink()
    assert "dev_sent_emo.csv not found" in problem(twin, CorpusNotFoundError)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (",neutral,neutral,0", ",neutrall,neutral,0", "line 2, column 'Emotion': 'neutrall' is not a label of meld7"),
        (",neutral,neutral,0", ",neutral,posi,0", "Did you mean 'positive'?"),
        (",0,0,1,", ",zero,0,1,", "line 2, column 'Dialogue_ID': found 'zero'"),
        (",0,0,1,", ",0,0.5,1,", "line 2, column 'Utterance_ID': found '0.5'"),
        ("00:00:01,000", "1 s", "line 2, column 'StartTime': found '1 s'"),
        (",Ada,", ",,", "line 2, column 'Speaker'"),
    ],
)
def test_bad_cells(twin, old, new, where):
    assert old in ROW
    replace(twin, HEADER, ROW.replace(old, new))
    message = problem(twin)
    assert "dev_sent_emo.csv" in message
    assert where in message


def test_missing_column(twin):
    replace(twin, HEADER.replace("Emotion,", "Emotions,"), ROW)
    assert "no column 'Emotion'" in problem(twin)


def test_duplicate_utterance(twin):
    replace(twin, HEADER, ROW, ROW.replace(",0,0,", ",0,1,"), ROW)
    message = problem(twin)
    assert "line 4: Dialogue_ID 0, Utterance_ID 0 is also on line 2" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (HEADER.encode(), "no records"),
        (f"{HEADER}\n{ROW}".encode("utf-16"), "UTF-16"),
        (f"{HEADER}\n{ROW.replace('Hm', 'Ça')}".encode("latin-1"), "line 2, byte 3"),
    ],
)
def test_bad_files(twin, content, words):
    (twin / FILES["test"]).write_bytes(content)
    message = problem(twin)
    assert "test_sent_emo.csv" in message
    assert words in message


# The real release


@pytest.fixture(scope="module")
def real(shared_data):
    return open_corpus("meld", shared_data("meld"))


@pytest.fixture(scope="module")
def splits(real):
    return real.conversations(real.protocol())


def of_each(splits, function):
    return tuple(function(splits[split]) for split in ("train", "dev", "test"))


def test_real_counts(real, splits):
    assert of_each(splits, len) == (1038, 114, 280)
    assert of_each(splits, lambda part: sum(map(len, part))) == (9989, 1109, 2610)
    assert of_each(splits, lambda part: sum(len(one) == 1 for one in part)) == (70, 6, 12)
    assert of_each(splits, lambda part: max(map(len, part))) == (24, 23, 33)
    assert of_each(splits, lambda part: max(len(one.speakers) for one in part)) == (9, 8, 8)
    assert of_each(splits, lambda part: sum(len(one.speakers) > 2 for one in part)) == (479, 56, 131)
    assert of_each(splits, lambda part: len({turn.speaker for one in part for turn in one.turns})) == (260, 47, 100)


@pytest.mark.parametrize(
    ("task", "label", "counts"),
    [
        ("emotion", "neutral", (4710, 470, 1256)),
        ("emotion", "joy", (1743, 163, 402)),
        ("emotion", "surprise", (1205, 150, 281)),
        ("emotion", "anger", (1109, 153, 345)),
        ("emotion", "sadness", (683, 111, 208)),
        ("emotion", "disgust", (271, 22, 68)),
        ("emotion", "fear", (268, 40, 50)),
        ("sentiment", "neutral", (4710, 470, 1256)),
        ("sentiment", "positive", (2334, 233, 521)),
        ("sentiment", "negative", (2945, 406, 833)),
    ],
)
def test_real_label_counts(splits, task, label, counts):
    assert (
        of_each(splits, lambda part: sum(t.targets[task].value == label for one in part for t in one.turns)) == counts
    )


def test_real_shifts(splits):
    own = of_each(splits, lambda part: count_label_shifts(part, "emotion", same_speaker=True))
    adjacent = of_each(splits, lambda part: count_label_shifts(part, "emotion", same_speaker=False))
    assert own == (4001, 427, 1003)
    assert adjacent == (5371, 607, 1353)


def test_real_oddities(real):
    odd = real.oddities()
    assert of_each(odd, lambda one: one.absent_dialogues) == ((60,), (), ())
    assert of_each(odd, lambda one: len(one.late_starts)) == (10, 0, 0)
    assert of_each(odd, lambda one: len(one.gaps)) == (65, 2, 2)
    assert of_each(odd, lambda one: len(one.repeated_clips)) == (20, 1, 4)
    assert of_each(odd, lambda one: len(one.no_duration)) == (0, 0, 1)
    assert of_each(odd, lambda one: len(one.long_clips)) == (0, 0, 2)
    assert of_each(odd, lambda one: len(one.time_steps_back)) == (23, 4, 4)
    assert max(odd["test"].long_clips.values()) == pytest.approx(304.94)
    assert len(real.shared_clips()) == 5


def test_real_files_pass_the_doctor(real):
    findings = check_corpus(real, real.protocol())
    assert not [finding for finding in findings if finding.level == "fault"]
    for topic in ("counts", "label counts"):
        assert sum(finding.topic == topic and finding.level == "ok" for finding in findings) == 3


@pytest.mark.parametrize("protocol", ["meld/7way", "meld/3way"])
def test_real_labels_are_those_of_the_card(real, splits, protocol):
    task = real.protocols[protocol].task
    for split, conversations in splits.items():
        found = Counter(turn.targets[task.name].value for one in conversations for turn in one.turns)
        assert dict(found) == dict(real.card.labels[protocol][split])


def test_real_bad_clips_are_turns(real, splits):
    assert set(BAD_CLIPS) <= set(keys(splits))


# Clips


def clips(folder, kind="visual"):
    corpus = open_corpus("meld", folder)
    return corpus.clips(corpus.protocol(), kind)


def media_findings(folder):
    return [finding for finding in open_corpus("meld", folder).findings(None) if finding.topic == "media"]


def touch(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_without_clips(twin):
    with pytest.raises(CorpusNotFoundError, match="no clips were found") as caught:
        clips(twin)
    message = str(caught.value)
    for place in ("train_splits", "train/train_splits", "MELD.Raw/train_splits", "MELD.Raw/train/train_splits"):
        assert f"{twin / place}," in message or f"{twin / place};" in message
    assert "output_repeated_splits_test" in message
    assert "MELD.Raw.tar.gz" in message
    assert not media_findings(twin)
    # Neither folders without clips nor what macOS leaves are clips.
    touch(twin / "train_splits", "readme.txt", "._dia0_utt0.mp4")
    with pytest.raises(CorpusNotFoundError, match="no clips were found"):
        clips(twin)


@pytest.mark.parametrize("within", ["", "{split}", "MELD.Raw", "MELD.Raw/{split}"])
def test_clips_where_the_archives_unpack_them(twin, within):
    for split, folder in CLIP_FOLDERS.items():
        touch(twin / within.format(split=split) / folder, "dia0_utt0.mp4", "._dia0_utt0.mp4")
    found = clips(twin)
    splits = load(twin)
    assert list(found) == keys(splits)
    assert found == clips(twin, "audio")
    for split, folder in CLIP_FOLDERS.items():
        clip = found[f"{split}/0", "0"]
        assert clip == Clip(twin / within.format(split=split) / folder / "dia0_utt0.mp4")
        assert clip.path.is_file()
        # A clip that is not there is named all the same.
        assert found[f"{split}/1", "2"].path == clip.path.with_name("dia1_utt2.mp4")


def test_second_cuts_are_preferred_in_test_only(twin):
    for folder in CLIP_FOLDERS.values():
        touch(twin / folder, "dia0_utt0.mp4", "final_videos_testdia0_utt0.mp4")
    names = {key: clip.path.name for key, clip in clips(twin).items()}
    assert names["test/0", "0"] == "final_videos_testdia0_utt0.mp4"
    assert names["train/0", "0"] == names["dev/0", "0"] == "dia0_utt0.mp4"
    (twin / CLIP_FOLDERS["test"] / "dia0_utt0.mp4").unlink()
    assert clips(twin)["test/0", "0"].path.is_file()


def test_one_split_without_clips(twin):
    touch(twin / "MELD.Raw" / "train_splits", *(f"dia0_utt{number}.mp4" for number in range(3)))
    found = clips(twin)
    assert found["train/0", "0"].path.is_file()
    assert found["dev/0", "0"].path == twin / "dev_splits_complete" / "dia0_utt0.mp4"
    text = {finding.text.partition(":")[0]: (finding.level, finding.text) for finding in media_findings(twin)}
    turns = {split: sum(map(len, part)) for split, part in load(twin).items()}
    assert text["train"][0] == "note"
    assert f"1 of {turns['train']} video files exist; missing: train/1/0" in text["train"][1]
    assert f"0 of {turns['dev']} video files" in text["dev"][1]


def test_known_bad_clips_are_findings(twin):
    replace(twin, HEADER, ROW.replace(",0,0,", ",110,7,"))
    touch(twin / "dev_splits_complete", "dia110_utt6.mp4")
    texts = [finding.text for finding in media_findings(twin)]
    assert "the clip of dev/110/7 is not in the release" in texts
    assert not any("train/125" in text for text in texts)


def test_the_twin_with_clips(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed: no videos can be written")
    folder = write_meld_media(tmp_path, within="MELD.Raw/{split}")
    found = clips(folder)
    missing = [key for key, clip in found.items() if not clip.path.is_file()]
    assert missing == [[key for key in found if key[0].startswith("dev/")][-1]]
    damaged, heard = [], 0
    for key, clip in found.items():
        if key in missing:
            continue
        try:
            with av.open(str(clip.path)) as container:
                heard += bool(container.streams.audio)
                assert next(container.decode(video=0)).width == 64
        except av.error.InvalidDataError:
            damaged.append(key)
    assert damaged == [[key for key in found if key[0].startswith("train/")][1]]
    # The silent first cuts of test are not taken.
    assert heard == len(found) - 2
    levels = {finding.text.partition(":")[0]: finding.level for finding in media_findings(folder)}
    assert levels == {"train": "ok", "dev": "note", "test": "ok"}
    assert sum("2 of them the second cut" in finding.text for finding in media_findings(folder)) == 1


def test_a_dialogue_number_that_is_far_too_high(tmp_path):
    raw = write_meld(tmp_path / "meld")
    path = raw / "dev_sent_emo.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = next(csv.reader([lines[-1]]))
    column = next(csv.reader([lines[0]])).index("Dialogue_ID")
    cells[column] = "200000000"
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write("\n".join(lines[:-1]) + "\n")
        csv.writer(stream).writerow(cells)
    # Listing the numbers in between would take minutes and gigabytes.
    assert len(open_corpus("meld", raw).oddities()["dev"].absent_dialogues) == 1000
