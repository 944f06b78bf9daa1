"""The table of extras on the page "install", from setup.cfg."""

from __future__ import annotations

import configparser
import re

from docs.computed.registry import ROOT, register

PURPOSES = {
    "text": "text features from a sentence encoder, whose weights come with the package",
    "audio": "openSMILE features (its licence: research only); sound tracks of videos",
    "face": "face features (Py-Feat)",
    "sdk": "the files of the CMU Multimodal SDK",
    "cluster": "extraction on several machines",
    "mamba": "`mamba_ssm` as a backend of the selective scan; needs a CUDA toolkit",
    "sweep": "searching settings (Optuna)",
    "report": "TensorBoard logs",
    "docs": "building this site",
    "dev": "tests, ruff, mypy",
}
"""What each extra is for; every extra of setup.cfg has an item here."""


def extras_table() -> list[str]:
    """One row per extra, with the packages that it installs."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = dict(parser["options.extras_require"])
    if extras.keys() != PURPOSES.keys():
        raise ValueError(f"extras without a purpose in {__name__}: {extras.keys() ^ PURPOSES.keys()}. Add them.")
    rows = ["| extra | for | packages |", "|---|---|---|"]
    for name, purpose in PURPOSES.items():
        packages = [re.split(r"[<>=;\s]", line)[0] for line in extras[name].splitlines() if line.strip("# ")]
        packages = [package for package in dict.fromkeys(packages) if package and not package.startswith("#")]
        listed = ", ".join(f"`{package}`" for package in packages[:3]) + (", ..." if len(packages) > 3 else "")
        rows.append(f"| `{name}` | {purpose} | {listed} |")
    return rows


register("extras", "docs/install.md", extras_table)
