import copy
import json
import logging
import pickle
import re

import numpy as np
import pytest
import yaml
from foreign import carat, cosmic, iemocap, meld, mmsa, write_cogmen

from ercfusion._core.errors import ConfigError, PackError
from ercfusion._core.files import sha256_of
from ercfusion.config.sections import Data
from ercfusion.data.corpora import open_corpus
from ercfusion.data.pack import read_manifest, read_pack
from ercfusion.features.imports import LayoutError, UnpickleError, import_pickle, read_layout
from ercfusion.features.loading import load_data
from ercfusion.testing.twins import write_twin
from ercfusion.train import main

SMALL = {"text": 8, "audio": 6, "visual": 7}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def pickled(folder, content, protocol=4):
    path = folder / "features.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def settings(name, raw, packs=(), **changes):
    return Data(name=name, raw=str(raw), encoder="none", packs=dict(packs), **changes)


MADE = {
    "dialoguernn-iemocap": lambda: iemocap(SMALL),
    "dialoguernn-iemocap4": lambda: iemocap(SMALL, classes=4),
    "mmgcn-iemocap": lambda: iemocap(SMALL),
    "dialoguernn-meld": lambda: meld("dialoguernn"),
    "mmgcn-meld": meld,
    "cosmic-iemocap": lambda: cosmic(iemocap(SMALL)),
    "cosmic-emorynlp": lambda: cosmic(iemocap(SMALL)),
    "mmsa": mmsa,
    "carat": carat,
}


@pytest.mark.parametrize("layout", MADE)
def test_the_folder_is_a_corpus_that_loads(tmp_path, layout):
    content = MADE[layout]()
    path = pickled(tmp_path, content)
    out = import_pickle(path, layout, tmp_path / "out")
    assert out == tmp_path / "out"
    assert {entry.name for entry in out.iterdir()} == {"utterances.csv", "corpus.yaml", "packs"}
    expected = read_layout(content, layout)
    data = load_data(settings("custom", out))
    assert data.protocol.task.name == expected.tasks[0].name
    assert data.protocol.task.output_names == expected.tasks[0].output_names
    assert (data.protocol.task.kind, data.protocol.task.metric) == (expected.tasks[0].kind, expected.tasks[0].metric)
    assert {table.modality for table in data.tables} == set(expected.tables)
    for table in data.tables:
        own = expected.tables[table.modality]
        assert table.keys == own.keys
        np.testing.assert_array_equal(table.values, own.values)
    for split, conversations in expected.splits.items():
        assert [entry.id for entry in data.splits[split]] == [entry.id for entry in conversations]
        for mine, theirs in zip(data.splits[split], conversations, strict=True):
            for turn, other in zip(mine.turns, theirs.turns, strict=True):
                assert (turn.id, turn.speaker, turn.text) == (other.id, other.speaker, other.text or None)
                assert turn.targets == other.targets
    manifest = read_manifest(out / "packs" / data.tables[0].modality)
    assert manifest["tool"] == "import"
    assert manifest["settings"]["layout"] == layout
    assert manifest["sources"] == {"features.pkl": sha256_of(path)}
    assert manifest["licence"] == open_corpus("custom", out).card.licence


def test_cogmens_samples_become_a_corpus(tmp_path):
    out = import_pickle(write_cogmen(tmp_path / "data.pkl", iemocap(SMALL)), "cogmen", tmp_path / "out")
    data = load_data(settings("custom", out))
    assert {table.modality: table.width for table in data.tables} == {
        "text": 768, "text_cnn": 8, "audio": 6, "visual": 7,
    }  # fmt: skip


def test_the_settings_say_what_the_targets_are(tmp_path):
    out = import_pickle(pickled(tmp_path, mmsa()), "mmsa", tmp_path / "out")
    targets = yaml.safe_load((out / "corpus.yaml").read_text())["targets"]
    assert targets["sentiment_score"] == {
        "kind": "regression", "metric": "mae", "low": -3.0, "high": 3.0, "dimensions": ["sentiment"],
    }  # fmt: skip
    assert targets["polarity"]["labels"] == ["negative", "neutral", "positive"]


