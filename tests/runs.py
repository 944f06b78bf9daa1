"""Tiny runs, shared by the tests of training and of the commands."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logs import forget_logging

from ercfusion.batch.kinds import KINDS
from ercfusion.cli import run_command
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.config.corpora import CORPORA
from ercfusion.config.missing_laws import LAWS
from ercfusion.config.terms import TERMS
from ercfusion.features.extractor import EXTRACTORS
from ercfusion.metrics.registry import REGISTERED
from ercfusion.train import main
from ercfusion.training.callbacks import Selection

CORPUS = ("data.options.train=6", "data.options.dev=3", "data.options.test=3")
REGISTRIES: tuple[MutableMapping[str, Any], ...] = (ARCHITECTURES, CORPORA, EXTRACTORS, KINDS, LAWS, REGISTERED, TERMS)
TINY = (*CORPUS, "training.batch_size=2", "training.bootstrap=50", "training.threads=1", "trainer=cpu")


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    """A tiny run in ``folder``; returns its record."""
    assert main([*TINY, *overrides, f"run={folder}"]) == 0
    return read(folder / "record.json")


def resume(folder: Path) -> dict[str, Any]:
    assert main([f"resume={folder}"]) == 0
    return read(folder / "record.json")


@contextmanager
def restored(*modules: str) -> Iterator[None]:
    """Afterwards all registries are as before, and the modules can be imported again.

    What stays registered changes the settings of later tests, and differs from what other processes have.
    """
    saved = [(registry, dict(registry)) for registry in REGISTRIES]
    try:
        yield
    finally:
        for registry, before in saved:
            registry.clear()
            registry.update(before)
        for name in modules:
            sys.modules.pop(name, None)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def history(folder: Path) -> list[dict[str, str]]:
    """Rows of ``metrics.csv`` without the wall-clock column."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(stream)]


def assert_same_run(found: Path, expected: Path) -> None:
    """Same chosen weights, same last state, same history and same scores, to the last bit."""
    import torch

    assert history(found) == history(expected)
    model = "model/model.safetensors"
    assert (found / model).read_bytes() == (expected / model).read_bytes()
    one, other = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (found, expected))
    assert list(one["state_dict"]) == list(other["state_dict"])
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    records = [read(folder / "record.json") for folder in (found, expected)]
    for part in ("metrics", "intervals", "splits", "selection", "majority"):
        assert records[0][part] == records[1][part], part


def keep_states(monkeypatch: pytest.MonkeyPatch, target: Path, recipe: Path | None = None) -> None:
    """From now on copy the run folder to ``target/N`` as it is after epoch N.

    Of a recipe, whose stages have folders of their own, ``recipe`` is copied, and N counts the epochs of all stages.
    """
    original, epochs = Selection.on_train_epoch_end, itertools.count(1)

    def and_copy(self: Selection, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        shutil.copytree(recipe or self.folder, target / str(next(epochs)))

    monkeypatch.setattr(Selection, "on_train_epoch_end", and_copy)


def command(entry: Callable[[list[str]], int], arguments: Sequence[str], capsys: Any) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command, run in this process."""
    capsys.readouterr()
    try:
        status = run_command(entry, arguments)
    finally:
        forget_logging()  # the command's handler writes to a stream that ends with the test
    out, err = capsys.readouterr()
    return status, out, err


def refused(entry: Callable[[list[str]], int], arguments: Sequence[str], capsys: Any) -> str:
    """The message of a command that must refuse its arguments: status 2, a few lines, no traceback, no output."""
    status, out, err = command(entry, arguments, capsys)
    assert status == 2, err
    assert out == ""
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 6, err
    return err


def environment(**extra: str) -> dict[str, str]:
    """Of a sub-process: one thread, no corpora, nothing inherited from another run."""
    unwanted = ("ERCFUSION_", "LOCAL_RANK", "MASTER_", "WORLD_SIZE", "NODE_RANK", "SLURM_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def python(*arguments: str, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess[str]:
    """A Python sub-process."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=environment(**extra)
    )


class StubEncoder:
    """Stands in for a sentence encoder: eight numbers from a text's letters."""

    calls = 0

    def encode(self, texts: Sequence[str], **settings: Any) -> np.ndarray:
        StubEncoder.calls += 1
        rows = [np.bincount([ord(letter) % 8 for letter in text], minlength=8) for text in texts]
        return np.stack(rows).astype(np.float32)


def stub_text_encoder(monkeypatch: pytest.MonkeyPatch, packs: Path) -> None:
    """Text features come from :class:`StubEncoder`, and packs go to ``packs``."""
    from ercfusion.features import text

    StubEncoder.calls = 0
    monkeypatch.setenv("ERCFUSION_PACKS", str(packs))
    monkeypatch.setattr(text, "load_encoder", lambda name, device=None: text.TextEncoder(name, StubEncoder()))
