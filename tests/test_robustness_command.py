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
    for laws in ("laws=", "laws=[]"):
        message = refused(robustness.main, [archives[0], laws], capsys)
        assert message.startswith("error: laws is empty. Give laws, or standard.\n")
    message = refused(robustness.main, [archives[0], "laws=standrad"], capsys)
    assert "no law has the name 'standrad'. Did you mean 'standard'?" in message
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


def stopping(monkeypatch: pytest.MonkeyPatch, place: int) -> list:
    """The prediction with this number is interrupted; returns the list of all predictions."""
    real, calls = Recognizer.predict_all, []

    def interrupted(self, store, **settings):
        calls.append(store)
        if len(calls) == place:
            raise KeyboardInterrupt
        return real(self, store, **settings)

    monkeypatch.setattr(Recognizer, "predict_all", interrupted)
    return calls


@pytest.mark.parametrize("again", [["laws=rmm:0.1,rmm:0.2,rmm:0.3"], []])
def test_an_interrupted_command_keeps_the_scored_laws(
    again: list[str], run: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    made = read(folder / "record.json")
    del made["robustness"]
    (folder / "record.json").write_text(json.dumps(made))
    calls = stopping(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        robustness.main([str(folder), "laws=rmm:0.1,rmm:0.2,rmm:0.3"])
    assert list(read(folder / robust_runs.FILE)["tasks"]["emotion"]["laws"]) == ["rmm:0.1", "rmm:0.2"]
    status, out, _ = command(robustness.main, [str(folder), *again], capsys)
    assert status == 0
    assert "rmm:0.3" in out
    assert list(read(folder / robust_runs.FILE)["tasks"]["emotion"]["laws"]) == ["rmm:0.1", "rmm:0.2", "rmm:0.3"]
    assert len(calls) == 4


def test_one_of_two_runs_is_not_finished(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    names = ["rmm:0.1", "rmm:0.2", "rmm:0.3"]
    folders = [tmp_path / name for name in ("first", "second")]
    for number, folder in enumerate(folders):
        shutil.copytree(run, folder)
        made = read(folder / "record.json")
        del made["robustness"]
        made["seed"] = number
        (folder / "record.json").write_text(json.dumps(made))
    argv = [str(folder) for folder in folders]
    calls = stopping(monkeypatch, 4)  # the first law of the second run
    with pytest.raises(KeyboardInterrupt):
        robustness.main([*argv, f"laws={','.join(names)}"])
    assert read(folders[1] / robust_runs.FILE)["asked"] == names
    assert command(robustness.main, argv, capsys)[0] == 0
    assert len(calls) == 7
    assert all(list(read(folder / robust_runs.FILE)["tasks"]["emotion"]["laws"]) == names for folder in folders)


def test_other_features_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    from ercfusion import evaluate
    from ercfusion.config.sections import Data
    from ercfusion.data.pack import write_pack
    from ercfusion.features.loading import load_data

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    options = read(folder / "config.json")["data"]
    data = load_data(Data(name=options["name"], protocol=options["protocol"], options=options["options"]))
    table = next(one for one in data.tables if one.modality == "text")
    table.values = table.values + 1
    write_pack(
        tmp_path / "other",
        table,
        tool="other",
        tool_version="1",
        settings={},
        corpus="demo",
        fingerprint=data.corpus.pack_fingerprints()[0],
        licence="none",
    )
    pack = f"data.packs.text={tmp_path / 'other'}"
    message = refused(robustness.main, [str(folder), "laws=rmm:0.5", pack], capsys)
    assert message.startswith(f"error: text features: {table.width}-d other ")
    assert "the run was trained with" in message
    assert not (folder / robust_runs.FILE).exists()
    assert message == refused(evaluate.main, [str(folder), pack], capsys)
    message = refused(robustness.main, [str(folder), "laws=rmm:0.5", "data.packs.txt=x"], capsys)
    assert message.startswith("error: data.packs.txt: the runs have only text, audio")
    # Scores of other features in the file do not count.
    assert command(robustness.main, [str(folder), "laws=rmm:0.5"], capsys)[0] == 0
    content = read(folder / robust_runs.FILE)
    made = robust_runs.stored(folder, read(folder / "record.json"))
    assert "rmm:0.5" in made[1]
    (folder / robust_runs.FILE).write_text(json.dumps({**content, "features": "0" * 64}))
    made = robust_runs.stored(folder, read(folder / "record.json"))
    assert "rmm:0.5" not in made[1]
    assert "rmm:0.5" not in made[0]["robustness"]["laws"]


def test_all_is_checked_before_a_run_is_scored(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def changed(name: str, change) -> str:
        made = read(run / "record.json")
        del made["robustness"]
        change(made)
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "record.json").write_text(json.dumps(made))
        return str(tmp_path / name)

    plain = changed("plain", lambda made: None)
    text = changed("text", lambda made: made.update(features=made["features"][:1]))
    seed = changed("seed", lambda made: made["config"]["missing"].update(seed=1))
    calls = stopping(monkeypatch, 1)
    laws = "laws=rmm:0.5"
    message = refused(robustness.main, [plain, text, laws], capsys)
    assert "seed 0, has text: their masks differ. Give runs with the same modalities." in message
    assert "have other masks (seeds 0 and 1)" in refused(robustness.main, [plain, seed, laws], capsys)
    assert "no group 'mult'" in refused(robustness.main, [plain, laws, "against=mult"], capsys)
    assert "has no task 'vad'" in refused(robustness.main, [plain, laws, "task=vad"], capsys)
    assert "mae" in refused(robustness.main, [plain, laws, "metric=mae"], capsys)
    message = refused(robustness.main, [plain, laws, f"out={run / 'record.json'}"], capsys)
    assert message.endswith("record.json cannot be a folder: File exists. Give another one.\n")
    assert not calls


@pytest.mark.parametrize("out", ["new/inner", "kept", "kept/inner"])
def test_no_folder_is_left_if_scoring_fails(out: str, run: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "kept").mkdir()
    stopping(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        robustness.main([str(tmp_path / "run"), "laws=rmm:0.5", f"out={tmp_path / out}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "run"]
    assert not list((tmp_path / "kept").iterdir())


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
