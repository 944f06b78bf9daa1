"""Difficulty, similarity and pace of curricula."""

from __future__ import annotations

import csv
import math
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import SCHEMAS, get_schema, wheel_angles
from ercfusion.batch.task import TaskSpec
from ercfusion.config.choices import Curriculum as Curricula
from ercfusion.config.settings import section_of
from ercfusion.data.conversation import Conversation, Target, Turn, count_label_shifts
from ercfusion.data.corpora import open_corpus
from ercfusion.data.curriculum import (
    PACINGS,
    SCOPES,
    Curriculum,
    build_curriculum,
    change_cost,
    label_changes,
    shift_difficulty,
    wheel_similarity,
    write_table,
)

TASK = TaskSpec("emotion", "single_label", get_schema("meld7"))
SHIFT: dict[str, Any] = {
    **{"name": "emotion_shift", "scope": "same", "buckets": 5, "pacing": "baby_step"},
    **{"epochs_per_bucket": 1, "reverse": False},
}
WEIGHTED = {**SHIFT, "name": "weighted_shift", "weight": 1.0, "beta": 0.4}


def talk(words: str, name: str = "c") -> Conversation:
    """``A joy, B -`` is two turns, the second without a label."""
    turns = []
    for number, entry in enumerate(words.split(", ")):
        speaker, label = entry.split()
        turns.append(Turn(str(number), speaker, targets={"emotion": Target(None if label == "-" else label)}))
    return Conversation(name, tuple(turns))


def random_talks(count: int, seed: int = 0, unlabelled: float = 0.3) -> list[Conversation]:
    chance = random.Random(seed)
    found = []
    for number in range(count):
        turns = [
            f"{chance.choice('ABC')} {'-' if chance.random() < unlabelled else chance.choice(TASK.schema.labels[:4])}"  # type: ignore[union-attr]
            for _ in range(chance.randint(1, 14))
        ]
        found.append(talk(", ".join(turns), f"talk-{number}"))
    return found


# Changes and difficulty


def slow_changes(conversation: Conversation, scope: str) -> list[tuple[str, str]]:
    """The specification: every pair of turns is looked at, and it is asked whether the one follows the other."""
    found = []
    turns = conversation.turns
    for later in range(len(turns)):
        for earlier in range(later):
            between = turns[earlier + 1 : later]
            alike = turns[earlier].speaker == turns[later].speaker
            follows = {
                "same": alike and all(turn.speaker != turns[later].speaker for turn in between),
                "different": not alike and not between,
                "both": not between,
            }[scope]
            before, after = turns[earlier].targets["emotion"].value, turns[later].targets["emotion"].value
            if follows and before is not None and after is not None and before != after:
                found.append((str(before), str(after)))
    return found


@pytest.mark.parametrize("scope", SCOPES)
def test_changes_are_those_of_the_specification(scope: str) -> None:
    talks = random_talks(200)
    expected = [slow_changes(one, scope) for one in talks]
    assert sum(map(len, expected)) > 150
    assert [label_changes(one, TASK, scope) for one in talks] == expected


def test_changes_by_scope() -> None:
    one = talk("A joy, B anger, A joy, A fear, B -, B joy, A fear")
    assert label_changes(one, TASK, "same") == [("joy", "fear")]  # B's anger and joy have an unlabelled one between
    assert label_changes(one, TASK, "different") == [("joy", "anger"), ("anger", "joy"), ("joy", "fear")]
    assert label_changes(one, TASK, "both") == [("joy", "anger"), ("anger", "joy"), ("joy", "fear"), ("joy", "fear")]


def test_two_spellings_of_a_label_are_no_change() -> None:
    task = TaskSpec("emotion", "single_label", get_schema("iemocap6"))
    assert label_changes(talk("A exc, A excited, A hap"), task) == [("excited", "happy")]


