import copy
import pickle

import numpy as np
import pytest
from foreign import (
    IEMOCAP_TEST,
    IEMOCAP_TRAIN,
    MELD_DEV,
    MELD_TEST,
    MELD_TRAIN,
    MMGCN_WIDTHS,
    Python2,
    carat,
    cogmen_parts,
    cosmic,
    iemocap,
    meld,
    mmsa,
    write_cogmen,
)

from ercfusion._core.errors import ConfigError
from ercfusion.features.imports import LAYOUTS, ORIGINS, LayoutError, detect_layout, read_layout, safe_load

SMALL = {"text": 6, "audio": 5, "visual": 4}
IEMOCAP_ORDER = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
MELD_ORDER = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")


@pytest.fixture(scope="module")
def nine():
    return iemocap({"text": 8, "audio": 7, "visual": 9}, turns=6)


@pytest.fixture(scope="module")
def ten():
    return meld()


def ids(imported):
    return {split: [entry.id for entry in found] for split, found in imported.splits.items()}


def labels(conversation, task="emotion"):
    return [turn.targets[task].value for turn in conversation.turns]


def vector(table, key):
    return table.values[table.rows([key])[0]]


def change(content, *path, value):
    """A copy of nested content with one entry replaced."""
    content = copy.deepcopy(content)
    holder = list(content) if isinstance(content, tuple) else content
    inner = holder
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return holder


# Tuples


@pytest.mark.parametrize("protocol", [2, 4])
def test_iemocap_tuple(tmp_path, nine, protocol):
    path = tmp_path / "IEMOCAP_features_raw.pkl"
    path.write_bytes(pickle.dumps(nine, protocol=protocol))
    found = read_layout(safe_load(path), "dialoguernn-iemocap")
    assert (found.layout, found.corpus, found.positions) == ("dialoguernn-iemocap", "iemocap", False)
    names = ids(found)
    assert len(names["dev"]) == 1
    assert sorted(names["train"] + names["dev"]) == sorted(IEMOCAP_TRAIN)
    assert names["test"] == IEMOCAP_TEST
    conversation = found.splits["test"][0]
    assert [turn.id for turn in conversation.turns[:2]] == ["F000", "M001"]
    assert [turn.speaker for turn in conversation.turns[:2]] == ["F", "M"]
    assert conversation.turns[1].text == "Sentence 1, of Ses05F_impro01."
    assert labels(conversation) == [IEMOCAP_ORDER[index] for index in nine[2]["Ses05F_impro01"]]
    assert {name: table.width for name, table in found.tables.items()} == {"text": 8, "audio": 7, "visual": 9}
    for modality, position in (("text", 3), ("audio", 4), ("visual", 5)):
        expected = nine[position]["Ses05F_impro01"][1]
        np.testing.assert_array_equal(vector(found.tables[modality], ("Ses05F_impro01", "M001")), expected)
    assert any("no dev split" in note for note in found.notes)
    assert any("audio: width 7" in note for note in found.notes)


def test_the_dev_split_depends_on_the_names_alone(nine):
    again = change(nine, 7, value=list(reversed(IEMOCAP_TRAIN)))
    first, second = (ids(read_layout(content, "dialoguernn-iemocap"))["dev"] for content in (nine, again))
    assert first == second


def test_a_pickle_of_python_2_gives_the_same(tmp_path, nine):
    plain = list(nine)
    plain[7] = set(plain[7])
    path = tmp_path / "old.pkl"
    path.write_bytes(Python2().dumps(tuple(plain)))
    old = read_layout(safe_load(path), "mmgcn-iemocap")
    new = read_layout(nine, "mmgcn-iemocap")
    assert sorted(entry.id for entry in old.splits["train"]) == sorted(entry.id for entry in new.splits["train"])
    assert {entry.id: entry for part in old.splits.values() for entry in part} == {
        entry.id: entry for part in new.splits.values() for entry in part
    }
    key = (IEMOCAP_TEST[0], "F000")
    np.testing.assert_array_equal(vector(old.tables["audio"], key), vector(new.tables["audio"], key))


