"""``python -m ercfusion.conflicts`` on tiny runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import command, read, refused, train

from ercfusion import conflicts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``fused``, ``text`` and ``audio`` on the demo corpus."""
    place = tmp_path_factory.mktemp("conflicts")
    fixed = ("model=concat", "data=demo", "training.max_epochs=1", "training.pictures=false")
    for name, modalities in (("fused", "text,audio"), ("text", "text"), ("audio", "audio")):
        train(place / name, *fixed, f"data.modalities=[{modalities}]")
    return place


def test_report_files_and_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(folder / name) for name in ("text", "fused", "audio")]
    status, out, _ = command(conflicts.main, runs, capsys)
    assert status == 0
    written = folder / "fused" / "evaluation"
    report = read(written / "test-conflicts.json")
    record = read(folder / "fused" / "record.json")
    first = report["subsets"][0]
    assert first["utterances"] == record["splits"]["test"]["utterances"]
    assert first["accuracy"]["fused"]["value"] == record["metrics"]["test"]["accuracy"]
    assert out.splitlines()[-2:] == [str(written / "test-conflicts.json"), str(written / "test-conflicts.png")]
    assert (written / "test-conflicts.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = command(conflicts.main, [*runs, "split=dev", "--no-picture"], capsys)
    assert status == 0
    assert out.splitlines()[0].startswith("demo/balanced, dev split, ")
    assert sorted(path.name for path in written.glob("dev*")) == ["dev-conflicts.json"]


def test_wrong_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(folder / name) for name in ("text", "fused", "audio")]
    assert "1 of the runs has one modality" in refused(conflicts.main, runs[:2], capsys)
    assert "split=tset" in refused(conflicts.main, [*runs, "split=tset"], capsys)
    assert "has no task 'x'" in refused(conflicts.main, [*runs, "task=x"], capsys)
    assert not (folder / "fused" / "evaluation" / "test-conflicts-x.json").exists()
