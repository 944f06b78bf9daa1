import bz2
import gzip
import io
import lzma
import pickle
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
from foreign import Python2, cogmen_class

from ercfusion._core.errors import PackError
from ercfusion.features.imports import Record, UnpickleError, rebuild, safe_load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def written(folder, data):
    path = folder / "file.pkl"
    path.write_bytes(data)
    return path


def loaded(folder, value, protocol=4):
    return safe_load(written(folder, pickle.dumps(value, protocol=protocol)))


def refused(folder, data, match):
    with pytest.raises(UnpickleError, match=match) as caught:
        safe_load(written(folder, data))
    assert str(folder / "file.pkl") in str(caught.value) or "\n" not in str(caught.value)
    return str(caught.value)


# What may be read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_numbers_and_text_come_back(tmp_path, protocol):
    value = {
        "list": [1, 2.5, -(10**30), True, None, "text", "übel", b"\x00\xff", bytearray(b"ab"), 1 + 2j],
        "tuple": ((), (1,), (1, (2, 3))),
        "sets": [{1, 2}, frozenset({"a"})],
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "default": defaultdict(list, {"k": [1]}),
        "counter": Counter("aab"),
        "deque": deque([1, 2], 5),
    }
    found = loaded(tmp_path, value, protocol)
    assert found == value
    assert found["default"].default_factory is list
    assert found["deque"].maxlen == 5
    assert list(found["ordered"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(4, dtype=">i4"),
        np.array(7.5),
        np.zeros((0, 3), np.int64),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.arange(4, dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back(tmp_path, array, protocol):
    found = loaded(tmp_path, array, protocol)
    assert found.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_arrays_and_numpy_numbers_come_back(tmp_path, protocol):
    array = np.empty(3, dtype=object)
    array[:] = [np.arange(2.0), "text", None]
    found, *numbers = loaded(tmp_path, [array, np.float64(0.5), np.int64(-3), np.str_("hi"), np.bool_(True)], protocol)
    np.testing.assert_array_equal(found[0], [0.0, 1.0])
    assert list(found[1:]) == ["text", None]
    assert numbers == [0.5, -3, "hi", True]


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_python_2_come_back(tmp_path, core):
    array = np.arange(6, dtype="<f8").reshape(2, 3)
    value = {"Ses01F_impro01": [array, "caf\xe9", 3], "split": ({"a", "b"}, ["x" * 300])}
    found = safe_load(written(tmp_path, Python2(core).dumps(value)))
    np.testing.assert_array_equal(found["Ses01F_impro01"][0], array)
    assert found["Ses01F_impro01"][1:] == ["caf\xe9", 3]
    assert found["split"] == ({"a", "b"}, ["x" * 300])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sample_objects_come_back_as_their_attributes(tmp_path, protocol):
    with cogmen_class() as kind:
        sample = kind()
        sample.vid, sample.audio = "Ses01F_impro01", np.arange(3.0)
        data = pickle.dumps([sample], protocol=protocol)
    (found,) = safe_load(written(tmp_path, data))
    assert isinstance(found, Record)
    assert set(found.fields) == {"vid", "audio"}
    assert found.fields["vid"] == "Ses01F_impro01"
    np.testing.assert_array_equal(found.fields["audio"], [0, 1, 2])


PACKERS = pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])


@PACKERS
def test_compressed_pickles_are_unpacked(tmp_path, pack):
    data = pickle.dumps([1, "a"])
    assert safe_load(written(tmp_path, pack(data))) == [1, "a"]
    assert safe_load(written(tmp_path, pack(data[:5]) + pack(data[5:]))) == [1, "a"]  # two streams, one after the other


@PACKERS
def test_a_compressed_file_that_grows_without_measure_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("ercfusion.features.imports.unpickle.UNPACKED", 1 << 20)
    refused(tmp_path, pack(bytes(3_000_000)), "over 1 MiB unpacked")


@PACKERS
def test_a_flipped_bit_in_a_compressed_file_is_reported(tmp_path, pack):
    whole = pack(pickle.dumps([1, "a"] * 20))
    refusals = 0
    places = range(0, len(whole) * 8, 3)
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        try:
            safe_load(written(tmp_path, bytes(data)))
        except UnpickleError:
            refusals += 1
    # gzip's header has a time, a system and flags that nothing checks; bzip2's the size of the blocks.
    assert refusals > 0.8 * len(places)


def test_an_xz_file_cannot_ask_for_memory(tmp_path):
    import zlib

    data = bytearray(lzma.compress(pickle.dumps([1, "a"])))
    header = data.index(b"\x21\x01")  # LZMA2, one byte about its dictionary
    data[header + 2] = 40  # 4 GiB
    length = (data[12] + 1) * 4
    data[12 + length - 4 : 12 + length] = zlib.crc32(bytes(data[12 : 12 + length - 4])).to_bytes(4, "little")
    refused(tmp_path, bytes(data), "damaged xz file \\(Memory usage limit")


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_inside_a_pickle_come_as_arrays(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    value = {"a": torch.arange(6.0).reshape(2, 3).T, "b": [torch.tensor([1, -2]), torch.tensor(True)]}
    found = loaded(tmp_path, value, protocol)
    np.testing.assert_array_equal(found["a"], value["a"].numpy())
    np.testing.assert_array_equal(found["b"][0], [1, -2])
    assert found["b"][1].dtype == bool


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_save_are_read_without_torch(tmp_path, archive):
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.float64)
    value = {
        "views": [base[2:8].reshape(2, 3), base[::3]],
        "half": torch.ones(2, dtype=torch.float16),
        "none": torch.zeros(0, 3),
        "array": np.arange(3, dtype=np.float32),
        "labels": [[2, 4, 3]],
    }
    path = tmp_path / "file.pt"
    torch.save(value, path, _use_new_zipfile_serialization=archive)
    found = safe_load(path)
    for mine, theirs in zip(found["views"], value["views"], strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())
    assert found["half"].dtype == np.float16
    assert found["none"].shape == (0, 3)
    np.testing.assert_array_equal(found["array"], value["array"])
    assert found["labels"] == [[2, 4, 3]]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_models_in_files_of_torch_are_refused(tmp_path, archive):
    torch = pytest.importorskip("torch")
    path = tmp_path / "file.pt"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=archive)
    with pytest.raises(UnpickleError, match=r"refused to build torch\.nn\.modules\.linear\.Linear"):
        safe_load(path)


