"""The commands of the page on adding a model run with the page's own files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, command, read, restored

from ercfusion.train import main

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "add-a-model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?m)^python -m ercfusion\.train (.*)$", TEXT)
FILES = re.findall(r"<!-- file: (.*?) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files; the registered model is forgotten afterwards."""
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with restored("my_models"):
        yield tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_runs(line: str, folder: Path, capsys: Any) -> None:
    tiny = [*TINY, "training.max_epochs=1", "training.pictures=false", f"run={folder / 'run'}"]
    assert command(main, [*shlex.split(line), *tiny], capsys)[0] == 0
    assert read(folder / "run" / "record.json")["config"]["model"]["name"] == "summed"


def test_the_page_has_files_and_commands() -> None:
    assert len(COMMANDS) == 3
    assert len(FILES) == 2
