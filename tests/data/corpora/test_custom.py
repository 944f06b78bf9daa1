import csv
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import yaml

from ercfusion._core.errors import ConfigError, CorpusFormatError, CorpusNotFoundError, PackError
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.corpora import corpus_class
from ercfusion.data.features import FeatureTable
from ercfusion.data.media import Clip
from ercfusion.data.pack import read_pack, write_pack
from ercfusion.features.loading import load_data
from ercfusion.testing.twins.custom import write_custom


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_custom(tmp_path_factory.mktemp("custom") / "mine")


@pytest.fixture
def twin(written, tmp_path):
    """A copy, which a test may change."""
    return Path(shutil.copytree(written, tmp_path / "mine"))


def table(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utterances.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def load(folder, protocol=None, **options):
    corpus = open_corpus("custom", folder, **options)
    return corpus.conversations(corpus.protocol(protocol))


def turns(splits):
    return [turn for part in splits.values() for conversation in part for turn in conversation.turns]


def problem(folder, error=CorpusFormatError, call=load, **options):
    with pytest.raises(error) as caught:
        call(folder, **options)
    assert str(caught.value).count("\n") <= 3
    return str(caught.value)


def set_yaml(folder, change):
    path = folder / "corpus.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def set_cells(folder, line, **cells):
    path = folder / "utterances.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows[line - 2].update(cells)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def keys_of(splits):
    return [(c.id, turn.id) for part in splits.values() for c in part for turn in c.turns]


def pack(folder, modality, corpus, width=3, place=None):
    keys = keys_of(corpus.conversations(corpus.protocol()))
    values = np.random.default_rng(0).normal(size=(len(keys), width)).astype(np.float32)
    return write_pack(
        folder / "packs" / (place or modality),
        FeatureTable(modality, keys, values),
        tool="test",
        tool_version="1",
        settings={},
        corpus="custom",
        fingerprint=corpus.fingerprint(),
    )


# What is read


def test_twin(twin):
    corpus = open_corpus("custom", twin)
    assert list(corpus.protocols) == ["custom/emotion", "custom/emotions", "custom/affect", "custom/votes"]
    assert corpus.protocol().id == "custom/emotion"
    assert corpus.protocol("affect") == corpus.protocol("custom/affect")
    splits = corpus.conversations(corpus.protocol())
    assert {split: len(part) for split, part in splits.items()} == {"train": 8, "dev": 3, "test": 3}
    assert all(len(part[0]) == 1 and part[0].synthetic for part in splits.values())
    spoken = turns(splits)
    assert [turn.targets["emotion"].valid for turn in spoken] == [row % 7 != 6 for row in range(len(spoken))]
    # The synonym of the twin's settings is read as the label that it stands for.
    assert {turn.targets["emotion"].value for turn in spoken} == {"neutral", "joy", "anger", "sadness", None}
    with (twin / "utterances.csv").open(newline="", encoding="utf-8") as stream:
        first = next(csv.DictReader(stream))
    turn = splits["train"][0].turns[0]
    assert turn.targets["affect"].value == (float(first["affect.valence"]), float(first["affect.arousal"]))
    assert turn.targets["votes"].value == {
        label: int(first[f"votes.{label}"]) / 5 for label in turn.targets["votes"].value
    }
    expected = frozenset() if first["emotions"] == "-" else frozenset(first["emotions"].split("|"))
    assert turn.targets["emotions"].value == expected
    assert (turn.speaker, turn.text, turn.start) == (first["speaker"], first["text"], float(first["start"]))
    assert corpus.protocol("affect").task.metric == "ccc"
    assert corpus.protocol("votes").task.metric == "kl"
    assert corpus.protocol().modalities == ("text",)
    assert "the column 'split'" in corpus.protocol().dev_source


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    written = [write_custom(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    bytes_of = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in written]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_card_and_protocols_belong_to_the_folder(twin, tmp_path):
    corpus = open_corpus("custom", twin)
    assert corpus.card.title.startswith("Twin of")
    assert corpus.card.synthetic
    kind = corpus_class("custom")
    assert kind.card.title == open_corpus("custom").card.title == "A corpus of your own"
    assert dict(kind.protocols) == {}
    with pytest.raises(CorpusNotFoundError, match=r"A corpus of your own: data\.raw=.* is not a folder"):
        open_corpus("custom", tmp_path / "nowhere").protocol()
    with pytest.raises(CorpusNotFoundError, match=r"utterances\.csv not found"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'custom/affect'"):
        corpus.protocol("afect")


def test_the_smallest_table(tmp_path):
    table(tmp_path, "turn,conversation,emotion", "1,a,joy", "2,a,Neutral", "1,b,anger", "2,b,")
    corpus = open_corpus("custom", tmp_path)
    protocol = corpus.protocol()
    assert list(corpus.protocols) == ["custom/emotion"]
    assert protocol.task.schema.labels == ("Neutral", "anger", "joy")
    assert protocol.task.schema.neutral == "Neutral"
    assert protocol.modalities == ()
    splits = corpus.conversations(protocol)
    assert {split: len(part) for split, part in splits.items()} == {"train": 2, "dev": 0, "test": 0}
    assert {(turn.speaker, turn.text, turn.start) for turn in turns(splits)} == {("unknown", None, None)}
    assert not corpus.card.synthetic


def test_drawn_split(tmp_path):
    lines = [f"c{number:02d},0,{'joy' if number % 2 else 'anger'}" for number in range(30)]
    table(tmp_path, "conversation,turn,emotion", *lines)
    first = load(tmp_path)
    assert {split: len(part) for split, part in first.items()} == {"train": 24, "dev": 3, "test": 3}
    assert sorted(c.id for part in first.values() for c in part) == [line.split(",")[0] for line in lines]
    assert first == load(tmp_path, split_seed=0) != load(tmp_path, split_seed=1)
    assert "seed 7" in open_corpus("custom", tmp_path, split_seed=7).protocol().dev_source
    table(tmp_path, "conversation,turn,emotion", *lines[:3])
    assert {split: len(part) for split, part in load(tmp_path).items()} == {"train": 1, "dev": 1, "test": 1}


def test_seed_beside_a_column_of_splits(twin):
    assert "split_seed=3 was given" in problem(twin, ConfigError, split_seed=3)
    with pytest.raises(ConfigError, match="whole number"):
        open_corpus("custom", twin, split_seed="x")
    with pytest.raises(ConfigError, match="Did you mean 'split_seed'"):
        open_corpus("custom", twin, split_sed=1)


def test_labels_that_are_found(tmp_path):
    table(
        tmp_path,
        "conversation,turn,heard,vote.joy,vote.fear,strength",
        "a,1,joy|awe,1,3,2",
        "a,2,-,,,",
        "a,3,,2,0,4.5",
    )
    settings = {
        "targets": {
            "heard": {"kind": "multi_label"},
            "vote": {"kind": "distribution"},
            "strength": {"kind": "regression", "low": 0, "high": 5},
        }
    }
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    corpus = open_corpus("custom", tmp_path)
    sizes = {name: protocol.task.output_names for name, protocol in corpus.protocols.items()}
    assert sizes == {
        "custom/heard": ("awe", "joy"),
        "custom/vote": ("joy", "fear"),
        "custom/strength": ("strength",),
    }
    found = [{name: target.value for name, target in turn.targets.items()} for turn in turns(load(tmp_path))]
    assert found == [
        {"heard": frozenset({"joy", "awe"}), "vote": {"joy": 0.25, "fear": 0.75}, "strength": 2.0},
        {"heard": frozenset(), "vote": None, "strength": None},
        {"heard": None, "vote": {"joy": 1.0, "fear": 0.0}, "strength": 4.5},
    ]


# Packs


def test_packs_in_the_folder(twin):
    corpus = open_corpus("custom", twin)
    assert corpus.features(corpus.protocol()) == {}
    for modality in ("mocap", "visual", "text"):
        pack(twin, modality, corpus)
    assert corpus.protocol().modalities == ("text", "visual", "mocap")
    # There is no such encoder: with a pack of texts, none is needed.
    loaded = load_data(Data(name="custom", raw=str(twin), encoder=""))
    assert [found.modality for found in loaded.tables] == ["text", "visual", "mocap"]
    assert len(loaded.tables[0]) == len(turns(loaded.splits))


def test_packs_that_do_not_belong(twin):
    corpus = open_corpus("custom", twin)
    pack(twin, "audio", corpus, place="visual")
    with pytest.raises(PackError, match="holds the modality 'audio'"):
        corpus.features(corpus.protocol())
    set_cells(twin, 2, text="Another sentence.")
    changed = open_corpus("custom", twin)
    with pytest.raises(PackError, match="another version of the corpus"):
        changed.features(changed.protocol())


def test_a_pack_is_bound_to_what_it_was_made_of(twin):
    corpus = open_corpus("custom", twin)
    keys = keys_of(corpus.conversations(corpus.protocol()))

    def write(modality, fingerprint):
        values = np.random.default_rng(0).normal(size=(len(keys), 3)).astype(np.float32)
        made = {"tool": "test", "tool_version": "1", "settings": {}, "corpus": "custom"}
        write_pack(twin / "packs" / modality, FeatureTable(modality, keys, values), **made, fingerprint=fingerprint)

    write("audio", corpus.source_fingerprint("audio"))
    write("text", corpus.source_fingerprint("text"))
    write("mocap", corpus.source_fingerprint())

    def refused():
        allowed = open_corpus("custom", twin).pack_fingerprints()
        found = set()
        for folder in (twin / "packs").iterdir():
            try:
                read_pack(folder, corpus="custom", fingerprint=allowed)
            except PackError:
                found.add(folder.name)
        return found

    # Neither a title, a label, a split nor a column that is not read is what features are made of.
    set_yaml(twin, lambda content: content.update(title="Another title", licence="Other terms"))
    set_yaml(
        twin, lambda content: content["targets"]["emotion"].update(labels=["neutral", "joy", "anger", "sadness", "awe"])
    )
    set_cells(twin, 2, emotion="awe", split="dev", speaker="Somebody")
    assert refused() == set()
    own = open_corpus("custom", twin)
    assert set(own.features(own.protocol())) == {"audio", "text", "mocap"}
    set_cells(twin, 2, text="Another sentence.")
    assert refused() == {"text", "mocap"}
    set_cells(twin, 2, audio="recordings/other.wav")
    assert refused() == {"audio", "text", "mocap"}


def test_fingerprint_covers_both_files(twin):
    first = open_corpus("custom", twin).fingerprint()
    assert first == open_corpus("custom", twin).fingerprint()
    (twin / "corpus.yaml").write_text((twin / "corpus.yaml").read_text() + "# more\n")
    assert open_corpus("custom", twin).fingerprint() != first


# Recordings


def clips(folder, kind="audio"):
    corpus = open_corpus("custom", folder)
    return corpus.clips(corpus.protocol(), kind)


def test_clips(twin):
    found = clips(twin)
    splits = load(twin)
    assert list(found) == keys_of(splits)
    recordings = twin / "recordings"
    assert found["train00", "0"] == Clip(recordings / "train00_0.wav")
    shared = splits["train"][1]
    for turn in shared.turns:
        assert found[shared.id, turn.id] == Clip(recordings / "train01.wav", turn.start, turn.end)
    for clip in found.values():
        with wave.open(str(clip.path)) as stream:
            assert clip.end is None or clip.start < clip.end <= stream.getnframes() / stream.getframerate()
    assert "no row has a path in a column 'video'" in problem(twin, ConfigError, lambda f: clips(f, "visual"))


def test_the_setting_recordings(twin):
    set_yaml(twin, lambda content: content.update(recordings="conversation"))
    assert clips(twin)["train00", "0"].end is not None
    set_yaml(twin, lambda content: content.update(recordings="turn"))
    message = problem(twin, call=clips)
    assert "line 3" in message
    assert "recordings: turn" in message


def test_audio_falls_back_to_video(tmp_path):
    table(
        tmp_path,
        "conversation,turn,emotion,audio,video",
        "a,1,joy,a.wav,a.mp4",
        "a,2,anger,,b.mp4",
        "a,3,anger,,",
    )
    for name in ("a.wav", "a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    assert {key[1]: clip.path.name for key, clip in clips(tmp_path).items()} == {"1": "a.wav", "2": "b.mp4"}
    assert {key[1]: clip.path.name for key, clip in clips(tmp_path, "visual").items()} == {"1": "a.mp4", "2": "b.mp4"}


def test_recordings_that_are_not_there(twin):
    for path in (twin / "recordings").iterdir():
        if path.name != "dev01.wav":
            path.unlink()
    assert len(clips(twin)) == len(turns(load(twin)))
    (twin / "recordings" / "dev01.wav").unlink()
    assert "none of the" in problem(twin, CorpusNotFoundError, clips)


def test_a_shared_recording_without_times(twin):
    set_cells(twin, 4, end="")
    message = problem(twin, call=clips)
    assert "line 4, column 'end'" in message
    assert "train01.wav is the recording of several turns" in message


# What is wrong


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"emotion": "joi"}, "line 3, column 'emotion': 'joi' is not a label of custom/emotion. Did you mean 'joy'?"),
        ({"emotions": "joy||fear"}, "a label is missing next to '|'"),
        ({"emotions": "joy|feer"}, "Did you mean 'fear'?"),
        ({"affect.valence": "high"}, "column 'affect.valence': found 'high', but a number"),
        ({"affect.valence": "inf"}, "but a number"),
        ({"affect.valence": "nan"}, "marked as missing, but affect.arousal is not"),
        ({"affect.arousal": "1.5"}, "1.5 is not between -1 and 1"),
        ({"affect.arousal": ""}, "the cell is empty or marked as missing, but affect.valence is not"),
        ({"votes.joy": "-1"}, "is negative"),
        ({f"votes.{label}": "0" for label in ("neutral", "joy", "anger", "sadness")}, "all 4 shares are 0"),
        ({"split": "vla"}, "line 3, column 'split': found 'vla'"),
        (
            {"split": "dev"},
            "line 4, column 'split': found 'train', but the conversation 'train01' is in 'dev' on line 3",
        ),
        ({"start": "-1"}, "is negative"),
        ({"start": "00:01"}, "but a number"),
        ({"end": "0.1"}, "the turn ends at 0.1 s and starts at"),
        ({"turn": "1"}, "line 4: conversation train01, turn 1 is also on line 3"),
        ({"turn": ""}, "line 3, column 'turn': the cell is empty"),
        ({"conversation": " "}, "line 3, column 'conversation': the cell is empty"),
    ],
)
def test_bad_cells(twin, cells, words):
    set_cells(twin, 3, **cells)
    message = problem(twin)
    assert "utterances.csv" in message
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(titel="x"), "key 'titel': there is no such key. Did you mean 'title'?"),
        (lambda c: c.update(title=3), "key 'title': found 3, but text is expected"),
        (lambda c: c.update(synthetic="yes"), "but true or false is expected"),
        (lambda c: c.update(recordings="turns"), "Did you mean 'turn'?"),
        (lambda c: c.update(targets={}), "the mapping is empty"),
        (lambda c: c.update(targets=["emotion"]), "but a mapping (key: value) is expected"),
        (lambda c: c["targets"].update(text={}), "the column 'text' has another meaning"),
        (lambda c: c["targets"].update({"a/b": {}}), "has letters, digits, _ and - only"),
        (lambda c: c["targets"].update(mood={}), "the target 'mood' needs the column 'mood'"),
        (lambda c: c["targets"]["emotion"].update(kind="single"), "Did you mean 'single_label'?"),
        (lambda c: c["targets"]["emotion"].update(lables=[]), "Did you mean 'labels'?"),
        (lambda c: c["targets"]["emotion"].update(low=0), "a target of the kind single_label has no such key"),
        (lambda c: c["targets"]["emotion"].update(labels=["a", True]), "found True, but text is expected"),
        (lambda c: c["targets"]["emotion"].update(labels=["a", "a"]), "'a' is listed twice"),
        (lambda c: c["targets"]["emotion"].update(labels=["a"]), "at least 2 are needed"),
        (lambda c: c["targets"]["emotion"].update(neutral="netral"), "Did you mean 'neutral'?"),
        (lambda c: c["targets"]["emotion"].update(synonyms={"x": "y"}), "'y' is not a label"),
        (lambda c: c["targets"]["emotion"].update(synonyms={"joy": "anger"}), "this is a label already"),
        (lambda c: c["targets"]["emotion"].update(synonyms={1: "joy"}), "two words are expected"),
        (lambda c: c["targets"]["emotions"].update(labels=["a|b"]), "contains one of the signs"),
        (lambda c: c["targets"]["affect"].pop("low"), "the key 'low' is missing"),
        (lambda c: c["targets"]["affect"].update(low=2), "Give a smaller low than high"),
        (lambda c: c["targets"]["affect"].update(dimensions=["valence", "power"]), "needs the column 'affect.power'"),
        (lambda c: c["targets"]["votes"].update(labels=["joy", "awe"]), "needs the column 'votes.awe'"),
    ],
)
def test_bad_settings(twin, change, words):
    set_yaml(twin, change)
    message = problem(twin)
    assert words in message
    assert "corpus.yaml" in message


