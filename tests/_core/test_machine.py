"""The processor, as records and packs keep it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ercfusion._core import machine as module
from ercfusion._core.machine import machine, processor
from ercfusion.records.record import environment


@pytest.fixture(autouse=True)
def fresh() -> None:
    processor.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some  Processor @ 2 GHz\n\nmodel name\t: Other\n",
         "Some Processor @ 2 GHz"),
        ("processor: 0\nHardware\t: Board 7\n", "Board 7"),
        ("processor\t: 0\ncpu\t\t: POWER9, altivec\n", "POWER9, altivec"),
    ],
)  # fmt: skip
def test_linux(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor() == expected


def test_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "none")
    system = SimpleNamespace(system=lambda: "Windows", processor=lambda: "Intel64 Family 6", machine=lambda: "AMD64")
    monkeypatch.setattr(module, "platform", system)
    assert processor() == "Intel64 Family 6"
    processor.cache_clear()
    system.processor = lambda: ""
    assert processor() == "AMD64"
    processor.cache_clear()
    system.system = lambda: "Darwin"
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **settings: SimpleNamespace(stdout="Apple M1\n"))
    assert processor() == "Apple M1"


def test_torch_is_asked_only_where_it_is_used() -> None:
    """Not where it is merely imported: a pack would depend on what else the process has done."""
    found = machine()
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert found["threads"] == torch.get_num_threads()
    assert machine(torch_used=False) == {"processor": found["processor"]}


def test_records_keep_it() -> None:
    found = environment()
    assert found["processor"] == processor()
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
