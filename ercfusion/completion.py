"""``ercfusion completion SHELL``: completion of commands, keys, values and flags.

The script calls ``ercfusion completion candidates WORD ...``, so that it knows the commands, settings and presets of
the installed version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ercfusion.__main__ import NAMES, declared
from ercfusion._core.errors import ErcfusionError
from ercfusion.cli import run_command
from ercfusion.config.compose import Composer
from ercfusion.config.overrides import expand_protocol, flatten, is_path
from ercfusion.grammar import Command, Positional, Typed

BASH = """\
_ercfusion() {
    local line="${COMP_LINE:0:COMP_POINT}" current prefix="" reply
    local -a words
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    # Bash completes only the part after the last word break.
    [[ "$COMP_WORDBREAKS" == *=* ]] && prefix="${current%"${current##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("${reply#"$prefix"}")
    done < <("${words[0]}" completion candidates "${words[@]:1}" 2> /dev/null)
    [[ "${#COMPREPLY[@]}" -eq 1 && "${COMPREPLY[0]}" == *[=./] ]] && compopt -o nospace 2> /dev/null
    return 0
}
complete -F _ercfusion ercfusion
"""

ZSH = """\
#compdef ercfusion
_ercfusion() {
    local reply
    local -a replies unfinished complete
    replies=("${(@f)$("${words[1]}" completion candidates "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    for reply in "${replies[@]}"; do
        if [[ "$reply" == *[=./] ]]; then unfinished+=("$reply"); elif [[ -n "$reply" ]]; then complete+=("$reply"); fi
    done
    (( ${#unfinished} )) && compadd -Q -S '' -a unfinished
    (( ${#complete} )) && compadd -Q -a complete
}
compdef _ercfusion ercfusion
"""

SHELLS: Mapping[str, str] = {"bash": BASH, "zsh": ZSH}
ASK = "candidates"

COMMAND = Command(
    "completion",
    "Print a script with which a shell completes commands, keys, values and flags",
    (
        ("bash", "write in ~/.bashrc: source <(ercfusion completion bash)"),
        ("zsh", "write in ~/.zshrc, after compinit: source <(ercfusion completion zsh)"),
    ),
    positional=(Positional("SHELL", choices=tuple(SHELLS)),),
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    if argv[:1] == [ASK]:
        for word in candidates(argv[1:]):
            print(word)
        return 0
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    print(SHELLS[typed.positional[0]], end="")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """Completions of the last word.

    Args:
        words: The words after ``ercfusion``; the last one is incomplete and may be empty.
    """
    *typed, current = words or [""]
    if not typed:
        return [name for name in NAMES if name.startswith(current)]
    if typed[0] not in NAMES:
        return []
    command, rest = declared(typed[0]), typed[1:]
    if current.startswith("-"):
        signs = [f"--{flag.name}" for flag in command.all_flags if f"--{flag.name}" not in rest]
        return [sign for sign in signs if sign.startswith(current)]
    name, equals, text = current.partition("=")
    if not equals:
        choices = [choice for argument in command.positional for choice in argument.choices]
        results = [*choices, *(f"{key.stem}=" if key.stem == key.name else key.stem for key in command.all_keys)]
        results += _settings(command, rest, current)
        return [*_beginning(results, current), *(_files(current) if command.positional and not choices else [])]
    for key in command.all_keys:
        if key.names(name):
            values = key.known()
            return _values(name, _files(text) if key.kind in ("path", "file") else values, text)
    if not command.takes(name):
        return []
    composer = _composer(command, rest)
    groups = composer.groups()
    if name in groups:
        before, comma, last = text.rpartition(",")  # several values, with --multirun
        return _values(name, [before + comma + choice for choice in _beginning(groups[name], last)], text)
    if is_path(name):
        return _values(name, _files(text), text)
    return _values(name, ["true", "false"] if isinstance(_composed(command, rest).get(name), bool) else [], text)


def _values(name: str, values: Iterable[str], text: str) -> list[str]:
    return [f"{name}={value}" for value in values if value.startswith(text)]


def _beginning(words: Iterable[str], current: str) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(current)]


def _composer(command: Command, typed: Sequence[str]) -> Composer:
    folders = [word.partition("=")[2] for word in typed if word.startswith("config_dir=")]
    folder = os.path.expanduser(folders[-1]) if folders else None
    return Composer(command.config or "train", folder if folder and os.path.isdir(folder) else None)


def _composed(command: Command, typed: Sequence[str]) -> dict[str, Any]:
    """All settings by dotted key, with the groups chosen so far."""
    composer = _composer(command, typed)
    groups = composer.groups()
    chosen = [part for word in typed if word.partition("=")[0] in groups for part in expand_protocol(word)]
    try:
        return flatten(composer.compose(chosen))
    except ErcfusionError:  # several values, or an error: use the default groups
        return flatten(composer.compose([]))


def _settings(command: Command, typed: Sequence[str], current: str) -> list[str]:
    """Settings one level below the typed text: ``model.`` after ``mod``, ``model.dropout=`` after ``model.dr``."""
    if command.config is None:
        return []
    depth, results = current.count("."), []
    groups = _composer(command, typed).groups()
    if not depth:
        results += [f"{name}=" for name in groups if command.takes(name)]
    flat = _composed(command, typed)
    for key, value in flat.items():
        if key.count(".") == depth and command.takes(key) and not key.startswith("preset"):
            results.append(f"{key}." if isinstance(value, dict) else f"{key}=")
    return results


def _files(text: str) -> list[str]:
    """Files and folders beginning with the typed text; folders end with a slash."""
    folder, name = os.path.split(text)
    place = os.path.expanduser(folder) or "."
    try:
        inside = sorted(os.listdir(place))
    except OSError:
        return []
    shown = [one for one in inside if one.startswith(name) and (name.startswith(".") or not one.startswith("."))]
    return [os.path.join(folder, one) + ("/" if os.path.isdir(os.path.join(place, one)) else "") for one in shown]


if __name__ == "__main__":
    sys.exit(run_command(main))
