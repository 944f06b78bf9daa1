"""Conflict reports against loops over utterances, and runs that do not fit together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_predictions import DISTRIBUTION, EMOTION, INTENSITY, LABELS, VAD, random_predictions
from made_records import record

from ercfusion._core.errors import ConfigError, RunError
from ercfusion._core.files import sha256_of
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.metrics.statistics import conversation_bootstrap
from ercfusion.records.conflicts import FUSED, NONE, Voter, conflict_report, read_voters, subset_name
from ercfusion.records.predictions import write_predictions
from ercfusion.records.record import rounded_scores, split_record
from ercfusion.tables.conflicts import conflict_text

LENGTHS = (5, 1, 9, 4, 7, 12, 3, 8) * 5


def run_record(part: Predictions, modalities: Sequence[str], **changes: Any) -> dict[str, Any]:
    made = record("concat", 0, 0.5)
    features = [{**made["features"][0], "modality": name} for name in modalities]
    return {
        **made,
        "features": features,
        "task": part.task.to_dict(),
        "metrics": {"dev": rounded_scores(part), "test": rounded_scores(part)},
        "splits": {"dev": split_record(part), "test": split_record(part)},
        **changes,
    }


def run_folder(folder: Path, part: Predictions, *modalities: str, **changes: Any) -> str:
    folder.mkdir()
    file = write_predictions(folder / "predictions.parquet", {"dev": part, "test": part})
    stored = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}}
    (folder / "config.json").write_text("{}")
    (folder / "record.json").write_text(json.dumps(run_record(part, modalities, files=stored, **changes)))
    return str(folder)


def alike(task: TaskSpec, count: int, seed: int = 0) -> list[Predictions]:
    """Predictions with the same targets; right in part, so that experts agree in some utterances."""
    first = random_predictions(task, seed, LENGTHS)
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(count):
        other = random_predictions(task, seed + 10 + number, LENGTHS)
        target = np.eye(task.size)[first.value] if task.rules.index_targets else first.value
        if other.output.shape[1] != target.shape[1]:  # intensities follow the probabilities
            target = np.concatenate([target > 0, np.clip(target, 1, 3)], axis=1)
        right = rng.random(len(first)) < 0.3 + 0.2 * number
        parts.append(replace(first, output=np.where(right[:, None], target, other.output)))
    return parts


def voters(task: TaskSpec, *modalities: str, seed: int = 0) -> list[Voter]:
    parts = alike(task, len(modalities) + 1, seed)
    names = [modalities, *((name,) for name in modalities)]
    return [Voter(Path("/".join(own)), run_record(part, own), part) for own, part in zip(names, parts, strict=True)]


def answers(part: Predictions) -> list[str]:
    return [json.dumps(answer) for answer in part.task.rules.answers(part)]


@pytest.mark.parametrize("modalities", [("text", "audio"), ("text", "audio", "visual")], ids=["2", "3"])
@pytest.mark.parametrize("task", [EMOTION, LABELS, DISTRIBUTION, INTENSITY], ids=lambda task: task.kind)
def test_report_against_loops(task: TaskSpec, modalities: tuple[str, ...]) -> None:
    runs = voters(task, *modalities)
    report = conflict_report(runs, resamples=50)
    first = runs[0].predictions
    truths = [json.dumps(truth) for truth in task.rules.truths(first)]
    rows = [row for row in range(len(first)) if first.valid[row] and truths[row] != "null"]
    replies = {FUSED: answers(first), **{one.modalities[0]: answers(one.predictions) for one in runs[1:]}}
    assert 0 < len(rows) < len(first)
    assert report["utterances"] == len(rows)
    assert report["conversations"] == len({first.conversation[row] for row in rows})
    assert report["subsets"][0]["utterances"] == len(rows)

    def value(share: dict[str, Any], chosen: list[int], holds: Any) -> None:
        expected = sum(map(holds, chosen)) / len(chosen) if chosen else None
        assert share["value"] == (None if expected is None else pytest.approx(expected, abs=1e-6))
        if expected is None:
            assert share["interval"] is None

    seen = 0
    for one in report["subsets"]:
        chosen = []
        for row in rows:
            agree = len({replies[name][row] for name in modalities}) == 1
            right = [name for name in modalities if replies[name][row] == truths[row]]
            fits = one["experts"] == "all" or (one["experts"] == "agree") == agree
            if fits and (one["right"] is None or one["right"] == right):
                chosen.append(row)
        assert one["utterances"] == len(chosen)
        seen += len(chosen) if one["right"] is not None else 0
        for name, share in one["accuracy"].items():
            value(share, chosen, lambda row, name=name: replies[name][row] == truths[row])
    assert seen == len(rows)  # the finest subsets are a partition
    disagree = [row for row in rows if len({replies[name][row] for name in modalities}) > 1]
    assert disagree
    assert len(disagree) < len(rows)
    for name in modalities:
        value(report["follows"][name], disagree, lambda row, name=name: replies[FUSED][row] == replies[name][row])
    nobody = lambda row: replies[FUSED][row] not in [replies[name][row] for name in modalities]  # noqa: E731
    value(report["follows"][NONE], disagree, nobody)
    assert len(report["pairs"]) == len(modalities) * (len(modalities) - 1) // 2
    for pair in report["pairs"]:
        one, other = pair["experts"]
        differ = [row for row in rows if replies[one][row] != replies[other][row]]
        assert pair["utterances"] == len(differ)
        assert sum(share["value"] for share in pair["follows"].values()) == pytest.approx(1, abs=1e-5)
        accuracies = []
        for name, wrong in ((one, other), (other, one)):
            value(pair["follows"][name], differ, lambda row, name=name: replies[FUSED][row] == replies[name][row])
            own = [row for row in differ if replies[name][row] == truths[row]]
            assert all(replies[wrong][row] != truths[row] for row in own)
            assert pair["only_right"][name]["utterances"] == len(own)
            value(pair["only_right"][name]["accuracy"], own, lambda row: replies[FUSED][row] == truths[row])
            accuracies.append(pair["only_right"][name]["accuracy"]["value"])
        assert pair["gap"]["value"] == pytest.approx(accuracies[0] - accuracies[1], abs=2e-6)
        assert pair["gap"]["interval"][0] <= pair["gap"]["value"] <= pair["gap"]["interval"][1]


def test_intervals_resample_conversations() -> None:
    runs = voters(EMOTION, "text", "audio")
    report = conflict_report(runs)
    first = runs[0].predictions
    right = (first.decisions() == first.value) & first.valid
    sums = np.zeros((len(LENGTHS), 2))
    np.add.at(sums, (first.conversation, 0), right)
    np.add.at(sums, (first.conversation, 1), first.valid)
    expected = conversation_bootstrap(sums, lambda total: total[:, 0] / total[:, 1], bounds=(0, 1))
    assert report["subsets"][0]["accuracy"][FUSED]["interval"] == pytest.approx(expected, abs=1e-6)
    low, high = report["pairs"][0]["gap"]["interval"]
    assert -1 <= low < high <= 1


def test_empty_subsets_have_no_shares() -> None:
    fused, text, _ = voters(EMOTION, "text", "audio")
    same = Voter(Path("audio"), run_record(text.predictions, ["audio"]), text.predictions)
    report = conflict_report([fused, text, same], resamples=20)
    disagree = next(one for one in report["subsets"] if one["experts"] == "disagree")
    assert disagree["utterances"] == 0
    assert disagree["accuracy"][FUSED] == {"value": None, "interval": None}
    assert report["pairs"][0]["gap"] == {"value": None, "interval": None}
    assert all(share["value"] is None for share in report["follows"].values())
    json.dumps(report, allow_nan=False)
    assert "text and audio" in conflict_text(report)


def test_text_and_names() -> None:
    report = conflict_report(voters(EMOTION, "text", "audio", "visual"), resamples=20)
    names = [subset_name(one) for one in report["subsets"]]
    assert names == [
        *("all utterances", "experts agree", "experts agree, right", "experts agree, wrong", "experts disagree"),
        *("only text and audio right", "only text and visual right", "only audio and visual right"),
        *("only text right", "only audio right", "only visual right", "experts disagree, none right"),
    ]
    text = conflict_text(report)
    lines = text.splitlines()
    assert lines[0].startswith("demo/balanced, test split, ")
    assert lines[0].endswith("(synthetic corpus)")
    assert "scored with holes" not in text
    for name in names:
        assert any(line.startswith(name) for line in lines)
    cell = report["subsets"][0]["accuracy"][FUSED]
    low, high = cell["interval"]
    assert f"{100 * cell['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    gap = report["pairs"][0]["gap"]
    assert f"{100 * gap['value']:+.1f} [" in text
    # The gap does not depend on an order, except for its sign.
    fused, *experts = voters(EMOTION, "text", "audio")
    assert conflict_report([fused, *experts[::-1]], resamples=20)["pairs"][0]["gap"]["value"] == -gap["value"]
    gap.update(value=-0.0001, interval=(-0.0004, 0.1))
    assert "+0.0 [+0.0, +10.0]" in conflict_text(report)


def test_holes_are_named() -> None:
    fused, *experts = voters(EMOTION, "text", "audio")
    config = {**fused.record["config"], "missing": {"train": "rate:0.5", "dev": "none"}}
    holed = replace(fused, record={**fused.record, "config": config})
    report = conflict_report([holed, *experts], resamples=20)
    assert report["runs"][FUSED]["law"] == "rate:0.5"
    assert report["runs"]["text"]["law"] is None
    assert "scored with holes, rate:0.5" in conflict_text(report)
    assert conflict_report([holed, *experts], "dev", resamples=20)["runs"][FUSED]["law"] is None


# Reading runs


@pytest.fixture
def parts() -> list[Predictions]:
    return alike(EMOTION, 4)


def test_runs_are_read_in_any_order(tmp_path: Path, parts: list[Predictions]) -> None:
    fused = run_folder(tmp_path / "fused", parts[0], "text", "audio", "visual")
    text, audio, visual = (
        run_folder(tmp_path / name, part, name)
        for name, part in zip(("text", "audio", "visual"), parts[1:], strict=True)
    )
    ordered = read_voters([visual, text, fused, audio], "dev")
    assert [str(voter.folder) for voter in ordered] == [fused, text, audio, visual]
    assert ordered[0].name == "concat on text, audio, visual (seed 0)"
    assert np.array_equal(ordered[1].predictions.output, parts[1].output)
    assert [voter.modalities for voter in read_voters([visual, fused, text])][1:] == [["text"], ["visual"]]


def test_runs_that_do_not_fit(tmp_path: Path, parts: list[Predictions]) -> None:
    fused = run_folder(tmp_path / "fused", parts[0], "text", "audio")
    text, audio = (run_folder(tmp_path / name, part, name) for name, part in (("text", parts[1]), ("audio", parts[2])))

    def message(*runs: str, **arguments: Any) -> str:
        with pytest.raises((RunError, ConfigError)) as error:
            read_voters(runs, **arguments)
        return str(error.value)

    assert "0 of the runs have several modalities" in message(text, audio)
    second = run_folder(tmp_path / "second", parts[3], "text", "audio")
    assert f"2 of the runs have several modalities ({fused}: text, audio; {second}" in message(fused, second, text)
    assert f"1 of the runs has one modality ({fused}: text, audio; {text}: text). Give" in message(fused, text)
    assert "/text is given twice. Give one run" in message(fused, text, audio, f"{tmp_path}/fused/../text")
    again = run_folder(tmp_path / "again", parts[3], "text")
    assert f"{text} and {again} both have only text. Give one" in message(fused, text, again, audio)
    gait = run_folder(tmp_path / "gait", parts[3], "gait")
    assert f"{gait} has the modality 'gait', and {fused} does not" in message(fused, text, gait)
    assert "not a folder" in message(fused, text, str(tmp_path / "nothing"))
    assert "no predictions of the split 'train'" in message(fused, text, audio, split="train")
    assert "has no task 'emotoin'. Did you mean 'emotion'" in message(fused, text, audio, task="emotoin")
    protocol = run_folder(tmp_path / "protocol", parts[3], "audio", protocol="demo/other")
    assert "different protocols" in message(fused, text, protocol)
    corpus = {**record()["corpus"], "fingerprint": "e" * 64}
    assert "corpus fingerprints" in message(
        fused, text, run_folder(tmp_path / "corpus", parts[3], "audio", corpus=corpus)
    )
    for name, changed in (
        ("turns", replace(parts[2], turn_ids=tuple(f"x{turn}" for turn in parts[2].turn_ids))),
        ("labels", replace(parts[2], value=np.roll(parts[2].value, 1))),
    ):
        other = run_folder(tmp_path / name, changed, "audio")
        assert "different" in message(fused, text, other)
    labels = TaskSpec("emotion", "single_label", DISTRIBUTION.schema)
    kinds = run_folder(tmp_path / "kinds", alike(DISTRIBUTION, 1)[0], "audio")
    assert labels.name == DISTRIBUTION.name
    assert "their scores cannot be compared" in message(fused, text, kinds)
    damaged = Path(audio) / "predictions.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    assert "was changed or damaged" in message(fused, text, audio)


def test_regressions_have_no_labels(tmp_path: Path) -> None:
    part = random_predictions(VAD, 0, LENGTHS)
    with pytest.raises(ConfigError, match=r"'vad' is a regression: it has no decisions. Choose a task with labels"):
        read_voters([run_folder(tmp_path / "run", part, "text", "audio")])


def test_a_split_without_labels() -> None:
    runs = voters(EMOTION, "text", "audio")
    runs = [
        replace(run, predictions=replace(run.predictions, valid=np.zeros(sum(LENGTHS), dtype=bool))) for run in runs
    ]
    with pytest.raises(RunError, match=r"the split 'dev' has no labels"):
        conflict_report(runs, "dev")