def test_settings_that_are_no_yaml(twin):
    (twin / "corpus.yaml").write_text("title: [")
    assert "line 1: not valid YAML" in problem(twin)
    (twin / "corpus.yaml").write_text("just words")
    assert "but a mapping" in problem(twin)


def test_bad_tables(tmp_path):
    rows = ["a,1,joy", "a,2,anger"]
    assert "no column 'turn'" in problem(table(tmp_path, "conversation,utterance,emotion", *rows))
    assert "the column 'emotion' occurs 2 times" in problem(
        table(tmp_path, "conversation,turn,emotion,emotion", "a,1,joy,joy")
    )
    assert "Is it 'Emotion'?" in problem(table(tmp_path, "conversation,turn,Emotion", *rows))
    assert "1 labels in 2 rows" in problem(table(tmp_path, "conversation,turn,emotion", "a,1,joy", "a,2,joy"))


# What the doctor is told


def test_findings(twin):
    corpus = open_corpus("custom", twin)
    assert corpus.findings(corpus.protocol()) == []
    (twin / "packs" / "audio").mkdir(parents=True)
    set_cells(twin, 4, start="0.01")
    header, *rows = (twin / "utterances.csv").read_text().splitlines()
    table(twin, header + ",note", *(row + ",x" for row in rows))
    corpus = open_corpus("custom", twin)
    found = {finding.topic: finding.text for finding in corpus.findings(corpus.protocol())}
    assert "columns" not in found
    (note,) = corpus.notes(corpus.protocol())
    assert (note.text, note.warning) == ("utterances.csv: columns not read: note", False)
    assert "1 (train01)" in found["times"]
    assert "packs/audio has no pack.json" in found["packs"]
