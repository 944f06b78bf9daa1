"""``python -m ercfusion.extract``: features from recordings and texts, and from the feature files that circulate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ercfusion.cli import Composer, expand_protocol, run_command, split_flags, split_settings, switch
from ercfusion.errors import ConfigError, did_you_mean

HELP = """\
Make a feature pack: the vectors of one modality for every utterance of a corpus.

usage: python -m ercfusion.extract data=NAME features=RECIPE [data.raw=DIR] [out=PACK] [key=value ...] [flags]
       python -m ercfusion.extract import=FILE layout=NAME [out=DIR] [data=NAME data.raw=DIR]

examples
  python -m ercfusion.extract data=emodb features=egemaps data.raw=DIR           88 acoustic functionals a recording
  python -m ercfusion.extract data=meld features=compare data.raw=DIR workers=8  from the sound tracks of MELD's clips
  python -m ercfusion.extract data=meld features=roberta-cls data.raw=DIR        text vectors from the model hub
  python -m ercfusion.extract data=custom features=egemaps data.raw=MY_CORPUS    a corpus of your own
  python -m ercfusion.extract data=emodb features=egemaps features.feature_set=IS10 data.raw=DIR
  python -m ercfusion.extract import=IEMOCAP_features_raw.pkl layout=dialoguernn-iemocap out=iemocap
  python -m ercfusion.extract --list                                             all recipes and layouts

Without out=, a pack lies where training finds it by the recipe's name: data.packs.audio=egemaps. An extraction that is
stopped, by Ctrl-C or otherwise, goes on with the same command; nothing is done twice. A recording that cannot be read
is recorded in the pack as missing, with the reason.

settings
  data=NAME, data.*         the corpus, as in python -m ercfusion.train
  features=RECIPE           a recipe by name, or the path of a YAML file of your own
  features.KEY=VALUE        change a setting of the recipe
  out=PACK                  the pack's folder
  workers=N                 processes (default: one a core); the values do not depend on it
  executor=dask             work on a dask.distributed cluster instead of processes here
  executor.address=URL      its scheduler (default: a cluster of local processes is started)
  fresh=true                begin anew, and replace a pack that exists
  retry=true                try again what is missing in a pack that exists
  imports=MODULE            import a module first (one that registers a corpus or a tool of your own)
  import=FILE layout=NAME   read a feature pickle of another project; nothing in it can run

flags
  --strict                  stop at the first recording that gives nothing
  --list                    recipes and layouts, a line each
  --help, -h                this text
