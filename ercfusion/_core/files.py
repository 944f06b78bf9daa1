"""Files and folders that are either complete or absent, checksums, and where the cache lies.

A name that readers look for must never lead to something half-written, whatever interrupts the writer. So content is
built under a hidden temporary name beside its target (on the same file system: renaming must not copy), forced to disk,
and renamed.

A killed process leaves such a name behind. The next one that opens the folder removes it
(:func:`remove_leftovers`), if its writer is dead: a writer holds a lock (``flock``) on what it builds, which the system
frees when it dies. Where locks do not work, leftovers stay.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from ercfusion._core.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

LOCK = ".lock"
"""Name of the file by which :func:`one_at_a_time` locks a folder."""

_HIDDEN = re.compile(r"\.(?P<name>.+)\.ercfusion-[0-9a-f]{12}\.(?P<kind>partial|replaced)", re.DOTALL)


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/ercfusion``, or ``~/.cache/ercfusion`` (not created).

    Raises:
        RunError: there is no home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says that a relative path there is to be ignored.
    if os.path.isabs(root):
        return Path(root) / "ercfusion"
    try:
        return Path.home() / ".cache" / "ercfusion"
    except RuntimeError as error:
        raise RunError(
            "no home folder is known for this user: set the environment variable XDG_CACHE_HOME to a folder for what "
            "is kept between runs"
        ) from error


def expanded(path: StrPath) -> Path:
    """A path with ``~`` replaced by the home folder; one that does not exist (``~nobody``) is left as it is."""
    return Path(os.path.expanduser(path))


def shipped_folder(installed: str, checkout: str) -> Path:
    """A folder that comes with the library.

    Args:
        installed: Its name inside the installed package.
        checkout: Its name in a checkout, beside the package.
    """
    package = Path(__file__).resolve().parents[1]
    folder = package / installed
    return folder if folder.is_dir() else package.parent / checkout


def sha256_of(path: StrPath) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@overload
def atomic_write(path: StrPath, mode: Literal["w"] = "w") -> AbstractContextManager[TextIO]: ...
@overload
def atomic_write(path: StrPath, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
def atomic_write(path: StrPath, mode: Literal["w", "wb"] = "w") -> AbstractContextManager[Any]:
    """A stream whose content appears under ``path`` only when the block ends without an exception.

    Until then, and after a failure, an older file of that name stays as it was. Folders on the way are created; where
    ``path`` is a symbolic link, the file that it leads to is replaced. Text is UTF-8 with the line ends as given.

    Raises:
        OSError: the file cannot be written.
    """
    return _writing(path, mode)


@contextmanager
def _writing(path: StrPath, mode: str) -> Iterator[IO[Any]]:
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent)
    with _building(final, folder=False) as temporary:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with open(temporary, mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    _sync_folder(final.parent)


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(
    path: StrPath, *, overwrite: bool = False, discard: Callable[[Path], None] = _remove_tree
) -> Iterator[Path]:
    """An empty folder to fill, which appears as ``path`` only when the block ends without an exception.

    Args:
        path: The final name. Folders on the way are created.
        overwrite: Replace what is there, once the new folder is complete: in one step where the file system can
            exchange two names (Linux), otherwise in two, between which a kill leaves the old folder under a hidden
            name; :func:`remove_leftovers` puts it back.
        discard: Removes the old folder, which then has a hidden name.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False. It is raised at the end of the block too, when
            another process was faster; exactly one of several concurrent writers wins.
        OSError: the folder cannot be written.
    """
    final = Path(os.path.realpath(path))
    if not overwrite and _occupied(final):
        raise FileExistsError(f"{final} exists")
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, discard=discard if overwrite else None)
    with _building(final, folder=True) as temporary:
        yield temporary
        for inner in sorted(temporary.rglob("*")):
            if inner.is_file():
                with inner.open("rb+") as stream:
                    os.fsync(stream.fileno())
            elif inner.is_dir():
                _sync_folder(inner)
        _sync_folder(temporary)
        if overwrite and _occupied(final):
            _replace(temporary, final, discard)
        else:
            _rename_to_free(temporary, final)
    _sync_folder(final.parent)


@contextmanager
def scratch_folder(beside: StrPath) -> Iterator[Path]:
    """An empty hidden folder beside a file that is to come into being, removed with what is in it when the block ends.

    Raises:
        OSError: it cannot be made.
    """
    final = Path(os.path.realpath(beside))
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent)
    with _building(final, folder=True) as folder:
        try:
            yield folder
        finally:
            _remove_tree(folder)


def remove_leftovers(folder: StrPath, *, deep: bool = False, discard: Callable[[Path], None] | None = None) -> None:
    """Remove what killed writers of this module left half-written in a folder.

    What was being replaced when its writer was killed is put back where nothing has taken its place.

    Args:
        folder: Need not exist.
        deep: Also look into the folders below it.
        discard: Removes a folder that was replaced; without it such folders stay.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if found := _HIDDEN.fullmatch(name):
                _settle(Path(place, name), Path(place, found["name"]), found["kind"], discard)
        folders[:] = [name for name in folders if _HIDDEN.fullmatch(name) is None]
        if not deep:
            return


