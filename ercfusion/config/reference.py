"""Options of models and corpora, for ``--help`` and the pages' tables."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ercfusion.config.architectures import ARCHITECTURES, space_of
from ercfusion.config.compose import Composer
from ercfusion.config.corpora import CORPORA, corpus_options
from ercfusion.config.fields import typed_text
from ercfusion.config.options import Option, options_of, plain
from ercfusion.config.overrides import expand_protocol

_WIDTH = 118


def model_help(composer: Composer, arguments: Sequence[str]) -> str:
    """The description of the model in ``arguments`` and its options: value, default, allowed and searched values,
    meaning.
    """
    names = ("model=", "model.", "data=")
    config = composer.compose(
        [part for argument in arguments if argument.startswith(names) for part in expand_protocol(argument)]
    )
    name, preset = config["model"]["name"], config["preset"]["model"]
    architecture = ARCHITECTURES.load(name)
    options = options_of(architecture)
    parts = [textwrap.fill(f"model={preset}: {about(architecture)}", _WIDTH)]
    if not options:
        return f"{parts[0]}\n\nIt has no options.\n"
    space = space_of(name)
    parts.append("Options (value: allowed values; values searched by a sweep):")
    parts += [
        _entry("model", option, config["model"][option.name], space.get(f"model.{option.name}")) for option in options
    ]
    others = [f"  {key}: {_searched(dimension)}" for key, dimension in space.items() if not key.startswith("model.")]
    if others:
        parts += ["A sweep also searches:", *others]
    return "\n".join([f"{parts[0]}\n", *parts[1:]]) + "\n"


def corpus_help(composer: Composer, arguments: Sequence[str]) -> str:
    """The description of the corpus in ``arguments`` and its options: value, default, allowed values, meaning."""
    chosen = [argument for argument in arguments if argument.startswith(("data=", "data."))]
    config = composer.compose([part for argument in chosen for part in expand_protocol(argument)], options=False)
    name, given = config["data"]["name"], config["data"]["options"]
    options = corpus_options(name)
    head = textwrap.fill(f"data={config['preset']['data']}: {about(CORPORA.load(name))}", _WIDTH)
    if not options:
        return f"{head}\n\nIts reader has no options.\n"
    entries = [_entry("data.options", option, given.get(option.name, option.written), None) for option in options]
    return "\n".join([f"{head}\n", "Options (value: allowed values):", *entries]) + "\n"


def about(described: type) -> str:
    """The first paragraph of a class's docstring in one line."""
    return plain((inspect.getdoc(described) or "").partition("\n\n")[0]).replace("`", "")


def _entry(section: str, option: Option, value: Any, searched: Mapping[str, Any] | None) -> str:
    default = "" if value == option.written else f" (default: {typed_text(option.default)})"
    head = f"  {section}.{option.name}={typed_text(value)}{default}: {option.values}"
    if searched is not None:
        head += f"; searched: {_searched(searched)}"
    indent = " " * 6
    return "\n".join([head, *textwrap.wrap(option.meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent)])


def presets_of(composer: Composer) -> dict[str, dict[str, Any]]:
    """The section ``model`` of every preset."""
    # No settings are tuned for the corpus custom, so these are the presets' own.
    return {name: composer.compose([f"model={name}", "data=custom"])["model"] for name in composer.groups()["model"]}


def corpora_table() -> list[str]:
    """The options of all corpora as a Markdown table."""
    rows = ["| corpus | option | default | values | meaning |", "|---|---|---|---|---|"]
    for name in CORPORA:
        for option in corpus_options(name):
            cells = [f"`{name}`", f"`{option.name}`", typed_text(option.default), option.values]
            rows.append(f"| {' | '.join(cells)} | {option.meaning.replace('|', chr(92) + '|')} |")
    return rows


def _searched(dimension: Mapping[str, Any]) -> str:
    if "choices" in dimension:
        return ", ".join(map(typed_text, dimension["choices"]))
    step = f" in steps of {dimension['step']:g}" if "step" in dimension else ""
    return f"{dimension['low']:g} to {dimension['high']:g}{step}{', logarithmic' if dimension.get('log') else ''}"
