"""Simulate a pickle without building anything, and refuse one that takes too much.

Python's interpreter of pickles is C: it cannot be interrupted while it compares keys, and hashing or freeing deeply
nested objects overflows its stack. So every pickle is simulated first, with proxies for its objects: depth, size in
bytes (shared parts counted each time), and work of hashing.

A container may not change once another one holds it, as picklers do only for containers holding themselves. So depth
and size are exact, and cycles cannot occur.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NoReturn

from ercfusion._core.schemas.reading import failure, shown
from ercfusion.features.imports.limits import MAX_DEPTH, Limits
from ercfusion.features.imports.opcodes import (
    CODES,
    COUNTED,
    EMPTY,
    FIXED,
    GETS,
    INTEGERS,
    LINES,
    MARKED,
    MAY_START,
    NAMES,
    PUTS,
    TUPLES,
)
from ercfusion.features.imports.rebuild import UnpickleError

_NAME = re.compile(rb"[\w.<>]+\r?\n")
_TWO_BYTES, _FOUR_BYTES = re.compile(rb"[\xc4-\xff]"), re.compile(rb"[\xf0-\xff]")
_LONGEST_NAME = 200
_SHORT = 64
_CHECKED_EVERY = 4096


class _Node:
    # A proxy of an object, except short texts and small numbers.
    __slots__ = (
        *("depth", "filled", "first", "firsts", "hash", "hashes", "heavy", "inner", "kind", "linked", "name"),
        *("product", "weight", "wild", "work"),
    )

    def __init__(self, kind: str, weight: int = 0, depth: int = 0, work: int = 1) -> None:
        self.kind = kind  # list, tuple, dict, set, frozen, object, name, text, number, storage
        self.name = ""  # of a name
        self.weight = weight  # bytes, as if nothing were shared
        self.depth = depth
        self.work = work  # steps of hashing it
        self.linked = False  # another object holds it
        # The work on keys with hashes chosen by the file grows with their number: see _grade. Sums of grades: of the
        # items, of the first items of pairs, and the maximum of both among the held objects.
        self.wild = self.firsts = 0
        self.inner = (0, 0)
        self.first, self.filled = 0, False
        self.heavy = 0  # steps of hashing the wild keys
        self.hash: int | None = None  # of a tuple of short texts and numbers
        self.hashes: dict[int, int] | None = None  # of the keys that are such tuples
        self.product = -1  # of a tuple of whole numbers


# Results of calls that later instructions can fill; all others cannot be filled.
_FILLABLE: Mapping[str, str] = {
    **dict.fromkeys(("OrderedDict", "defaultdict", "Counter", "dict"), "dict"),
    **dict.fromkeys(("list", "deque"), "list"),
    "set": "set",
}
_OBJECT_BYTES = 300  # of a called object and its proxy; a deque takes 760
_DEQUE_BYTES = 900


class Scan:
    """One pass over a pickle.

    Args:
        data: Buffer with the pickle.
        limits: Reduced by what reading takes.
        persistent: Allow references to objects outside.
        check_name: Raises for a refused module and name at a byte.
    """

    def __init__(
        self, data: Any, limits: Limits, persistent: bool, check_name: Callable[[str, str, int], None]
    ) -> None:
        self._data = data
        self._limits = limits
        self._path = limits.path
        self._persistent = persistent
        self._check_name = check_name
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._memory = 0  # not yet taken from the limits
        self._work = 0

    def run(self, start: int) -> int:
        """Simulate the pickle at byte ``start``; returns the byte behind it.

        Raises:
            UnpickleError: cut off, ill-formed, or beyond a limit.
        """
        data, end, place, steps = self._data, len(self._data), start, 0
        try:
            while True:
                if place >= end:
                    self._fail(f": cut off at byte {end}, inside the pickle")
                code = data[place]
                steps += 1
                if steps % _CHECKED_EVERY == 0:
                    self._settle(_CHECKED_EVERY)
                if code in FIXED:
                    length, memory = FIXED[code]
                    self._memory += memory
                    self._stack.append(None)
                    place += 1 + length
                    continue
                if steps == 1 and place == 0 and NAMES.get(code) not in MAY_START:
                    # Letters are instructions too, but no pickler starts with those that begin text files.
                    self._no_pickle(place)
                if NAMES.get(code) == "STOP":
                    self._stack.pop()
                    self._settle(steps % _CHECKED_EVERY)
                    return place + 1
                place = self._step(code, place, steps)
        except IndexError:
            self._fail(f", byte {place}: an instruction without its operands")

    # One instruction

    def _step(self, code: int, place: int, steps: int) -> int:
        # Returns the place of the next instruction.
        data, stack, after = self._data, self._stack, place + 1
        if code in INTEGERS:
            after += INTEGERS[code]
            stack.append(int.from_bytes(data[place + 1 : after], "little", signed=code == CODES["BININT"]))
            self._memory += 8 if code == CODES["BININT1"] else 36
        elif code in COUNTED:
            width, kind = COUNTED[code]
            length = int.from_bytes(data[after : after + width], "little")
            after += width
            if length > len(data) - after:
                self._fail(f", byte {place}: cut off, {length} bytes are announced")
            self._push_content(kind, after, length)
            after += length
        elif code in GETS:
            after += GETS[code]
            self._get(int.from_bytes(data[place + 1 : after], "little"), place)
        elif code in PUTS:
            after += PUTS[code]
            self._put(int.from_bytes(data[place + 1 : after], "little"), place, steps)
        elif code in EMPTY:
            kind, memory = EMPTY[code]
            self._memory += memory
            stack.append(_Node(kind, memory >> 1, 1))
        elif code in TUPLES:
            count = TUPLES[code]
            if len(stack) < count:
                raise IndexError
            items = stack[-count:]
            del stack[-count:]
            self._collect("tuple", items)
        elif code in MARKED:
            items = self._pop_mark()
            self._collect(MARKED[code], items)
        elif code in LINES:
            line, after = self._line(after, place)
            if LINES[code] == "text":
                self._push_content("text", after - len(line), len(line))
            else:
                self._memory += 40 + len(line)
                digits = line.strip().rstrip(b"L")
                if len(line) > _SHORT:
                    stack.append(_Node("number", len(line), 0, len(line)))
                else:
                    stack.append(int(digits) if digits.isdigit() and len(digits) < 16 else None)
        else:
            after = self._rare(NAMES.get(code, ""), place, steps)
        if after > len(data):
            self._fail(f": cut off at byte {len(data)}, inside the pickle")
        return after

    def _rare(self, name: str, place: int, steps: int) -> int:
        data, stack, after = self._data, self._stack, place + 1
        if name == "MEMOIZE":
            self._put(len(self._memo), place, steps)
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
            self._memory += 100
        elif name in ("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"):
            self._fill(name, place)
        elif name == "BUILD":
            state = stack.pop()
            target = stack[-1]
            if type(target) is _Node and target.kind != "name":
                self._hold(target, [state], place)
                self._memory += _weight(state)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            self._call(stack.pop(), arguments, place)
        elif name == "NEWOBJ_EX":
            named, arguments = stack.pop(), stack.pop()
            self._collect("tuple", [arguments, named])
            arguments = stack.pop()
            self._call(stack.pop(), arguments, place)
        elif name == "OBJ":
            items = self._pop_mark()
            called = items[0]
            self._collect("tuple", items[1:])
            self._call(called, self._stack.pop(), place)
        elif name in ("GLOBAL", "INST"):
            module, after = self._line(after, place)
            word, after = self._line(after, place)
            if not _NAME.fullmatch(module) or not _NAME.fullmatch(word):
                self._fail(f": not a pickle: {module[:40]!r} at byte {place} is not a module's name")
            self._name(module[:-1], word[:-1], place)
            if name == "INST":
                called = self._stack.pop()
                self._collect("tuple", self._pop_mark())
                self._call(called, self._stack.pop(), place)
        elif name == "STACK_GLOBAL":
            word, module = stack.pop(), stack.pop()
            if not isinstance(word, bytes) or not isinstance(module, bytes):
                self._fail(f", byte {place}: a name is expected")
            self._name(module, word, place)
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                self._pop_mark()
        elif name == "POP_MARK":
            self._pop_mark()
        elif name == "DUP":
            stack.append(stack[-1])
            self._memory += 8
        elif name in ("GET", "PUT"):
            line, after = self._line(after, place)
            digits = line.strip()
            number = int(digits) if digits.isdigit() and len(digits) < 20 else -1
            self._get(number, place) if name == "GET" else self._put(number, place, steps)
        elif name == "PROTO":
            after += 1
        elif name == "FRAME":
            after += 8
            length = int.from_bytes(data[place + 1 : after], "little")
            if length > len(data) - after:
                self._fail(f", byte {place}: cut off, {length} bytes are announced")
        elif name in ("PERSID", "BINPERSID") and self._persistent:
            if name == "PERSID":
                _, after = self._line(after, place)
            else:
                stack.pop()
            self._memory += _OBJECT_BYTES
            stack.append(_Node("storage", 0, 1))  # stored once; tensors are views of it
        elif name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"):
            self._fail(f", byte {place}: refers to objects outside the pickle ({name}); nothing of it was executed")
        else:
            self._no_pickle(place)
        return after

    # Values

    def _push_content(self, kind: str, first: int, length: int) -> None:
        if kind == "number":
            self._memory += 40 + 2 * length
            # A long number is hashed for each key again.
            if length <= 6:
                self._stack.append(int.from_bytes(self._data[first : first + length], "little", signed=True))
            else:
                self._stack.append(_Node("number", 40 + 2 * length, 0, 1 + length // 4))
            return
        if length <= _SHORT:
            self._memory += 60 + length
            self._stack.append(self._data[first : first + length])
            return
        # One wide character makes every character of a text take two or four bytes.
        wide = 1
        if kind == "text":
            content = self._data[first : first + length]
            wide = 1 if content.isascii() or not _TWO_BYTES.search(content) else 4 if _FOUR_BYTES.search(content) else 2
        self._memory += 60 + wide * length
        self._stack.append(_Node("text", 60 + wide * length))

    def _collect(self, kind: str, items: list[Any]) -> None:
        # A container created with its content.
        node = _Node(kind, 60, 1)
        self._memory += 260
        self._stack.append(node)
        if kind in ("dict", "frozen"):
            self._keys(node, items[::2] if kind == "dict" else items)
        self._hold(node, items, 0)
        if kind != "tuple":
            return
        if items and type(items[0]) is _Node and items[0].kind == "storage":
            # The arguments of a tensor: storage, offset, size, ...
            size = items[2] if len(items) > 2 else None
            if type(size) is _Node and size.product > 0:
                node.weight += 8 * size.product
        elif len(items) <= 8 and all(type(item) is int or type(item) is bytes for item in items):
            node.hash = hash(tuple(items))
            if bytes not in map(type, items):
                node.product = prod(max(item, 0) for item in items)

    def _hold(self, holder: _Node, items: list[Any], place: int) -> None:
        # A container is complete before another holds it: see the module.
        if holder.linked or any(item is holder for item in items):
            self._fail(f", byte {place}: a container holds itself, or changes later")
        weight, work, wild, depth = 8 * len(items), 0, 0, holder.depth
        for item in items:
            if item is None:
                weight += 32
                work += 1
                wild += 2
            elif type(item) is _Node:
                item.linked = True
                weight += item.weight
                work += item.work
                if item.kind != "text":
                    wild += 2
                if item.depth >= depth:
                    depth = item.depth + 1
                holder.firsts += item.first
                if item.wild or item.firsts:
                    holder.inner = (max(holder.inner[0], item.wild), max(holder.inner[1], item.firsts))
            else:
                weight += 60
                work += 1
                wild += _grade(item)
        if holder.kind in ("list", "tuple"):
            if items and not holder.filled:
                holder.first, holder.filled = 2 * bool(_grade(items[0])), True
            holder.wild += wild
        if holder.kind != "dict":  # never a key itself; its keys are hashed once
            holder.work += work
        holder.weight += weight
        holder.depth = depth
        self._memory += 8 * len(items)
        if depth > MAX_DEPTH:
            self._fail(f", byte {place}: objects are nested in more than {MAX_DEPTH} levels")
        if holder.weight > self._limits.total_memory:
            self._limits.exceeded(
                f"more than {self._limits.total_memory >> 20:,} MiB, with shared parts counted each time"
            )

    def _keys(self, holder: _Node, keys: list[Any]) -> None:
        # The work of inserting these keys.
        wild = heavy = 0
        for key in keys:
            grade = _grade(key)
            if grade:
                wild += grade
                heavy += key.work if type(key) is _Node else 1
                if type(key) is _Node and key.hash is not None:
                    holder.hashes = {} if holder.hashes is None else holder.hashes
                    same = holder.hashes.get(key.hash, 0)
                    holder.hashes[key.hash] = same + 1
                    self._work += 20 * same
        self._compare(wild, heavy, holder.wild, holder.heavy)
        holder.wild += wild
        holder.heavy += heavy
        self._work += 10 * (len(keys) + heavy)
        self._memory += 100 * len(keys)
        self._settle(0)

    def _compare(self, wild: int, heavy: int, before: int = 0, heavy_before: int = 0) -> None:
        # Worst case: equal hashes, so that each key is compared with every other, part by part.
        pairs = wild * before + wild * wild // 2
        parts = wild * heavy_before + before * heavy + wild * heavy
        self._work += 3 * max(pairs, parts // 8)

    def _fill(self, name: str, place: int) -> None:
        if name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            if len(self._stack) < count:
                raise IndexError
            items = self._stack[-count:]
            del self._stack[-count:]
        else:
            items = self._pop_mark()
        holder = self._stack[-1]
        wanted = {"APPEND": "list", "APPENDS": "list", "ADDITEMS": "set"}.get(name, "dict")
        if type(holder) is not _Node or holder.kind != wanted:
            self._fail(f", byte {place}: fills something other than a {wanted}")
        if wanted == "list" and len(items) == 1 and items[0] is None and not holder.linked:
            holder.weight += 40  # the commonest case of old pickles
            holder.work += 1
            if not holder.filled:
                holder.first, holder.filled = 2, True
            holder.wild += 2
            self._memory += 8
            return
        if wanted != "list":
            self._keys(holder, items[::2] if wanted == "dict" else items)
        self._hold(holder, items, place)

    def _call(self, called: Any, arguments: Any, place: int) -> None:
        if type(called) is not _Node or called.kind != "name":
            self._fail(f", byte {place}: calls something other than a name")
        if type(arguments) is not _Node or arguments.kind != "tuple":
            self._fail(f", byte {place}: a call without arguments")
        kind = _FILLABLE.get(called.name, "object")
        node = _Node(kind, _OBJECT_BYTES >> 1, 1)
        self._memory += (_DEQUE_BYTES if called.name == "deque" else _OBJECT_BYTES) + arguments.weight
        self._hold(node, [arguments], place)
        node.wild, node.firsts = arguments.inner
        self._work += 10 * arguments.work + 100
        if kind == "set" or called.name in ("frozenset", "Counter"):
            self._compare(max(node.wild, node.firsts), arguments.work)
        elif kind == "dict":
            self._compare(node.firsts, arguments.work)
        self._settle(0)
        self._stack.append(node)

    def _name(self, module: bytes, word: bytes, place: int) -> None:
        if len(module) > _LONGEST_NAME or len(word) > _LONGEST_NAME:
            self._fail(f", byte {place}: the name {shown(word.decode('latin1'))} is too long")
        text = word.decode("utf-8", "replace")
        self._check_name(module.decode("utf-8", "replace"), text, place)
        node = _Node("name")
        node.name = text
        self._memory += _OBJECT_BYTES
        self._stack.append(node)

    def _get(self, number: int, place: int) -> None:
        if number not in self._memo:
            self._fail(f", byte {place}: the memo was manipulated, so the file is not trustworthy")
        self._memory += 8
        self._stack.append(self._memo[number])

    def _put(self, number: int, place: int, steps: int) -> None:
        # The interpreter allocates memory up to the largest index; picklers leave no gaps.
        if not 0 <= number <= steps:
            self._fail(f", byte {place}: the memo was manipulated, so the file is not trustworthy")
        self._memory += 16
        self._memo[number] = self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _line(self, first: int, place: int) -> tuple[bytes, int]:
        end = self._data.find(b"\n", first)
        if end < 0:
            self._fail(f", byte {place}: cut off inside a line")
        return self._data[first : end + 1], end + 1

    def _settle(self, instructions: int) -> None:
        self._limits.take(memory=self._memory, instructions=instructions, work=self._work)
        self._memory = self._work = 0

    def _no_pickle(self, place: int) -> NoReturn:
        first = bytes(self._data[place : place + 1])
        raise failure(
            UnpickleError,
            self._path,
            f": not a pickle: found {first!r} at byte {place}",
            "Choose the published file of features, or download it again",
        )

    def _fail(self, problem: str) -> NoReturn:
        raise failure(UnpickleError, self._path, problem, "Download the file again")


def _grade(item: Any) -> int:
    # How freely a file chooses a key's hash. 0: not at all (texts have random hashes, small numbers are their own).
    # 1: only its place in the table; equal hashes are impossible or counted. 2: hashes may be equal.
    if type(item) is int:
        return int(not -(1 << 31) <= item < 1 << 31)
    if type(item) is _Node:
        return 0 if item.kind == "text" else 1 if item.hash is not None else 2
    return 2 if item is None else 0


def _weight(item: Any) -> int:
    return item.weight if type(item) is _Node else 60
