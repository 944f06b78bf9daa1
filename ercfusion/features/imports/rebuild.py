"""The closed list of what a foreign pickle may build: :data:`KNOWN`.

The names stand for functions of this module, which check types, shapes and buffers before NumPy sees them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from ercfusion._core.errors import PackError

_KINDS = "biufcSUO"


class UnpickleError(PackError):
    """A pickle is damaged, is something else, or needs a refused name."""


class Record:
    """The attributes of another code base's object, without its code."""

    __slots__ = ("fields",)
    fields: dict[str, Any]

    def __new__(cls) -> Record:
        """An empty record: pickles do not call ``__init__``."""
        record = super().__new__(cls)
        record.fields = {}
        return record

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise UnpickleError("a sample object's state is not a dictionary of attributes. Download the file again.")
        self.fields = dict(state)


class Call:
    """The replacement of a name: the file can call it, but not change it."""

    __slots__ = ("_function", "name")
    name: str
    _function: Callable[..., Any]

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnpickleError(f"the pickle tries to change {self.name}. Download another copy of the file.")

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnpickleError(f"the pickle tries to change {self.name}. Download another copy of the file.")


class _FixedClass(type):
    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise UnpickleError("the pickle tries to change a class. Download another copy of the file.")


class Sample(Record, metaclass=_FixedClass):
    """The class of a file's sample objects; the file can name it, unlike :class:`Record`."""

    __slots__ = ()


class _Dtype:
    # A NumPy type as described by the file. NumPy shares its own type objects in the process, and would accept
    # unchecked changes (byte order, length) from the file.
    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or not code or not (code[1:].isdigit() or not code[1:]):
            raise UnpickleError(f"an array has the type {code!r}. Convert it to plain numbers, text or objects.")
        kind = np.dtype(code).kind
        if kind not in _KINDS:
            raise UnpickleError(f"an array has the type {code!r}. Convert it to plain numbers, text or objects.")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, base type, names, fields, length, alignment, flags); the last may be absent.
        if not isinstance(state, tuple) or len(state) < 7 or any(part is not None for part in state[2:5]):
            raise UnpickleError(f"an array of type {self.code!r} has named fields. Convert it to plain arrays.")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise UnpickleError(f"an array has the unknown byte order {order!r}. Download the file again.")
        self.order = order

    def real(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        return dtype if self.order in "|=" else dtype.newbyteorder("<" if self.order == "<" else ">")


class _Array(np.ndarray[Any, Any]):
    # An array with content checked before NumPy accepts it.
    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpickleError("an array's state does not have NumPy's form. Download the file again.")
        _, shape, dtype, fortran, data = state
        real = _dtype(dtype)
        if isinstance(data, str):
            data = data.encode("latin1")
        count = _count(shape)
        if real.kind == "O":
            length = len(data) if isinstance(data, list) else -1
        else:
            length = len(data) // real.itemsize if isinstance(data, bytes | bytearray) and real.itemsize else -1
        if length != count:
            raise UnpickleError(
                f"an array of shape {shape} has the content of {max(length, 0)} elements. Download the file again."
            )
        content = list(data) if real.kind == "O" else bytes(data)
        super().__setstate__((1, tuple(shape), real, bool(fortran), content))  # type: ignore[arg-type]


def _dtype(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise UnpickleError("an array has no type. Download the file again.")
    return dtype.real()


def _count(shape: Any) -> int:
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(extent) is int and extent >= 0 for extent in shape)
    ):
        raise UnpickleError(f"an array has the shape {str(shape)[:60]}. Download the file again.")
    count = 1
    for extent in shape:
        count *= extent
    return count


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Array:
    if not isinstance(subtype, Call) or subtype.name != "numpy.ndarray":
        raise UnpickleError("an array is of a subclass of numpy.ndarray. Convert it to a plain array.")
    # Shape and type follow with the content.
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    real = _dtype(dtype)
    if real.kind == "O" or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise UnpickleError("an array's buffer does not have NumPy's form. Download the file again.")
    if len(data) != _count(shape) * real.itemsize:
        elements = len(data) // (real.itemsize or 1)
        raise UnpickleError(
            f"an array of shape {shape} has the content of {elements} elements. Download the file again."
        )
    return np.frombuffer(bytes(data), real).reshape(shape, order=order).copy(order="K").view(_Array)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    real = _dtype(dtype)
    if isinstance(data, str):
        data = data.encode("latin1")
    if real.kind == "O" or not isinstance(data, bytes | bytearray):
        raise UnpickleError("a number does not have NumPy's form. Download the file again.")
    if not real.itemsize:
        return "" if real.kind == "U" else b""
    if len(data) != real.itemsize:
        raise UnpickleError(f"a number of type {real.name} has {len(data)} bytes. Download the file again.")
    return np.frombuffer(bytes(data), real)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnpickleError(f"the pickle names the encoding {encoding!r}, not latin1. Download the file again.")
    return text.encode("latin1")