def test_the_counts_are_the_corpus_reports() -> None:
    """Where all is labelled, the doctor counts the same changes."""
    corpus = open_corpus("demo", train=12, dev=1, test=1)
    protocol = corpus.protocol()
    talks = corpus.conversations(protocol)["train"]
    for scope, same in (("same", True), ("both", False)):
        counted = sum(len(label_changes(one, protocol.task, scope)) for one in talks)
        assert counted == count_label_shifts(talks, "emotion", same_speaker=same) > 0


def test_real_meld(shared_data: Any) -> None:
    corpus = open_corpus("meld", shared_data("meld"))
    protocol = corpus.protocol()
    splits = corpus.conversations(protocol)
    counts = {
        scope: [
            sum(len(label_changes(one, protocol.task, scope)) for one in splits[split])
            for split in ("train", "dev", "test")
        ]
        for scope in SCOPES
    }
    assert counts["same"] == [4001, 427, 1003]
    assert counts["both"] == [5371, 607, 1353]
    assert all(0 < one < other for one, other in zip(counts["different"], counts["both"], strict=True))
    made = build_curriculum(section_of("curriculum", {**WEIGHTED, "buckets": 12}), splits["train"], protocol.task, 0)
    assert made is not None
    sizes = np.bincount(made.bucket_of)[1:]
    assert sizes.sum() == 1038
    assert set(sizes) == {86, 87}
    # A lone utterance has one speaker and no change.
    assert min(made.difficulty) >= 1 / 25
    assert {made.difficulty[place] for place, one in enumerate(splits["train"]) if len(one) == 1} == {0.5}


def test_difficulty_by_hand() -> None:
    one = talk("A joy, B anger, A fear, B anger, A -, B joy")
    assert shift_difficulty(one, TASK) == (2 + 2) / (6 + 2)
    assert shift_difficulty(one, TASK, scope="different") == (3 + 2) / (6 + 2)
    assert shift_difficulty(talk("A joy"), TASK) == 0.5
    assert shift_difficulty(talk("A -"), TASK) == 0.5
    cost = change_cost(TASK.schema, 2.0, 0.25)  # type: ignore[arg-type]
    # joy -> fear: opposite valence; anger -> joy as well.
    assert shift_difficulty(one, TASK, cost=cost) == (2 * 0.25 + 2) / 8
    near = talk("A fear, A disgust, A neutral")
    expected = 2 * math.cos(math.pi / 10) + 0.25 + 2 / 7 + 0.25
    assert shift_difficulty(near, TASK, cost=cost) == pytest.approx((expected + 1) / 4, rel=1e-15)


def test_difficulty_does_not_depend_on_the_order_of_the_changes() -> None:
    cost = change_cost(TASK.schema)  # type: ignore[arg-type]
    words = ["fear", "disgust", "anger", "fear", "anger", "surprise", "joy", "neutral"]
    there = talk(", ".join(f"A {word}" for word in words))
    back = talk(", ".join(f"A {word}" for word in reversed(words)))
    assert shift_difficulty(there, TASK, cost=cost) == shift_difficulty(back, TASK, cost=cost)


def test_what_has_no_changes() -> None:
    with pytest.raises(ValueError, match="scope must be one of same, different, both; found 'own'"):
        label_changes(talk("A joy"), TASK, "own")
    with pytest.raises(ValueError, match="task 'emotion' is multi_label: only single labels change"):
        label_changes(talk("A joy"), TaskSpec("emotion", "multi_label", get_schema("mosei6")))


# Similarity

