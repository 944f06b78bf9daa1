import hashlib
import os
import subprocess
import sys
import threading

import pytest

from ercfusion._core import files
from ercfusion._core.files import (
    atomic_folder,
    atomic_write,
    is_leftover,
    remove_leftovers,
    sha256_of,
    user_cache,
    write_json,
)

LEFT = ".ercfusion-0123456789ab"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def interrupted_write(path):
    with atomic_write(path) as stream:
        stream.write("new")
        raise KeyboardInterrupt


def interrupted_folder(path, **options):
    with atomic_folder(path, **options) as building:
        (building / "new").touch()
        raise RuntimeError("half way")


def test_text_and_bytes_arrive_unchanged(tmp_path):
    with atomic_write(tmp_path / "deep" / "a.csv") as stream:
        stream.write("é,1\r\nb,2\n")
    with atomic_write(tmp_path / "b.bin", "wb") as binary:
        binary.write(b"\x00\xff")
    assert (tmp_path / "deep" / "a.csv").read_bytes() == "é,1\r\nb,2\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["b.bin", "deep"]


def test_json_without_numbers_that_readers_refuse(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1.5]}, indent=1)
    before = (tmp_path / "a.json").read_bytes()
    assert before == b'{\n "\\u00e9": [\n  1.5\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_bytes() == before
    assert names(tmp_path) == ["a.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="umask and links")
def test_permissions_and_links_are_the_users(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "link.txt") as stream:
            stream.write("new")
        with atomic_folder(tmp_path / "folder") as building:
            (building / "a").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_folder_appears_complete(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as building:
        assert building.parent == target.parent
        assert building.name.startswith(".")
        (building / "inner").mkdir()
        (building / "inner" / "a").write_text("a")
        assert not target.exists()
    assert (target / "inner" / "a").read_text() == "a"
    assert names(target.parent) == ["folder"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="half way"):
        interrupted_folder(tmp_path / "folder")
    assert names(tmp_path) == []


def test_an_existing_folder_is_kept_unless_overwriting_succeeds(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()  # an empty one is no obstacle
    with atomic_folder(target) as building:
        (building / "old").touch()
    with pytest.raises(FileExistsError), atomic_folder(target):
        pass
    with pytest.raises(RuntimeError, match="half way"):
        interrupted_folder(target, overwrite=True)
    assert names(target) == ["old"]
    with atomic_folder(target, overwrite=True) as building:
        (building / "new").touch()
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_one_of_several_writers_wins(tmp_path):
    together, results = threading.Barrier(4), []

    def write(number):
        try:
            with atomic_folder(tmp_path / "folder") as building:
                (building / str(number)).touch()
                together.wait()
            results.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    assert names(tmp_path / "folder") == [str(results[0])]
    assert names(tmp_path) == ["folder"]


def test_leftovers_of_dead_writers_go_with_the_next_write(tmp_path):
    for name in (f".a.txt{LEFT}.partial", f".other{LEFT}.partial", ".mine.partial", f"b{LEFT}.partial", ".git"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".pack{LEFT}.partial" / "inner").mkdir(parents=True)
    kept = [".git", ".mine.partial", f"b{LEFT}.partial"]
    with atomic_write(tmp_path / "a.txt") as stream:
        stream.write("whole")
    assert names(tmp_path) == sorted([*kept, "a.txt"])
    (tmp_path / f".a.txt{LEFT}.partial").touch()
    with atomic_folder(tmp_path / "folder") as building:
        (building / "a").touch()
    assert names(tmp_path) == sorted([*kept, "a.txt", "folder"])


def test_what_a_writer_is_at_work_on_is_no_leftover(tmp_path):
    with atomic_folder(tmp_path / "folder") as building, atomic_write(tmp_path / "a.txt") as stream:
        (building / "b").touch()
        stream.write("whole")
        remove_leftovers(tmp_path)
        with atomic_write(tmp_path / "c.txt") as other:
            other.write("quick")
    assert names(tmp_path) == ["a.txt", "c.txt", "folder"]
    assert names(tmp_path / "folder") == ["b"]


KILLED = """
import os, signal, sys
from ercfusion._core.files import atomic_folder, atomic_write
with atomic_folder(sys.argv[1] + "/folder") as building, atomic_write(sys.argv[1] + "/a.txt") as stream:
    (building / "b").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_writer_is_known_to_be_dead(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert [is_leftover(name) for name in names(tmp_path)] == [True, True]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_leftovers_in_folders_below(tmp_path):
    deep = tmp_path / "run" / "model"
    deep.mkdir(parents=True)
    (deep / f".config.json{LEFT}.partial").touch()
    remove_leftovers(tmp_path / "run")
    assert len(names(deep)) == 1
    remove_leftovers(tmp_path / "run", deep=True)
    assert names(deep) == []
    remove_leftovers(tmp_path / "nothing", deep=True)


def test_a_folder_that_was_being_replaced_comes_back(tmp_path):
    old = tmp_path / f".folder{LEFT}.replaced"
    old.mkdir()
    (old / "old").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path / "folder") == ["old"]
    # With something in its place it goes, but only by the hand of who knows what may be deleted.
    (tmp_path / "folder").rename(old)
    (tmp_path / "folder").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [old.name, "folder"]
    remove_leftovers(tmp_path, discard=files.shutil.rmtree)
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_in_one_step_or_in_two(tmp_path, monkeypatch, at_once):
    target, seen = tmp_path / "folder", []
    if not at_once:
        monkeypatch.setattr(files, "_swap", lambda one, other: False)
    for content in ("old", "new"):
        with atomic_folder(target, overwrite=True) as building:
            (building / content).touch()
            rename = os.rename

            def look(source, destination, rename=rename):
                rename(source, destination)
                seen.append(names(target) if target.exists() else None)

            monkeypatch.setattr(os, "rename", look)
        monkeypatch.setattr(os, "rename", rename)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]
    if at_once and not files._swap(tmp_path, tmp_path):
        pytest.skip("this file system cannot exchange two names")
    assert seen == ([["old"], ["new"]] if at_once else [["old"], None, ["new"]])


def test_a_second_writer_waits_for_the_first_to_replace(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target) as building:
        (building / "0").touch()
    together, done = threading.Barrier(3), []

    def write(number):
        with atomic_folder(target, overwrite=True) as building:
            (building / str(number)).touch()
            together.wait()
        done.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["folder"]
    assert sorted(done) == [1, 2, 3]
    assert names(target) in (["1"], ["2"], ["3"])


def test_checksum_and_cache(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "ercfusion"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache().parts[-2:] == (".cache", "ercfusion")


def test_imports_are_light():
    code = (
        "import sys, ercfusion.features, ercfusion.data.pack, ercfusion.features.text;"
        "print([name for name in ('pandas', 'pyarrow', 'sentence_transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
