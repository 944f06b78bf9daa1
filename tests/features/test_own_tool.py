"""A recipe of one's own with a tool of one's own: two files, named in ``extract`` and ``train``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import TINY, command, read, restored

from ercfusion import extract, train
from ercfusion.data.pack import read_manifest, read_pack
from ercfusion.features.executors import in_this_process
from ercfusion.testing.twins import write_twin

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-recipe.md"


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        if name in ("energy.yaml", "my_tools.py"):
            (tmp_path / name).write_text(text)
    raw = write_twin("custom", tmp_path / "recorded")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ercfusion.features.extraction._runner", lambda *arguments: in_this_process)
    with restored("my_tools"):
        corpus = ["data=custom", f"data.raw={raw}"]
        status, out, err = command(extract.main, [*corpus, "features=energy.yaml"], capsys)
        assert status == 0, err
        pack = Path(out.strip())
        manifest = read_manifest(pack)
        assert (manifest["tool"], manifest["settings"]["rate"]) == ("energy", 8000)
        values = read_pack(pack).values
        assert len(values)
        assert np.all(values < 0)  # decibels of full scale
        choice = ["data.modalities=[audio]", f"data.packs.audio={pack}", "model=concat", "model.hidden=4"]
        small = [*TINY[3:], "training.max_epochs=1", "training.pictures=false", f"run={tmp_path / 'run'}"]
        status, _, err = command(train.main, [*corpus, *choice, *small], capsys)
        assert status == 0, err
        (source,) = (feature["source"] for feature in read(tmp_path / "run" / "record.json")["features"])
        assert source["tool"] == "energy"
