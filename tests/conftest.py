"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The inputs of the tests are tiny: more threads would only wait for each other, and add in another order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set beside the repository; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        path = SHARED / name
        if not path.is_dir():
            pytest.skip(f"the real data are not here: no folder ../shared/data/{name} beside the repository")
        return path

    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing: pictures take most of the time of a tiny run."""
    monkeypatch.setattr("ercfusion.evaluation.report.draw_pictures", lambda *arguments: None)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of cogmen on a tiny ``demo``, with its pictures and the models of all three epochs; read only."""
    from runs import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    keep = "training.keep_every_epoch=true"
    train(folder, "model=cogmen", "training.max_epochs=3", keep, "data.options.test=8", "optimizer.lr=0.003")
    return folder