def test_bytes_as_keys_and_text_are_text(nine):
    def encoded(value):
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return [encoded(entry) for entry in value]
        return {encoded(key): encoded(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    found = read_layout([encoded(entry) for entry in nine], "dialoguernn-iemocap")
    assert found.splits == read_layout(nine, "dialoguernn-iemocap").splits


def test_four_emotions_are_those_of_cogmen():
    found = read_layout(iemocap(SMALL, classes=4), "dialoguernn-iemocap4")
    assert found.tasks[0].schema.name == "iemocap4"
    assert labels(found.splits["test"][0])[:4] == ["happy", "sad", "neutral", "angry"]


@pytest.mark.parametrize("fields", ["dialoguernn", "mmgcn"])
def test_meld_tuples(fields):
    content = meld(fields)
    found = read_layout(content, f"{fields}-meld")
    assert ids(found) == {
        "train": [str(number) for number in MELD_TRAIN],
        "dev": [str(number) for number in MELD_DEV],
        "test": [str(number) for number in MELD_TEST],
    }
    conversation = found.splits["train"][4]
    assert labels(conversation) == [MELD_ORDER[index] for index in content[2][61]]
    assert set(labels(conversation, "sentiment")) <= {"neutral", "positive", "negative"}
    assert conversation.speakers == ("speaker 0", "speaker 1", "speaker 2")
    assert [task.name for task in found.tasks] == ["emotion", "sentiment"]
    assert not any("in the published file" in note for note in found.notes)
    np.testing.assert_array_equal(vector(found.tables["audio"], ("61", "1")), content[4][61][1])


def test_meld_without_its_dev_dialogues_draws_some(ten):
    found = read_layout(change(ten, 7, value=list(MELD_TRAIN)), "mmgcn-meld")
    assert len(found.splits["dev"]) == 1
    assert any("drawn with the seed" in note for note in found.notes)
    assert any("without a split" in note for note in found.notes)


def test_meld_ids_that_are_no_list_give_positions(ten):
    found = read_layout(change(ten, 0, 61, value=None), "mmgcn-meld")
    assert found.positions
    assert [turn.id for turn in found.splits["train"][4].turns[:2]] == ["0", "1"]


def test_a_wrong_order_of_melds_labels_is_noticed():
    # The order of MELD's cause-pair annotation.
    with pytest.raises(LayoutError, match=r"no surprise with neutral sentiment"):
        read_layout(change(meld(), 9, value={key: [0] * len(row) for key, row in meld()[9].items()}), "mmgcn-meld")


def test_cosmic_lists():
    source = iemocap(SMALL)
    found = read_layout(cosmic(source), "cosmic-iemocap")
    assert ids(found)["dev"] == IEMOCAP_TRAIN[-1:]
    assert found.positions
    assert list(found.tables) == ["text", "roberta2", "roberta3", "roberta4"]
    assert labels(found.splits["test"][0]) == [IEMOCAP_ORDER[index] for index in source[2][IEMOCAP_TEST[0]]]
    found = read_layout(cosmic(meld(), meld=True), "cosmic-meld")
    assert ids(found)["dev"] == [str(number) for number in MELD_DEV]


def test_cosmic_emorynlp_has_its_own_label_order():
    source = cosmic(iemocap(SMALL))
    found = read_layout(source, "cosmic-emorynlp")
    order = ("joyful", "mad", "peaceful", "neutral", "sad", "powerful", "scared")
    assert labels(found.splits["test"][0]) == [order[index] for index in source[1][IEMOCAP_TEST[0]]]


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ((2, "Ses05F_impro01"), [0] * 5, r"field 'emotion', conversation 'Ses05F_impro01': found a list of 5, but one"),
        ((2, "Ses05F_impro01", 3), 6, r"utterance 'M003': found 6, but a label index from 0 to 5"),
        ((2, "Ses05F_impro01", 3), -1, r"a label index from 0 to 5"),
        ((2, "Ses05F_impro01", 3), 1.5, r"a whole number"),
        ((2, "Ses05F_impro01", 3), float("nan"), r"found nan, but a whole number"),
        ((2, "Ses05F_impro01", 3), 10**400, r"found one of 1329 bits, but a whole number"),
        ((2, "Ses05F_impro01", 3), "hap", r"found 'hap', but a whole number"),
        ((1, "Ses05F_impro01"), [], r"'speakers', conversation 'Ses05F_impro01': no utterances"),
        ((4, "Ses05F_impro01"), [np.ones(7)] * 5, r"field 'audio', conversation 'Ses05F_impro01': found a list of 5"),
        ((4, "Ses05F_impro01", 2), np.ones(6), r"'F002': the width is 6, but 7 in conversation"),
        ((4, "Ses05F_impro01", 2), np.ones((1, 7)), r"'F002': found an array of shape \(1, 7\)"),
        ((4, "Ses05F_impro01", 2), [10**400] * 7, r"a whole number of 1329 bits, but a number"),
        ((4, "Ses05F_impro01", 2), [1j] * 7, r"a complex, but a number"),
        ((4, "Ses05F_impro01", 2), ["a"] * 7, r"found 'a', but a number"),
        ((0, "Ses05F_impro01", 1), "Ses05F_impro01_F000", r"the utterance 'F000' occurs 2 times"),
        ((0, "Ses05F_impro01", 1), None, r"field 'ids'.*found None, but text"),
        ((6, "Ses05F_impro01"), ["a"], r"field 'sentences'"),
        ((4,), [1, 2], r"field 4 \(audio\): found a list of 2, but a dictionary"),
        ((7,), IEMOCAP_TRAIN + IEMOCAP_TEST[:1], r"split 'test'.*is also in 'train'"),
        ((8,), [], r"split 'test': no conversations"),
        ((8,), ["Ses05F_impro09"], r"field 'ids': has 10 conversations, but not 'Ses05F_impro09'"),
        ((7,), IEMOCAP_TRAIN[:1], r"1 conversations, too few"),
        ((7,), "Ses01F_impro01", r"split 'train': found 'Ses01F_impro01', but a list"),
    ],
)
def test_tuples_are_checked_field_by_field(nine, path, value, match):
    with pytest.raises(LayoutError, match=match):
        read_layout(change(nine, *path, value=value), "dialoguernn-iemocap")


