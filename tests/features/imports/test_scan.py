import gzip
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.features.imports import UnpickleError, limits, safe_load

TUPLE = b"\x80\x04)"
DEEP = "nested in more than 100 levels"
SHARED = "MiB, with shared parts counted each time"
MEMORY = "MiB of memory"
WORK = "steps to compare keys"
ITSELF = "a container holds itself, or changes later"


def written(folder, data):
    path = folder / "file.pkl"
    path.write_bytes(data)
    return path


def refused(folder, data, match):
    path = written(folder, data)
    with pytest.raises(UnpickleError, match=match) as caught:
        safe_load(path)
    message = str(caught.value)
    assert len(message) <= 300
    assert message.startswith((str(path), "..."))
    assert path.read_bytes() == data


def name(module, word):
    return b"c" + module + b"\n" + word + b"\n"


def content(length):
    """Bytes of a file that become bytes of this length, and are in the memo as 0."""
    return b"B" + struct.pack("<I", length) + bytes(length) + b"q\x00"


def array_in(inner):
    """An array of objects with one element."""
    dtype = name(b"numpy", b"dtype") + b"(X\x02\x00\x00\x00O8K\x00K\x01tR"
    made = name(b"numpy.core.multiarray", b"_reconstruct") + b"(" + name(b"numpy", b"ndarray") + b"(K\x00tU\x01btR"
    return made + b"(K\x01(K\x01t" + dtype + b"\x89]" + inner + b"atb"


NESTED = {
    "tuple": TUPLE + b"\x85" * 1_000_000 + b".",
    "list": b"\x80\x04" + b"]" * 1000 + b"a" * 999 + b".",
    "dictionary": b"\x80\x04" + b"}N" * 1000 + b"}" + b"s" * 1000 + b".",
    "frozenset": b"\x80\x04" + b"(" * 1000 + b"N" + b"\x91" * 1000 + b".",
    "call": b"\x80\x02" + (name(b"builtins", b"list") + b"q\x00") + b"h\x00" * 999 + b")" + b"\x85R" * 1000 + b".",
    "object": b"\x80\x04"
    + (name(b"cogmen.Sample", b"Sample") + b")\x81}X\x01\x00\x00\x00a") * 1000 + b"N" + b"sb" * 1000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("kind", NESTED)
def test_deep_nesting_is_refused(tmp_path, kind):
    refused(tmp_path, NESTED[kind], DEEP)


def test_deeply_nested_arrays_are_refused(tmp_path):
    data = b"N"
    for _ in range(60):
        data = array_in(data)
    refused(tmp_path, b"\x80\x02" + data + b".", DEEP)


def test_what_is_nested_from_the_outside_inwards_is_refused(tmp_path):
    # A thousand lists; each is put into the one before it, the outermost first.
    lists = b"".join(b"]r" + struct.pack("<I", number) for number in range(1000))
    links = b"".join(
        b"j" + struct.pack("<I", number) + b"j" + struct.pack("<I", number + 1) + b"a0" for number in range(999)
    )
    refused(tmp_path, b"\x80\x04" + lists + links + b"j\x00\x00\x00\x00.", ITSELF)


def twice(step, count=60):
    """A step for each of the numbers of the memo."""
    return b"".join(b"\x94" + step.replace(b"#", bytes([number])) for number in range(count))


DOUBLED = {
    "tuple": TUPLE + b"2\x86" * 60 + b".",
    "key": b"\x80\x04})" + b"2\x86" * 60 + b"Ns.",
    "list": b"\x80\x04]" + twice(b"](h#h#e") + b".",
    "value": b"\x80\x04]" + twice(b"}(K\x00h#K\x01h#u") + b".",
    "frozenset": b"\x80\x04K\x00" + twice(b"(h#h#\x85\x91", 49) + b".",
    "set": b"\x80\x04K\x00" + twice(b"(h#h#\x85\x91", 16) + b"\x8f(" + b"h\x0f" * 200_000 + b"\x90.",
    "array": b"\x80\x04" + array_in(b"]" + twice(b"](h#h#e")) + b".",
}


@pytest.mark.parametrize("kind", DOUBLED)
def test_exponential_sharing_is_refused(tmp_path, kind):
    refused(tmp_path, DOUBLED[kind], f"{SHARED}|{WORK}")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04]\x94h\x00a.",
        b"\x80\x04}\x94K\x00h\x00s.",
        b"\x80\x04]\x94h\x00\x85a.",
        b"\x80\x04]\x94]h\x00aNah\x00K\x01a.",
        b"\x80\x04" + name(b"cogmen.Sample", b"Sample") + b")\x81\x94}X\x01\x00\x00\x00ah\x00sb.",
    ],
    ids=["list", "dictionary", "through a tuple", "later", "object"],
)
def test_containers_that_hold_themselves_are_refused(tmp_path, data):
    refused(tmp_path, data, ITSELF)


def test_what_pickle_writes_for_a_list_in_itself_is_refused(tmp_path):
    own: list[Any] = []
    own.append({"a": (own,)})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        refused(tmp_path, pickle.dumps(own, protocol=protocol), ITSELF)


