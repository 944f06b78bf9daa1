"""``ercfusion.fit`` and ``ercfusion.load``: what a notebook sees of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure
from runs import history, refused

import ercfusion
from ercfusion._core.errors import ConfigError, ErcfusionError, RunError
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.corpora import open_corpus
from ercfusion.data.corpora.given import write_given
from ercfusion.data.features import FeatureTable
from ercfusion.train import main

DEMO = {"data.options.train": 6, "data.options.dev": 3, "data.options.test": 3}
TRAINING = {"max_epochs": 1, "pictures": False, "bootstrap": 20, "batch_size": 2, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ercfusion.Run:
    folder = tmp_path_factory.mktemp("fit") / "run"
    return ercfusion.fit(
        "concat", "demo/far", seed=3, options={"hidden": 8}, training=TRAINING, trainer="cpu", run=str(folder), **DEMO
    )


def test_what_a_run_shows(made: ercfusion.Run) -> None:
    record = made.record
    assert record["config"]["model"]["hidden"] == 8
    assert (record["protocol"], record["seed"]) == ("demo/far", 3)
    scores = made.scores
    assert list(scores.columns) == ["dev", "test", "low", "high"]
    assert scores.loc["weighted_f1", "test"] == record["metrics"]["test"]["weighted_f1"]
    assert tuple(scores.loc["weighted_f1", ["low", "high"]]) == tuple(record["intervals"]["test"]["weighted_f1"])
    assert list(made.history.index) == [1]
    assert {"train/loss", "dev/weighted_f1"} <= set(made.history.columns)
    for split in ("dev", "test"):
        found = made.predictions(split)
        assert len(found) == record["splits"][split]["utterances"]
        labelled = found[found["valid"]]
        right = float((labelled["truth"] == labelled["prediction"]).mean())
        assert right == pytest.approx(record["metrics"][split]["accuracy"], abs=1e-4)
    with pytest.raises(ConfigError, match=r"no predictions for 'tset'. Did you mean 'test'"):
        made.predictions("tset")
    assert repr(made) == (
        f"Run(concat on demo/far, seed 3, dev weighted_f1 {record['metrics']['dev']['weighted_f1']:.4f}, "
        f"test weighted_f1 {record['metrics']['test']['weighted_f1']:.4f}, {made.folder})"
    )
    assert made.summary().startswith("concat on demo/far (synthetic corpus), seed 3: epoch 1 of 1")


def test_figures_are_matplotlib_figures(made: ercfusion.Run) -> None:
    assert set(dir(made.figures)) == {"training", "class_f1", "confusion", "reliability"}
    for name in dir(made.figures):
        assert isinstance(getattr(made.figures, name)(), Figure)
    figure = made.figures.confusion("dev")
    assert "concat on demo/far, dev split (synthetic corpus)" in figure.get_suptitle()
    with pytest.raises(AttributeError, match="Did you mean 'confusion'"):
        made.figures.confusoin()
    assert not (made.folder / "plots").exists()


def test_a_loaded_run_is_the_same(made: ercfusion.Run, tmp_path: Path) -> None:
    again = ercfusion.load(made.folder)
    assert again.record == made.record
    pandas.testing.assert_frame_equal(again.scores, made.scores)
    store = open_corpus("demo", train=6, dev=3, test=3)
    protocol = store.protocol("demo/far")
    from ercfusion.data.store import ConversationStore

    tables = list(store.features(protocol).values())
    test = ConversationStore(store.conversations(protocol)["test"], tables, [protocol.task])
    output = again.recognizer.predict(test).output
    shown = made.predictions().filter(like="p/").to_numpy()
    np.testing.assert_allclose(shown, output, atol=1e-6)
    with pytest.raises(RunError, match="is not a folder"):
        ercfusion.load(tmp_path / "nowhere")


def test_the_command_line_makes_the_same_run(made: ercfusion.Run, tmp_path: Path) -> None:
    """What the record calls the command does the same as the call."""
    words = shlex.split(made.record["command"]["command"])
    assert words[:3] == ["python", "-m", "ercfusion.train"]
    folder = tmp_path / "again"
    assert main([word for word in words[3:] if not word.startswith("run=")] + [f"run={folder}"]) == 0
    assert history(folder) == history(made.folder)
    assert (folder / "model/model.safetensors").read_bytes() == (made.folder / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        ({"optimizer": {"lrr": 1}}, ["optimizer.lrr=1"]),
        ({"optimizer": "adan"}, ["optimizer=adan"]),
        ({"seed": 0.5}, ["seed=0.5"]),
        ({"model": "cogmem"}, ["model=cogmem"]),
        ({"data": "dmo"}, ["data=dmo"]),
        ({"options": {"droput": 1}}, ["model.droput=1"]),
        ({"training.batch_size": 0}, ["training.batch_size=0"]),
        ({"imports": ["no_such_module"]}, ["imports=no_such_module"]),
    ],
)
def test_mistakes_are_named_as_on_the_command_line(
    arguments: dict[str, Any],
    typed: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ErcfusionError) as caught:
        ercfusion.fit(**{"model": "concat", **arguments})
    model = [] if "model" in arguments else ["model=concat"]
    assert refused(main, [*model, *typed], capsys) == f"error: {caught.value}\n"
    assert not list(tmp_path.rglob("config.json"))


# Utterances that the program has in memory


def conversations(number: int = 10) -> list[Conversation]:
    labels = ("joy", "anger")
    return [
        Conversation(
            f"c{place}",
            tuple(
                Turn(str(turn), "ab"[turn % 2], targets={"emotion": Target(labels[(place + turn) % 2])})
                for turn in range(3)
            ),
        )
        for place in range(number)
    ]


def test_fit_on_conversations(tmp_path: Path) -> None:
    given = conversations()
    keys = [key for conversation in given for key in conversation.keys()]  # noqa: SIM118
    table = FeatureTable("audio", keys, np.random.default_rng(0).normal(size=(len(keys), 4)).astype(np.float32))
    run = ercfusion.fit(
        "concat",
        {"train": given[:6], "dev": given[6:8], "test": given[8:]},
        features=[table],
        training=TRAINING,
        output=str(tmp_path),
    )
    assert run.record["protocol"] == "custom/emotion"
    assert [entry["modality"] for entry in run.record["features"]] == ["audio"]
    assert set(run.predictions()["conversation"]) == {"c8", "c9"}
    assert Path(run.record["config"]["data"]["raw"]).parent == tmp_path / "corpora"


def test_fit_on_a_data_frame(tmp_path: Path) -> None:
    rows = [
        {"conversation": f"c{place}", "turn": turn, "speaker": "ab"[turn % 2], "affect": (place - turn) / 10}
        for place in range(10)
        for turn in range(3)
    ]
    run = ercfusion.fit(
        "concat",
        pandas.DataFrame(rows),
        features={"audio": np.random.default_rng(0).normal(size=(30, 4))},
        targets={"affect": {"kind": "regression", "low": -1, "high": 1}},
        training=TRAINING,
        output=str(tmp_path),
    )
    assert run.record["task"]["kind"] == "regression"
    assert "mae" in run.scores.index
    assert set(dir(run.figures)) == {"training", "scatter"}


def test_the_same_utterances_have_the_same_folder(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 4))
    first = write_given(tmp_path, conversations(), {"audio": values})
    stamp = (first / "utterances.csv").stat().st_mtime_ns
    assert write_given(tmp_path, conversations(), {"audio": values}) == first
    assert (first / "utterances.csv").stat().st_mtime_ns == stamp
    assert write_given(tmp_path, conversations(), {"audio": values + 1}) != first
    assert write_given(tmp_path, conversations(9), {"audio": values[:27]}) != first
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("data", "features", "message"),
    [
        ([], {}, "data has no utterances"),
        (pandas.DataFrame({"conversation": ["a"], "id": [1]}), {}, "no column 'turn' (it has conversation, id)"),
        (
            pandas.DataFrame({"dialogue": ["a"], "number": [1]}),
            {},
            "Rename or add: 'dialogue' to 'conversation', 'number' to 'turn'.",
        ),
        (
            pandas.DataFrame({"conversation": ["a"], "turn": [1], "feeling": ["joy"]}),
            {},
            "the data frame has no column 'emotion' (it has conversation, turn, feeling). Rename or add: 'feeling' to",
        ),
        (conversations(4), {"audio": np.zeros((3, 2))}, "features['audio'] has the shape (3, 2), but data has 12"),
        (
            [Conversation("c", (Turn("1", "a", targets={"votes": Target({"joy": 0.5, "anger": 0.5})}),))],
            {},
            "turn '1': the target 'votes' is {'joy': 0.5, 'anger': 0.5}; a label, a frozenset of labels or a number",
        ),
    ],
)
def test_utterances_that_cannot_be_used(data: Any, features: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_given(tmp_path, data, features)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_features_belong_to_utterances() -> None:
    with pytest.raises(ConfigError, match="Omit features= and targets="):
        ercfusion.fit("concat", "demo", features={"audio": np.zeros((1, 1))})


def frame() -> pandas.DataFrame:
    rows = [("c", turn, "a", label) for turn, label in enumerate(("joy", "anger", "joy"))]
    return pandas.DataFrame(rows, columns=["conversation", "turn", "speaker", "emotion"])


class _Unusual:
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": 16}, "options=16 is not a mapping. Give options by name"),
        ({"options": {"hidden": _Unusual()}}, "options['hidden'] is a _Unusual. Give a text, number, list or mapping."),
        ({"training": 5}, "training=5 is neither a mapping nor a name. Give the section's settings as a mapping"),
        ({"optimizer": 5}, "or a name: adadelta, adam, adamw, bert_adam, sgd."),
        ({"imports": "models"}, "imports='models' is not a list."),
        ({"resume": "some-run"}, "fit starts new runs only. Run: python -m ercfusion.train resume="),
        ({"output": None}, "output=None is not a path. Give a folder."),
        ({"model": None}, "model is None. Give a name"),
        ({"model": _Unusual()}, "model is an object of the class _Unusual. Give a name"),
        ({"data": [{"conversation": "c"}]}, "data contains the type dict. Give pandas.DataFrame(data)"),
        ({"data": {"train": conversations()[0]}}, "data['train'] has the type Conversation. Give a corpus name"),
        ({"data": np.zeros((3, 2))}, "data has the type ndarray. Give a corpus name, a pandas data frame"),
        ({"data": None}, "data has the type NoneType. Give a corpus name"),
        ({"data": Path("calls")}, "data='calls' is a path. Give data='custom' with **{'data.raw': 'calls'}."),
        (
            {"data": "calls/utterances.csv"},
            "Read it with pandas.read_csv and give the data frame, or give data='custom'",
        ),
        ({"data": Path("a.csv")}, "with **{'data.raw': '.'} for a folder with utterances.csv."),
        ({"data": "folder"}, "data='folder' is a path. Give data='custom'"),
        ({"features": np.zeros((3, 2))}, "features has the type ndarray of shape (3, 2). Give arrays by modality"),
        ({"data": frame(), "features": [np.zeros((3, 2))]}, "features contains the type ndarray. Give arrays by"),
        ({"data": frame(), "features": {0: np.zeros((3, 2))}}, "features: 0 is not the name of a modality. Use a text"),
        ({"data": frame(), "features": {"audio": [["loud"]] * 3}}, "features['audio'] has no numbers (could not"),
        ({"data": frame(), "targets": {"emotion": "single_label"}}, "is not a mapping of mappings. Write targets as"),
    ],
)
def test_arguments_of_another_type(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as caught:
        ercfusion.fit(**{"model": "concat", **arguments})
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_a_value_that_is_not_finite_is_located_by_its_turn(value: float, tmp_path: Path) -> None:
    values = np.zeros((30, 4))
    values[4, 2] = value
    with pytest.raises(ConfigError) as caught:
        write_given(tmp_path, conversations(), {"audio": values})
    assert str(caught.value).startswith("features 'audio': conversation 'c1', turn '1' has ")
    assert " in dimension 2. Correct the value" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_paths_and_numpy_numbers_are_settings(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run = ercfusion.fit(
        "concat",
        options={"hidden": np.int64(8)},
        run=tmp_path / "run",
        trainer="cpu",
        training={**TRAINING, "max_epochs": np.int64(1)},
        **DEMO,
    )
    assert run.folder == tmp_path / "run"
    assert run.record["config"]["model"]["hidden"] == 8
    assert not [str(one.message) for one in recwarn if "LeafSpec" in str(one.message)]


# One line each


def test_every_repr_is_one_informative_line(made: ercfusion.Run) -> None:
    corpus = open_corpus("demo", train=6, dev=3, test=3)
    protocol = corpus.protocol(None)
    from ercfusion.data.store import ConversationStore

    tables = list(corpus.features(protocol).values())
    store = ConversationStore(corpus.conversations(protocol)["test"], tables, [protocol.task])
    assert repr(store).startswith(f"ConversationStore(3 conversations, {store.num_utterances} utterances; text 24 ")
    assert repr(store).endswith("tasks emotion)")
    batch = store.batch([0, 1])
    assert repr(batch).startswith(f"ConversationBatch(2 conversations, {batch.packing.total} utterances; text 24; ")
    assert repr(batch).endswith("targets emotion; cpu)")
    assert repr(tables[0]) == f"FeatureTable(text: {len(tables[0]):,} utterances, 24 dimensions, float32)"
    assert repr(protocol.task).startswith("TaskSpec(emotion: single_label, 6 outputs: neutral, ")
    predictions = made.recognizer.predict(store)
    assert repr(predictions).startswith(f"Predictions(emotion: 3 conversations, {store.num_utterances} utterances, ")
    for one in (made, made.figures, store, batch, *tables, protocol.task, predictions):
        assert "\n" not in repr(one)