def test_a_cut_off_file_of_torch_is_reported(tmp_path):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(100.0)}, buffer, _use_new_zipfile_serialization=False)
    refused(tmp_path, buffer.getvalue()[:-8], "cut off inside the numbers of a tensor")


# What may not


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def stack_global(module, name, arguments=b")"):
    """Protocol 4: name something and call it."""
    return b"\x80\x04" + short(module) + short(name) + b"\x93" + arguments + b"R."


def calling(module, name, *arguments):
    """Protocol 2: name something and call it with texts."""
    texts = b"".join(b"X" + struct.pack("<i", len(text)) + text.encode() for text in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + texts + b"tR."


HOSTILE = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("builtins", "eval"),
    ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "setattr"), ("builtins", "__import__"),
    ("builtins", "open"), ("builtins", "type"), ("builtins", "map"), ("builtins", "compile"), ("builtins", "globals"),
    ("__builtin__", "eval"), ("__builtin__", "apply"), ("__builtin__", "getattr"), ("functools", "partial"),
    ("functools", "reduce"), ("operator", "attrgetter"), ("operator", "methodcaller"), ("operator", "itemgetter"),
    ("codecs", "open"), ("codecs", "encode"), ("_codecs", "decode"), ("_codecs", "lookup"), ("pickle", "loads"),
    ("_pickle", "loads"), ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "save"), ("numpy", "memmap"),
    ("numpy.core.multiarray", "fromfile"), ("numpy.core.multiarray", "os.system"), ("numpy", "os.system"),
    ("numpy.f2py", "os.system"), ("numpy.f2py", "compile"), ("numpy.testing._private.utils", "runstring"),
    ("numpy.distutils.exec_command", "exec_command"), ("collections", "sys.modules"), ("collections", "namedtuple"),
    ("collections", "_sys.modules"), ("copyreg", "__newobj__"), ("copyreg", "add_extension"), ("torch", "load"),
    ("torch", "hub.load"), ("torch.storage", "torch.load"), ("torch._utils", "_rebuild_parameter"),
    ("joblib.numpy_pickle", "NumpyArrayWrapper"), ("pandas.core.frame", "DataFrame"), ("cogmen.Sample", "__init__"),
    ("cogmen.Sample", "Sample.__init__"), ("cogmen.Sample", "sbert_model"), ("ercfusion._core.files", "shutil.rmtree"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), HOSTILE, ids=lambda part: part)