COPIES = {
    "bytearray": name(b"builtins", b"bytearray") + b"h\x00\x85R",
    "bytes": name(b"builtins", b"bytes") + b"h\x00\x85R",
    "list": name(b"builtins", b"list") + b"h\x00\x85\x85R",
    "frombuffer": name(b"numpy.core.numeric", b"_frombuffer") + b"(h\x00h\x01J\x00\x00\x10\x00\x85U\x01CtR",
    "memo": b"h\x00",
}


@pytest.mark.parametrize("kind", COPIES)
def test_many_copies_of_one_content_are_refused(tmp_path, kind):
    dtype = name(b"numpy", b"dtype") + b"(X\x02\x00\x00\x00u1K\x00K\x01tRq\x010"
    data = b"\x80\x04" + content(1 << 20) + b"0" + dtype + b"](" + COPIES[kind] * 400 + b"e."
    refused(tmp_path, data, f"{SHARED}|{MEMORY}")
    copy = COPIES[kind].replace(b"J\x00\x00\x10\x00", b"J\x00\x04\x00\x00")
    few = b"\x80\x04" + content(1 << 10) + b"0" + dtype + b"](" + copy * 5 + b"e."
    assert len(safe_load(written(tmp_path, few))) == 5


@pytest.mark.parametrize(
    "code", [b"\x8f", b"}", b"]", name(b"collections", b"deque") + b")R"], ids=["set", "dict", "list", "deque"]
)
def test_many_empty_containers_are_refused(tmp_path, monkeypatch, code):
    monkeypatch.setattr(limits, "MEMORY", 1 << 20)
    refused(tmp_path, b"\x80\x04](" + code * 20_000 + b"e.", MEMORY)


def test_many_marks_and_memo_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MEMORY", 1 << 10)
    monkeypatch.setattr(limits, "MEMORY_PER_BYTE", 1)
    refused(tmp_path, b"\x80\x04" + b"(" * 20_000, MEMORY)
    refused(tmp_path, b"\x80\x04N" + b"\x94" * 20_000, MEMORY)


def test_many_instructions_are_refused(tmp_path, monkeypatch):
    data = b"\x80\x04" + b"N0" * 20_000 + b"N."
    monkeypatch.setattr(limits, "INSTRUCTIONS", 10_000)
    assert safe_load(written(tmp_path, data)) is None  # no more than its bytes
    packed = gzip.compress(data, mtime=0)
    refused(tmp_path, packed, f"more than {10_000 + 2 * len(packed):,} instructions")
    monkeypatch.setattr(limits, "MOST_INSTRUCTIONS", 5_000)
    refused(tmp_path, data, "more than 5,000 instructions")


def test_keys_of_one_hash_are_refused(tmp_path):
    # As opcodes: Python itself would take half a minute to build the containers.
    prime = (1 << 61) - 1
    numbers = [b"\x8a\x0a" + (number * prime).to_bytes(10, "little") for number in range(1, 14_000)]
    real = struct.pack(">d", 0.5)
    tuples = [b"\x8a\x04" + struct.pack("<I", number) + b"G" + real + b"\x86" for number in range(1, 14_000)]
    for keys in (numbers, tuples):
        refused(tmp_path, b"\x80\x04}(" + b"".join(key + b"N" for key in keys) + b"u.", WORK)
        refused(tmp_path, b"\x80\x04}" + b"".join(key + b"Ns" for key in keys) + b".", WORK)
        refused(tmp_path, b"\x80\x04\x8f(" + b"".join(keys) + b"\x90.", WORK)
        refused(tmp_path, b"\x80\x04(" + b"".join(keys) + b"\x91.", WORK)
        listed = b"](" + b"".join(keys) + b"e"
        refused(tmp_path, b"\x80\x02" + name(b"builtins", b"set") + listed + b"\x85R.", WORK)
        pairs = b"](" + b"".join(key + b"N\x86" for key in keys) + b"e"
        refused(tmp_path, b"\x80\x02" + name(b"collections", b"OrderedDict") + pairs + b"\x85R.", WORK)


def test_tuples_of_one_hash_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "WORK", 500_000)
    equal = b"K\x01K\x02\x86N" * 400  # one key again and again
    refused(tmp_path, b"\x80\x04}(" + equal + b"u.", WORK)
    other = b"".join(b"K" + bytes([number]) + b"K\x02\x86N" for number in range(200))
    assert len(safe_load(written(tmp_path, b"\x80\x04}(" + other + b"u."))) == 200