def _from(kind: Callable[..., Any], *types: type) -> Callable[..., Any]:
    # A conversion of picklers' arguments only: not, for example, of a number of zero bytes to allocate.
    def convert(*arguments: Any) -> Any:
        if len(arguments) > 1 or not all(isinstance(argument, types) for argument in arguments):
            name = getattr(kind, "__name__", kind)
            raise UnpickleError(f"{name} is called with arguments that picklers never use. Download the file again.")
        return kind(*arguments)

    return convert


def _bytes(*arguments: Any) -> bytes:
    if len(arguments) == 2:
        return _encode(*arguments)
    return bytes(_from(bytes, bytes, bytearray, list)(*arguments))


def _bytearray(*arguments: Any) -> bytearray:
    return bytearray(_bytes(*arguments))


_FACTORIES: Mapping[str, type] = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str}


def _defaultdict(factory: Any = None, *arguments: Any) -> defaultdict[Any, Any]:
    if factory is None:
        return defaultdict(None, *arguments)
    name = factory.name.removeprefix("builtins.") if isinstance(factory, Call) else ""
    if name not in _FACTORIES:
        raise UnpickleError("a defaultdict's factory is not list, dict, set, int, float or str. Convert it to dict.")
    return defaultdict(_FACTORIES[name], *arguments)


def _reconstructor(kind: Any, base: Any, state: Any) -> Record:
    # Start of an object in protocols 0 and 1.
    if kind is not Sample or state is not None:
        raise UnpickleError("an object does not have the form that picklers write. Download the file again.")
    return Sample()


def _never_called(*arguments: Any) -> NoReturn:
    raise UnpickleError("the pickle calls what picklers only name. Download the file again.")


_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_BUILTINS: Mapping[str, Callable[..., Any]] = {
    "list": _from(list, *_CONTAINERS),
    "dict": _from(dict, *_CONTAINERS),
    "tuple": _from(tuple, *_CONTAINERS),
    "set": _from(set, *_CONTAINERS),
    "frozenset": _from(frozenset, *_CONTAINERS),
    "bytearray": _bytearray,
    "bytes": _bytes,
    "str": _from(str, str),
    "int": _from(int, int, float),
    "float": _from(float, int, float),
    "bool": _from(bool, int, float),
    "complex": lambda *parts: complex(*[_from(float, int, float)(part) for part in parts]),
}
_COLLECTIONS: Mapping[str, Callable[..., Any]] = {
    "OrderedDict": _from(OrderedDict, *_CONTAINERS),
    "defaultdict": _defaultdict,
    "Counter": _from(Counter, *_CONTAINERS),
    "deque": lambda items=(), most=None: deque(_from(list, *_CONTAINERS)(items), most),
}
SAMPLES = (("cogmen.Sample", "Sample"), ("dgcn.Sample", "Sample"))
"""COGMEN's samples, and those of the DialogueGCN code it grew from."""


def _table() -> dict[tuple[str, str], Callable[..., Any]]:
    table: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encode}
    for module in ("builtins", "__builtin__"):
        table.update({(module, name): function for name, function in _BUILTINS.items()})
        table[module, "object"] = _never_called
    table["__builtin__", "unicode"] = _BUILTINS["str"]
    table["__builtin__", "long"] = _BUILTINS["int"]
    table.update({("collections", name): function for name, function in _COLLECTIONS.items()})
    for module in ("copyreg", "copy_reg"):
        table[module, "_reconstructor"] = _reconstructor
    table["numpy", "ndarray"] = _never_called
    table["numpy", "dtype"] = _Dtype
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        table[f"{core}.multiarray", "scalar"] = _scalar
        table[f"{core}.numeric", "_frombuffer"] = _frombuffer
    return table


KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = _table()
"""(module, name) to its replacement."""
