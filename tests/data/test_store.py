from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ercfusion._core.errors import BatchError, ConfigError, CorpusFormatError
from ercfusion.config.missing_laws import parse
from ercfusion.data import (
    Conversation,
    ConversationBatch,
    ConversationStore,
    FeatureTable,
    Target,
    TaskSpec,
    Turn,
    get_schema,
)
from ercfusion.data.store import encode_targets
from ercfusion.testing import make_task, random_conversations, random_store, random_tables

CONVERSATIONS = [
    Conversation("x", (Turn("1", "Ann"), Turn("2", "Bob"), Turn("3", "Ann"))),
    Conversation("y", (Turn("1", "Cy"),)),
    Conversation("z", (Turn("1", "Dee"), Turn("2", "Bob"))),
]
# The keys are in another order than the turns, (z, 1) is absent, and (w, 1) is of another split.
KEYS = [("z", "2"), ("x", "3"), ("x", "1"), ("w", "1"), ("y", "1"), ("x", "2")]
TEXT = FeatureTable("text", KEYS, np.arange(12, dtype=np.float64).reshape(6, 2))
MOCAP = FeatureTable("mocap", KEYS, np.arange(8, dtype=np.float32)[:, None], np.array([0, 2, 2, 3, 4, 5, 8]))


def test_rows_come_from_the_table() -> None:
    store = ConversationStore(CONVERSATIONS, [TEXT], [])
    assert (len(store), store.num_utterances, store.num_speakers) == (3, 6, 2)
    assert store.features["text"].dtype == torch.float32
    assert store.features["text"].tolist() == [[4, 5], [10, 11], [2, 3], [8, 9], [0, 0], [0, 1]]
    assert store.available.tolist() == [[True], [True], [True], [True], [False], [True]]
    assert store.speaker.tolist() == [0, 1, 0, 0, 0, 1]


def test_batches_are_cut_in_the_order_asked_for() -> None:
    store = ConversationStore(CONVERSATIONS, [TEXT, MOCAP], [])
    batch = store.batch([2, 0])
    assert batch.ids == ("z", "x")
    assert batch.packing.lengths == (2, 3)
    assert batch.features["text"].tolist() == [[0, 0], [0, 1], [4, 5], [10, 11], [2, 3]]
    assert batch.available.tolist() == [[False, False], [True, True], [True, True], [True, True], [True, True]]
    assert batch.speaker.tolist() == [0, 1, 0, 1, 0]
    twice = store.batch([1, 1])
    assert twice.features["text"].tolist() == [[8, 9], [8, 9]]


def test_sequences_are_packed_a_second_time() -> None:
    store = ConversationStore(CONVERSATIONS, [TEXT, MOCAP], [])
    # x: T = 1, 3, 0; y: 1; z: absent, 2.
    assert store.sequences["mocap"].offsets.tolist() == [0, 1, 4, 4, 5, 5, 7]
    assert store.sequences["mocap"].values.squeeze(1).tolist() == [2, 5, 6, 7, 4, 0, 1]
    assert store.features["mocap"].squeeze(1).tolist() == [2, 6, 0, 4, 0, 0.5]
    batch = store.batch([2, 0])
    assert batch.sequences["mocap"].offsets.tolist() == [0, 0, 2, 3, 6, 6]
    assert batch.sequences["mocap"].values.squeeze(1).tolist() == [0, 1, 2, 5, 6, 7]
    assert batch.features["mocap"].squeeze(1).tolist() == [0, 0.5, 2, 6, 0]
    assert batch.sequence("text").offsets.tolist() == [0, 1, 2, 3, 4, 5]
    # A step-less utterance that the corpus has is available all the same.
    assert batch.available[4, 1]


@pytest.mark.parametrize("absent", [0.0, 0.4])
def test_random_sequences_match_their_tables(absent: float) -> None:
    conversations = random_conversations((3, 5, 2))
    tables = random_tables(conversations, steps={"audio": 4, "visual": 2}, absent=absent)
    store = ConversationStore(conversations, tables, [])
    order = [2, 0, 1]
    batch = store.batch(order)
    keys = [key for b in order for key in conversations[b].keys()]  # noqa: SIM118
    table = tables[1]
    assert table.offsets is not None
    for row, key in enumerate(keys):
        bounds = batch.sequences["audio"].offsets
        found = batch.sequences["audio"].values[bounds[row] : bounds[row + 1]].numpy()
        group = int(table.rows([key])[0])
        if group < 0:
            assert len(found) == 0
            assert not batch.available[row, 1]
            continue
        expected = table.values[table.offsets[group] : table.offsets[group + 1]]
        assert np.array_equal(found, expected)
        mean = expected.mean(0) if len(expected) else np.zeros(table.width)
        np.testing.assert_allclose(batch.features["audio"][row].numpy(), mean, atol=1e-5)