def test_sets_of_labels_are_written_in_one_cell(tmp_path):
    out = import_pickle(pickled(tmp_path, carat()), "carat", tmp_path / "out")
    cells = [line.rsplit(",", 1)[1] for line in (out / "utterances.csv").read_text().splitlines()[1:4]]
    assert cells == ["-", "happy", "happy|sad"]


def test_texts_may_hold_anything(tmp_path):
    content = iemocap(SMALL)
    content[6]["Ses05F_impro01"][0] = 'He said "no",\nthen\tleft.\0'
    content[6]["Ses05F_impro01"][1] = ""
    content[6]["Ses05F_impro01"][2] = "Ça va — \u65e5"
    content[6]["Ses05F_impro01"][3] = "\ud83d\ude00 and \ud83d"
    out = import_pickle(pickled(tmp_path, content), "mmgcn-iemocap", tmp_path / "out")
    turns = load_data(settings("custom", out)).splits["test"][0].turns
    assert [turn.text for turn in turns[:4]] == [
        'He said "no",\nthen\tleft.', None, "Ça va — \u65e5", "\U0001f600 and \ufffd",
    ]  # fmt: skip


def test_the_same_pickle_gives_the_same_corpus_wherever_it_is_written(tmp_path):
    path = pickled(tmp_path, iemocap(SMALL))
    folders = [import_pickle(path, "mmgcn-iemocap", tmp_path / name) for name in ("a", "b/c")]
    first, second = (open_corpus("custom", folder).fingerprint() for folder in folders)
    assert first == second


