"""``python -m ercfusion.robustness``: from records, and on finished runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_records import LAWS, record, robust_record
from runs import command, read, refused, train

from ercfusion import robustness
from ercfusion.records import robust_runs
from ercfusion.records.archive import write_archive
from ercfusion.tasks.recognizer import Recognizer


@pytest.fixture
def archives(tmp_path: Path) -> list[str]:
    """Two archives of three runs each."""
    made = {"plain": ("concat", 0.4), "graph": ("cogmen", 0.9)}
    return [
        str(write_archive(tmp_path / f"{name}.json", [robust_record(model, seed, skill) for seed in range(3)]))
        for name, (model, skill) in made.items()
    ]


def test_archives_are_compared_without_models(archives: list[str], tmp_path: Path, capsys) -> None:
    status, out, err = command(robustness.main, [*archives, f"out={tmp_path / 'out'}"], capsys)
    assert status == 0, err
    assert out.startswith("demo/balanced, 12 test conversations, 6 runs, masks of seed 0 (synthetic corpus)\n")
    assert "Differences of the AUILC rate" in out
    assert "concat minus cogmen" in out
    assert "exact posterior" in out
    files = [Path(line) for line in out.splitlines() if line.startswith(str(tmp_path / "out"))]
    assert [file.name for file in files] == ["README.md", "table.csv", "table.tex", "robustness.png"]
    assert all(file.stat().st_size > 0 for file in files)
    status, out, _ = command(robustness.main, [*archives, "laws=rate:0,rate:0.5", "--markdown"], capsys)
    assert status == 0
    assert "patterns" not in out
    assert "| concat |" in out
    status, out, _ = command(robustness.main, [archives[0]], capsys)
    assert status == 0
    assert "minus" not in out


def test_what_is_refused(archives: list[str], tmp_path: Path, capsys) -> None:
    message = refused(robustness.main, [archives[0], "laws=rmm:0.5"], capsys)
    assert "seed 0, has no scores under these laws, and an archive has no model. Give the folder of the run" in message
    message = refused(robustness.main, [archives[0], "laws=pattern:mocap"], capsys)
    assert message.startswith("error: laws 'pattern:mocap': no modality 'mocap' here, only text, audio")
    assert "laws 'rate:2': rate" in refused(robustness.main, [archives[0], "laws=rate:2"], capsys)
    message = refused(robustness.main, [*archives, "against=mult"], capsys)
    assert "against: no group 'mult'" in message
    other = record("bclstm")
    other["corpus"]["fingerprint"] = "e" * 64
    path = write_archive(tmp_path / "other.json", [other])
    assert "different versions of 'demo'" in refused(robustness.main, [archives[0], str(path)], capsys)


@pytest.mark.slow
def test_many_groups_are_compared_with_the_first_or_a_named_one(tmp_path: Path, capsys) -> None:
    count = robustness.MOST_GROUPS + 1
    paths = []
    for number in range(count):
        runs = [robust_record("concat", seed, 0.5) for seed in range(2)]
        for run in runs:
            run["config"]["optimizer"]["lr"] = 0.001 * (number + 1)
        paths.append(str(write_archive(tmp_path / f"{number}.json", runs)))
    laws = "laws=rate:0,rate:0.5"
    _, out, _ = command(robustness.main, [*paths, laws], capsys)
    pairs = [line for line in out.splitlines() if " minus " in line and line.count("optimizer.lr") == 2]
    assert len({line.split("  ")[0] for line in pairs}) == count - 1
    assert all("minus concat optimizer.lr=0.001" in line for line in pairs)
    _, out, _ = command(robustness.main, [*paths, laws, "against=concat optimizer.lr=0.003"], capsys)
    assert "concat optimizer.lr=0.001 minus concat optimizer.lr=0.003" in out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with recorded scores under some laws."""
    folder = tmp_path_factory.mktemp("robust") / "run"
    grid = "missing.grid=[pattern:text,pattern:audio,rate:0,rate:0.5]"
    train(folder, "data=demo/missing", "model=concat", "training.max_epochs=2", grid)
    return folder


def test_a_run_records_its_scores_under_the_grid(run: Path, capsys) -> None:
    made = read(run / "record.json")
    laws = made["robustness"]["laws"]
    assert list(laws) == ["pattern:text", "pattern:audio", "rate:0", "rate:0.5"]
    # Nothing is hidden: the scores and sums of the record.
    scores = laws["rate:0"]["metrics"]
    assert scores == {name: made["metrics"]["test"][name] for name in scores}
    assert laws["rate:0"]["sums"] == {"confusion": ""}
    assert laws["rate:0"]["reachable"] == pytest.approx(made["corpus"]["reachable"]["test"], abs=1e-6)
    assert laws["pattern:text"]["reachable"]["weighted_f1"] < laws["rate:0"]["reachable"]["weighted_f1"]
    status, out, _ = command(robustness.main, [str(run)], capsys)
    assert status == 0
    assert "mean, incomplete" in out
    assert not (run / robust_runs.FILE).exists()