def test_a_conversation_that_one_field_lacks_is_named(nine):
    content = copy.deepcopy(nine)
    del content[5]["Ses02M_impro02"]
    with pytest.raises(LayoutError, match=r"field '~visual': has 9 conversations, but not 'Ses02M_impro02'"):
        read_layout(content, "dialoguernn-iemocap")


@pytest.mark.parametrize(("value", "match"), [(np.ones(9), "one 1 and zeros"), (np.zeros(9), "one 1"), (None, "None")])
def test_speakers_are_names_or_one_hot(ten, value, match):
    with pytest.raises(LayoutError, match=rf"field 'speakers', conversation '61', utterance 0: .*{match}"):
        read_layout(change(ten, 1, 61, 0, value=value), "mmgcn-meld")


# COGMEN


def test_cogmen_samples(tmp_path, nine):
    source = iemocap(SMALL)
    found = read_layout(safe_load(write_cogmen(tmp_path / "data_iemocap.pkl", source)), "cogmen")
    assert ids(found) == {"train": IEMOCAP_TRAIN[1:], "dev": IEMOCAP_TRAIN[:1], "test": IEMOCAP_TEST}
    assert {name: table.width for name, table in found.tables.items()} == {
        "text": 768, "text_cnn": 6, "audio": 5, "visual": 4,
    }  # fmt: skip
    assert labels(found.splits["test"][1]) == [IEMOCAP_ORDER[index] for index in source[2][IEMOCAP_TEST[1]]]
    np.testing.assert_array_equal(vector(found.tables["visual"], (IEMOCAP_TEST[0], "3")), source[5][IEMOCAP_TEST[0]][3])


def test_cogmen_dictionaries_without_embeddings():
    found = read_layout(cogmen_parts(iemocap(SMALL), embeddings=False), "cogmen")
    assert list(found.tables) == ["text", "audio", "visual"]
    assert found.tables["text"].width == 6


def test_cogmens_four_emotion_files_are_told_apart():
    content = cogmen_parts(iemocap(SMALL, classes=4))
    with pytest.raises(LayoutError, match="layout=cogmen-4way"):
        read_layout(content, "cogmen")
    assert read_layout(content, "cogmen-4way").tasks[0].schema.name == "iemocap4"


def test_cogmen_samples_are_checked(tmp_path):
    content = cogmen_parts(iemocap(SMALL))
    del content["dev"][0]["audio"]
    with pytest.raises(LayoutError, match=r"split 'dev', sample 0.*attribute 'audio'"):
        read_layout(content, "cogmen")
    content = cogmen_parts(iemocap(SMALL))
    del content["dev"][0]["sbert_sentence_embeddings"]
    with pytest.raises(LayoutError, match=r"conversation 'Ses01F_impro01'.*in all samples or in none"):
        read_layout(content, "cogmen")
    content = cogmen_parts(iemocap(SMALL))
    content["test"][0]["vid"] = content["train"][0]["vid"]
    with pytest.raises(LayoutError, match=r"split 'test'.*is also in 'train'"):
        read_layout(content, "cogmen")