def test_notes_are_logged_and_kept(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        out = import_pickle(pickled(tmp_path, iemocap(SMALL)), "mmgcn-iemocap", tmp_path / "out")
    assert "no dev split in the file" in caplog.text
    assert any("no dev split" in note for note in read_manifest(out / "packs" / "audio")["settings"]["notes"])


def test_training_runs_on_an_import(tmp_path, capsys, no_pictures):
    out = import_pickle(pickled(tmp_path, iemocap(SMALL, turns=8), 2), "dialoguernn-iemocap", tmp_path / "out")
    run = tmp_path / "run"
    arguments = [
        "model=bclstm", "data=custom", f"data.raw={out}", "training.max_epochs=6", "optimizer.lr=0.01",
        f"run={run}", "training.batch_size=2",
    ]  # fmt: skip
    status = main(arguments)
    output = capsys.readouterr()
    assert status == 0, output.err
    # The features show the labels: a model that reads them beats the majority by far.
    assert json.loads((run / "record.json").read_text())["metrics"]["test"]["weighted_f1"] > 0.5


# Nothing is left behind


@pytest.mark.parametrize(
    ("content", "layout", "error"),
    [
        (lambda: iemocap(SMALL), "mmgcn-meld", LayoutError),
        (lambda: iemocap(SMALL), None, ConfigError),
        (lambda: iemocap(SMALL), "mmgcn", ConfigError),
        (lambda: print, "mmgcn-meld", UnpickleError),
    ],
)
def test_a_refused_pickle_leaves_nothing(tmp_path, content, layout, error):
    path = pickled(tmp_path, content())
    with pytest.raises(error):
        import_pickle(path, layout, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.pkl"]


def test_a_value_that_is_not_finite_leaves_nothing(tmp_path):
    content = iemocap(SMALL)
    content[4]["Ses05F_impro01"][2][3] = np.nan
    path = pickled(tmp_path, content)
    with pytest.raises(PackError, match=r"conversation 'Ses05F_impro01', turn 'F002' has nan in dimension 3"):
        import_pickle(path, "mmgcn-iemocap", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.pkl"]


def test_what_is_there_is_not_overwritten(tmp_path):
    path = pickled(tmp_path, iemocap(SMALL))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(PackError, match="exists and is not empty"):
        import_pickle(path, "mmgcn-iemocap", tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_protocol_needs_a_corpus(tmp_path):
    with pytest.raises(ConfigError, match="needs a corpus"):
        import_pickle(tmp_path / "none.pkl", "mmgcn-iemocap", tmp_path / "out", protocol="iemocap/6way-ses5")


# For a release


@pytest.fixture(scope="module")
def iemocap_release(tmp_path_factory):
    return open_corpus("iemocap", write_twin("iemocap", tmp_path_factory.mktemp("iemocap")))


@pytest.fixture(scope="module")
def meld_release(tmp_path_factory):
    return open_corpus("meld", write_twin("meld", tmp_path_factory.mktemp("meld")))


def of_iemocap(corpus):
    """A pickle in DialogueRNN's layout of the labelled turns of a release."""
    protocol = corpus.protocol("6way-ses5")
    order = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    chance = np.random.default_rng(0)
    ids, speakers, labels, sentences = {}, {}, {}, {}
    vectors = {name: {} for name in SMALL}
    splits = corpus.conversations(protocol)
    for conversation in [entry for part in splits.values() for entry in part]:
        turns = [turn for turn in conversation.turns if turn.targets["emotion"].valid]
        name = conversation.id
        ids[name] = [f"{name}_{turn.id}" for turn in turns]
        speakers[name] = [turn.speaker[-1] for turn in turns]
        labels[name] = [order.index(turn.targets["emotion"].value) for turn in turns]
        sentences[name] = [turn.text or "" for turn in turns]
        for modality, width in SMALL.items():
            vectors[modality][name] = list(chance.standard_normal((len(turns), width)).astype(np.float32))
    names = {split: [entry.id for entry in part] for split, part in splits.items()}
    return (ids, speakers, labels, *vectors.values(), sentences, names["train"] + names["dev"], names["test"])


def of_meld(corpus):
    """A pickle in MMGCN's layout of a release; dialogues are numbered as there."""
    protocol = corpus.protocol("7way")
    emotion, sentiment = (corpus.protocol(name).task.schema.labels for name in ("7way", "3way"))
    chance = np.random.default_rng(0)
    fields = [{} for _ in range(8)]
    parts = {}
    for split, conversations in corpus.conversations(protocol).items():
        parts[split] = []
        for conversation in conversations:
            start = {"train": 0, "dev": 1039, "test": 1153}[split]
            number = start + int(conversation.id.split("/")[1])
            parts[split].append(number)
            turns = conversation.turns
            who = list(np.eye(9)[conversation.speaker_numbers()])
            values = [
                [turn.id for turn in turns], who, [emotion.index(turn.targets["emotion"].value) for turn in turns],
                *(list(chance.standard_normal((len(turns), 4))) for _ in range(3)), [turn.text for turn in turns],
                [sentiment.index(turn.targets["sentiment"].value) for turn in turns],
            ]  # fmt: skip
            for field, value in zip(fields, values, strict=True):
                field[number] = value
    return (*fields[:7], parts["train"] + parts["dev"], parts["test"], fields[7])


def test_packs_for_iemocaps_release(tmp_path, iemocap_release):
    content = of_iemocap(iemocap_release)
    path = pickled(tmp_path, content)
    out = import_pickle(path, "mmgcn-iemocap", tmp_path / "out", corpus=iemocap_release)
    assert [entry.name for entry in out.iterdir()] == ["packs"]
    packs = {modality: str(out / "packs" / modality) for modality in SMALL}
    data = load_data(settings("iemocap", iemocap_release.raw, packs))
    table = next(table for table in data.tables if table.modality == "audio")
    name = next(iter(content[0]))
    key = (name, content[0][name][1].removeprefix(f"{name}_"))
    np.testing.assert_array_equal(table.values[table.rows([key])[0]], content[4][name][1])
    report = read_manifest(packs["audio"])["settings"]
    assert report["labels"]["differ"] == 0
    assert report["labels"]["compared"] == report["speakers"]["compared"] == len(table)
    assert report["protocol"] == "iemocap/6way-ses5"
    every = sum(len(entry) for part in data.splits.values() for entry in part)
    assert report["utterances_without_features"] == every - len(table)


def test_packs_for_melds_release(tmp_path, meld_release):
    content = of_meld(meld_release)
    out = import_pickle(pickled(tmp_path, content), "mmgcn-meld", tmp_path / "out", corpus=meld_release)
    table = read_pack(out / "packs" / "audio", corpus="meld", fingerprint=meld_release.fingerprint())
    np.testing.assert_array_equal(table.values[table.rows([("dev/1", "0")])[0]], np.float32(content[4][1040][0]))
    report = read_manifest(out / "packs" / "audio")["settings"]
    assert report["conversations_in_another_split"] == 0
    assert report["utterances_without_features"] == 0
    import_pickle(pickled(tmp_path, content), "mmgcn-meld", tmp_path / "3", corpus=meld_release, protocol="3way")


@pytest.mark.slow
def test_real_meld_agrees_with_a_pickle_made_of_it(tmp_path, shared_data):
    corpus = open_corpus("meld", shared_data("meld"))
    out = import_pickle(pickled(tmp_path, of_meld(corpus)), "mmgcn-meld", tmp_path / "out", corpus=corpus)
    report = read_manifest(out / "packs" / "text")["settings"]
    assert report["labels"] == {"compared": 13708, "differ": 0}
    assert report["speakers"] == {"compared": 13708, "differ": 0}


def test_utterances_without_ids_are_matched_by_position(tmp_path, iemocap_release):
    layers = cosmic(of_iemocap(iemocap_release))
    out = import_pickle(pickled(tmp_path, layers), "cosmic-iemocap", tmp_path / "out", corpus=iemocap_release)
    assert read_manifest(out / "packs" / "roberta2")["settings"]["labels"]["differ"] == 0


def test_a_few_other_labels_are_counted_and_many_refused(tmp_path, iemocap_release):
    content = of_iemocap(iemocap_release)
    total = sum(map(len, content[2].values()))
    name = next(iter(content[2]))
    content[2][name][0] = (content[2][name][0] + 1) % 6
    assert total >= 100  # one label in a hundred is tolerated
    out = import_pickle(pickled(tmp_path, content), "mmgcn-iemocap", tmp_path / "few", corpus=iemocap_release)
    assert read_manifest(out / "packs" / "text")["settings"]["labels"] == {"compared": total, "differ": 1}
    for row in content[2].values():
        row[:] = [(label + 1) % 6 for label in row]
    with pytest.raises(PackError, match=rf"of {total} labels differ between the pickle and .*first: conversation"):
        import_pickle(pickled(tmp_path, content), "mmgcn-iemocap", tmp_path / "out", corpus=iemocap_release)


def test_other_speakers_are_refused(tmp_path, iemocap_release):
    content = of_iemocap(iemocap_release)
    for row in content[1].values():
        row[:] = ["MF"[index % 3 == 0] for index in range(len(row))]
    with pytest.raises(PackError, match="speakers differ"):
        import_pickle(pickled(tmp_path, content), "mmgcn-iemocap", tmp_path / "out", corpus=iemocap_release)


def test_what_the_release_does_not_have_is_named(tmp_path, iemocap_release, meld_release):
    content = of_iemocap(iemocap_release)
    name = content[8][0]
    content[0][name][1] = f"{name}_F999"
    with pytest.raises(PackError, match=rf"utterance 'F999' of the pickle: not in '{name}' of the release"):
        import_pickle(pickled(tmp_path, content), "mmgcn-iemocap", tmp_path / "out", corpus=iemocap_release)
    with pytest.raises(PackError, match=r"conversation '59' of the pickle: no 'train/59' in MELD"):
        import_pickle(pickled(tmp_path, meld()), "mmgcn-meld", tmp_path / "out", corpus=meld_release)
    with pytest.raises(ConfigError, match="of the corpus meld, not iemocap"):
        import_pickle(pickled(tmp_path, meld()), "mmgcn-meld", tmp_path / "out", corpus=iemocap_release)
    shorter = copy.deepcopy(cosmic(of_iemocap(iemocap_release)))
    for field in shorter[:7]:
        field[name] = field[name][:2]
    with pytest.raises(PackError, match=rf"'{name}': 2 utterances without ids"):
        import_pickle(pickled(tmp_path, shorter), "cosmic-iemocap", tmp_path / "out", corpus=iemocap_release)
    assert not (tmp_path / "out").exists()


def test_a_protocol_of_other_targets_is_refused(tmp_path, iemocap_release):
    path = pickled(tmp_path, of_iemocap(iemocap_release))
    with pytest.raises(PackError, match=r"no label to compare: .* iemocap/vad-ses5 has vad"):
        import_pickle(path, "mmgcn-iemocap", tmp_path / "out", corpus=iemocap_release, protocol="vad-ses5")


def test_a_recording_level_file_matches_no_release(tmp_path, iemocap_release):
    with pytest.raises(ConfigError, match="of the corpus mosei, not iemocap"):
        import_pickle(pickled(tmp_path, carat()), "carat", tmp_path / "out", corpus=iemocap_release)


@pytest.mark.parametrize("form", ["{}_{}_{}", "s{:02d}_e{:02d}_c{:02d}", "{:02d}-{:02d}-{:02d}"])
def test_the_roberta_pickle_of_emorynlp_is_joined_to_the_release(tmp_path, form):
    corpus = open_corpus("emorynlp", write_twin("emorynlp", tmp_path / "emorynlp"))
    splits = corpus.conversations(corpus.protocol())
    order = ("joyful", "mad", "peaceful", "neutral", "sad", "powerful", "scared")
    chance = np.random.default_rng(0)
    speakers, labels, sentences, names = {}, {}, {}, {split: [] for split in splits}
    vectors = [{} for _ in range(4)]
    for split, part in splits.items():
        for scene in part:
            numbers = re.fullmatch(r"s(\d+)e(\d+)c(\d+)", scene.id.partition("/")[2]).groups()
            name = form.format(*map(int, numbers))
            names[split].append(name)
            speakers[name] = [turn.speaker for turn in scene.turns]
            labels[name] = [order.index(turn.targets["emotion"].value) for turn in scene.turns]
            sentences[name] = [turn.text for turn in scene.turns]
            for layer in vectors:
                layer[name] = [chance.normal(size=8).astype(np.float32) for _ in scene.turns]
    content = [speakers, labels, *vectors, sentences, names["train"], names["test"], names["dev"]]
    out = import_pickle(pickled(tmp_path, content), "cosmic-emorynlp", tmp_path / "out", corpus=corpus)
    table = read_pack(out / "packs" / "text", corpus="emorynlp", fingerprint=corpus.fingerprint())
    assert set(table.keys) == {key for part in splits.values() for scene in part for key in scene.keys()}  # noqa: SIM118
    scene = splits["dev"][1]
    row = table.rows(scene.keys())[0]
    np.testing.assert_array_equal(table.values[row], vectors[0][names["dev"][1]][0])


def test_a_scene_that_the_release_lacks(tmp_path):
    corpus = open_corpus("emorynlp", write_twin("emorynlp", tmp_path / "emorynlp"))
    with pytest.raises(PackError, match="no 'Ses01F_impro01' in EmoryNLP"):
        import_pickle(pickled(tmp_path, cosmic(iemocap(SMALL))), "cosmic-emorynlp", tmp_path / "out", corpus=corpus)