def test_a_run_without_a_grid_gets_the_same_scores(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    made = read(folder / "record.json")
    recorded = made.pop("robustness")
    (folder / "record.json").write_text(json.dumps(made))
    loads = []
    monkeypatch.setattr(robust_runs, "score_laws", _counting(robust_runs.score_laws, loads))
    argv = [str(folder), "laws=pattern:text,pattern:audio,rate:0,rate:0.5"]
    status, out, _ = command(robustness.main, argv, capsys)
    assert status == 0
    content = read(folder / robust_runs.FILE)
    assert content["tasks"]["emotion"] == recorded
    # Again: from the file. One more law: only this one is scored.
    assert command(robustness.main, argv, capsys)[1] == out
    assert len(loads) == 1
    status, _, _ = command(robustness.main, [str(folder), "laws=rate:0.5,rmm:1"], capsys)
    assert [str(law) for law in loads[-1]] == ["rmm:1"]
    laws = read(folder / robust_runs.FILE)["tasks"]["emotion"]["laws"]
    assert list(laws) == [*recorded["laws"], "rmm:1"]
    assert laws["rmm:1"]["unseen"]["utterances"] == laws["rmm:1"]["unseen"]["of"]
    # Other weights: the file is not theirs.
    recognizer = Recognizer.from_pretrained(folder / "model")
    recognizer.head.linear.bias.data += 1
    recognizer.save_pretrained(folder / "model")
    assert command(robustness.main, argv, capsys)[0] == 0
    assert len(loads) == 3


def _counting(function, calls: list) -> object:
    def counted(recognizer, store, laws, **settings):
        calls.append(list(laws))
        return function(recognizer, store, calls[-1], **settings)

    return counted


def test_an_interrupted_command_keeps_the_scored_laws(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    real, calls = Recognizer.predict_all, []

    def interrupted(self, store, **settings):
        calls.append(store)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, store, **settings)

    monkeypatch.setattr(Recognizer, "predict_all", interrupted)
    argv = [str(folder), "laws=rmm:0.1,rmm:0.2,rmm:0.3"]
    with pytest.raises(KeyboardInterrupt):
        robustness.main(argv)
    assert list(read(folder / robust_runs.FILE)["tasks"]["emotion"]["laws"]) == ["rmm:0.1", "rmm:0.2"]
    assert command(robustness.main, argv, capsys)[0] == 0
    assert len(calls) == 4


def test_other_files_of_the_corpus_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    made = read(folder / "record.json")
    made["corpus"]["fingerprint"] = "0" * 64
    (folder / "record.json").write_text(json.dumps(made))
    message = refused(robustness.main, [str(folder), "laws=rmm:0.5"], capsys)
    assert "the run was trained on another version of demo" in message


def test_the_file_of_scores_is_checked(run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / robust_runs.FILE).write_text('{"model": 3}')
    message = refused(robustness.main, [str(folder)], capsys)
    assert "robustness.json" in message
    assert "Delete the file" in message


def test_made_records_have_all_laws() -> None:
    assert set(robust_record()["robustness"]["laws"]) == set(LAWS)


@pytest.mark.slow
def test_every_task_of_a_run_is_scored(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    grid = ("missing.grid=[rate:0,rate:0.5]", "missing.train=rate:0.5", "missing.eval=none")
    train(folder, "data=demo", "data.tasks=[emotion,vad]", "model=concat", "training.max_epochs=2", *grid)
    made = read(folder / "record.json")
    laws = made["others"]["vad"]["robustness"]["laws"]
    assert laws["rate:0"]["metrics"]["ccc"] == made["others"]["vad"]["metrics"]["test"]["ccc"]
    assert laws["rate:0"]["sums"] == {"moments": {}}
    archive = write_archive(tmp_path / "run.json", [made])
    status, out, _ = command(robustness.main, [str(archive), "task=vad", "metric=rmse"], capsys)
    assert status == 0
    assert "↓" in out
    # The area of an error is on its own scale, between both ends.
    low, high = (laws[law]["metrics"].get("mae") for law in ("rate:0", "rate:0.5"))
    assert low is not None
    assert high is not None
    _, out, _ = command(robustness.main, [str(archive), "task=vad", "metric=mae"], capsys)
    line = next(line for line in out.splitlines() if line.startswith("concat"))
    first, second, area = (float(cell) for cell in line.split()[1:4])
    assert (first, second) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert area == pytest.approx((low + high) / 2, abs=1.1e-3)
