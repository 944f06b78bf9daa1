"""Runs are grouped by what decides about their result; what differs is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import record, robust_record

from ercfusion._core.errors import RunError
from ercfusion._core.files import sha256_of
from ercfusion.batch.labels import get_schema
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.config.settings import flat
from ercfusion.records.archive import read_archive, write_archive
from ercfusion.records.groups import (
    Group,
    check_comparable,
    data_of,
    differences,
    environment_of,
    features_of_groups,
    group_records,
    read_places,
    read_records,
    settings_of,
)
from ercfusion.records.record import split_record
from ercfusion.tables.robustness import compute_robustness


def test_seeds_are_grouped_and_settings_are_told_apart():
    records = [
        record("concat", 1),
        record("concat", 0),
        record("concat", 0, 0.5, "model.dropout=0.1"),
        record("cogmen", 3),
        record("concat", 2, 0.5, "training.keep_every_epoch=true", "training.threads=2", "data.raw=/elsewhere"),
    ]
    groups = group_records(records)
    assert [group.name for group in groups] == ["concat model.dropout=0.4", "concat model.dropout=0.1", "cogmen"]
    assert [group.seeds for group in groups] == [(0, 1, 2), (0,), (3,)]


def test_of_one_run_made_twice_the_later_counts():
    early, late = record(seed=0), record(seed=0, skill=0.9)
    late["finished"] = "2027-01-01T00:00:00+00:00"
    for order in ([early, late], [late, early]):
        (group,) = group_records(order)
        assert group.records == (late,)


def test_archived_runs_and_run_folders_are_one_group(tmp_path):
    archived = read_archive(write_archive(tmp_path / "a.json", [record(seed=0)]))
    (group,) = group_records([*archived, record(seed=1)])
    assert group.seeds == (0, 1)


def test_group_arrays():
    records = [record(seed=seed) for seed in (0, 1, 2)]
    group = Group("concat", tuple(records))
    values = [entry["metrics"]["test"]["macro_f1"] for entry in records]
    np.testing.assert_array_equal(group.values("macro_f1"), values)
    assert np.isnan(group.values("no such score")).all()
    sums = group.sums("confusion")
    assert sums.shape == (3, 12, 6, 6)
    assert sums.sum() == 3 * records[0]["splits"]["test"]["utterances"]
    assert group.sums("moments") is None
    assert group.metric == "weighted_f1"


def test_runs_on_other_conversations_cannot_be_compared():
    one, other = record(seed=0), record(seed=1)
    confusion = other["splits"]["test"]["confusion"]
    confusion["test/new"] = confusion.pop("test/11")
    other["splits"]["test"]["shift"] = {name: [0, 0, 0, 0] for name in confusion}
    with pytest.raises(RunError, match="1 only in the first, 1 only in the second"):
        check_comparable([Group("a", (one,)), Group("b", (other,))])
    with pytest.raises(RunError, match="different conversations"):
        _ = Group("both", (one, other)).conversations
    another_task = json.loads(json.dumps(one))
    another_task["task"]["name"] = "sentiment"
    with pytest.raises(RunError, match="cannot be compared"):
        check_comparable([Group("a", (one,)), Group("b", (another_task,))])


def test_protocols_are_not_mixed():
    one, other = record("concat", 0), record("cogmen", 0)
    other["protocol"] = f"{one['protocol']}-other"
    for groups in ([Group("a", (one,)), Group("b", (other,))], [Group("both", (one, other))]):
        with pytest.raises(RunError, match=r"different protocols.*-other"):
            check_comparable(groups)


def on_other_data(kind: str) -> tuple[dict, dict]:
    """A record and one that was tested on other data under the same conversation ids."""
    one, other = record(seed=0), record("cogmen", seed=1)
    if kind == "fingerprint":
        other["corpus"]["fingerprint"] = "e" * 64
    elif kind == "protocol":
        other["protocol"] = "demo/speaker"
    elif kind == "labels":  # the truth is in the rows: one utterance of another class, the same prediction
        cells = other["splits"]["test"]["confusion"]["test/3"]
        cells[0] = [(cells[0][0] + 1) % 6, *cells[0][1:]]
    else:  # only the count of utterances whose speaker's emotion has changed
        other["splits"]["test"]["shift"]["test/3"][1] += 1
    return one, other


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fingerprint", r"a \(seed 0\) and b \(seed 1\) .*fingerprints ffffffffffff and eeeeeeeeeeee"),
        ("protocol", "different protocols.*demo/speaker"),
        ("labels", "different labels: those of 1 conversations differ, for example of 'test/3'"),
        ("shift", "different labels: those of 1 conversations differ, for example of 'test/3'"),
    ],
)
def test_the_same_ids_of_other_data_cannot_be_compared(kind, message):
    one, other = on_other_data(kind)
    with pytest.raises(RunError, match=message):
        check_comparable([Group("a", (one,)), Group("b", (other,))])
    # Nor one model's seeds, whose first alone is like the other model's.
    with pytest.raises(RunError):
        check_comparable([Group("a", (one,)), Group("b", (record(seed=0), other))])
    with pytest.raises(RunError):
        check_comparable([Group("a", (record(seed=0), other)), Group("b", (one,))])


def regression(targets: list[float], shift: float) -> dict:
    """A record of a regression task whose outputs are ``shift`` away from the targets."""
    task = TaskSpec("sentiment", "regression", dimensions=("sentiment",), low=-3, high=3)
    value = np.array(targets, dtype=np.float32)[:, None]
    made = Predictions(
        task, value + shift, value, np.ones(4, dtype=bool), (2, 2), np.zeros(4), ("a", "b"), tuple("1234")
    )
    return record(task=task.to_dict(), splits={"test": split_record(made)})


def test_labels_of_other_kinds_of_tasks():
    one, same, other = regression([1, -1, 2, 0], 0.1), regression([1, -1, 2, 0], -0.7), regression([1, -1, 2, 0.5], 0.1)
    check_comparable([Group("a", (one,)), Group("b", (same,))])
    with pytest.raises(RunError, match="for example of 'b'"):
        check_comparable([Group("a", (one,)), Group("b", (other,))])
    task = TaskSpec("emotions", "multi_label", get_schema("demo6"))
    counts = [[[1, 2, 0]] * 6, [[1, 0, 1]] * 6]  # right, false alarms, misses
    one, same, other = (
        record(task=task.to_dict(), splits={"test": {"counts": {"a": first, "b": second}}})
        for first, second in (counts, ([[[0, 5, 1]] * 6, counts[1]]), ([counts[0], [[1, 0, 2]] * 6]))
    )
    check_comparable([Group("a", (one,)), Group("b", (same,))])
    with pytest.raises(RunError, match="for example of 'b'"):
        check_comparable([Group("a", (one,)), Group("b", (other,))])


def with_pack(entry: dict, sha: str, width: int = 24) -> dict:
    """The record with other text features."""
    entry["features"][0] = {**entry["features"][0], "width": width}
    entry["features"][0]["source"] = {**entry["features"][0]["source"], "sha256": sha * 64}
    return entry


def test_other_features_are_told_apart():
    records = [record(seed=0), with_pack(record(seed=0), "b"), with_pack(record("cogmen", 0), "b")]
    groups = group_records(records)
    assert [group.name for group in groups] == [
        "concat features text=aaaaaaaa",
        "concat features text=bbbbbbbb",
        "cogmen",
    ]
    check_comparable(groups)
    assert features_of_groups(groups) == ["text (24-d E aaaaaaaa)", "text (24-d E bbbbbbbb)", "text (24-d E bbbbbbbb)"]
    assert features_of_groups(groups[1:]) is None
    both = record("lmf", 0)
    both["features"].append({"modality": "audio", "width": 3, "level": "utterance", "source": {"corpus": "demo"}})
    assert features_of_groups([groups[0], *group_records([both])]) == ["text", "text, audio"]


@pytest.mark.parametrize(
    "setting",
    ["training.batch_size=7", "training.max_epochs=2", "optimizer.lr=0.1", "training.standardize=false",
     "training.gradient_clip=0.0", "trainer.precision=bf16-mixed", "data.modalities=[text]", "objective=focal"],
)  # fmt: skip
def test_what_decides_a_result_is_another_group(setting):
    assert len(group_records([record(seed=0), record("concat", 1, 0.5, setting)])) == 2


def test_differences_and_flat():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert differences({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": (1, None), "b": (2, 3), "c": (None, 4)}


def test_what_is_incidental():
    one = settings_of(record("concat", 0)["config"])
    two = settings_of(record("concat", 5, 0.5, "trainer=cpu", "training.bootstrap=7")["config"])
    assert one == two
    assert "optimizer.lr" in one
    assert "model.dropout" in one
    assert not any(key.startswith(("seed", "run", "data.raw", "preset")) for key in one)


def test_data_and_environment_by_name():
    data = data_of(record())
    assert data["features text: sha256"] == "a" * 64
    assert not any("pack" in key for key in data)
    environment = environment_of(record())
    assert environment["torch"] == "2.13.0+cpu"
    assert environment["ercfusion commit"] == "0123456789ab"


def test_reading_from_folders_archives_and_runs(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"seed={seed}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record(seed=seed)))
        (folder / "config.json").write_text("{}")
    archive = write_archive(tmp_path / "kept.json", [record(seed=4), record(seed=3)])
    first = tmp_path / "runs" / "seed=0"
    found = read_records([tmp_path / "runs", archive, first, first / "record.json"])
    assert [entry["seed"] for entry in found] == [0, 1, 3, 4, 0, 0]
    with pytest.raises(RunError, match=r"no finished run .*\. Give its files, such as .*kept\.json"):
        read_records([write_archive(tmp_path / "archives" / "kept.json", [record(seed=4)]).parent])
    # Other files: of a killed run, and a damaged one.
    (tmp_path / "archives" / "environment.json").write_text("{}")
    (tmp_path / "archives" / "damaged.json").write_text("{")
    with pytest.raises(RunError, match=r"Give its files, such as .*kept\.json"):
        read_records([tmp_path / "archives"])
    (tmp_path / "archives" / "kept.json").unlink()
    with pytest.raises(RunError, match=r"no finished run .*\. Give the folder of a run or an archive\."):
        read_records([tmp_path / "archives"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no finished run"):
        read_records([tmp_path / "empty"])
    with pytest.raises(RunError, match="absent does not exist"):
        read_records([tmp_path / "absent"])


def test_a_given_record_is_only_itself(tmp_path):
    path = tmp_path / "runs" / "record.json"
    (path.parent / "inner").mkdir(parents=True)
    path.write_text(json.dumps(record(seed=0)))  # copied, without the rest of its run
    (path.parent / "inner" / "record.json").write_text(json.dumps(record(seed=1)))
    assert [(folder, entry["seed"]) for folder, entry in read_places([path])] == [(path.parent, 0)]


def test_runs_whose_scores_follow_another_convention_are_told_apart():
    one, other = record(seed=0), record(seed=1)
    rule = "two empty sets of labels count"
    for entry, counted in ((one, "jaccard 0"), (other, "jaccard 1")):
        entry["conventions"] = {rule: counted}
    assert len(group_records([one, other])) == 2
    assert differences(data_of(one), data_of(other)) == {rule: ("jaccard 0", "jaccard 1")}


# Initial weights and teachers


def taught(entry: dict, sha: str, folder: str | None = None, model: str = "bclstm") -> dict:
    """The record of a student of a finished run."""
    entry["teacher"] = {
        "source": "t",
        "model": model,
        "protocol": entry["protocol"],
        "modalities": ["text", "audio"],
        "sha256": sha * 64,
    }
    if folder is not None:
        entry["config"]["training"]["teacher"] = folder
    return entry


def started(entry: dict, sha: str, model: str = "bclstm demo/balanced") -> dict:
    """The record of a run with initial weights of a finished run."""
    entry["start"] = {"source": "s", "model": model, "sha256": sha * 64}
    return entry


def names_of(*records: dict) -> list[str]:
    return [group.name for group in group_records(records)]


def test_teachers_and_initial_weights_are_in_the_name() -> None:
    names = names_of(taught(record(), "a"), taught(record(), "b", model="cogmen"), record("lmf"))
    assert names == ["concat teacher=bclstm on text, audio", "concat teacher=cogmen on text, audio", "lmf"]
    assert names_of(taught(record(), "a"), record("lmf")) == ["concat", "lmf"]
    names = names_of(started(record(), "a"), record(), started(record(), "b", "cogmen demo/balanced"))
    shown = ["bclstm demo/balanced", "null", "cogmen demo/balanced"]
    assert names == [f"concat initial weights={words}" for words in shown]


def test_students_of_two_equal_models_have_checksums_in_the_name() -> None:
    names = names_of(taught(record(), "a"), taught(record(), "b"), record("lmf"))
    assert names == ["concat teacher: checksum=aaaaaaaa", "concat teacher: checksum=bbbbbbbb", "lmf"]
    names = names_of(started(record(), "a"), started(record(), "b"))
    assert names == ["concat initial weights: checksum=aaaaaaaa", "concat initial weights: checksum=bbbbbbbb"]


def test_no_two_groups_have_one_name() -> None:
    records = [record(), record()]
    for number, entry in enumerate(records):
        entry["corpus"]["fingerprint"] = "f" * 63 + str(number)  # the shown part is equal
    assert names_of(*records, record("lmf")) == ["concat (1)", "concat (2)", "lmf"]
    records[1] = record()
    for entry, counted in zip(records, "01", strict=True):
        entry["corpus"]["fingerprint"] = "f" * 64
        entry["conventions"] = {"empty sets count": counted}
    assert names_of(*records) == ["concat empty sets count=0", "concat empty sets count=1"]


def test_students_of_two_teachers_are_compared() -> None:
    groups = group_records([taught(robust_record(skill=skill), sha) for skill, sha in ((0.2, "a"), (0.8, "b"))])
    table = compute_robustness(groups)
    assert len({line.scores["rate:0.5"].mean for line in table.lines}) == 2
    assert len(table.under_laws["rate:0.5"]) == 1


@pytest.mark.parametrize("change", [taught, started])
def test_other_weights_with_one_seed_are_no_repeat(change: Any) -> None:
    # Both seeds have both; the first pair of runs are repeats.
    runs = [(0, "a"), (0, "a"), (1, "a"), (0, "b"), (1, "b")]
    groups = group_records([change(record(seed=seed), sha) for seed, sha in runs])
    assert [group.seeds for group in groups] == [(0, 1), (0, 1)]
    # One for two seeds, another one for the third.
    groups = group_records([change(record(seed=seed), sha) for seed, sha in ((2, "b"), (0, "a"), (1, "a"))])
    assert [group.seeds for group in groups] == [(2,), (0, 1)]


@pytest.mark.parametrize("change", [taught, started])
def test_seeds_with_their_own_teachers_are_one_group(change: Any) -> None:
    (group,) = group_records([change(record(seed=seed), sha) for seed, sha in enumerate("abc")])
    assert group.seeds == (0, 1, 2)
    (group,) = group_records([change(record(seed=seed), "a") for seed in range(3)])
    assert group.seeds == (0, 1, 2)


def test_a_stage_as_the_teacher_follows_from_the_settings() -> None:
    runs = [(0, "a"), (1, "a"), (0, "b"), (1, "c")]
    records = [taught(record("concat", seed, 0.5, "recipe=guided"), sha) for seed, sha in runs]
    (group,) = group_records(records)
    assert group.seeds == (0, 1)
    assert "teacher" not in data_of(records[0])
    outside = [taught(entry, sha, "/runs/other") for entry, (_, sha) in zip(records, runs, strict=True)]
    assert [group.seeds for group in group_records(outside)] == [(0, 1), (0,), (1,)]
    assert data_of(outside[0])["teacher"] == "bclstm on text, audio"


def made_teacher(folder: Path, seed: int, *overrides: str) -> dict[str, Any]:
    """A folder like that of a finished run, and its student of the same seed."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_text(folder.name)
    (folder / "config.json").write_text(json.dumps(record("bclstm", seed, 0.5, *overrides)["config"]))
    student = taught(record(seed=seed), "a", str(folder))
    student["teacher"]["sha256"] = sha256_of(folder / "model/model.safetensors")
    return student