PUBLISHED = {
    "iemocap6": {("excited", "happy"): 0.809, ("frustrated", "sad"): 0.309},
    "meld7": {
        ("surprise", "joy"): 0.588,
        ("fear", "disgust"): 0.951,
        ("fear", "anger"): 0.309,
        ("disgust", "anger"): 0.588,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_similarities_are_the_published_ones(name: str) -> None:
    schema = get_schema(name)
    found = wheel_similarity(schema)
    expected = np.eye(len(schema))
    neutral = schema.index("neutral")
    expected[neutral, :] = expected[:, neutral] = 1 / len(schema)
    expected[neutral, neutral] = 1
    for (one, other), value in PUBLISHED[name].items():
        expected[schema.index(one), schema.index(other)] = expected[schema.index(other), schema.index(one)] = value
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert ((found == 0) == (expected == 0)).all()  # right angles, too, to the last bit
    costs = [change_cost(schema)(one, other) for one in schema.labels for other in schema.labels if one != other]
    assert min(costs) == 0.4
    assert max(costs) == pytest.approx(1.351 if name == "meld7" else 1.209, abs=5e-4)


WITH_WHEEL = (
    *("meld7", "emotionlines7", "dailydialog7", "m3ed7", "demo6", "iemocap4", "iemocap6", "iemocap9", "emodb7"),
    *("mosei6", "semeval6"),
)


@pytest.mark.parametrize("name", SCHEMAS)
def test_wheels_of_the_schemas(name: str) -> None:
    schema = get_schema(name)
    if name not in WITH_WHEEL:
        with pytest.raises(ConfigError, match=f"the labels {name} have no emotion wheel") as caught:
            wheel_angles(schema)
        assert ("peaceful, powerful" in str(caught.value)) == (name == "emorynlp7")
        return
    found, angles = wheel_similarity(schema), wheel_angles(schema)
    assert list(angles) == list(schema.labels)
    np.testing.assert_array_equal(found, found.T)
    assert (found >= 0).all()
    assert (found <= 1).all()
    for row, one in enumerate(angles.values()):
        for column, other in enumerate(angles.values()):
            if row == column:
                expected = 1.0
            elif one is None or other is None:
                expected = 1 / len(schema)
            else:
                vectors = [np.array([math.cos(a * math.pi / 20), math.sin(a * math.pi / 20)]) for a in (one, other)]
                opposite = vectors[0][0] * vectors[1][0] < 0
                expected = 0.0 if opposite else max(float(vectors[0] @ vectors[1]), 0.0)
            assert found[row, column] == pytest.approx(expected, abs=1e-12)


def test_a_label_has_one_direction_whatever_its_name() -> None:
    meld, daily = get_schema("meld7"), get_schema("dailydialog7")
    pairs = {"joy": "happiness", "fear": "fear", "anger": "anger", "surprise": "surprise"}
    for one, other in pairs.items():
        assert wheel_angles(meld)[one] == wheel_angles(daily)[other]


# Pace


def made(count: int, **settings: Any) -> Curriculum:
    return Curriculum(tuple(map(str, range(count))), (0.5,) * count, tuple(reversed(range(count))), **settings)


@pytest.mark.parametrize(
    ("pacing", "epochs_per_bucket", "counts"),
    [
        ("baby_step", 1, [5, 10, 14, 19, 23, 23]),
        ("baby_step", 2, [5, 5, 10, 10, 14, 14, 19, 19, 23, 23]),
        ("one_pass", 1, [5, 5, 4, 5, 4, 23, 23]),
        ("linear", 1, [5, 10, 14, 19, 23, 23]),
        ("linear", 2, [5, 7, 10, 12, 14, 17, 19, 21, 23, 23]),
        ("root", 1, [5, 13, 17, 21, 23, 23]),
    ],
)
def test_paces(pacing: str, epochs_per_bucket: int, counts: list[int]) -> None:
    found = made(23, buckets=5, pacing=pacing, epochs_per_bucket=epochs_per_bucket)
    assert [found.count(epoch) for epoch in range(len(counts))] == counts
    assert found.full_from == counts.index(23)
    assert found.fewest == min(counts)
    used = [found.conversations(epoch) for epoch in range(len(counts))]
    assert [len(entry) for entry in used] == counts
    if pacing == "one_pass":
        assert sorted(index for entry in used[:5] for index in entry) == list(range(23))
    else:
        # The order is 22, 21, ...: the first to come into use lie last.
        assert used == [list(range(23 - count, 23)) for count in counts]


@pytest.mark.parametrize("pacing", PACINGS)
@pytest.mark.parametrize(("count", "buckets"), [(1, 1), (7, 7), (10, 6), (43, 5), (100, 12), (1038, 12)])
@pytest.mark.parametrize("each", [1, 3])
def test_paces_are_those_of_the_formulas(pacing: str, count: int, buckets: int, each: int) -> None:
    found = made(count, buckets=buckets, pacing=pacing, epochs_per_bucket=each)
    sizes = np.bincount(found.bucket_of)[1:]
    assert len(sizes) == buckets
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    full = 0 if buckets == 1 else each * (buckets if pacing == "one_pass" else buckets - 1)
    assert found.full_from == full
    for epoch in range(full + 3):
        used = found.conversations(epoch)
        numbers = {found.bucket_of[index] for index in used}
        assert len(set(used)) == len(used) == found.count(epoch) >= found.fewest >= 1
        if epoch >= full:
            assert used == list(range(count))
        elif pacing == "one_pass":
            assert numbers == {epoch // each + 1}
            assert len(used) == sizes[epoch // each]
        elif pacing == "baby_step":
            assert numbers == set(range(1, epoch // each + 2))
            assert len(used) == sizes[: epoch // each + 1].sum()
        else:
            power = 1 if pacing == "linear" else 2
            first, time = Fraction(1, buckets), Fraction(epoch, (buckets - 1) * each)
            share = first**power + (1 - first**power) * time
            # The smallest number of conversations that is at least the share.
            assert Fraction(len(used), count) ** power >= share > Fraction(len(used) - 1, count) ** power


def test_paces_that_agree() -> None:
    for count in (23, 100):
        baby, linear, root = (made(count, buckets=8, pacing=name) for name in ("baby_step", "linear", "root"))
        for epoch in range(9):
            assert baby.conversations(epoch) == linear.conversations(epoch)
            assert root.count(epoch) >= linear.count(epoch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": 0}, "buckets must be from 1 to the 4 conversations, found 0"),
        ({"buckets": 5}, "buckets must be from 1 to the 4 conversations, found 5"),
        ({"buckets": 2, "pacing": "slow"}, "pacing must be one of .*; found 'slow'"),
        ({"buckets": 2, "epochs_per_bucket": 0}, "epochs_per_bucket must be at least 1, found 0"),
    ],
)
def test_wrong_paces(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(4, **settings)


def test_an_order_that_is_none() -> None:
    with pytest.raises(ValueError, match="every conversation, once"):
        Curriculum(("a", "b"), (0.1, 0.2), (0, 0), 1)
    with pytest.raises(ValueError, match="every conversation, once"):
        Curriculum(("a", "b"), (0.1,), (0, 1), 1)


# From settings


def built(settings: dict[str, Any], talks: list[Conversation], seed: int = 0) -> Curriculum:
    found = build_curriculum(section_of("curriculum", settings), talks, TASK, seed)
    assert found is not None
    return found


@pytest.mark.parametrize("settings", [SHIFT, WEIGHTED], ids=["emotion_shift", "weighted_shift"])
def test_easy_ones_come_first(settings: dict[str, Any]) -> None:
    talks = random_talks(60)
    found, reverse = built(settings, talks), built({**settings, "reverse": True}, talks)
    in_order = [found.difficulty[index] for index in found.order]
    assert in_order == sorted(in_order)
    assert [reverse.difficulty[index] for index in reverse.order] == sorted(in_order, reverse=True)
    assert reverse.difficulty == found.difficulty
    assert len(set(in_order)) > 5
    cost = change_cost(TASK.schema) if settings is WEIGHTED else None  # type: ignore[arg-type]
    assert found.difficulty == tuple(shift_difficulty(one, TASK, cost=cost) for one in talks)


def test_the_order_of_equals_depends_on_seed_and_id_alone() -> None:
    talks = [talk("A joy, B joy", f"c{number}") for number in range(30)]

    def names(found: Curriculum) -> list[str]:
        return [found.ids[index] for index in found.order]

    first = names(built(SHIFT, talks))
    assert first == names(built(SHIFT, talks)) == names(built(SHIFT, talks[::-1]))
    assert first != names(built(SHIFT, talks, seed=1))
    assert first not in ([one.id for one in talks], [one.id for one in talks[::-1]])
    assert names(built(SHIFT, talks[:20])) == [name for name in first if name in {one.id for one in talks[:20]}]


def test_more_buckets_than_conversations() -> None:
    found = built({**SHIFT, "buckets": 50}, random_talks(4))
    assert found.buckets == 4
    assert [found.count(epoch) for epoch in range(5)] == [1, 2, 3, 4, 4]


def test_none_is_none() -> None:
    # A preset's leftovers do no harm.
    assert build_curriculum(Curricula(), random_talks(2), TASK, 0) is None


@pytest.mark.parametrize("kind", ["multi_label", "distribution", "regression"])
def test_other_tasks_are_refused(kind: Any) -> None:
    task = TaskSpec("mood", kind, dimensions=("v",)) if kind == "regression" else TaskSpec("mood", kind, TASK.schema)
    with pytest.raises(ConfigError, match=f"changes of a single label; 'mood' is a {kind} task. Use curriculum=none"):
        build_curriculum(section_of("curriculum", SHIFT), random_talks(2), task, 0)


def test_labels_without_a_wheel() -> None:
    task = TaskSpec("emotion", "single_label", get_schema("emorynlp7"))
    talks = [talk("A joyful, A peaceful")]
    with pytest.raises(ConfigError, match=r"known for .*peaceful, powerful.*\. Use curriculum=emotion_shift"):
        build_curriculum(section_of("curriculum", WEIGHTED), talks, task, 0)
    found = build_curriculum(section_of("curriculum", SHIFT), talks, task, 0)
    assert found is not None
    assert found.difficulty == (2 / 3,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "emotion_shfit"}, r"curriculum\.name='emotion_shfit' is unknown. Did you mean 'emotion_shift'"),
        ({"scope": "own"}, r"curriculum\.scope must be one of same, different, both; found 'own'"),
        ({"pacing": "slow"}, r"curriculum\.pacing must be one of .*; found 'slow'"),
        ({"buckets": 0}, r"curriculum\.buckets must be from 1 to 1000000, found 0"),
        ({"epochs_per_bucket": 0}, r"curriculum\.epochs_per_bucket must be from 1 to 1000000, found 0"),
        ({"weight": -0.5}, r"curriculum\.weight must be at least 0, found -0\.5"),
        ({"beta": math.nan}, r"curriculum\.beta must be at least 0, found nan"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section_of("curriculum", {**WEIGHTED, **changed})


def test_digest() -> None:
    talks = random_talks(30)
    base = built(SHIFT, talks)
    assert base.digest == built(dict(SHIFT), random_talks(30)).digest
    others = [
        *(built({**SHIFT, **changed}, talks) for changed in ({"buckets": 4}, {"pacing": "root"}, {"reverse": True})),
        *(built({**SHIFT, "epochs_per_bucket": 2}, talks), built(WEIGHTED, talks), built(SHIFT, talks, seed=1)),
        built(SHIFT, talks[:29]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == len(others) + 1


def test_table(tmp_path: Path) -> None:
    talks = random_talks(9)
    found = built({**SHIFT, "buckets": 4}, talks)
    write_table(tmp_path / "curriculum.csv", found)
    with (tmp_path / "curriculum.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["conversation"] for row in rows] == [talks[index].id for index in found.order]
    assert [float(row["difficulty"]) for row in rows] == sorted(found.difficulty)
    assert [int(row["bucket"]) for row in rows] == sorted(found.bucket_of)
    for row in rows:
        index = found.ids.index(row["conversation"])
        assert float(row["difficulty"]) == found.difficulty[index]
        assert int(row["bucket"]) == found.bucket_of[index]


def test_no_torch_is_loaded() -> None:
    program = "import sys, ercfusion.data.curriculum; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