def test_long_numbers_as_keys_are_refused(tmp_path):
    number = b"\x8b" + struct.pack("<i", 1_000_000) + b"\x01" * 1_000_000
    assert safe_load(written(tmp_path, b"\x80\x04" + number + b".")) > 0
    refused(tmp_path, b"\x80\x04" + number + b"\x940}(" + b"h\x00N" * 1000 + b"u.", WORK)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x3fN.", "bytes are announced"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00N.", "bytes are announced"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x05N\x98.", "READONLY_BUFFER"),
        (b"\x80\x04Nr\xff\xff\xff\xff.", "manipulated"),
        (b"\x80\x04h\x07.", "manipulated"),
        (b"\x80\x04]a.", "without its operands"),
        (b"\x80\x04.", "without its operands"),
        (b"\x80\x04t.", "without its operands"),
        (b"\x80\x04](NNa.", "something other than a list"),
        (b"\x80\x04N(u.", "something other than a dict"),
        (b"\x80\x04NNR.", "calls something other than a name"),
        (b"\x80\x04" + name(b"builtins", b"list") + b"NR.", "a call without arguments"),
        (b"\x80\x04NN\x93.", "a name is expected"),
        (b"\x80\x04J\x00\x00", "cut off"),
        (b"\x80\x04" + name(b"m" * 300, b"n") + b".", "is too long"),
    ],
)
def test_ill_formed_pickles_are_refused(tmp_path, data, match):
    refused(tmp_path, data, match)


def test_an_array_is_not_filled_like_a_dictionary(tmp_path):
    # NumPy would take index arrays, and work on all pairs of them.
    refused(tmp_path, b"\x80\x02" + array_in(b"N") + b"K\x00Ns.", "something other than a dict")


def test_honest_content_keeps_within_the_limits(tmp_path):
    zero = np.zeros(512, np.float32)
    value = {
        "shared": {f"u{number}": zero for number in range(3000)},
        "ids": {(number, str(number)): number for number in range(14_000)},  # more than MELD has utterances
        "index": dict.fromkeys(range(14_000), "word"),
        "ordered": OrderedDict((f"k{number}", [number, None]) for number in range(14_000)),
        "default": defaultdict(list, {"a": [1]}),
        "deep": [[[[[[[[{"a": (1,)}]]]]]]]],
        "set": set(range(5000)),
    }
    for protocol in (0, 4):
        found = safe_load(written(tmp_path, pickle.dumps(value, protocol=protocol)))
        assert found["ordered"] == value["ordered"]
        assert found["ids"] == value["ids"]


def test_the_limits_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MOST_INSTRUCTIONS", 100)
    path = written(tmp_path, b"\x80\x04" + b"N0" * 4096 + b"N.")
    with pytest.raises(UnpickleError, match="ERCFUSION_PICKLE_LIMITS=4"):
        safe_load(path)
    monkeypatch.setenv(limits.VARIABLE, "100")
    assert safe_load(path) is None
    for value in ("-1", "0", "x", "1e3", "9" * 5000, "²"):
        monkeypatch.setenv(limits.VARIABLE, value)
        with pytest.raises(ConfigError, match="a whole number from 1 to 1000"):
            safe_load(path)


# Files of torch


def torch_file(folder, pickled, numbers=bytes(8), **more):
    path = folder / "file.pkl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled, **more)
        archive.writestr("a/data/0", numbers)
    return path


def tensor(count):
    storage = b"(X\x07\x00\x00\x00storage" + name(b"torch", b"ByteStorage") + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    number = b"J" + struct.pack("<i", count)
    shape = b"K\x00" + number + b"\x85K\x01\x85"
    return name(b"torch._utils", b"_rebuild_tensor_v2") + b"(" + storage + number + b"tQ" + shape + b"\x89)tR"


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    assert safe_load(torch_file(tmp_path, b"\x80\x02](" + tensor(8) * 10 + b"e."))[9].shape == (8,)
    path = torch_file(tmp_path, b"\x80\x02](" + tensor(1 << 20) * 400 + b"e.", bytes(1 << 20))
    with pytest.raises(UnpickleError, match=f"{SHARED}|{MEMORY}"):
        safe_load(path)


def test_overlapping_and_compressed_parts_of_an_archive_are_refused(tmp_path):
    path = torch_file(tmp_path, b"\x80\x02N.", bytes(100_000))
    data = path.read_bytes()
    # The directory names the same part a second time, under another name.
    start = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    end = data.index(b"PK\x05\x06")
    entry = data[start:end].replace(b"a/data/0", b"a/data/1")
    size, count = end - data.index(b"PK\x01\x02") + len(entry), 3
    tail = data[end : 8 + end] + struct.pack("<HHI", count, count, size) + data[end + 16 :]
    path.write_bytes(data[:end] + entry + tail)
    with pytest.raises(UnpickleError, match="overlap"):
        safe_load(path)
    path = torch_file(tmp_path, b"\x80\x02N." + bytes(1000), compress_type=zipfile.ZIP_BZIP2)
    with pytest.raises(UnpickleError, match="compressed archive"):
        safe_load(path)


def test_damage_anywhere_in_an_archive_gives_a_value_or_the_one_error(tmp_path):
    whole = torch_file(tmp_path, b"\x80\x02](" + tensor(8) * 2 + b"e.").read_bytes()
    chance = np.random.default_rng(0)
    errors = 0
    for _ in range(400):
        data = bytearray(whole)
        data[chance.integers(len(data))] ^= 1 << int(chance.integers(8))
        try:
            safe_load(written(tmp_path, bytes(data)))
        except UnpickleError as error:
            assert len(str(error)) <= 300  # noqa: PT017
            errors += 1
    assert errors > 200