def test_batches_cover_the_split_in_order() -> None:
    store = random_store((3, 1, 2, 4, 1), tasks=[make_task()])
    whole = store.batch(range(5))
    parts = list(store.batches(2))
    assert [part.num_conversations for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.features["text"] for part in parts]), whole.features["text"])
    values = torch.cat([part.targets["emotion"].value for part in parts])
    assert torch.equal(values, store.targets["emotion"].value)


def test_inputs_describe_the_tables() -> None:
    inputs = random_store(steps={"visual": 3}, speakers=4).inputs
    assert dict(inputs.widths) == {"text": 12, "audio": 7, "visual": 5}
    assert dict(inputs.levels) == {"text": "utterance", "audio": "utterance", "visual": "sequence"}
    assert inputs.speakers == 4


def one_turn(target: Target | None) -> list[Conversation]:
    targets = {} if target is None else {"t": target}
    return [Conversation("c", (Turn("0", "Ann"), Turn("u", "Bob", targets=targets)))]


SCHEMA = get_schema("meld3")  # neutral, positive, negative


@pytest.mark.parametrize(
    ("task", "target", "encoded"),
    [
        (TaskSpec("t", "single_label", SCHEMA), Target("negative"), 2),
        (TaskSpec("t", "multi_label", SCHEMA), Target(frozenset({"negative", "neutral"})), [1, 0, 1]),
        (TaskSpec("t", "multi_label", SCHEMA), Target(frozenset()), [0, 0, 0]),
        (TaskSpec("t", "distribution", SCHEMA), Target({"positive": 0.75, "neutral": 0.25}), [0.25, 0.75, 0]),
        (TaskSpec("t", "regression", dimensions=("v",)), Target(-1.5), [-1.5]),
        (TaskSpec("t", "regression", dimensions=("v", "a")), Target((0.5, 2.0)), [0.5, 2.0]),
    ],
)
def test_targets(task: TaskSpec, target: Target, encoded: object) -> None:
    found = encode_targets(one_turn(target), task)
    assert found.valid.tolist() == [False, True]
    assert found.value[1].tolist() == encoded
    assert found.votes is None
    for missing in (None, Target(None)):
        assert not encode_targets(one_turn(missing), task).valid.any()


@pytest.mark.parametrize(
    "task",
    [
        TaskSpec("t", "single_label", SCHEMA),
        TaskSpec("t", "multi_label", SCHEMA),
        TaskSpec("t", "distribution", SCHEMA),
        TaskSpec("t", "regression", dimensions=("v",)),
    ],
    ids=lambda task: task.kind,
)
def test_a_target_without_a_value_is_not_valid(task: TaskSpec) -> None:
    """Raters who do not agree leave votes, and no label: neither the first class nor the number 0."""
    votes = None if task.schema is None else {"positive": 1, "negative": 1}
    store = ConversationStore(
        one_turn(Target(None, votes=votes)), [FeatureTable("text", [("c", "u")], np.zeros((1, 2)))], [task]
    )
    target = store.batch([0]).targets["t"]
    assert target.valid.tolist() == [False, False]
    assert target.votes is None
    assert store.targets["t"].valid.sum() == 0


def test_votes() -> None:
    task = TaskSpec("t", "distribution", SCHEMA)
    found = encode_targets(one_turn(Target({"positive": 1.0}, votes={"positive": 3})), task)
    assert found.votes is not None
    assert found.votes.tolist() == [[0, 0, 0], [0, 3, 0]]
    store = ConversationStore(
        one_turn(Target({"positive": 1.0}, votes={"positive": 3})),
        [FeatureTable("text", [("c", "u")], np.zeros((1, 2)))],
        [task],
    )
    assert store.batch([0]).targets["t"].votes.tolist() == [[0, 0, 0], [0, 3, 0]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        (TaskSpec("t", "single_label", SCHEMA), Target("negativ"), "Did you mean 'negative'"),
        (TaskSpec("t", "single_label", SCHEMA), Target(1.0), "a label name is expected"),
        (TaskSpec("t", "multi_label", SCHEMA), Target("negative"), "a frozenset of label names is expected"),
        (TaskSpec("t", "distribution", SCHEMA), Target("negative"), "a mapping from label names to probabilities"),
        (TaskSpec("t", "distribution", SCHEMA), Target({"negative": 0.9}), "non-negative and sum to 1"),
        (TaskSpec("t", "distribution", SCHEMA), Target({"negative": 1.5, "neutral": -0.5}), "non-negative"),
        (TaskSpec("t", "regression", dimensions=("v", "a")), Target(1.0), "2 numbers are expected"),
        (TaskSpec("t", "regression", dimensions=("v",)), Target("high"), "could not convert"),
    ],
)
def test_targets_that_do_not_fit(task: TaskSpec, target: Target, message: str) -> None:
    with pytest.raises(CorpusFormatError, match=rf"conversation 'c', turn 'u': .*{message}"):
        encode_targets(one_turn(target), task)


