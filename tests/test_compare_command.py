"""``python -m ercfusion.compare`` and ``python -m ercfusion.verify`` on made-up records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_records import record
from runs import command, refused

from ercfusion import compare, verify
from ercfusion._core.errors import RunError
from ercfusion.records.archive import write_archive

PRESET = """
title: Recorded
data: demo
seeds: [0, 1, 2]
rows:
  plain: {model: concat}
  graph: {model: cogmen}
"""


@pytest.fixture
def places(tmp_path) -> Path:
    """Run folders below ``runs``, a preset ``kept.yaml`` with its records."""
    for model, skill in (("concat", 0.4), ("cogmen", 0.8)):
        entries = [record(model, seed, skill) for seed in (0, 1, 2)]
        for entry in entries:
            run = tmp_path / "runs" / model / f"seed={entry['seed']}"
            run.mkdir(parents=True)
            (run / "config.json").write_text(json.dumps(entry["config"]))
            (run / "record.json").write_text(json.dumps(entry))
        slug = {"concat": "plain", "cogmen": "graph"}[model]
        write_archive(tmp_path / "kept" / "records" / f"{slug}.json", entries)
    (tmp_path / "kept.yaml").write_text(PRESET)
    return tmp_path


def run_folder(places: Path, name: str, entry: dict) -> str:
    folder = places / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "record.json").write_text(json.dumps(entry))
    return str(folder)


def p_error_stated(out: str) -> bool:
    """Whether the error of p is explained exactly if the table of pairs shows one."""
    table = next(part for part in out.split("\n\n") if part.lstrip("| ").startswith("pair "))
    return ("the number after ±" in out) == ("±" in table)


def test_two_models(places, capsys):
    status, out, _ = command(compare.main, [str(places / "runs" / "concat"), str(places / "runs" / "cogmen")], capsys)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "demo/balanced, 12 test conversations (synthetic corpus)"
    plain, graph = (next(line for line in lines if line.startswith(f"{name} ")) for name in ("concat", "cogmen"))
    assert plain.split()[1] == "3"
    assert graph.split()[1] == "3"
    pair = next(line for line in lines if line.startswith("concat minus cogmen"))
    assert pair.split()[3].startswith("-")
    assert pair.endswith("yes")
    assert "reached: position of the test score" in out
    assert p_error_stated(out)
    assert "one seed" not in out
    assert any(line.startswith("model.name") and line.split() == ["model.name", "concat", "cogmen"] for line in lines)


def test_single_runs_seeds_metrics_and_markdown(places, capsys):
    one, two = (str(places / "runs" / "concat" / f"seed={seed}") for seed in (0, 1))
    status, out, _ = command(compare.main, [one, two, "metric=accuracy", "--markdown"], capsys)
    assert status == 0
    assert "| seed 0 | 1 |" in out
    assert "test accuracy" in out
    below = out[out.index("| pair ") :].split("\n\n")
    assert below[1].startswith("one seed: ")
    assert below[2].startswith("shown: ")
    assert p_error_stated(out)
    message = refused(compare.main, [one, two, "metric=acuracy"], capsys)
    assert "Did you mean 'accuracy'" in message


def test_a_run_with_an_archive(places, capsys):
    better = run_folder(places, "mine", record("cogmen", 0, 1.0, "model.layers=1"))
    archive = str(places / "kept" / "records" / "graph.json")
    status, out, _ = command(compare.main, [better, archive], capsys)
    assert status == 0
    assert "cogmen model.layers=1" in out


def test_what_cannot_be_compared(places, capsys):
    one = str(places / "runs" / "concat" / "seed=0")
    assert "one run cannot be compared" in refused(compare.main, [one], capsys)
    assert "there is no such path" in refused(compare.main, [one, "kind=b"], capsys)
    assert "absent does not exist. Give the folder of a run or an archive" in refused(
        compare.main, [one, str(places / "absent")], capsys
    )
    unfinished = places / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    assert "train resume=" in refused(compare.main, [one, str(unfinished)], capsys)


def test_other_test_data_under_the_same_ids_is_refused(places, capsys):
    one = str(places / "runs" / "concat" / "seed=0")
    other = record("cogmen", 0)
    other["corpus"]["fingerprint"] = "e" * 64
    message = refused(compare.main, [one, run_folder(places, "other", other)], capsys)
    assert "corpus fingerprints" in message
    assert "p (Holm)" not in message


def test_other_missing_modalities_of_the_test_split_are_refused(tmp_path):
    under = record(missing={"laws": {"train": "none", "dev": "none", "test": "rmm:0.5"}, "seed": 0})
    paths = [str(write_archive(tmp_path / f"{n}.json", [one])) for n, one in enumerate([under, record("cogmen")])]
    with pytest.raises(RunError, match=r"tested with rmm:0\.5 .* complete: .*`robustness`"):
        compare.comparison_text(paths)


def test_students_of_two_teachers_are_two_rows(tmp_path):
    teacher = {"source": "t", "model": "bclstm", "protocol": "demo/balanced", "modalities": ["text"]}
    students = [record(skill=skill, teacher={**teacher, "sha256": sha * 64}) for skill, sha in ((0.2, "a"), (0.8, "b"))]
    paths = [str(write_archive(tmp_path / f"{n}.json", [one])) for n, one in enumerate(students)]
    text = compare.comparison_text(paths)
    for sha, student in zip("ab", students, strict=True):
        row = next(line for line in text.splitlines() if line.startswith(f"concat teacher: checksum={sha * 8}"))
        assert f"{100 * student['metrics']['test']['weighted_f1']:.2f}" in row


def test_other_features_are_named_in_their_row(places, capsys):
    other = record("cogmen", 0)
    other["features"][0]["source"]["sha256"] = "c" * 64
    one = str(places / "runs" / "concat" / "seed=0")
    status, out, _ = command(compare.main, [one, run_folder(places, "other", other), "--markdown"], capsys)
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith("| cogmen"))
    assert "text (24-d E cccccccc)" in row


def test_a_run_again_is_the_recorded_experiment(places, capsys):
    (places / "old" / "records").mkdir(parents=True)
    write_archive(places / "old" / "records" / "plain.json", [record("concat", seed, 0.4) for seed in (0, 1)])
    archive, run = str(places / "old" / "records" / "plain.json"), str(places / "runs" / "concat")
    status, out, _ = command(compare.main, [archive, run], capsys)
    assert status == 0
    assert "seed 0 minus seed 1" in out, "one group, of which nothing but the seeds is left to compare"
    assert "activation" not in out
    status, out, _ = command(verify.main, [run, archive], capsys)
    assert status == 0
    assert "activation" not in out
    assert "other settings" not in out


def test_recorded_runs_are_inside_their_band(places, capsys):
    status, out, _ = command(verify.main, [str(places / "runs"), str(places / "kept.yaml")], capsys)
    assert status == 0
    assert out.count("inside the band of 3 recorded seeds") == 6
    assert out.count("equal to the recorded run of this seed") == 6
    assert out.count("mean of 3 runs") == 2
    assert "other settings" not in out


def test_a_run_outside_and_what_may_explain_it(places, capsys):
    odd = record("concat", 5, 1.0, "optimizer.lr=0.5")
    odd["environment"]["versions"]["torch"] = "2.11.0"
    odd["features"][0]["source"]["sha256"] = "c" * 64
    path = run_folder(places, "odd", odd)
    status, out, _ = command(verify.main, [path, str(places / "kept.yaml")], capsys)
    assert status == 1
    assert "ABOVE the band" in out
    assert "optimizer.lr: 0.001 -> 0.5" in out
    features = out.index("the features differ (recorded -> this run)")
    assert f"text: demo-text {'a' * 64} -> demo-text {'c' * 64}" in out
    assert features < out.index("other settings")
    # No version is named as the cause of what other features explain.
    assert "torch" not in out
    assert "processor and versions are not compared" in out
    same = record("concat", 5, 1.0)
    same["environment"]["versions"]["torch"] = "2.11.0"
    status, out, _ = command(verify.main, [run_folder(places, "same", same), str(places / "kept.yaml")], capsys)
    assert "torch: 2.13.0+cpu -> 2.11.0" in out
    assert "the features differ" not in out
    bad = run_folder(places, "bad", record("concat", 6, 0.0))
    status, out, _ = command(verify.main, [bad, str(places / "kept.yaml"), "row=plain"], capsys)
    assert status == 1
    assert "BELOW the band" in out
    assert "no setting, feature or version differs" in out


def test_runs_of_another_model_than_the_row_are_named_by_their_own(places, capsys):
    _, out, _ = command(verify.main, [str(places / "runs/concat"), str(places / "kept.yaml"), "row=graph"], capsys)
    assert "mean of 3 runs of concat (compared with row graph)" in out
    assert "\nconcat (compared with row graph), seed 1: " in out


@pytest.mark.slow
def test_the_name_of_a_table_is_not_hidden_by_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert "concat" in {group.name for group in verify.recorded_groups("demo")}
    with pytest.raises(RunError, match="no finished run"):
        verify.recorded_groups("./demo")


def test_the_processor_is_named_before_versions(places, capsys):
    recorded = [record("concat", seed, 0.4) for seed in (0, 1)]
    run = record("concat", 0, 0.9)
    for entry, model in ((recorded[0], "Xeon"), (run, "EPYC")):
        entry["environment"] |= {"processor": model, "instructions": "AVX2"}
        entry["features"][0]["source"]["machine"] = {"processor": model, "instructions": "AVX2"}
    run["environment"]["versions"]["torch"] = "2.11.0"
    (places / "new").mkdir()
    write_archive(places / "new" / "plain.json", recorded)
    archive = str(places / "new" / "plain.json")
    _, out, _ = command(verify.main, [run_folder(places, "elsewhere", run), archive], capsys)
    assert "another processor (recorded -> this run):\n    processor: Xeon -> EPYC\n  another env" in out
    assert "instructions" not in out
    assert out.index("EPYC") < out.index("torch: 2.13.0+cpu -> 2.11.0")
    assert "features" not in out, "where a pack was made does not change what it is"
    # The record of seed 1 names no processor: nothing can be said.
    _, out, _ = command(verify.main, [run_folder(places, "later", {**run, "seed": 1}), archive], capsys)
    assert "processor" not in out
    assert "torch: 2.13.0+cpu -> 2.11.0" in out
    # The machines of packs with other values are named.
    run["features"][0]["source"]["sha256"] = "c" * 64
    _, out, _ = command(verify.main, [run_folder(places, "third", run), archive], capsys)
    assert f"demo-text {'a' * 64} (made on Xeon, AVX2) -> demo-text {'c' * 64} (made on EPYC, AVX2)" in out
    assert "another processor" not in out


def test_mistakes_of_verify(places, capsys):
    run, preset = str(places / "runs" / "concat" / "seed=0"), str(places / "kept.yaml")
    assert "verify takes RUN [RUN ...] TABLE, found 1" in refused(verify.main, [run], capsys)
    assert "no row 'plane'" in refused(verify.main, [run, preset, "row=plane"], capsys)
    assert "Did you mean 'metric'" in refused(verify.main, [run, preset, "metrik=x"], capsys)
    other = run_folder(places, "other", record("bclstm", 0))
    assert "Choose another table" in refused(verify.main, [other, preset], capsys)
    (places / "new.yaml").write_text(PRESET)
    assert "no recorded run" in refused(verify.main, [run, str(places / "new.yaml")], capsys)


@pytest.mark.parametrize("entry", [compare.main, verify.main])
def test_help(entry, capsys):
    status, out, _ = command(entry, ["--help"], capsys)
    assert status == 0
    assert "usage: python -m ercfusion." in out
    assert command(entry, [], capsys)[0] == 2
