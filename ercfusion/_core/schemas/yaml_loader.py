"""YAML into plain containers with bounded work: no tags, dates or long numbers, few aliases."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

MAX_BYTES = 1 << 17  # the Python parser takes seconds for more
# Each alias can double the expanded size.
_MAX_ALIASES = 20
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """The safe loader with limits, without dates, sets, bytes and tags."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > _MAX_ALIASES:
                event = self.peek_event()
                raise yaml.constructor.ConstructorError(None, None, "too many aliases (*name)", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key.start_mark)
            if (key.tag, key.value) in keys:
                shown = key.value[:40]
                raise yaml.constructor.ConstructorError(None, None, f"the key {shown!r} is there twice", key.start_mark)
            keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _integer(loader: Any, node: Any) -> int:
    if len(node.value) > 20:
        message = f"the number {node.value[:12]}... has {len(node.value)} characters"
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


def _number(loader: Any, node: Any) -> float:
    plain = len(node.value) <= 400 and ":" not in node.value
    value = float(yaml.SafeLoader.construct_yaml_float(loader, node)) if plain else math.inf
    if not math.isfinite(value):
        message = f"{node.value[:24]} is not a finite number"
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    return value


def _refused(loader: Any, node: Any) -> Any:
    raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag[:60]!r} is not read", node.start_mark)


_NOT_READ = ("timestamp", "binary", "set", "omap", "pairs")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if not tag.endswith(":timestamp")]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)
for _kind in _NOT_READ:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refused)


class _FloatLoader(_Loader):
    """Reads ``1e-3`` as a number, like OmegaConf."""


_FloatLoader.yaml_implicit_resolvers = {first: list(rules) for first, rules in _Loader.yaml_implicit_resolvers.items()}
for _first in "-+.0123456789":
    _FloatLoader.yaml_implicit_resolvers.setdefault(_first, []).append(("tag:yaml.org,2002:float", _FLOAT))


def parse_yaml(text: str, *, floats: bool = False) -> tuple[Any, str]:
    """The content of a YAML text, and its problem (place and reason) or an empty string."""
    loader = None
    try:
        loader = (_FloatLoader if floats else _Loader)(text)
        return loader.get_single_data(), ""
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        return None, f"{line}: not valid YAML ({problem.problem or problem.context})"
    except yaml.YAMLError as problem:
        return None, f": not valid YAML ({' '.join(str(problem).split())[:120]})"
    except RecursionError:
        return None, ": not valid YAML (too many levels)"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as problem:
        # Errors of the parser itself, for example for a bad escape or a non-ASCII digit.
        return None, f": not valid YAML ({type(problem).__name__}: {str(problem)[:80]})"
    finally:
        if loader is not None:
            loader.dispose()
