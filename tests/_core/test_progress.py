import io
import logging

import pytest

from ercfusion._core import progress
from ercfusion._core.progress import console, track


class Clock:
    """Stands for time.monotonic: every item takes as long as the test says."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    return clock


def spend(clock, items, seconds):
    for item in items:
        clock.now += seconds
        yield item


def run(clock, caplog, count, seconds, **options):
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        assert list(track(spend(clock, range(count), seconds), "walking", **options)) == list(range(count))
    return [record.getMessage() for record in caplog.records]


def test_short_loops_say_nothing(clock, caplog):
    assert run(clock, caplog, 10, 0.1, total=10) == []


def test_long_loops_say_little(clock, caplog):
    lines = run(clock, caplog, 100, 0.5, total=100)
    assert lines[-1] == "walking: 100 done in 50 s (2/s)"
    assert lines[0] == "walking: 24 of 100, 2/s, about 38 s left"
    assert len(lines) == 5


def test_the_first_line_does_not_wait_for_the_first_item(caplog, monkeypatch):
    monkeypatch.setattr(progress, "_SILENT", 0.05)
    monkeypatch.setattr(progress, "on_terminal", lambda: False)
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        for _ in track(["only"], "walking"):
            progress.time.sleep(0.3)
            assert [record.getMessage() for record in caplog.records] == ["walking: 0 of 1"]
    assert caplog.records[-1].getMessage().startswith("walking: 1 done in ")


def test_quiet(clock, caplog, monkeypatch):
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    assert run(clock, caplog, 100, 1.0) == []


def test_an_abandoned_loop_does_not_claim_to_be_done(clock, caplog):
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        loop = track(spend(clock, range(9), 5.0), "walking")
        next(loop)
        loop.close()
    assert not [record for record in caplog.records if "done" in record.getMessage()]


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.delenv("ERCFUSION_QUIET", raising=False)
    drawn = io.StringIO()
    shared = progress.Console(file=drawn, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda: shared)
    # A loop inside a tracked loop draws no second bar.
    assert [list(track(range(2), "inner")) for _ in track(range(3), "outer")] == [[0, 1]] * 3
    assert "outer" in drawn.getvalue()
    assert "3/3" in drawn.getvalue()
    assert "inner" not in drawn.getvalue()
    for _ in track(range(3), "left early"):
        break
    assert list(track(range(2), "again")) == [0, 1]
    assert "again" in drawn.getvalue()


def test_console_is_shared_and_writes_to_stderr(capsys):
    console().print("hello")
    assert console() is console()
    assert capsys.readouterr().err == "hello\n"
