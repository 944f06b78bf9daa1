import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy

from ercfusion._core.errors import ConfigError, PackError
from ercfusion._core.files import is_leftover, sha256_of
from ercfusion._core.machine import machine
from ercfusion.data import pack, storage
from ercfusion.data.features import FeatureTable
from ercfusion.data.pack import (
    KEYS,
    MANIFEST,
    VALUES,
    default_pack_folder,
    has_pack,
    read_manifest,
    read_pack,
    write_pack,
)

LEFT = ".ercfusion-0123456789ab"
MEMBERS = sorted([KEYS, MANIFEST, VALUES])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("ERCFUSION_PACKS", raising=False)
    return folder / "ercfusion"


def utterance_table(dtype=np.float32, count=6, width=4):
    values = np.random.default_rng(0).standard_normal((count, width)).astype(dtype)
    return FeatureTable("audio", [(f"dialogue-{row // 3}", f"é{row}") for row in range(count)], values)


def sequence_table():
    values = np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32)
    keys = [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")]
    return FeatureTable("frames", keys, values, np.array([0, 2, 2, 8, 9]))


def write(folder, table=None, **changes):
    options = {"tool": "tool", "tool_version": "1.2", "settings": {"a": 1}, "corpus": "meld", "fingerprint": "f" * 64}
    return write_pack(folder, utterance_table() if table is None else table, **(options | changes))


def age(folder, seconds=60):
    """Make the files look old enough for their verification to be remembered."""
    for path in folder.iterdir():
        then = path.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(path, ns=(then, then))


def edit(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def reseal(folder, **changes):
    """Sizes and checksums that fit a file that was tampered with, so that the next check is reached."""
    edit(
        folder,
        files={
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in (KEYS, VALUES)
        },
        **changes,
    )


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# Round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_utterance_round_trip(tmp_path, dtype):
    table = utterance_table(dtype)
    folder = write(tmp_path / "pack", table, dimension_names=list("wxyz"), sources={"a.wav": "0" * 64}, licence="free")
    read = read_pack(folder, corpus="meld", fingerprint="f" * 64, width=4)
    assert names(folder) == MEMBERS
    assert (read.modality, read.level, read.keys) == ("audio", "utterance", table.keys)
    assert read.values.dtype == dtype
    np.testing.assert_array_equal(read.values, table.values)
    manifest = read_manifest(folder)
    assert manifest["dimensions"] == list("wxyz")
    assert manifest["sources"] == {"a.wav": "0" * 64}
    assert manifest["licence"] == "free"
    assert manifest["machine"] == read.source["machine"] == machine(torch_used=False)
    assert manifest["machine"]["processor"]
    assert read.source["sha256"] == sha256_of(folder / VALUES)
    assert read.source["settings"] == {"a": 1}
    json.dumps(read.source)


def test_sequence_round_trip(tmp_path):
    table = sequence_table()
    read = read_pack(write(tmp_path / "pack", table))
    assert read.level == "sequence"
    assert read.keys == table.keys
    np.testing.assert_array_equal(read.offsets, table.offsets)
    np.testing.assert_array_equal(read.values, table.values)


def test_safetensors_reads_the_values_too(tmp_path):
    folder = write(tmp_path / "pack", sequence_table())
    loaded = safetensors.numpy.load_file(folder / VALUES)
    np.testing.assert_array_equal(loaded["values"], sequence_table().values)
    assert loaded["offsets"].dtype == np.int64


def test_other_types_and_strides_become_float32(tmp_path):
    wide = np.arange(24, dtype=np.float64).reshape(4, 6)
    keys = utterance_table().keys
    read = read_pack(write(tmp_path / "pack", FeatureTable("audio", keys, wide.T)))
    assert read.values.dtype == np.float32
    np.testing.assert_array_equal(read.values, wide.T)


@pytest.mark.skipif(os.name != "posix", reason="umask")
def test_a_group_can_share_packs(tmp_path):
    before = os.umask(0o027)
    try:
        folder = write(tmp_path / "pack")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_an_empty_table(tmp_path):
    read = read_pack(write(tmp_path / "pack", FeatureTable("audio", [], np.zeros((0, 4), np.float32))))
    assert (len(read), read.width) == (0, 4)


@pytest.mark.parametrize("make", [utterance_table, sequence_table])
def test_values_are_mapped_not_loaded(tmp_path, make):
    values = read_pack(write(tmp_path / "pack", make())).values
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable


def test_default_folder(monkeypatch, tmp_path, cache):
    make = {"settings": {"a": 1, "b": 2}, "fingerprint": "f"}
    folder = default_pack_folder("meld", "minilm", **make)
    assert folder.parent == cache / "packs" / "meld"
    assert folder == default_pack_folder("meld", "minilm", settings={"b": 2, "a": 1}, fingerprint="f")
    assert folder != default_pack_folder("meld", "minilm", settings={"a": 1}, fingerprint="f")
    assert folder != default_pack_folder("meld", "minilm", settings=make["settings"], fingerprint="g")
    monkeypatch.setenv("ERCFUSION_PACKS", str(tmp_path))
    assert default_pack_folder("meld", "minilm", **make) == tmp_path / "meld" / folder.name


# Writing


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_refused_with_its_key(tmp_path, bad):
    table = utterance_table()
    table.values[4, 2] = bad
    with pytest.raises(PackError, match=r"'dialogue-1', turn 'é4' has (nan|inf) in dimension 2 \('y'\)"):
        write(tmp_path / "pack", table, dimension_names=list("wxyz"))
    sequence = sequence_table()
    sequence.values[5, 1] = bad
    with pytest.raises(PackError, match=r"'b', turn '0', step 3 has (nan|inf) in dimension 1"):
        write(tmp_path / "pack", sequence)
    with pytest.raises(PackError, match="has inf"):
        write(tmp_path / "pack", FeatureTable("audio", [("a", "0")], np.array([[1e300]])))
    assert names(tmp_path) == []


def test_not_finite_is_found_in_later_blocks(monkeypatch):
    monkeypatch.setattr(storage, "_BLOCK", 8)
    table = utterance_table(count=7)
    assert storage.first_not_finite(table.values, table.keys, None, None) == ""
    table.values[5, 3] = np.nan
    assert "turn 'é5' has nan in dimension 3" in storage.first_not_finite(table.values, table.keys, None, None)


def test_what_is_there_is_replaced_only_on_demand(tmp_path):
    folder = write(tmp_path / "pack")
    old = read_pack(folder)
    with pytest.raises(PackError, match="overwrite=True"):
        write(folder, sequence_table())
    broken = sequence_table()
    broken.values[0, 0] = np.nan
    with pytest.raises(PackError, match="has nan"):
        write(folder, broken, overwrite=True)
    assert read_pack(folder).modality == "audio"
    write(folder, sequence_table(), overwrite=True)
    assert read_pack(folder).modality == "frames"
    np.testing.assert_array_equal(old.values, utterance_table().values)  # open maps outlive the replacement
    assert names(tmp_path) == ["pack"]


def test_folders_that_are_no_pack_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(PackError, match=r"thesis\.tex"):
        write(tmp_path / "home", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(PackError, match="is a file"):
        write(tmp_path / "file", overwrite=True)
    assert names(tmp_path / "home") == ["thesis.tex"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(PackError, match="3 dimension names were given for 4"):
        write(tmp_path / "pack", dimension_names=list("abc"))
    with pytest.raises(TypeError):
        write(tmp_path / "pack", settings={"a": object()})
    with pytest.raises(ConfigError, match="Did you mean 'full'"):
        read_pack(write(tmp_path / "pack"), verify="ful")


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "write_values", refuse)
    with pytest.raises(PackError, match=r"No space left.*ERCFUSION_PACKS"):
        write(tmp_path / "pack")
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
import test_pack
from ercfusion.data import pack
from pathlib import Path

def half(path, values, offsets):
    save(path, values, offsets)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

save = pack.write_values
if sys.argv[2] == "half":
    pack.write_values = half
else:
    os.rename = die
test_pack.write(Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_writer_leaves_no_pack(tmp_path):
    def start(stage):
        arguments = [sys.executable, "-c", KILLED, str(tmp_path / "pack"), stage]
        return subprocess.Popen(arguments, cwd=os.path.dirname(__file__), stderr=subprocess.PIPE, text=True)

    for process in [start("half"), start("rename")]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -9, errors
    assert all(is_leftover(name) for name in names(tmp_path))
    assert names(tmp_path)
    assert not has_pack(tmp_path / "pack")
    with pytest.raises(PackError, match="no such folder"):
        read_pack(tmp_path / "pack")
    write(tmp_path / "pack")
    assert len(read_pack(tmp_path / "pack")) == 6
    assert names(tmp_path) == ["pack"]


def test_a_pack_that_was_being_replaced_is_there_for_the_next_reader(tmp_path):
    write(tmp_path / "pack").rename(tmp_path / f".pack{LEFT}.replaced")
    assert len(read_pack(tmp_path / "pack")) == 6
    (tmp_path / "pack").rename(tmp_path / f".pack{LEFT}.replaced")
    assert has_pack(tmp_path / "pack")
    # Killed while the old one was being removed: the rest goes with the next pack that is written.
    old = tmp_path / f".pack{LEFT}.replaced"
    shutil.copytree(tmp_path / "pack", old)
    (old / KEYS).unlink()
    write(tmp_path / "pack", sequence_table(), overwrite=True)
    assert names(tmp_path) == ["pack"]


@pytest.mark.parametrize("name", [".git", ".notes.txt", "notes.txt"])
def test_only_what_a_pack_lists_is_deleted(tmp_path, name):
    folder = write(tmp_path / "pack")
    (folder / name).mkdir() if name == ".git" else (folder / name).touch()
    before = names(folder)
    with pytest.raises(PackError, match=rf"holds other files, for example {re.escape(name)}\. Move them away"):
        write(folder, sequence_table(), overwrite=True)
    assert names(folder) == before
    assert read_pack(folder).modality == "audio"


def test_files_with_a_packs_names_that_no_pack_lists_are_kept(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / VALUES).write_bytes(b"mine")
    with pytest.raises(PackError, match=r"holds values\.safetensors, but no pack\.json of ours"):
        write(folder, overwrite=True)
    (folder / MANIFEST).write_text('{"format": "another\'s"}')
    with pytest.raises(PackError, match=r"no pack\.json of ours"):
        write(folder, overwrite=True)
    assert names(folder) == [MANIFEST, VALUES]
    assert (folder / VALUES).read_bytes() == b"mine"


def test_what_comes_into_a_pack_while_it_is_replaced_is_kept(tmp_path, caplog, monkeypatch):
    folder, original = write(tmp_path / "pack"), pack._discard

    def late(old):
        (old / "notes.txt").write_text("mine")
        original(old)

    monkeypatch.setattr(pack, "_discard", late)
    write(folder, sequence_table(), overwrite=True)
    assert read_pack(folder).modality == "frames"
    kept = next(tmp_path.glob(".pack.*.replaced"))
    assert names(kept) == ["notes.txt"]
    assert f"{kept}: kept, because it holds files of no pack" in caplog.text


# Faults when reading


def test_not_a_pack(tmp_path):
    with pytest.raises(PackError, match="there is no such folder"):
        read_pack(tmp_path / "nothing")
    with pytest.raises(PackError, match=r"has no pack\.json"):
        read_pack(tmp_path)
    (tmp_path / MANIFEST).write_text("{half")
    with pytest.raises(PackError, match=r"pack\.json, line 1: not valid JSON"):
        read_pack(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(PackError, match="does not describe a feature pack"):
        read_pack(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, r"version 99; ercfusion .* reads version 1"),
        ({"width": "four"}, r"key 'width': found 'four', but a whole number is expected"),
        ({"files": {KEYS: {}}}, r"the key .files\.utterances\.parquet\.bytes. is missing"),
        ({"rows": 7}, r"holds 6 rows of width 4 \(float32\), pack\.json says 7 of width 4"),
        ({"dtype": "float16"}, r"says 6 of width 4 \(float16\)"),
        ({"keys": 7}, r"holds 6 keys, pack\.json says 7"),
    ],
)
def test_manifest_that_does_not_fit(tmp_path, changes, message):
    folder = write(tmp_path / "pack")
    edit(folder, **changes)
    with pytest.raises(PackError, match=message):
        read_pack(folder)


def test_belongs_to_something_else(tmp_path):
    folder = write(tmp_path / "pack")
    with pytest.raises(PackError, match=r"corpus 'meld', but the corpus at hand is 'mosi'"):
        read_pack(folder, corpus="mosi")
    with pytest.raises(PackError, match=r"the pack says ffffffffffff, the corpus at hand is 000000000000"):
        read_pack(folder, corpus="meld", fingerprint="0" * 64)
    with pytest.raises(PackError, match=r"width 4, but width 300 is expected"):
        read_pack(folder, width=300)


@pytest.mark.parametrize("name", [KEYS, VALUES])
@pytest.mark.parametrize("verify", ["auto", "none"])
def test_missing_or_truncated_files(tmp_path, name, verify):
    folder = write(tmp_path / "pack")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-5])
    with pytest.raises(PackError, match=rf"{name} is truncated: {len(data) - 5} bytes, .* {len(data)}"):
        read_pack(folder, verify=verify)
    (folder / name).write_bytes(data + b"x")
    with pytest.raises(PackError, match="too long"):
        read_pack(folder, verify=verify)
    (folder / name).unlink()
    with pytest.raises(PackError, match=rf"{name} is missing"):
        read_pack(folder, verify=verify)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [KEYS, VALUES])