def test_a_store_needs_conversations_and_features() -> None:
    with pytest.raises(BatchError, match="the split has no conversations"):
        ConversationStore([], [TEXT], [])
    with pytest.raises(BatchError, match="no features were given"):
        ConversationStore(CONVERSATIONS, [], [])
    other = FeatureTable("text", [("q", "1")], np.zeros((1, 2)))
    with pytest.raises(BatchError, match=r"none of the 6 turns .*first looked for: \('x', '1'\).*text: \('q', '1'\)"):
        ConversationStore(CONVERSATIONS, [other], [])
    with pytest.raises(BatchError, match="first held: text: none"):
        ConversationStore(CONVERSATIONS, [FeatureTable("text", [], np.zeros((0, 2)))], [])


def test_a_modality_that_no_turn_has_is_absent_everywhere() -> None:
    other = FeatureTable("audio", [("q", "1")], np.ones((1, 2)))
    steps = FeatureTable("visual", [], np.zeros((0, 3)), np.zeros(1, dtype=np.int64))
    store = ConversationStore(CONVERSATIONS, [TEXT, other, steps], [])
    assert store.available.any(0).tolist() == [True, False, False]
    assert not store.features["audio"].any()
    batch = store.batch([0, 2])
    assert batch.sequence("visual").offsets.tolist() == [0] * 6
    assert store.inputs.widths == {"text": 2, "audio": 2, "visual": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([("a", "1")], np.zeros(3)), r"values must be a matrix, found shape \(3,\)"),
        (([("a", "1")], np.zeros((2, 3))), "1 rows are named by the keys, but there are 2"),
        (([("a", "1"), ("a", "1")], np.zeros((2, 3))), "key occurs twice"),
        (([("a", "1")], np.zeros((2, 3)), np.array([0, 1, 2])), "offsets must rise from 0"),
        (([("a", "1")], np.zeros((2, 3)), np.array([1, 2])), "offsets must rise from 0"),
        (([("a", "1"), ("a", "2")], np.zeros((2, 3)), np.array([0, 3, 2])), "offsets must rise from 0"),
    ],
)
def test_feature_tables_are_checked(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(BatchError, match=f"features 'text': .*{message}"):
        FeatureTable("text", *arguments)  # type: ignore[arg-type]


def test_feature_table() -> None:
    assert (len(TEXT), TEXT.width, TEXT.level, MOCAP.level) == (6, 2, "utterance", "sequence")
    assert ("y", "1") in TEXT
    assert ("y", "2") not in TEXT
    assert TEXT.rows([("y", "1"), ("y", "2")]).tolist() == [4, -1]


@pytest.mark.parametrize("text", ["none", "rate:0.5", "rmfm", "rmfm:0.8", "stmfm:0.9", "pattern:text"])
def test_present_is_that_of_the_batches(text: str) -> None:
    small = ConversationStore(CONVERSATIONS, [TEXT, MOCAP], [])
    large = random_store((5, 9, 1, 6), absent=0.2, steps={"text": 3, "audio": 4})
    for split in (small, large):
        hidden = split.hidden(parse(text), 0, "test")
        batches = torch.cat([batch.present for batch in hidden.batches(2)])
        assert hidden.present.tolist() == batches.tolist()
        assert [column.tolist() for column in hidden.seen.values()] == batches.T.tolist()
        assert tuple(hidden.seen) == hidden.inputs.modalities


LAWS = (
    "pattern:text",
    "patterns:0.7",
    "rate:0.5",
    "rmm:0.5",
    "rmfm",
    "rmfm-released",
    "tmfm:0.4",
    "stmfm:0.5",
    "block:0.5",
)


def assert_equal_batches(first: ConversationBatch, second: ConversationBatch) -> None:
    assert first.ids == second.ids
    assert torch.equal(first.present, second.present)
    for name in first.modalities:
        assert torch.equal(first.values(name), second.values(name))
    for name in first.sequences:
        one, other = first.sequence(name), second.sequence(name)
        assert torch.equal(one.offsets, other.offsets)
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.places, other.places)