# Segments


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
def test_mmsa(aligned):
    content = mmsa(aligned=aligned)
    found = read_layout(content, "mmsa")
    assert ids(found) == {"train": ["a_b-1", "c"], "dev": ["d"], "test": ["e", "f"]}
    conversation = found.splits["train"][0]
    assert [turn.id for turn in conversation.turns] == ["1", "2", "9", "10"]
    assert conversation.turns[3].text == "words 10 of a_b-1"
    assert labels(conversation, "sentiment_score")[3] == -3.0
    assert labels(conversation, "polarity")[3] == "negative"
    assert [task.kind for task in found.tasks] == ["regression", "single_label"]
    for modality, source in (("text", "text"), ("audio", "audio"), ("visual", "vision")):
        table = found.tables[modality]
        assert table.level == "sequence"
        row = int(table.rows([("a_b-1", "1")])[0])
        frames = table.values[table.offsets[row] : table.offsets[row + 1]]
        index = content["train"]["id"].index("a_b-1$_$1")
        expected = content["train"][source][index]
        np.testing.assert_array_equal(frames, expected[expected.any(axis=1)])


def test_mmsa_padding_is_cut_as_stated_or_as_found():
    content = mmsa(aligned=False)
    part = content["train"]
    part["audio"][0] = 1
    part["audio_lengths"][0] = 4
    part["vision"][1] = 0
    part["vision"][2, :-2], part["vision"][2, -2:], part["vision_lengths"][2] = 0, 1, 2
    part["text"][3, 0, 0] = -np.inf
    found = read_layout(content, "mmsa")
    key = [tuple(name.split("$_$")) for name in part["id"]]
    audio, visual, text = (found.tables[name] for name in ("audio", "visual", "text"))
    length = {name: dict(zip(table.keys, np.diff(table.offsets), strict=True)) for name, table in found.tables.items()}
    assert length["audio"][key[0]] == 4
    assert key[1] not in visual
    assert key[1] in audio
    assert length["visual"][key[2]] == 2
    assert np.isfinite(text.values).all()
    notes = "; ".join(found.notes)
    assert "beyond the stated length were dropped in 1" in notes
    assert "so the modality is absent in 1" in notes
    assert "became 0 in 1" in notes


def test_mmsa_videos_in_several_splits_are_told_apart():
    content = mmsa()
    content["test"]["id"] = [name.replace("e$_$", "c$_$") for name in content["test"]["id"]]
    found = read_layout(content, "mmsa")
    assert ids(found) == {"train": ["a_b-1", "c@train"], "dev": ["d"], "test": ["c@test", "f"]}
    assert any("in several splits" in note for note in found.notes)


def test_sims_has_another_range():
    content = mmsa()
    with pytest.raises(LayoutError, match=r"'regression_labels': found -3.0, but a number from -1 to 1"):
        read_layout(content, "mmsa-sims")
    for part in content.values():
        part["regression_labels"] = part["regression_labels"] / 3
    assert read_layout(content, "mmsa-sims").tasks[0].low == -1


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("train", "id", 0), "a_b-1", r"field 'id', segment 0: found 'a_b-1', but VIDEO"),
        (("train", "id", 1), "a_b-1$_$10", r"the id occurs twice"),
        (("valid", "raw_text"), ["a"], r"key 'valid', field 'raw_text': found a list of 1"),
        (("valid", "audio"), np.zeros((4, 6)), r"field 'audio', segment 'd\$_\$10': found an array of shape \(6,\)"),
        (("valid", "regression_labels"), np.array([0, 0, 0, 3.5]), r"found 3.5, but a number from -3 to 3"),
        (("valid", "annotations", 0), "Happy", r"'annotations': found 'happy', but Negative, Neutral or Positive"),
        (("valid", "audio_lengths"), [1, 2, 3, -4], r"'audio_lengths': found -4"),
        (("valid", "text_bert"), np.ones((4, 2, 6)), r"segment 0: found an array .* three rows"),
        (("valid", "text_bert"), np.full((4, 3, 6), np.nan), r"mask of 0 and 1"),
        (("valid", "vision"), np.full((4, 6, 3), np.inf), r"found inf, but"),
    ],
)
def test_mmsa_is_checked_field_by_field(path, value, match):
    with pytest.raises(LayoutError, match=match):
        read_layout(change(mmsa(), *path, value=value), "mmsa")