def test_changed_files(tmp_path, name):
    folder = write(tmp_path / "pack")
    read_pack(folder)
    flip(folder / name)
    for verify in ("auto", "full"):
        with pytest.raises(PackError, match=rf"{name} was changed or damaged"):
            read_pack(folder, verify=verify)


def test_verification_is_remembered_until_the_file_changes(tmp_path, cache):
    folder = write(tmp_path / "pack")
    read_pack(folder)
    assert not cache.exists()  # too young: it might change within the clock's grain
    age(folder)
    before = (folder / VALUES).stat()
    read_pack(folder)
    assert len(names(cache / "verified")) == 1
    flip(folder / VALUES)
    os.utime(folder / VALUES, ns=(before.st_atime_ns, before.st_mtime_ns))
    read_pack(folder)  # the same size and time: believed
    with pytest.raises(PackError, match="changed or damaged"):
        read_pack(folder, verify="full")
    os.utime(folder / VALUES, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(PackError, match="changed or damaged"):
        read_pack(folder)
    shutil.move(folder, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / VALUES, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(PackError, match="changed or damaged"):
        read_pack(tmp_path / "elsewhere")


def test_read_only_pack_and_unusable_cache(tmp_path, monkeypatch):
    folder = write(tmp_path / "pack")
    age(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555)
    try:
        assert len(read_pack(folder)) == 6
        assert len(read_pack(folder)) == 6
    finally:
        folder.chmod(0o755)
    assert names(folder) == MEMBERS


def test_keys_that_do_not_fit(tmp_path):
    folder = write(tmp_path / "pack")
    table = pyarrow.parquet.read_table(folder / KEYS)
    pyarrow.parquet.write_table(table.slice(0, 4), folder / KEYS)
    reseal(folder)
    with pytest.raises(PackError, match="holds 4 keys"):
        read_pack(folder)
    reseal(folder, keys=4)
    with pytest.raises(PackError, match=r"utterances\.parquet names 4 turns, values\.safetensors holds 6 rows"):
        read_pack(folder)
    pyarrow.parquet.write_table(table.take([0, 0, 1, 2, 3, 4]), folder / KEYS)
    reseal(folder, keys=6)
    with pytest.raises(PackError, match="key occurs twice"):
        read_pack(folder)
    pyarrow.parquet.write_table(pyarrow.table({"conversation": ["a"] * 6, "turn": [1] * 6}), folder / KEYS)
    reseal(folder)
    with pytest.raises(PackError, match="must be strings"):
        read_pack(folder)
    pyarrow.parquet.write_table(table.select(["turn"]), folder / KEYS)
    reseal(folder)
    with pytest.raises(PackError, match=r"utterances\.parquet cannot be read"):
        read_pack(folder)
    (folder / KEYS).write_bytes(b"no parquet")
    reseal(folder)
    with pytest.raises(PackError, match=r"utterances\.parquet cannot be read"):
        read_pack(folder)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 2, 9], "there are 4 for 4 turns"),
        ([0, 5, 2, 8, 9], "do not rise from 0"),
        ([1, 2, 2, 8, 9], "do not rise from 0"),
        ([0, 2, 2, 8, 8], "end at row 8 of 9"),
        (None, "the tensor 'offsets' is missing"),
    ],
)
def test_offsets_that_do_not_fit(tmp_path, offsets, message):
    folder = write(tmp_path / "pack", sequence_table())
    tensors = {"values": sequence_table().values}
    if offsets is not None:
        tensors["offsets"] = np.array(offsets, dtype=np.int64)
    safetensors.numpy.save_file(tensors, folder / VALUES)
    reseal(folder)
    with pytest.raises(PackError, match=message):
        read_pack(folder)


