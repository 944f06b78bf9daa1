"""Parts of pages about models."""

from __future__ import annotations

import textwrap
from functools import cache, partial
from typing import Any

import torch

from docs.computed.registry import register
from ercfusion.config.architectures import ARCHITECTURES


@cache
def model_presets() -> dict[str, dict[str, Any]]:
    """The options of every preset."""
    from ercfusion.config.compose import Composer
    from ercfusion.config.reference import presets_of

    return presets_of(Composer())


def capability_matrix() -> list[str]:
    """One row a preset: what its architecture says of itself."""
    from ercfusion.data import InputSpec
    from ercfusion.models import build_architecture

    rows = [
        "| preset | architecture | learns | contextual | causal | missing-aware | speakers | requires | compiles |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    presets = model_presets()
    assert {settings["name"] for settings in presets.values()} == set(ARCHITECTURES)
    for preset, settings in sorted(presets.items(), key=lambda item: list(ARCHITECTURES).index(item[1]["name"])):
        name = settings["name"]
        options = {key: value for key, value in settings.items() if key != "name"}
        with torch.random.fork_rng(devices=[]):
            can = build_architecture(name, InputSpec({"text": 4, "audio": 4, "visual": 4}), options).capabilities
        flags = ["yes" if flag else "no" for flag in (can.learns, can.contextual, can.causal, can.missing_aware)]
        cells = [f"`{preset}`", f"[{name}](models/{name}.md)", *flags, can.speakers.replace("_", " or ")]
        cells += [", ".join(can.requires) or "any", "yes" if can.compiles else "no"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def model_list() -> list[str]:
    """A sentence with all models, for the main page."""
    links = [f"[`{name}`](docs/models/{name}.md)" for name in ARCHITECTURES]
    return textwrap.wrap(f"The models: {', '.join(links)}.", 120, break_on_hyphens=False)


def model_options(name: str) -> list[str]:
    """One row an option of an architecture, from its constructor."""
    from ercfusion.config.reference import options_table

    return options_table(name, model_presets())


register("capabilities", "docs/choose-a-model.md", capability_matrix)
register("main models", "README.md", model_list)
for _name in ARCHITECTURES:
    register(f"options {_name}", f"docs/models/{_name}.md", partial(model_options, _name))
