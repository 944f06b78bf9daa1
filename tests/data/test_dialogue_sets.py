"""Dialogue sets: entities, their targets and sequences, and the commands on such data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import command, read, refused, stub_text_encoder

from ercfusion import doctor, evaluate
from ercfusion import train as train_command
from ercfusion._core.errors import ConfigError
from ercfusion.batch.task import TaskSpec
from ercfusion.config.sections import Data
from ercfusion.data import open_corpus
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpus import Protocol
from ercfusion.data.dialogue_sets import DialogueSets
from ercfusion.data.features import FeatureTable
from ercfusion.features.loading import load_data
from ercfusion.records.predictions import read_predictions
from ercfusion.testing.twins import write_twin
from ercfusion.training.export import export_packs

VIEW = DialogueSets({"emotion_set": "emotion"})
_LABELS = ("joy", "anger", None, "joy", None)
_SPEAKERS = ("Ada", "Bruno", "Ada", "scene", "Emil")
DIALOGUE = Conversation(
    "d",
    tuple(
        Turn(str(number), speaker, "Hm.", targets={"emotion": Target(label)})
        for number, (speaker, label) in enumerate(zip(_SPEAKERS, _LABELS, strict=True))
    ),
)
SPLITS = {"train": [DIALOGUE]}


def targets(view: DialogueSets, conversation: Conversation = DIALOGUE) -> dict[str, Any]:
    (entities,) = view.conversations({"train": [conversation]})["train"]
    assert entities.id == conversation.id
    return {turn.id: turn.targets["emotion_set"].value for turn in entities.turns}


def test_the_scene_then_the_speakers_in_order() -> None:
    scene = {"scene": {"joy", "anger"}}
    speakers = {"speaker/Ada": {"joy"}, "speaker/Bruno": {"anger"}, "speaker/scene": {"joy"}, "speaker/Emil": None}
    assert targets(VIEW) == {**scene, **speakers}
    assert list(targets(VIEW)) == [*scene, *speakers]
    assert targets(DialogueSets(VIEW.sources, "scene")) == scene
    assert targets(DialogueSets(VIEW.sources, "speakers")) == speakers
    (entities,) = VIEW.conversations(SPLITS)["train"]
    # A speaker called "scene" is another one than the scene.
    assert entities.speaker_numbers() == [0, 1, 2, 3, 4]


def test_sets_are_united_and_other_targets_refused() -> None:
    def dialogue(*values: Any) -> Conversation:
        turns = (Turn(str(n), "Ada", targets={"emotion": Target(value)}) for n, value in enumerate(values))
        return Conversation("d", tuple(turns))

    united = dialogue(frozenset({"joy", "fear"}), None, frozenset({"anger"}), frozenset())
    assert targets(VIEW, united)["scene"] == {"joy", "fear", "anger"}
    # An empty set is a label: nothing was felt.
    assert targets(VIEW, dialogue(frozenset(), None))["scene"] == frozenset()
    with pytest.raises(TypeError, match=r"target 'emotion' of turn '0' is neither a label nor a set"):
        targets(VIEW, dialogue(0.5))


def test_utterances_become_steps() -> None:
    # The second utterance lacks the modality.
    keys = [("d", name) for name in ("4", "0", "2", "3")]
    table = FeatureTable("text", keys, np.arange(8.0).reshape(4, 2), source={"sha256": "abc"})
    (joined,) = VIEW.tables(SPLITS, [table])
    assert (joined.level, joined.modality, joined.source["sha256"]) == ("sequence", "text", "abc")
    assert joined.keys == [("d", name) for name in ("scene", "speaker/Ada", "speaker/scene", "speaker/Emil")]
    assert joined.offsets is not None
    steps = np.split(joined.values, joined.offsets[1:-1])
    first, second, third, last = (table.values[[number]] for number in (1, 2, 3, 0))
    expected = [np.concatenate([first, second, third, last]), np.concatenate([first, second]), third, last]
    for found, wanted in zip(steps, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_sequences_are_joined_and_steps_are_cut_by_utterance() -> None:
    keys = [("d", "0"), ("d", "2"), ("d", "3")]
    table = FeatureTable("audio", keys, np.arange(6.0)[:, None], np.array([0, 2, 3, 6]))
    (joined,) = DialogueSets(VIEW.sources, "scene").tables(SPLITS, [table])
    np.testing.assert_array_equal(joined.values[:, 0], np.arange(6.0))
    # Utterance 1 has no audio, but counts.
    (cut,) = DialogueSets(VIEW.sources, "scene", steps=3).tables(SPLITS, [table])
    np.testing.assert_array_equal(cut.values[:, 0], np.arange(3.0))
    assert targets(DialogueSets(VIEW.sources, "scene", steps=1)) == {"scene": {"joy", "anger"}}
    (short,) = DialogueSets(VIEW.sources, "speakers", steps=1).tables(SPLITS, [table])
    assert short.keys == [("d", "speaker/Ada"), ("d", "speaker/scene")]


def test_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    for name, found in {
        "meld": ("sets", "scene-sets", "speaker-sets"),
        "m3ed": ("dialogue", "dialogue-released"),
    }.items():
        raw = str(write_twin(name, tmp_path / name))
        corpus = open_corpus(name, raw)
        for protocol in map(corpus.protocol, found):
            assert protocol.view is not None
            assert (protocol.task.kind, protocol.task.name) == ("multi_label", "emotion_set")
            data = load_data(Data(name=name, raw=raw, protocol=protocol.id))
            dialogues = corpus.conversations(protocol)
            assert {split: len(part) for split, part in data.splits.items()} == {"train": 12, "dev": 4, "test": 5}
            store, (table,) = data.store("dev"), data.tables
            assert store.inputs.levels == {"text": "sequence"}
            steps = store.sequences["text"].offsets.diff().tolist()
            wanted = {
                "scene": [len(one) for one in dialogues["dev"]],
                "speakers": [
                    sum(turn.speaker == name for turn in one.turns) for one in dialogues["dev"] for name in one.speakers
                ],
            }
            if protocol.view.entities == "both":
                assert sum(steps) == 2 * sum(wanted["scene"])
            else:
                assert steps == wanted[protocol.view.entities]
            assert table.source["view"] == "dialogue sets"
    assert open_corpus("m3ed").protocol("dialogue-released").view == DialogueSets(
        {"emotion_set": "emotions"}, "scene", 60
    )


def test_real_labels_are_those_of_the_card(shared_data: Any) -> None:
    corpus = open_corpus("meld", shared_data("meld"))
    protocol = corpus.protocol("sets")
    for split, part in protocol.viewed(corpus.conversations(protocol)).items():
        found = Counter(label for one in part for turn in one.turns for label in turn.targets["emotion_set"].value)
        assert dict(found) == dict(corpus.card.labels["meld/sets"][split])


def test_only_protocols_with_a_view_change_conversations() -> None:
    corpus = open_corpus("demo", train=1, dev=1, test=1)
    splits = corpus.conversations(corpus.protocol())
    assert corpus.protocol().viewed(splits) is splits
    data = load_data(Data(name="demo", options={"train": 1, "dev": 1, "test": 1}))
    assert data.dialogues is None


@pytest.fixture
def meld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    stub_text_encoder(monkeypatch, tmp_path / "packs")
    return f"data.raw={write_twin('meld', tmp_path / 'meld')}"


COMMON = ("data=meld/sets", "model=concat", "training.max_epochs=2", "training.bootstrap=50", "trainer=cpu")


@pytest.mark.slow
def test_a_run(meld: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    typed = (meld, "data.tasks=[emotion_set,sentiment_set]", f"run={folder}")
    assert command(train_command.main, [*COMMON, *typed], capsys)[0] == 0
    record = read(folder / "record.json")
    assert record["protocol"] == "meld/sets-other"
    assert record["others"]["sentiment_set"]["protocol"] == "meld/sets-sentiment_set-other"
    assert [one["level"] for one in record["features"]] == ["sequence"]
    parts = read_predictions(folder / "predictions.parquet", TaskSpec.from_dict(record["task"]))
    assert {name.partition("/")[0] for name in parts["test"].turn_ids} == {"scene", "speaker"}
    status, out, _ = command(evaluate.main, [str(folder)], capsys)
    assert status == 0
    assert "equal to the run's record" in out
    with pytest.raises(ConfigError, match=r"meld/sets-other has entities of dialogues, and a feature pack is for"):
        export_packs(folder)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("curriculum=emotion_shift", "counts changes of a single label"),
        ("task.export=true", "task.export=true: meld/sets has entities of dialogues"),
    ],
)
def test_what_is_for_utterances_is_refused(
    typed: str, message: str, meld: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(train_command.main, [*COMMON, meld, typed, f"run={tmp_path / 'run'}"], capsys)


def test_the_doctor_counts_entities(meld: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(doctor.main, ["data=meld/sets", meld], capsys)
    assert (status, err) == (1, "")  # a twin has other counts than the release
    corpus = open_corpus("meld", meld.partition("=")[2])
    protocol: Protocol = corpus.protocol("sets")
    entities = [turn for one in protocol.viewed(corpus.conversations(protocol))["dev"] for turn in one.turns]
    assert f"dev: {len(entities)} entities (scenes or speakers) are predicted" in out
    assert "not labelled" not in out
