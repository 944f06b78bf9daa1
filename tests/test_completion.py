"""Shell completion: what may follow, and a bash that asks for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import command, environment, refused

from ercfusion.__main__ import NAMES, main
from ercfusion.completion import SHELLS, candidates


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "--m"], ["--multirun"]),
        (["train", "--multirun", "--m"], []),
        (["evaluate", "--op"], ["--optimism"]),
        (["train", "work"], ["workers="]),
        (["train", "mod"], ["model=", "model."]),
        (["train", "model=cogmen_"], ["model=cogmen_released"]),
        (["train", "-m", "model=concat,cogmen_"], ["model=concat,cogmen_released"]),
        (["train", "model=dagerc", "model.lay"], ["model.layers="]),
        (["train", "training.keep_every_epoch=t"], ["training.keep_every_epoch=true"]),
        (["train", "optimizer=sgd", "optimizer.mom"], ["optimizer.momentum="]),
        (["sweep", "sweep.tri"], ["sweep.trials="]),
        (["train", "sweep.tri"], []),
        (["doctor", "data=mel"], ["data=meld"]),
        (["doctor", "data=meld", "data.pro"], ["data.protocol="]),
        (["doctor", "optim"], []),
        (["evaluate", "RUN", "split="], ["split=train", "split=dev", "split=test"]),
        (["evaluate", "RUN", "data.p"], ["data.packs.", "data.protocol="]),
        (["extract", "features=logm"], ["features=logmel"]),
        (["extract", "executor=d"], ["executor=dask"]),
        (["completion", "z"], ["zsh"]),
        (["nonsense", "x"], []),
    ],
)
def test_candidates(words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert candidates(words) == expected


def test_candidates_of_the_first_word() -> None:
    assert candidates([]) == candidates([""]) == list(NAMES)


def test_files_and_own_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "rules.yaml").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: concat\n")
    assert candidates(["evaluate", "ru"]) == ["rules.yaml", "runs/"]
    assert candidates(["evaluate", "runs/o"]) == ["runs/one/"]
    assert candidates(["train", "data.raw=runs/"]) == ["data.raw=runs/one/"]
    assert candidates(["train", "settings=rul"]) == ["settings=rules.yaml"]
    assert candidates(["train", "data.raw=nowhere/"]) == []
    assert candidates(["train", "config_dir=.", "model=min"]) == ["model=mine"]


def test_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in SHELLS.items():
        assert command(main, ["completion", name], capsys) == (0, text, "")
    assert "no SHELL 'bsh'. Did you mean 'bash'?" in refused(main, ["completion", "bsh"], capsys)
    status, out, _ = command(main, ["completion", "candidates", "completion", "ba"], capsys)
    assert (status, out) == (0, "bash\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ercfusion tr", ["train"]),
        ("ercfusion doctor data=mel", ["meld"]),
        ("ercfusion completion ", ["bash", "zsh", "imports=", "config_dir="]),
    ],
)
def test_bash_completes(line: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "ercfusion").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ercfusion "$@"\n')
    (tmp_path / "ercfusion").chmod(0o755)
    script = 'source /dev/stdin; COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; _ercfusion; printf "%s\\n" "${COMPREPLY[@]}"'
    env = environment()
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", line],
        input=SHELLS["bash"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=60,
    )
    found = [word for word in done.stdout.splitlines() if word not in ("ercfusion",)]
    assert found == expected, done.stderr
