"""What the reader of foreign pickles may build, and nothing else.

:data:`KNOWN` is the closed list of names. What they stand for is written here, so that NumPy's own rebuilding functions
are never handed out: type strings, shapes and buffers from the file are checked first, and structured or date types do
not pass. No function or class that outlives the reading can be changed from a file either.

:mod:`ercfusion.features.imports.unpickle` is the reader; nothing here is meant to be used from elsewhere.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from ercfusion._core.errors import PackError

_KINDS = "biufcSUO"


class UnpickleError(PackError):
    """A pickle that is damaged, is something else, or asks for what features do not need."""


class Record:
    """What a sample object of another code base held, as names and values; none of its code.

    Args:
        fields: Attribute name to value.
    """

    __slots__ = ("fields",)
    fields: dict[str, Any]

    def __new__(cls) -> Record:
        """An empty record: pickles build objects without their initialisers."""
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise UnpickleError("the state of a sample object is no dictionary of its attributes")
        self.fields = dict(state)


class Call:
    """What a name of the file leads to. It can be called and nothing else: the file has no way to change it.

    Args:
        name: Module and name, as the file has them.
        function: What is called.
    """

    __slots__ = ("_function", "name")
    name: str
    _function: Callable[..., Any]

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnpickleError(f"the pickle tries to change {self.name}")

    def __setstate__(self, state: Any) -> NoReturn:
        raise UnpickleError(f"the pickle tries to change {self.name}")


class _FixedClass(type):
    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise UnpickleError("the pickle tries to change a class")


class Sample(Record, metaclass=_FixedClass):
    """The class that a file's sample objects are made of; unlike :class:`Record` it is in the file's reach."""

    __slots__ = ()


class _Dtype:
    # A NumPy type as the file describes it. NumPy's own type objects are shared by the whole process, and the file's
    # second word about them (byte order, length) would be taken by them as it comes.
    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or not code or not (code[1:].isdigit() or not code[1:]):
            raise UnpickleError(f"an array has the type {code!r}; only plain numbers, text and objects are read")
        kind = np.dtype(code).kind
        if kind not in _KINDS:
            raise UnpickleError(f"an array has the type {code!r}; only plain numbers, text and objects are read")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, base type, names, fields, length, alignment, flags); the last may be missing.
        if not isinstance(state, tuple) or len(state) < 7 or any(part is not None for part in state[2:5]):
            raise UnpickleError(f"an array of type {self.code!r} has named fields; only plain arrays are read")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise UnpickleError(f"an array has the unknown byte order {order!r}")
        self.order = order

    def real(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        return dtype if self.order in "|=" else dtype.newbyteorder("<" if self.order == "<" else ">")


class _Array(np.ndarray[Any, Any]):
    # An array whose content from the file is checked before NumPy takes it over.
    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpickleError("an array is described in a way that NumPy does not use")
        _, shape, dtype, fortran, data = state
        real = _dtype(dtype)
        if isinstance(data, str):
            data = data.encode("latin1")
        count = _count(shape)
        if real.kind == "O":
            found = len(data) if isinstance(data, list) else -1
        else:
            found = len(data) // real.itemsize if isinstance(data, bytes | bytearray) and real.itemsize else -1
        if found != count:
            raise UnpickleError(f"an array of shape {shape} has the content of {max(found, 0)} elements")
        content = list(data) if real.kind == "O" else bytes(data)
        super().__setstate__((1, tuple(shape), real, bool(fortran), content))  # type: ignore[arg-type]


def _dtype(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise UnpickleError("an array has no type")
    return dtype.real()


def _count(shape: Any) -> int:
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(extent) is int and extent >= 0 for extent in shape)
    ):
        raise UnpickleError(f"an array has the shape {str(shape)[:60]}")
    count = 1
    for extent in shape:
        count *= extent
    return count


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Array:
    if not isinstance(subtype, Call) or subtype.name != "numpy.ndarray":
        raise UnpickleError("an array is of a subclass of numpy.ndarray")
    # Shape and type come with the content.
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    real = _dtype(dtype)
    if real.kind == "O" or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise UnpickleError("an array is described in a way that NumPy does not use")
    if len(data) != _count(shape) * real.itemsize:
        raise UnpickleError(
            f"an array of shape {shape} has the content of {len(data) // (real.itemsize or 1)} elements"
        )
    return np.frombuffer(bytes(data), real).reshape(shape, order=order).copy(order="K").view(_Array)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    real = _dtype(dtype)
    if isinstance(data, str):
        data = data.encode("latin1")
    if real.kind == "O" or not isinstance(data, bytes | bytearray):
        raise UnpickleError("a number is described in a way that NumPy does not use")
    if not real.itemsize:
        return "" if real.kind == "U" else b""
    if len(data) != real.itemsize:
        raise UnpickleError(f"a number of type {real.name} has {len(data)} bytes")
    return np.frombuffer(bytes(data), real)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnpickleError(f"the pickle asks for the encoding {encoding!r}; bytes are written as latin1")
    return text.encode("latin1")


def _from(kind: Callable[..., Any], *taken: type) -> Callable[..., Any]:
    # A conversion that takes what picklers pass to it, and not, for example, a number of zero bytes to reserve.
    def convert(*arguments: Any) -> Any:
        if len(arguments) > 1 or not all(isinstance(argument, taken) for argument in arguments):
            raise UnpickleError(f"{getattr(kind, '__name__', kind)} is asked for with arguments that no pickler writes")
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
        raise UnpickleError("a defaultdict has another factory than list, dict, set, int, float or str")
    return defaultdict(_FACTORIES[name], *arguments)


def _reconstructor(kind: Any, base: Any, state: Any) -> Record:
    # How protocols 0 and 1 begin an object.
    if kind is not Sample or state is not None:
        raise UnpickleError("an object is described in a way that no pickler writes")
    return Sample()


def _not_alone(*arguments: Any) -> NoReturn:
    raise UnpickleError("the pickle calls what is only ever named")


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
"""Classes of which only the attributes are read: COGMEN's, and that of the DialogueGCN code that it grew from."""


def _table() -> dict[tuple[str, str], Callable[..., Any]]:
    table: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encode}
    for module in ("builtins", "__builtin__"):
        table.update({(module, name): function for name, function in _BUILTINS.items()})
        table[module, "object"] = _not_alone
    table["__builtin__", "unicode"] = _BUILTINS["str"]
    table["__builtin__", "long"] = _BUILTINS["int"]
    table.update({("collections", name): function for name, function in _COLLECTIONS.items()})
    for module in ("copyreg", "copy_reg"):
        table[module, "_reconstructor"] = _reconstructor
    table["numpy", "ndarray"] = _not_alone
    table["numpy", "dtype"] = _Dtype
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        table[f"{core}.multiarray", "scalar"] = _scalar
        table[f"{core}.numeric", "_frombuffer"] = _frombuffer
    return table


KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = _table()
"""(module, name) to what stands for it."""
