"""Arguments of the form ``key=value``: parsed, checked and written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ercfusion._core.errors import ConfigError, first_line, nearest
from ercfusion._core.schemas.reading import setting_error
from ercfusion.config.settings import field_of, is_added, is_name, is_path

LONGEST = 100  # letters of an argument in a message


class FileEntry(str):
    """An argument from a file; ``origin`` is the prefix of its messages."""

    origin = ""


def from_file(text: str, origin: str) -> FileEntry:
    """An argument with the prefix of its messages."""
    argument = FileEntry(text)
    argument.origin = origin
    return argument


def origin_of(argument: str) -> str:
    """The prefix of messages about an argument; empty if it was typed."""
    return argument.origin if isinstance(argument, FileEntry) else ""


@contextmanager
def naming(origin: str) -> Iterator[None]:
    """Put ``origin`` before the message of a :class:`ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise setting_error(origin, str(error)) from error


def literal_text(key: str, value: Any) -> str:
    """Like :func:`override_text`, with ``${name}`` as literal text."""
    if isinstance(value, str):
        value = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    return override_text(key, value)


def override_text(key: str, value: Any) -> str:
    """``key=value`` as read by :func:`parse`, not quoted for a shell."""
    if is_path(key) and isinstance(value, str):
        if value.startswith("~") and not is_name(key):
            value = f"./{value}"  # not the home folder
        if _is_plain(value):
            return f"{key}={value}"
    return f"{key}={_value_text(value)}"


def _is_plain(text: str) -> bool:
    # Whether a path can be written without quotes; with -m a comma separates values.
    return not (text in ("", "null") or _is_quoted(text) or "${" in text or "," in text)


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def _value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_value_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value_text(inner)}" for key, inner in value.items()) + "}"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def leaves(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The settings of a nested mapping by dotted key."""
    for key, value in node.items():
        if isinstance(value, dict) and value and not _is_text_or_section(f"{prefix}{key}"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_text_or_section(key: str) -> bool:
    field = field_of(key)
    return field is not None and {str, dict} <= set(field.types)


def expand_protocol(argument: str) -> list[str]:
    """Expand ``data=demo/far`` to ``data=demo data.protocol=demo/far``."""
    key, _, value = argument.partition("=")
    if key == "data" and "/" in value:
        return [f"data={value.partition('/')[0]}", f"data.protocol={value}"]
    return [argument]


def parse(overrides: Sequence[str], *, several: bool = False) -> list[Any]:
    """Parse arguments with Hydra's grammar; with ``several`` (``-m``) a comma in a path separates values.

    Raises:
        ConfigError: An argument cannot be parsed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for argument in overrides:
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(f"{shown(argument)} is not of the form key=value. Use --help for the settings.")
        origin = origin_of(argument)
        key, _, value = argument.partition("=")
        simple = not any(sign in value for sign in "'\"[]{}(),")
        if is_path(key.lstrip("+")):
            argument = f"{key}={_path_text(value, several, home=not is_name(key.lstrip('+')))}"
        elif "=" in value and simple:
            argument = f"{key}='{value}'"  # Hydra requires quotes
        try:
            try:
                parsed.append(parser.parse_override(argument))
            except HydraException:
                if not simple or key.startswith("~") or value.isascii():
                    raise
                parsed.append(parser.parse_override(f"{key}={_quoted(value)}"))  # not ASCII: Hydra requires quotes
        except HydraException as error:
            raise ConfigError(
                f"{origin}{shown(argument)} cannot be read: {_shortened(first_line(error))}. "
                "Put values with spaces or special characters in quotes: key='\"value\"'"
            ) from error
        except ValueError as error:  # Python refuses numbers of more than 4,300 digits
            problem = f"{shown(argument)} cannot be read: a number has too many digits. Shorten it."
            raise setting_error(origin, problem) from error
    return parsed


def _path_text(text: str, several: bool, *, home: bool) -> str:
    """A path in Hydra's grammar, typed with or without quotes; with ``home``, ``~`` is the home folder."""
    if text in ("", "null") or "${" in text:
        return text
    if several and "," in text and not os.path.exists(os.path.expanduser(text)):
        listed = not _is_quoted(text) and "'" not in text and '"' not in text and "(" not in text
        return ",".join(_path_text(part, False, home=home) for part in text.split(",")) if listed else text
    return _quoted(os.path.expanduser(unquoted(text)) if home else unquoted(text))


def unquoted(text: str) -> str:
    """A text without the quotes that Hydra would remove."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not _is_quoted(text):
        return text
    try:
        value = OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        return text  # the quotes are part of a name
    return value if isinstance(value, str) else text


def typed_path(text: str) -> str:
    """A path typed with or without quotes, with ``~`` replaced by the home folder."""
    return os.path.expanduser(unquoted(text))


def shown(argument: str) -> str:
    """An argument in quotes, shortened for a message."""
    return repr(_shortened(argument))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}... ({len(text):,} characters)"


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """All nodes of a configuration by dotted key."""
    flat: dict[str, Any] = {}
    for key in node:
        name = f"{prefix}{key}"
        value = node[key]
        flat[name] = value
        if hasattr(value, "keys"):
            flat.update(flatten(value, f"{name}."))
    return flat


def checked_value(override: Any, line: str, base: dict[str, Any], groups: dict[str, list[str]]) -> str:
    """The argument as passed to the composer.

    Raises:
        ConfigError: Unknown setting, or a value of the wrong type.
    """
    key = override.key_or_group
    line, value = line.lstrip("+"), override.value()
    field = field_of(key)
    plus = ""
    default = base.get(key)
    if key not in base:
        if field is None or not is_added(key):
            known = [*(name for name in base if name not in groups), *groups]
            advice = _suggestion(key, known, base)
            raise ConfigError(f"there is no setting {shown(key)}. {advice}")
        plus = "++"  # add it, or replace an earlier argument
    allowed = field.types if field is not None and field.types else _types_of(default)
    if value is None and (field.nullable if field is not None and field.types else default is None):
        return plus + line
    text = line.partition("=")[2]
    if allowed == (list,) and (isinstance(value, str) or hasattr(value, "text")):
        return f"{key}=[{text}]"  # one element
    if not _fits(allowed, value):
        usual = f" (default: {default})" if default is not None else ""
        raise ConfigError(
            f"{shown(line)}: {key} takes {_WORDS[str if str in allowed else allowed[-1]]}{usual}, not {_kind(value)}. "
            "Correct the value."
        )
    if field is not None and field.is_open and hasattr(value, "keys"):
        plus = "++"  # its keys are a user's
        wrong = [name for name, one in value.items() if field.element is float and not _fits((float,), one)]
        if wrong:
            raise ConfigError(f"{shown(line)}: {key}.{wrong[0]} takes a number. Correct the value.")
    is_text = str in allowed and not hasattr(value, "keys")
    if isinstance(value, int) and not is_text and abs(value) >= 2**63:
        raise ConfigError(f"{shown(line)}: the number is too large for {key}. Give a smaller one.")
    if is_text and isinstance(value, int | float):
        text = f"'{text}'"  # a folder may be called 2024
    return f"{plus}{key}={text}"


_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a section",
}


def _types_of(example: Any) -> tuple[type, ...]:
    """The type of a setting known only by its default; empty for null."""
    if example is None:
        return ()
    if isinstance(example, bool | int | float | str):
        return (type(example),)
    return (dict,) if hasattr(example, "keys") else (list,)


def _suggestion(key: str, known: list[str], base: dict[str, Any]) -> str:
    section, _, last = key.rpartition(".")
    inside = [name for name in known if section and name.startswith(f"{section}.")]
    if section and not inside and (right := _nearest_section(section, known)):
        if right == "model" or is_added(f"{right}.{last}"):  # model options are not known yet
            return f"Did you mean {f'{right}.{last}'!r}?"
        section, inside = right, [name for name in known if name.startswith(f"{right}.")]
    if inside:
        close = [f"{section}.{name}" for name in nearest(last, [name[len(section) + 1 :] for name in inside], 1)]
    else:
        close = nearest(key, known, 1)
    close = close or [name for name in known if name.rpartition(".")[2] == last][:1]
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Choose from: " + ", ".join(inside or [name for name in base if "." not in name]) + "."


def _nearest_section(section: str, known: list[str]) -> str:
    """The section of a dotted key with every part replaced by the nearest; empty without one."""
    path = ""
    for part in section.split("."):
        parts = {name[len(path) :].partition(".")[0] for name in known if name.startswith(path)}
        close = [part] if part in parts else nearest(part, sorted(parts), 1)
        if not close:
            return ""
        path += f"{close[0]}."
    return path[:-1]


def _fits(allowed: tuple[type, ...], value: Any) -> bool:
    """Whether a parsed value has one of the types; empty for any."""
    if not allowed:
        return True
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int | float):
        return str in allowed or float in allowed or (isinstance(value, int) and int in allowed)
    if isinstance(value, str) or hasattr(value, "text"):
        return str in allowed
    return (dict if hasattr(value, "keys") else list) in allowed and value is not None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str) or hasattr(value, "text"):
        return f"the text {shown(str(getattr(value, 'text', value)))}" if value else "a text"
    return "a section" if hasattr(value, "keys") else "a list"