def header(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 40,
        header(b"[1, 2]"),
        header(b'{"values": 3}'),
        header(b'{"values": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}'),
        header(b'{"values": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}') + b"\x00" * 16,
        header(b'{"values": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}') + b"\x00" * 16,
        header(b'{"values": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-8, 8]}}') + b"\x00" * 16,
        header(b'{"values": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}') + b"\x00" * 8,
    ],
)
def test_values_files_of_every_wrong_kind(tmp_path, content):
    folder = write(tmp_path / "pack")
    (folder / VALUES).write_bytes(content)
    reseal(folder)
    with pytest.raises(
        PackError, match=r"values\.safetensors( is not a safetensors file|: found|, key .values|: the tensor .values.)"
    ):
        read_pack(folder)


@pytest.mark.parametrize("verify", ["auto", "full"])
def test_not_finite_in_a_foreign_pack(tmp_path, verify):
    folder = write(tmp_path / "pack")
    values = utterance_table().values
    values[3, 1] = np.nan
    safetensors.numpy.save_file({"values": values}, folder / VALUES)
    reseal(folder)
    age(folder)
    with pytest.raises(PackError, match=r"'dialogue-1', turn 'é3' has nan in dimension 1"):
        read_pack(folder, verify=verify)
    assert np.isnan(read_pack(folder, verify="none").values).any()


def test_opening_costs_no_reading(tmp_path):
    folder = write(tmp_path / "pack", utterance_table(count=2000, width=6373))  # 51 MB
    age(folder)
    wanted = read_pack(folder).keys[300:303]
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        table = read_pack(folder)
        part = table.values[table.rows(wanted)]
        best = min(best, time.perf_counter() - start)
    assert part.shape == (3, 6373)
    assert best < 0.05