def test_everything_else_is_refused_by_name(tmp_path, monkeypatch, module, name):
    canary = tmp_path / "canary"
    command = f"touch {canary}"
    imported = []
    monkeypatch.setattr("builtins.__import__", spy(imported))
    for data in (calling(module, name, command), stack_global(module, name, short(command) + b"\x85")):
        message = refused(tmp_path, data, "refused to build")
        assert f"{module}.{name}" in message
        assert "nothing of the file was executed" in message
    assert not canary.exists()
    # Modules of the library may be imported while a file is read, those that the file names may not.
    assert module not in imported or module.startswith(("builtins", "numpy", "collections", "torch", "ercfusion"))


def spy(imported):
    real = __import__

    def importing(name, *arguments, **options):
        imported.append(name)
        return real(name, *arguments, **options)

    return importing


def test_the_message_names_the_byte_and_the_way_out(tmp_path):
    message = refused(tmp_path, b"\x80\x02]" + calling("os", "system", "x")[2:-1] + b"a.", r"os\.system \(byte 3\)")
    assert "docs/import-pickles.md" in message
    assert "file.pkl" in message
    long = refused(tmp_path, calling("m" * 150, "n" * 150), "refused to build")
    assert len(long) <= 300


def test_reduce_of_an_object_runs_nothing(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (canary,))

    class Quiet:
        def __reduce__(self):
            return (exec, (f"open({str(canary)!r}, 'w')",))

    for protocol in PROTOCOLS:
        for value in (Hostile(), [Quiet()], {"a": np.array([Quiet()], dtype=object)}, {1: (Quiet(), 2)}):
            refused(tmp_path, pickle.dumps(value, protocol=protocol), "refused to build|refers to objects")
    pickle.loads(pickle.dumps(Quiet()))
    assert canary.exists()  # the same pickle does run elsewhere: the test can fail


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"], ids=["1", "2", "4"])
def test_extensions_are_refused(tmp_path, opcode):
    refused(tmp_path, b"\x80\x02" + opcode + b")R.", "EXT")


