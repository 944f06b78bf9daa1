"""Parts of pages about models."""

from __future__ import annotations

import textwrap
from functools import cache, partial
from typing import Any

import torch

from docs.computed.registry import register
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.config.fields import typed_text
from ercfusion.config.options import Option, options_of

SHARED = {"lmf": "tfn"}
"""Models whose options from a common base are listed on the page of another one."""


@cache
def model_presets() -> dict[str, dict[str, Any]]:
    """The options of every preset."""
    from ercfusion.config.compose import Composer
    from ercfusion.config.reference import presets_of

    return presets_of(Composer())


def capability_matrix() -> list[str]:
    """One row per preset with the capabilities of its architecture."""
    from ercfusion.data import InputSpec
    from ercfusion.models import build_architecture

    rows = [
        "| preset | context | causal | absent | speakers | compiles |",
        "|---|:-:|:-:|---|---|:-:|",
    ]
    presets = model_presets()
    assert {settings["name"] for settings in presets.values()} == set(ARCHITECTURES)
    for preset, settings in sorted(presets.items(), key=lambda item: list(ARCHITECTURES).index(item[1]["name"])):
        name = settings["name"]
        options = {key: value for key, value in settings.items() if key != "name"}
        with torch.random.fork_rng(devices=[]):
            can = build_architecture(name, InputSpec({"text": 4, "audio": 4, "visual": 4}), options).capabilities
        marks = ["✓" if flag else "" for flag in (can.contextual, can.causal)]
        label = f"[`{preset}`](models/{name}.md)" + (f" (needs {', '.join(can.requires)})" if can.requires else "")
        speakers = "" if can.speakers == "none" else can.speakers
        rows.append(f"| {label} | {' | '.join(marks)} | {can.absent} | {speakers} | {'✓' if can.compiles else ''} |")
    return rows


def model_list() -> list[str]:
    """A sentence with all models, for the main page."""
    links = [f"[`{name}`](docs/models/{name}.md)" for name in ARCHITECTURES]
    return wrapped(f"The models: {', '.join(links)}.")


def default_cell(option: Option) -> str:
    """The default of an option; with its range if it is a fraction, or among its choices in bold type."""
    default = typed_text(option.default)
    if option.choices:
        return ", ".join(f"**{choice}**" if choice == option.default else str(choice) for choice in option.choices)
    if option.type is float and option.low is not None and option.low > -1:
        limits = "0–1" if option.high == 1 else ">0" if option.low > 0 else "≥0"
        return f"{default} ({limits})"
    return default


def wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 120, break_on_hyphens=False, break_long_words=False)


def preset_options(name: str) -> list[str]:
    """One line per preset of an architecture: the options that differ from the constructor's defaults."""
    options = options_of(ARCHITECTURES.load(name))
    lines = []
    for preset, model in model_presets().items():
        if model["name"] == name:
            changed = [
                f"`{option.name}={typed_text(model[option.name])}`"
                for option in options
                if model[option.name] != option.default
            ]
            if changed:
                lines += ["", *wrapped(f"`model={preset}` sets {' '.join(changed)}.")]
    return lines


def model_options(name: str) -> list[str]:
    """One row per option of an architecture, from its constructor; then the options of its presets."""
    options = options_of(ARCHITECTURES.load(name))
    if not options:
        return ["No options."]
    inherited: list[str] = []
    if name in SHARED:
        other = {option.name: option for option in options_of(ARCHITECTURES.load(SHARED[name]))}
        base = {option.name for option in options_of(ARCHITECTURES.load(name).__mro__[1])}
        differing = [f"`{o.name}={typed_text(o.default)}`" for o in options if o.name in base and o != other[o.name]]
        sentence = f"Other options: as for [{SHARED[name]}]({SHARED[name]}.md), with {' '.join(differing)}."
        inherited = ["", *wrapped(sentence)]
        options = tuple(option for option in options if option.name not in base)
    rows = ["| option | default (range, choices) | meaning |", "|---|---|---|"]
    for option in options:
        meaning = option.meaning.replace("|", "\\|")
        rows.append(f"| `{option.name}` | {default_cell(option)} | {meaning} |")
    return rows + inherited + preset_options(name)


register("capabilities", "docs/choose-a-model.md", capability_matrix)
register("main models", "README.md", model_list)
for _name in ARCHITECTURES:
    register(f"options {_name}", f"docs/models/{_name}.md", partial(model_options, _name))
