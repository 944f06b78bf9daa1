import hashlib
import os
import subprocess
import sys
import threading

import pytest

from ercfusion.files import atomic_folder, atomic_write, sha256_of, user_cache


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


def test_leftovers_go_only_when_old(tmp_path):
    old, young, foreign = (tmp_path / f".{name}.partial" for name in ("folder.old", "folder.young", "other.old"))
    for folder in (old, young, foreign):
        folder.mkdir()
    for folder in (old, foreign):
        os.utime(folder, (0, 0))
    with atomic_folder(tmp_path / "folder") as building:
        (building / "a").touch()
    assert names(tmp_path) == [".folder.young.partial", ".other.old.partial", "folder"]


def test_checksum_and_cache(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "ercfusion"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache().parts[-2:] == (".cache", "ercfusion")


def test_imports_are_light():
    code = (
        "import sys, ercfusion.features, ercfusion.features.pack, ercfusion.features.text;"
        "print([name for name in ('pandas', 'pyarrow', 'sentence_transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