@pytest.mark.parametrize("data", [b"(P12\n.", b"\x80\x02K\x01Q."], ids=["text", "binary"])
def test_persistent_references_are_refused(tmp_path, data):
    refused(tmp_path, data, "refers to objects outside the pickle")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "OrderedDict"), ("collections", "Counter"), ("builtins", "list"), ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy", "dtype"), ("_codecs", "encode"),
        ("cogmen.Sample", "Sample"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("slots", [False, True])
def test_build_changes_no_class_and_no_function(tmp_path, module, name, slots):
    before = {key: dict(vars(entry)) for key, entry in vars(rebuild).items() if isinstance(entry, type)}
    state = b"}X\x05\x00\x00\x00labelK\x01s"
    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + (b"N" + state + b"\x86" if slots else state) + b"b."
    refused(tmp_path, data, "tries to change|damaged pickle")
    assert not any(hasattr(kind, "label") for kind in (OrderedDict, Counter, rebuild.Sample, rebuild.Record))
    assert before == {key: dict(vars(entry)) for key, entry in vars(rebuild).items() if isinstance(entry, type)}
    assert not any(hasattr(function, "label") for function in rebuild.KNOWN.values() if not isinstance(function, type))


def array_of(dtype, shape, data, kind=b"cnumpy\nndarray\n"):
    """An array as Python 2 writes it, of parts that may not fit together."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(" + kind + b"(K\x00tU\x01btR(K\x01" + shape + dtype + b"\x89"
        + data + b"tb."
    )  # fmt: skip


def dtype_of(code, state=b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"):
    return b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR" + state


TWO = b"(K\x02t"
FOUR_BYTES = b"U\x04abcd"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (array_of(dtype_of(b"f4"), TWO, FOUR_BYTES), "content of 1 elements"),
        (array_of(dtype_of(b"f4"), b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft", FOUR_BYTES), "content of 1 elements"),
        (array_of(dtype_of(b"f4"), b"(J\xff\xff\xff\xfft", FOUR_BYTES), "has the shape"),
        (array_of(dtype_of(b"f4"), b"K\x02", FOUR_BYTES), "has the shape"),
        (array_of(dtype_of(b"O8"), TWO, FOUR_BYTES), "content of 0 elements"),
        (array_of(dtype_of(b"O8"), TWO, b"]K\x01a"), "content of 1 elements"),
        (array_of(dtype_of(b"f4,O"), TWO, FOUR_BYTES), "to plain numbers"),
        (array_of(dtype_of(b"V8"), TWO, FOUR_BYTES), "to plain numbers"),
        (array_of(dtype_of(b"M8"), TWO, FOUR_BYTES), "to plain numbers"),
        (array_of(dtype_of(b"f4", b"(K\x03U\x01<N(U\x01at}NK\x08K\x01K\x10tb"), TWO, FOUR_BYTES), "named fields"),
        (array_of(dtype_of(b"f4", b"(K\x03U\x01xNNNK\x08K\x01K\x10tb"), TWO, FOUR_BYTES), "byte order"),
        (array_of(b"K\x01", TWO, FOUR_BYTES), "no type"),
        (array_of(dtype_of(b"f4"), TWO, FOUR_BYTES, b"cnumpy\ndtype\n"), "subclass"),
        (b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "only name"),
        (b"\x80\x02cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR.", "picklers never use"),
        (b"\x80\x02cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "picklers never use"),
        (b"\x80\x02ccollections\ndefaultdict\n(cbuiltins\nbytes\ntR.", "factory is not"),
        (b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "encoding 'rot13'"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "manipulated"),
        (b"(lp99999999\n.", "manipulated"),
        (b"(lp" + b"9" * 5000 + b"\n.", "manipulated"),
        (b"(lpx\n.", "manipulated"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.", "bytes are announced"),
    ],
)
def test_damaged_and_dishonest_content_is_refused(tmp_path, data, match):
    refused(tmp_path, data, match)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    torch = pytest.importorskip("torch")
    data = pickle.dumps(torch.ones(2, 3), protocol=2)
    position = data.rindex(b"K\x02K\x03\x86")
    refused(tmp_path, data[:position] + b"K\xc8K\x03\x86" + data[position + 5 :], "has 6 numbers")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5", id="hdf5"),
        pytest.param(b"\x93NUMPY\x01\x00", "NumPy array", id="numpy"),
        pytest.param(b"MATLAB 5.0 MAT-file", "MATLAB", id="matlab"),
        pytest.param(b"<!DOCTYPE html><html>", "web page", id="html"),
        pytest.param(b'{"a": 1}', "JSON", id="json"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "git-lfs", id="git-lfs"),
        pytest.param(b"conversation,turn,text\n1,2,3\n", "not a pickle.*is not a module", id="csv"),
        pytest.param(b"\xff\xd8\xff\xe0", "not a pickle", id="jpeg"),
        pytest.param(pickle.dumps(list(range(1000)))[:500], "cut off|announced", id="cut pickle"),
        pytest.param(gzip.compress(pickle.dumps([1]), mtime=0)[:-10], "damaged gzip", id="cut gzip"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, data, match):
    refused(tmp_path, data, match)


def test_archives_are_named_as_what_they_are(tmp_path):
    import zipfile

    np.savez(tmp_path / "a.npz", x=np.ones(2))
    with pytest.raises(PackError, match="NumPy archive"):
        safe_load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("features.pkl", b"x")
    with pytest.raises(PackError, match=r"ZIP archive with features.pkl"):
        safe_load(tmp_path / "b.zip")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damage_anywhere_gives_a_value_or_the_one_error(tmp_path, protocol):
    value = [{"a": np.arange(6.0).reshape(2, 3), "b": (1, "text", b"x")}, np.float32(2), {1, 2}, OrderedDict(k=[None])]
    whole = pickle.dumps(value, protocol=protocol)
    chance = np.random.default_rng(protocol)
    errors = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in chance.integers(0, len(data), chance.integers(1, 4)):
            data[place] = chance.integers(0, 256)
        try:
            safe_load(
                written(tmp_path, bytes(data[: chance.integers(1, len(data) + 1)] if chance.random() < 0.2 else data))
            )
        except UnpickleError:
            errors += 1
    assert errors > 100


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UnpickleError, match="no such file"):
        safe_load(tmp_path / "none.pkl")