@pytest.mark.parametrize("text", LAWS)
def test_holes_are_the_same_in_every_batch(text: str) -> None:
    store = random_store((1, 4, 9, 2, 14, 30), steps={"audio": 6}, absent=0.2)
    law = parse(text)
    hidden = store.hidden(law, 0, "test")
    whole = hidden.batch(range(len(store)))
    assert (whole.present != store.batch(range(len(store))).present).any()
    for size in (1, 2, 4):
        batches = list(hidden.batches(size))
        assert torch.equal(torch.cat([batch.present for batch in batches]), whole.present)
        for name in store.inputs.modalities:
            assert torch.equal(torch.cat([batch.values(name) for batch in batches]), whole.values(name))
        steps = [batch.sequence("audio") for batch in batches]
        assert torch.equal(torch.cat([one.values for one in steps]), whole.sequence("audio").values)
        assert torch.equal(torch.cat([one.places for one in steps]), whole.sequence("audio").places)
    # The same as hiding in the batch itself.
    assert hidden.holes is not None
    assert_equal_batches(store.batch(range(len(store))).hide(hidden.holes.drop, hidden.holes.steps), whole)
    # The same in another process, whatever was drawn before.
    torch.manual_seed(int(torch.randint(1000, (1,))))
    state = torch.get_rng_state()
    assert_equal_batches(store.hidden(law, 0, "test").batch([5, 2]), hidden.batch([5, 2]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("text", LAWS)
def test_holes_do_not_depend_on_orders(text: str) -> None:
    conversations = random_conversations((1, 4, 9, 2, 14, 30))
    tables = random_tables(conversations, steps={"audio": 6}, absent=0.2)
    law, order = parse(text), [3, 0, 5, 1, 4, 2]
    hidden = ConversationStore(conversations, tables, []).hidden(law, 0, "test")
    swapped = ConversationStore([conversations[b] for b in order], tables[::-1], []).hidden(law, 0, "test")
    first, second = hidden.batch(order), swapped.batch(range(6))
    assert torch.equal(first.present, second.present.flip(1))
    assert first.ids == second.ids
    for name in first.modalities:
        assert torch.equal(first.values(name), second.values(name))
    assert torch.equal(first.sequence("audio").places, second.sequence("audio").places)


def test_holes_depend_on_seed_split_and_law() -> None:
    store = random_store((30, 40))
    seen = []
    for arguments in ((0, "test"), (1, "test"), (0, "dev"), (-1, "test"), (2**63, "test")):
        for text in ("rate:0.5", "rate:0.50", "rmm:0.5", "rate:0.51"):
            holes = store.hidden(parse(text), *arguments).holes
            assert holes is not None
            seen.append(holes.drop)
    different = {tuple(drop.flatten().tolist()) for drop in seen}
    assert len(different) == 15  # rate:0.5 and rate:0.50 are one law


def test_models_with_fewer_modalities_see_the_same_holes() -> None:
    conversations = random_conversations((9, 30))
    tables = random_tables(conversations)
    for text in ("rmm:0.5", "rmfm", "block:0.5", "tmfm:0.5"):
        both, text_only = (
            ConversationStore(conversations, chosen, []).hidden(parse(text), 0, "test").holes
            for chosen in (tables, tables[:1])
        )
        assert both is not None
        assert text_only is not None
        assert torch.equal(both.drop[:, :1], text_only.drop)


def test_a_hidden_split_shares_its_features() -> None:
    store = random_store((4, 9), steps={"audio": 6})
    content = {name: value.clone() for name, value in store.features.items()}
    hidden = store.hidden(parse("rmfm:0.5"), 0, "test")
    list(hidden.batches(1))
    assert hidden.features is store.features
    assert hidden.sequences is store.sequences
    assert hidden.targets is store.targets
    assert store.holes is None
    assert all(torch.equal(store.features[name], content[name]) for name in content)
    # Another law is one of the complete split.
    again = hidden.hidden(parse("none"), 0, "test")
    assert_equal_batches(again.batch([0, 1]), store.batch([0, 1]))
    assert_equal_batches(hidden.hidden(parse("rate:0"), 0, "test").batch([1]), store.batch([1]))
    with pytest.raises(ConfigError, match=r"no modality 'gait' here, only text, audio, visual"):
        store.hidden(parse("pattern:gait"), 0, "test")


def test_a_stored_nan_of_a_hidden_value_reaches_nothing() -> None:
    conversations = random_conversations((20, 30))
    tables = random_tables(conversations, steps={"audio": 6})
    law = parse("rmfm:0.5")
    clean = ConversationStore(conversations, tables, []).hidden(law, 0, "test")
    assert clean.holes is not None
    spoiled = ConversationStore(conversations, tables, []).hidden(law, 0, "test")
    stored = spoiled.sequences["audio"]
    stored.values[clean.holes.steps["audio"]] = math.nan
    spoiled.features["audio"] = stored.means()
    for number, name in enumerate(("text", "audio", "visual")):
        if name != "audio":
            spoiled.features[name][clean.holes.drop[:, number]] = math.nan
    assert spoiled.features["audio"].isnan().any()
    for first, second in zip(clean.batches(1), spoiled.batches(1), strict=True):
        assert_equal_batches(first, second)