def test_teachers_that_differ_only_in_the_seed(tmp_path: Path) -> None:
    alike = [made_teacher(tmp_path / f"alike{seed}", seed) for seed in (0, 1)]
    others = [made_teacher(tmp_path / f"other{seed}", seed, "optimizer.lr=0.5") for seed in (0, 1)]
    assert [group.seeds for group in group_records(alike)] == [(0, 1)]
    # Each seed has its own teacher, but the teachers have different settings.
    assert [group.seeds for group in group_records([alike[0], others[1]])] == [(0,), (1,)]
    groups = group_records([alike[0], others[1], alike[1], others[0]])
    assert [group.seeds for group in groups] == [(0, 1), (0, 1)]
    assert [group.records[0] for group in groups] == [alike[0], others[0]]
    # A folder with another model by now says nothing, nor does a damaged one.
    (tmp_path / "other1/model/model.safetensors").write_text("another")
    assert [group.seeds for group in group_records([alike[0], others[1]])] == [(0, 1)]
    (tmp_path / "alike0/config.json").write_text("{")
    assert [group.seeds for group in group_records(alike)] == [(0, 1)]
    assert len(group_records([*alike, *others])) == 4


# Missing modalities


def under_law(law: str | None, seed: int = 0) -> dict[str, Any]:
    """A record of a run on text with a law on test."""
    laws = {"train": "rate:0.9", "dev": "rate:0.3"} | ({} if law is None else {"test": law})
    return record(missing={"laws": laws, "seed": seed})


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (under_law("rmm:0.5"), record(), r"tested with rmm:0\.5 \(masks of seed 0\), and b \(seed 0\) complete:"),
        (record(), under_law("rmm:0.5"), r"tested complete, and b \(seed 0\) with rmm:0\.5"),
        (under_law("rmm:0.5"), under_law("rate:0.5"), r"rmm:0\.5 .* with rate:0\.5"),
        (under_law("rate:0.5", 3), under_law("rate:0.5", 4), r"seed 3\), .*masks of seed 4"),
    ],
)
def test_other_holes_are_other_test_data(one: dict, other: dict, words: str) -> None:
    groups = [Group("a", (one,)), Group("b", (other,))]
    with pytest.raises(RunError, match=words) as caught:
        check_comparable(groups, test_scores=True)
    assert "`robustness`" in str(caught.value)
    assert "`evaluate RUN missing.eval=LAW`" in str(caught.value)
    check_comparable(groups)
    with pytest.raises(RunError):
        check_comparable([Group("both", (one, other))], test_scores=True)


def test_equal_holes_are_equal_test_data() -> None:
    pairs = [
        ("rate:0.5", 3, "rate:0.5", 3),
        ("rate:0", 3, "none", 4),
        ("none", 3, None, 0),
        ("pattern:text", 1, "none", 0),
    ]
    for law, seed, other, other_seed in pairs:
        check_comparable(
            [Group("a", (under_law(law, seed),)), Group("b", (under_law(other, other_seed),))], test_scores=True
        )
    check_comparable([Group("a", (under_law("none", 3),)), Group("b", (record(),))], test_scores=True)
    # A law of a user's module, which is not imported here.
    check_comparable([Group("a", (under_law("mine:0.5"),)), Group("b", (under_law("mine:0.5"),))], test_scores=True)
    # A pattern has no random masks.
    audio = [under_law("pattern:text", seed) for seed in (0, 1)]
    for entry in audio:
        entry["features"].append({**entry["features"][0], "modality": "audio"})
    check_comparable([Group("a", (audio[0],)), Group("b", (audio[1],))], test_scores=True)
    with pytest.raises(RunError, match="with pattern:text, and b"):
        check_comparable([Group("a", (audio[0],)), Group("b", (under_law("none"),))], test_scores=True)