def test_mmsa_fields_must_be_there():
    content = mmsa()
    del content["test"]["vision"]
    with pytest.raises(LayoutError, match=r"key 'test': no field 'vision'"):
        read_layout(content, "mmsa")


@pytest.mark.parametrize("layout", ["carat", "tailor"])
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_carat(tmp_path, layout, archive):
    torch = pytest.importorskip("torch")
    content = carat()
    torch.save(content, tmp_path / "mosei.pt", _use_new_zipfile_serialization=archive)
    found = read_layout(safe_load(tmp_path / "mosei.pt"), layout)
    assert ids(found)["dev"] == [f"dev-{index:05d}" for index in range(5)]
    emotions = [labels(entry, "emotions")[0] for entry in found.splits["train"]]
    assert emotions[0] == frozenset()
    assert emotions[2] == {"happy", "sad"}
    assert emotions[4] == {"happy", "sad", "anger", "surprise"}
    text = found.tables["text"]
    assert text.level == "sequence"
    assert text.width == 300
    np.testing.assert_array_equal(np.diff(text.offsets), [1, 2, 3, 4, 5] * 3)
    np.testing.assert_array_equal(text.values[:1], content["train"]["src-text"][0][-1:])
    assert np.isfinite(found.tables["audio"].values).all()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([2, 10, 3], "10 in"),
        ([2], "a begin mark"),
        ([4, 5, 3], "a begin mark"),
        ([2, 1, 3], "from 4 to 9"),
        (3, "a list"),
    ],
)
def test_carats_labels_are_checked(value, match):
    with pytest.raises(LayoutError, match=rf"field 'tgt', segment 'test-00002'.*{match}"):
        read_layout(change(carat(), "test", "tgt", 2, value=value), "carat")


# Which layout


@pytest.mark.parametrize(
    ("make", "best"),
    [
        (lambda: iemocap(turns=3), "dialoguernn-iemocap"),
        (lambda: iemocap(MMGCN_WIDTHS, turns=3), "mmgcn-iemocap"),
        (lambda: meld("dialoguernn"), "dialoguernn-meld"),
        (meld, "mmgcn-meld"),
        (lambda: cosmic(iemocap(SMALL), width=1024), "cosmic-iemocap"),
        (lambda: cosmic(meld(), meld=True), "cosmic-meld"),
        (lambda: cogmen_parts(iemocap(SMALL)), "cogmen"),
        (mmsa, "mmsa"),
        (carat, "tailor"),
    ],
)
def test_the_form_of_a_content_is_recognised(make, best):
    content = make()
    assert detect_layout(content)[0] == best
    with pytest.raises(ConfigError, match=rf"layout=NAME.*\n  {best}: "):
        read_layout(content, None)


@pytest.mark.parametrize("content", [None, 3, [], {}, (1,) * 9, {"train": 1, "valid": 2, "test": 3}, [{}] * 10])
def test_other_content_has_no_layout(content):
    assert detect_layout(content) == []
    with pytest.raises(ConfigError, match="none of the known forms"):
        read_layout(content, None)


def test_a_wrong_layout_is_answered_with_those_that_fit(ten):
    with pytest.raises(LayoutError, match=r"a tuple of 9 fields.*\n.*Use layout=mmgcn-meld"):
        read_layout(ten, "dialoguernn-iemocap")
    with pytest.raises(ConfigError, match=r"layout=mmgcn: unknown. Did you mean 'mmgcn-meld'"):
        read_layout(ten, "mmgcn")


def test_every_layout_says_what_it_is_and_where_from():
    assert set(LAYOUTS) == set(ORIGINS)
    for name in LAYOUTS:
        assert LAYOUTS[name]
        assert "/" in ORIGINS[name]
        assert "\n" not in LAYOUTS[name]


def test_long_names_in_messages_are_cut():
    content = meld()
    content[0]["x" * 70_000] = ["0"]
    content[-3].append("x" * 70_000)
    with pytest.raises(LayoutError) as caught:
        read_layout(content, "mmgcn-meld")
    assert len(str(caught.value)) <= 600