def is_leftover(name: str) -> bool:
    """Whether this is the name of something that a killed process of ours may have left: half-written, or a lock."""
    return name == LOCK or _HIDDEN.fullmatch(name) is not None


@contextmanager
def one_at_a_time(folder: StrPath, work: str) -> Iterator[None]:
    """Let one process at a time do some work in a folder.

    Args:
        folder: Created where it is not there; the lock is a hidden file in it.
        work: What is done, for the message.

    Raises:
        RunError: another process is doing it.
    """
    from filelock import FileLock, Timeout

    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"another process is working on {work} in {folder}") from None
    try:
        yield
    finally:
        lock.release()


def _hidden(final: Path, kind: str) -> Path:
    return final.with_name(f".{final.name}.ercfusion-{secrets.token_hex(6)}.{kind}")


@contextmanager
def _building(final: Path, *, folder: bool) -> Iterator[Path]:
    # A new file or folder under a hidden name, locked; removed where the block fails.
    while True:
        temporary = _hidden(final, "partial")
        if folder:
            temporary.mkdir()
        else:
            # Not tempfile.mkstemp: the file gets the permissions that the user's umask asks for.
            temporary.touch(exist_ok=False)
        try:
            handle = _lock(temporary, wait=True)
            break
        except FileNotFoundError:
            continue  # somebody took it for a leftover, in the moment before it was locked
    try:
        yield temporary
    except BaseException as error:
        if folder:
            _remove_tree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        _name(error, final)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _lock(path: Path, *, wait: bool) -> int | None:
    """Lock what lies at ``path``; returns a handle to close, or None where there are no locks.

    Raises:
        FileNotFoundError: it is not there, or was renamed or removed while it was being locked.
        BlockingIOError: another process or thread has the lock (only without ``wait``).
    """
    if fcntl is None:
        return None
    try:
        # Some network file systems lock files only where they are open for writing, and no folders.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, there = os.fstat(handle), os.stat(path)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(f"{path} has become another one")
    except (FileNotFoundError, BlockingIOError):
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _settle(leftover: Path, final: Path, kind: str, discard: Callable[[Path], None] | None) -> None:
    try:
        handle = _lock(leftover, wait=False)
    except OSError:
        return  # its writer is at work, or another process settles it, or it is not ours to open
    if handle is None:
        return
    try:
        if kind == "partial":
            if leftover.is_dir():
                _remove_tree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        elif not os.path.lexists(final):
            os.rename(leftover, final)
        elif discard is not None:
            discard(leftover)
    except OSError:
        return  # where nothing may be written, a leftover does no harm
    finally:
        os.close(handle)


def _name(error: BaseException, path: Path) -> None:
    """Say which file or folder could not be written: what fails in writing, as on a full disk, does not name it.

    Raises:
        OSError: instead of the words of a library that has an error of its own for it.
    """
    if isinstance(error, OSError):
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        return
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, Exception) else None
    if found:
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None)


def _rename_to_free(temporary: Path, final: Path) -> None:
    try:
        # POSIX renames onto an empty folder and refuses one with content, in a single step: there is no gap between
        # looking and renaming in which another writer could be overwritten.
        os.rename(temporary, final)
    except OSError as error:
        if _occupied(final):
            raise FileExistsError(f"{final} exists: another process was faster") from error
        raise


def _replace(temporary: Path, final: Path, discard: Callable[[Path], None]) -> None:
    old = _hidden(final, "replaced")
    while True:  # until it is ours: another process may replace it, too
        try:
            handle = _lock(final, wait=True)
            break
        except FileNotFoundError:
            if not os.path.lexists(final):
                _rename_to_free(temporary, final)
                return
    try:
        if _swap(temporary, final):
            os.rename(temporary, old)
        else:
            os.rename(final, old)
            try:
                os.rename(temporary, final)
            except BaseException:
                os.rename(old, final)
                raise
        _sync_folder(final.parent)
        discard(old)
    finally:
        if handle is not None:
            os.close(handle)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two names in a single step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from Linux's headers
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync_folder(folder: Path) -> None:
    # A rename is lasting only once its folder is on disk. Windows cannot open folders, and some network file systems
    # refuse to sync them; the content is synced either way.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