"""

_KEYS = ("features", "out", "workers", "executor", "executor.address", "fresh", "retry", "imports", "import", "layout")


def main(argv: list[str]) -> int:
    """The command; see :data:`HELP`."""
    flags, arguments = split_flags(argv, ["--help", "-h", "--strict", "--list"])
    if "--help" in flags or "-h" in flags or not argv:
        print(HELP, end="")
        return 0 if flags else 2
    if "--list" in flags:
        print(listing())
        return 0
    settings, data, changes = understand(arguments)
    if "import" in settings:
        return import_file(settings, data, changes)
    return extract(settings, data, changes, strict="--strict" in flags)


def understand(arguments: list[str]) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    """The command's own settings, the arguments about the corpus, and the changes to the recipe.

    Raises:
        ConfigError: an argument that is not ``key=value``, or a setting that does not exist.
    """
    paths, settings = split_settings(arguments)
    if paths:
        raise ConfigError(f"{paths[0]!r} is not of the form key=value (see --help)")
    data = [part for key, value in settings.items() if _is_data(key) for part in expand_protocol(f"{key}={value}")]
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith("features."):
            changes[key.removeprefix("features.")] = _value(key, value)
        elif not _is_data(key) and key not in _KEYS:
            raise ConfigError(f"extract has no setting {key!r}. {did_you_mean(key, [*_KEYS, 'data', 'data.raw'])}")
    return settings, data, changes


def extract(settings: dict[str, str], data: list[str], changes: dict[str, Any], *, strict: bool) -> int:
    """Make one pack, and print its folder."""
    from ercfusion.features.extraction import extract_pack
    from ercfusion.features.recipe import read_recipe

    for key in ("data", "features"):
        if not any(argument.startswith(f"{key}=") for argument in data) and key not in settings:
            raise ConfigError(f"{key}=NAME is missing (see --help)")
    if "layout" in settings:
        raise ConfigError("layout= goes with import=FILE")
    if "imports" in settings:
        _import(settings["imports"])
    corpus, protocol = _corpus(data)
    recipe = read_recipe(settings["features"]).with_settings(changes)
    try:
        made = extract_pack(
            corpus,
            protocol,
            recipe,
            out=settings.get("out"),
            workers=_workers(settings),
            executor_name=settings.get("executor", "local"),
            address=settings.get("executor.address"),
            fresh=switch(settings, "fresh"),
            retry=switch(settings, "retry"),
            strict=strict,
        )
    except KeyboardInterrupt:
        print("interrupted; go on with the same command", file=sys.stderr)
        return 130
    for line in report(made, recipe.name, settings.get("out"), corpus.name, protocol.task.name):
        print(line, file=sys.stderr)
    print(made.folder)
    return 0


def report(made: Any, recipe: str, out: str | None, corpus: str, task: str) -> list[str]:
    """What is said at the end: how much there is, what is missing, what to type next."""
    from ercfusion.features.pack import read_manifest

    manifest = read_manifest(made.folder)
    amount = f"{manifest['keys']:,} utterances, {manifest['width']:,} dimensions"
    if manifest["level"] == "sequence":
        amount += f", {manifest['rows']:,} time steps"
    lines = [f"{'exists already: ' if made.found else ''}{manifest['modality']} features ({recipe}): {amount}"]
    for what, entries in (("missing", made.missing), ("questionable", made.notes)):
        if entries:
            lines.append(f"{what}: {len(entries)} (all with their reasons in {made.folder / 'pack.json'})")
            lines += [f"  {'/'.join(key)}: {reason}" for key, reason in list(entries.items())[:5]]
            lines += ["  ..."] if len(entries) > 5 else []
    place = made.folder if out else recipe
    lines.append(f"use it with: data={corpus} data.packs.{manifest['modality']}={place}")
    return lines


def import_file(settings: dict[str, str], data: list[str], changes: dict[str, Any]) -> int:
    """Read a pickle of another project, and print the folder that was made of it."""
    from ercfusion.features.imports import import_pickle

    for key in settings:
        if not _is_data(key) and key not in ("import", "layout", "out"):
            raise ConfigError(f"{key}= does not go with import=FILE")
    path = Path(settings["import"]).expanduser()
    out = Path(settings.get("out", path.stem)).expanduser()
    corpus, protocol = _corpus(data) if data else (None, None)
    folder = import_pickle(path, settings.get("layout"), out, corpus=corpus, protocol=protocol)
    if corpus is None:
        print(f"use it with: data=custom data.raw={folder}", file=sys.stderr)
    print(folder)
    return 0


def listing() -> str:
    """Recipes and layouts, a line each."""
    from ercfusion.features.imports import LAYOUTS
    from ercfusion.features.recipe import read_recipe, recipe_names

    recipes = {name: read_recipe(name).about for name in recipe_names()}
    width = max(map(len, [*recipes, *LAYOUTS]))
    lines = ["recipes (features=NAME)", *(f"  {name:<{width}}  {about}" for name, about in recipes.items())]
    lines += ["layouts (import=FILE layout=NAME)", *(f"  {name:<{width}}  {about}" for name, about in LAYOUTS.items())]
    return "\n".join(lines)


def _is_data(key: str) -> bool:
    return key == "data" or key.startswith("data.")


def _corpus(data: list[str]) -> tuple[Any, Any]:
    from ercfusion.data.corpora import open_corpus

    config = Composer().compose(data)["data"]
    corpus = open_corpus(config["name"], config["raw"], **config["options"])
    return corpus, corpus.protocol(config["protocol"])


def _value(key: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={text}: {' '.join(str(error).split())}") from error


def _workers(settings: dict[str, str]) -> int | None:
    text = settings.get("workers")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"workers={text}: a whole number from 1 is expected")
    return int(text)


def _import(name: str) -> None:
    import importlib

    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"imports={name}: it cannot be imported ({error})") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
