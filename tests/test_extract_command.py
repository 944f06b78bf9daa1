"""``python -m ercfusion.extract`` as it is typed: what it prints, what it refuses, and what training makes of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import python

from ercfusion.cli import run_command
from ercfusion.data.pack import read_manifest, read_pack
from ercfusion.extract import main
from ercfusion.testing.media import tone, write_wav
from ercfusion.testing.twins import write_twin

pytest.importorskip("opensmile")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    for name in ("ERCFUSION_PACKS", "ERCFUSION_DATA"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    status = run_command(main, arguments)
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.mark.slow
def test_from_recordings_to_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ercfusion.train import main as train

    raw = write_twin("emodb", tmp_path / "emodb")
    paths = sorted(raw.rglob("*.wav"))
    paths[0].write_bytes(b"RIFF" + bytes(100))
    paths[1].write_bytes(b"")
    write_wav(paths[2], np.zeros(16000, np.float32))
    write_wav(paths[3], tone(0.05))
    status, out, err = run(capsys, "data=emodb", "features=egemaps", f"data.raw={raw}", "workers=1")
    assert status == 0, err
    pack = Path(out[-1])
    manifest = read_manifest(pack)
    assert {entry["conversation"] for entry in manifest["missing"]} == {path.stem for path in (*paths[:2], paths[3])}
    assert [entry["conversation"] for entry in manifest["notes"]] == [paths[2].stem]
    assert f"missing: 3 (all with their reasons in {pack / 'pack.json'})" in err
    assert f"{paths[1].stem}/0: the file is empty (0 bytes)" in err
    assert "0.050 s of sound, too short for eGeMAPSv02" in err
    assert f"questionable: 1 (all with their reasons in {pack / 'pack.json'})" in err
    assert "silent: the peak is below -80 dB" in err
    assert f"use it with: python -m ercfusion.train data=emodb data.raw={raw} data.packs.audio=egemaps\n" in err
    assert "licensed by audEERING for research" in manifest["licence"]
    assert len(read_pack(pack)) == len(paths) - 3

    status, out, err = run(capsys, "data=emodb", "features=egemaps", f"data.raw={raw}")
    assert (status, out) == (0, [str(pack)])
    assert "exists already: audio features" in err

    from ercfusion.doctor import main as doctor

    assert run_command(doctor, ["data=emodb", f"data.raw={raw}", "data.packs.audio=egemaps"]) in (0, 1)
    told = capsys.readouterr().out
    assert (
        f"1 utterances had no features at extraction (first: {paths[1].stem}/0): the file is empty (... bytes)." in told
    )
    assert "1 utterances are questionable at extraction" in told
    assert ": silent: the peak is below" in told

    arguments = ["model=concat", "data=emodb", f"data.raw={raw}", "data.packs.audio=egemaps", f"run={tmp_path / 'run'}"]
    assert train([*arguments, "training.max_epochs=1", "training.bootstrap=20", "training.threads=1"]) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert [table["source"]["sha256"] for table in record["features"]] == [
        manifest["files"]["values.safetensors"]["sha256"]
    ]


def test_settings_of_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_twin("emodb", tmp_path / "emodb")
    pack = tmp_path / "pack"
    arguments = ["data=emodb", "features=egemaps", f"data.raw={raw}", f"out={pack}", "workers=1"]
    status, out, err = run(capsys, *arguments, "features.feature_set=IS09", "features.feature_level=descriptors")
    assert status == 0, err
    assert out == [str(pack)]
    manifest = read_manifest(pack)
    assert (manifest["level"], manifest["width"]) == ("sequence", 16)
    assert manifest["settings"]["feature_set"] == "IS09"
    assert f"data.packs.audio={pack}" in err
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "holds a pack with feature_set IS09, not eGeMAPSv02" in err


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings that no test changes."""
    return write_twin("emodb", tmp_path_factory.mktemp("raw") / "emodb")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=emodb"], "features=NAME is missing"),
        (["features=egemaps"], "data=NAME is missing"),
        (["data=emodb", "features=egemap"], "features='egemap': unknown recipe. Did you mean 'egemaps'"),
        (["data=emodb", "features=egemaps", "features.rat=1"], "unknown setting 'rat'. Did you mean 'rate'"),
        (["data=emodb", "features=egemaps", "worker=1"], "extract has no setting 'worker'. Did you mean 'workers'"),
        (["data=emodb", "features=egemaps", "workers=0"], "workers takes a whole number of at least 1, not '0'"),
        (["data=emodb", "features=egemaps", "data.rw=x"], "data.rw"),
        (["data=emodb", "features=egemaps", "executor=slurm"], "'executor=slurm': no such value"),
        (["data=emodb", "features=egemaps", "fresh=yes"], "Write --fresh"),
        (["data=emodb", "features=egemaps", "layout=mmsa"], "layout= goes with import=FILE"),
        (["data=demo", "features=egemaps"], "has no audio recordings"),
        (["data=emodb", "features=egemaps", "workers=" + "9" * 5000], "workers takes a whole number"),
        (["data=emodb", "features=egemaps", "features.rate=" + "9" * 5000], "has 5000 characters"),
        (["data=emodb", "features=egemaps", "features.rate=" + "[" * 5000], "too many levels"),
        (["data=emodb", "features=egemaps", "features.rate=2020-01-01"], "rate='2020-01-01'"),
        (["data=emodb", "features=egemaps", "features.rate=!!python/name:os.getcwd x"], "the tag "),
        (["nonsense"], "not of the form key=value"),
        (["import=nothing.pkl", "layout=mmsa", "workers=2"], "workers= does not go with import=FILE"),
    ],
)
def test_mistakes_are_named(raw: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    given = [*arguments, f"data.raw={raw}"] if "data=emodb" in arguments else arguments
    status, out, err = run(capsys, *given)
    assert (status, out) == (2, [])
    assert message in err
    assert "Traceback" not in err


def test_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--list")
    assert status == 0
    assert any(line.split()[:2] == ["egemaps", "88"] for line in out)
    assert any(line.split()[:1] == ["mmsa"] for line in out)
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert any("executor=local" in line for line in out)
    assert run(capsys)[0] == 2


@pytest.mark.slow
def test_as_a_newcomer_types_it(tmp_path: Path) -> None:
    raw = write_twin("emodb", tmp_path / "emodb")
    done = python("-m", "ercfusion.extract", "data=emodb", "features=egemaps", f"data.raw={raw}", "workers=2")
    assert done.returncode == 0, done.stderr
    assert len(read_pack(Path(done.stdout.splitlines()[-1]))) == len(list(raw.rglob("*.wav")))


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    """The Python and shell blocks up to the recipes, typed one after the other in an empty folder."""
    page = (Path(__file__).parents[1] / "docs" / "features.md").read_text(encoding="utf-8")
    steps = page.partition("## Recipes")[0]
    blocks = re.findall(r"```(python|sh)\n(.*?)```", steps, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "sh", "sh", "sh"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    printed = []
    for kind, block in blocks:
        commands = [["-c", block]] if kind == "python" else [shlex.split(line)[1:] for line in block.splitlines()]
        for arguments in commands:
            done = subprocess.run(
                [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
    assert "audio recordings" in printed[1]
    turns = pd.read_csv(tmp_path / "calls" / "utterances.csv")
    assert len(read_pack(Path(printed[2].splitlines()[-1]))) == len(turns)
    record = json.loads((tmp_path / printed[3].splitlines()[-1] / "record.json").read_text())
    assert [table["modality"] for table in record["features"]] == ["text", "audio"]
    assert "features audio" in printed[4]
