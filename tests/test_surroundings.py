"""Commands where something is missing or full: no home, no current folder, no output, no space. Never a traceback."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quick import first
from runs import TINY, assert_same_run, command, environment, python, read, refused, train

from ercfusion import train as module
from ercfusion._core.errors import RunError
from ercfusion._core.files import atomic_folder, atomic_write, expanded, user_cache
from ercfusion._core.terminal import prepare_streams
from ercfusion.cli import naming_folder, run_command
from ercfusion.training import run
from ercfusion.training.folder import log_file

ARGUMENTS = (*TINY, "model=concat", "training.max_epochs=3")


def shell(line: str, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """A line for a shell in which ``$P`` is Python."""
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment(P=sys.executable, **extra), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


# Streams


@pytest.mark.parametrize("closed", first(1, [">&-", "2>&-", "<&-"]))
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    done = shell(f"$P -m ercfusion.train modle=x {closed}", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr in ("", "error: there is no setting 'modle'. Did you mean 'model'?\n")


@pytest.mark.slow
def test_a_run_with_closed_streams(tmp_path: Path) -> None:
    """Nothing that is printed gets into a file that was opened instead."""
    line = " ".join(f"'{argument}'" for argument in [*ARGUMENTS, "training.pictures=false", "run=r"])
    done = shell(f"$P -m ercfusion.train {line} >&- 2>&- <&-", tmp_path)
    assert done.returncode == 0
    assert read(tmp_path / "r" / "record.json")["seed"] == 0


def test_streams_that_are_missing_get_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    prepare_streams()
    print("to nowhere", flush=True)
    sys.stdout.close()


@pytest.mark.slow
def test_a_terminal_without_our_letters(tmp_path: Path) -> None:
    folder = tmp_path / "étude"
    folder.mkdir()
    for encoding, name in (("ascii", "\\xe9tude"), ("utf-8", "étude")):
        done = python("-m", "ercfusion.train", f"output={folder}", "--cfg", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert name in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    done = shell("$P -m ercfusion.extract --help > /dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr in (f"error: {place}No space left on device\n" for place in ("", "the output: "))


# Folders


def test_no_home(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from ercfusion.data.storage import is_remembered, remember
    from ercfusion.doctor import installation

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    for name in ("XDG_CACHE_HOME", "ERCFUSION_PACKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match=r"no home folder.*XDG_CACHE_HOME"):
        user_cache()
    state = {"path": "/x", "mtime_ns": 0}
    assert not is_remembered(state)
    remember(state)
    assert "no folder (this user has no home folder" in installation()
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_cache() == Path("/cache/ercfusion")


def test_a_home_of_somebody_who_does_not_exist(capsys: Any) -> None:
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert "~nobody-of-this-name/x" in refused(module.main, ["data=meld", "data.raw=~nobody-of-this-name/x"], capsys)


def test_a_current_folder_that_was_deleted(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    message = refused(module.main, [*ARGUMENTS], capsys)
    assert message == (
        "error: the current folder cannot be used (No such file or directory). Use cd to change to another.\n"
    )


@pytest.mark.slow
def test_a_process_in_a_deleted_folder(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    root = str(Path(module.__file__).parents[1])
    for name in ("train", "doctor"):
        done = shell(f"cd gone && rmdir ../gone && $P -m ercfusion.{name}; mkdir ../gone", tmp_path, PYTHONPATH=root)
        assert "error: the current folder cannot be used" in done.stderr
        assert "Traceback" not in done.stderr
        (tmp_path / "gone").mkdir(exist_ok=True)


@pytest.mark.parametrize("place", ["run=a/b/c", "output=a/b"])
def test_a_failed_run_leaves_no_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    wrong = [*TINY, "model=concat", "data.modalities=[smell]", place]
    refused(module.main, wrong, capsys)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()  # the user's own
    refused(module.main, wrong, capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    if place == "output=a/b":
        status, _, err = command(module.main, [*wrong, "-m", "seed=0,1", "workers=1"], capsys)
        assert (status, err.count("error: ")) == (2, 2)
        assert [path.name for path in tmp_path.rglob("*")] == ["a"]


# A full disk


def raising(error: BaseException, after: int = 0, then: Callable[..., Any] | None = None) -> Callable[..., Any]:
    calls = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after or then is None:
            raise error
        return then(*arguments, **options)

    return call


def test_the_message_names_the_folder(tmp_path: Path, capsys: Any) -> None:
    def entry(arguments: list[str]) -> int:
        with naming_folder(tmp_path / "x"):
            raise OSError(errno.EFBIG, "File too large")

    assert refused(entry, [], capsys) == f"error: {tmp_path}/x: File too large\n"
    assert refused(raising(OSError(errno.ENOSPC, "No space left on device")), [], capsys) == (
        "error: No space left on device\n"
    )


def test_writers_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError, match="too large") as caught, atomic_folder(tmp_path / "b"):
        raise RuntimeError("Error while serializing: I/O error: File too large (os error 27)")
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "b"))
    with pytest.raises(RuntimeError, match="a defect"), atomic_folder(tmp_path / "b"):
        raise RuntimeError("a defect")
    assert not list(tmp_path.iterdir())


def test_a_run_whose_disk_fills_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, no_pictures: None
) -> None:
    import shlex

    from ercfusion.training import callbacks

    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    train(tmp_path / "whole", *ARGUMENTS[len(TINY) :])
    save = callbacks.RestrictedCheckpointIO.save_checkpoint
    with monkeypatch.context() as patch:
        full = raising(OSError(errno.ENOSPC, "No space left on device"), after=2, then=save)
        patch.setattr(
            callbacks.RestrictedCheckpointIO,
            "save_checkpoint",
            lambda *arguments, **options: full(*arguments, **options),
        )
        message = refused(module.main, [*ARGUMENTS, f"run={tmp_path / 'r 1'}"], capsys)
    assert "No space left on device.\nFree space or restore access, then run: python -m ercfusion.train " in message
    assert str(tmp_path / "r 1") in message.splitlines()[0]
    assert run_command(module.main, shlex.split(message.partition("ercfusion.train ")[2])) == 0
    assert_same_run(tmp_path / "r 1", tmp_path / "whole")


@pytest.mark.parametrize("name", ["describe", "train"])
def test_a_run_that_cannot_begin_leaves_no_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from ercfusion.training import folder

    monkeypatch.setattr(folder if name == "describe" else run, name, raising(OSError(errno.ENOSPC, "No space left")))
    assert "No space left" in refused(module.main, [*ARGUMENTS, f"run={tmp_path / 'a' / 'b'}"], capsys)
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written_prints_nothing(tmp_path: Path, capsys: Any) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            """Nothing to do."""

        def close(self) -> None:
            """Nothing to do."""

    logger = logging.getLogger("ercfusion")
    with log_file(tmp_path / "train.log"):
        handler = next(entry for entry in logger.handlers if isinstance(entry, logging.FileHandler))
        handler.stream.close()
        handler.stream = Full()  # type: ignore[assignment]
        logger.warning("é")
    assert "Logging error" not in capsys.readouterr().err


LIMITED = """
import resource, sys
from ercfusion.cli import run_command
from ercfusion.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run_command(main, sys.argv[2:]))
"""


@pytest.mark.slow
def test_file_size_limits(tmp_path: Path) -> None:
    """Limits that end the run in its first files, in the model or checkpoint, or never: one line, then resumed."""
    pytest.importorskip("resource")
    statuses = []
    for size in (1, 20_000):
        folder = tmp_path / str(size)
        done = python("-c", LIMITED, str(size), *ARGUMENTS, "training.pictures=false", f"run={folder}")
        statuses.append(done.returncode)
        assert "Traceback" not in done.stderr, done.stderr
        assert "Logging error" not in done.stderr
        assert done.returncode in (0, 2), done.stderr
        if done.returncode == 2:
            assert f"error: {folder}" in done.stderr
            assert "File too large" in done.stderr
        if folder.exists():
            assert module.main([f"resume={folder}"]) == 0
    assert statuses == [2, 2]


# A run folder that goes, and Ctrl-C


def test_a_run_folder_that_is_deleted_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from ercfusion.training.callbacks import Selection

    folder = tmp_path / "r"
    original = Selection.on_train_epoch_end

    def and_delete(self: Selection, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        shutil.rmtree(folder)

    monkeypatch.setattr(Selection, "on_train_epoch_end", and_delete)
    message = refused(module.main, [*ARGUMENTS, f"run={folder}"], capsys)
    assert str(folder) in message


@pytest.mark.slow
def test_ctrl_c_twice(tmp_path: Path) -> None:
    """Two runs side by side, interrupted twice: no traceback, no word of leaked semaphores, and they can be resumed."""
    arguments = [*TINY, "model=concat", "training.max_epochs=100000", "output=o", "-m", "seed=0,1", "workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ercfusion.train", *arguments],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 200
    while len(list(tmp_path.rglob("last.ckpt"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "resource_tracker" not in err
    assert err.count("python -m ercfusion.train resume=") == 2


@pytest.mark.slow
def test_a_killed_parent_says_nothing_of_semaphores(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom ercfusion._core.pool import run_jobs\n"
        "def tick():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n    run_jobs([5.0], __import__('time').sleep, workers=1, on_tick=tick)\n"
    )
    (tmp_path / "killed.py").write_text(code)
    done = python(str(tmp_path / "killed.py"))
    assert done.returncode == -signal.SIGKILL
    assert "resource_tracker" not in done.stderr
