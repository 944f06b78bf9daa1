"""Pickle instructions by effect, for :mod:`ercfusion.features.imports.scan`."""

from __future__ import annotations

import pickletools
from collections.abc import Mapping

CODES: Mapping[str, int] = {code.name: ord(code.code) for code in pickletools.opcodes}
"""Numbers by name."""
NAMES: Mapping[int, str] = {number: name for name, number in CODES.items()}
"""Names by number."""
FIXED: Mapping[int, tuple[int, int]] = {
    CODES[name]: code
    for name, code in {
        "BINFLOAT": (8, 36),
        "NONE": (0, 8),
        "NEWTRUE": (0, 8),
        "NEWFALSE": (0, 8),
    }.items()
}
"""Push a value of fixed length that does not matter: bytes of the argument, bytes in memory."""
INTEGERS: Mapping[int, int] = {CODES["BININT1"]: 1, CODES["BININT2"]: 2, CODES["BININT"]: 4}
"""Push a whole number of fixed length: bytes of the argument."""
COUNTED: Mapping[int, tuple[int, str]] = {
    CODES[name]: code
    for name, code in {
        "SHORT_BINUNICODE": (1, "text"),
        "BINUNICODE": (4, "text"),
        "BINUNICODE8": (8, "text"),
        "SHORT_BINSTRING": (1, "bytes"),
        "BINSTRING": (4, "bytes"),
        "SHORT_BINBYTES": (1, "bytes"),
        "BINBYTES": (4, "bytes"),
        "BINBYTES8": (8, "bytes"),
        "BYTEARRAY8": (8, "bytes"),
        "LONG1": (1, "number"),
        "LONG4": (4, "number"),
    }.items()
}
"""Push a value preceded by its length: bytes of the length, kind of value."""
LINES: Mapping[int, str] = {
    CODES[name]: kind
    for name, kind in {
        "STRING": "text",
        "UNICODE": "text",
        "INT": "number",
        "LONG": "number",
        "FLOAT": "number",
    }.items()
}
"""Push a value from a line of text: kind of value."""
EMPTY: Mapping[int, tuple[str, int]] = {
    CODES["EMPTY_LIST"]: ("list", 250),
    CODES["EMPTY_TUPLE"]: ("tuple", 220),
    CODES["EMPTY_DICT"]: ("dict", 280),
    CODES["EMPTY_SET"]: ("set", 370),
}
"""Push an empty container: kind, bytes in memory."""
TUPLES: Mapping[int, int] = {CODES["TUPLE1"]: 1, CODES["TUPLE2"]: 2, CODES["TUPLE3"]: 3}
"""Push a tuple of fixed length: number of items."""
MARKED: Mapping[int, str] = {
    CODES["TUPLE"]: "tuple",
    CODES["LIST"]: "list",
    CODES["FROZENSET"]: "frozen",
    CODES["DICT"]: "dict",
}
"""Push a container of all above the mark: kind."""
GETS: Mapping[int, int] = {CODES["BINGET"]: 1, CODES["LONG_BINGET"]: 4}
"""Read the memo: bytes of the index."""
PUTS: Mapping[int, int] = {CODES["BINPUT"]: 1, CODES["LONG_BINPUT"]: 4}
"""Write the memo: bytes of the index."""
MAY_START = frozenset(
    ("PROTO", "MARK", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "GLOBAL", "NONE", "LONG", "INT", "FLOAT")
)
"""First instructions of picklers."""
