"""``python -m ercfusion.extract``: features from recordings and texts, and from the feature files that circulate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ercfusion._core.errors import ConfigError, PackError, did_you_mean
from ercfusion._core.files import expanded
from ercfusion._core.hints import command
from ercfusion._core.overrides import expand_protocol, shown, typed_path
from ercfusion.cli import run_command, split_flags, split_settings, switch, whole_number
from ercfusion.config.compose import Composer

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
is recorded in the pack as missing, with the reason. Where a pack exists, recordings that have changed since it was made
are extracted again.

settings
  data=NAME, data.*         the corpus, as in python -m ercfusion.train
  features=RECIPE           a recipe by name, or the path of a YAML file of your own
  features.KEY=VALUE        change a setting of the recipe
  out=PACK                  the pack's folder
  workers=N                 processes (default: one a core); the values do not depend on it
  executor=dask             work on a dask.distributed cluster instead of processes here
  executor.address=URL      its scheduler (default: a cluster of local processes is started)
  fresh=true                begin anew, and replace a pack that exists
  retry=true                try again what is missing in a pack that exists, and compare the content of all its
                            recordings instead of size and time
  imports=MODULE            import a module first (one that registers a corpus or a tool of your own)
  import=FILE layout=NAME   read a feature pickle of another project; nothing in it can run

flags
  --config-dir DIR          also look for configuration groups in DIR (DIR/data/mine.yaml makes data=mine)
  --strict                  stop at the first recording that gives nothing
  --list                    recipes and layouts, a line each
  --help, -h                this text
"""

_KEYS = ("features", "out", "workers", "executor", "executor.address", "fresh", "retry", "imports", "import", "layout")
_FOLDERS = ("folder", "encoder")  # settings of recipes that name a place, taken letter by letter


def main(argv: list[str]) -> int:
    """The command; see :data:`HELP`."""
    flags, arguments = split_flags(argv, ["--help", "-h", "--strict", "--list"], ["--config-dir"])
    if "--help" in flags or "-h" in flags or not argv:
        print(HELP, end="")
        return 0 if argv else 2
    if "--list" in flags:
        print(listing())
        return 0
    settings, data, changes = understand(arguments)
    if "import" in settings:
        return import_file(settings, data, changes, flags.get("--config-dir"))
    imported = [argument for argument in arguments if argument.startswith("imports=")]
    composer = Composer(config_dir=flags.get("--config-dir"))
    return extract(settings, data, changes, strict="--strict" in flags, composer=composer, imported=imported)


def understand(arguments: list[str]) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    """The command's own settings, the arguments about the corpus, and the changes to the recipe.

    Raises:
        ConfigError: an argument that is not ``key=value``, or a setting that does not exist.
    """
    paths, settings = split_settings(arguments)
    if paths:
        raise ConfigError(f"{paths[0]!r} is not of the form key=value (see --help)")
    data = [
        part for argument in arguments if _is_data(argument.partition("=")[0]) for part in expand_protocol(argument)
    ]
    changes: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith("features."):
            changes[key.removeprefix("features.")] = _value(key, value)
        elif not _is_data(key) and key not in _KEYS:
            raise ConfigError(f"extract has no setting {shown(key)}. {did_you_mean(key, [*_KEYS, 'data', 'data.raw'])}")
    return settings, data, changes


def extract(
    settings: dict[str, str],
    data: list[str],
    changes: dict[str, Any],
    *,
    strict: bool,
    composer: Composer,
    imported: list[str],
) -> int:
    """Make one pack, and print its folder."""
    from ercfusion.data.pack import read_manifest
    from ercfusion.features.extraction import extract_pack
    from ercfusion.features.loading import pack_folder
    from ercfusion.features.recipe import read_recipe, recipe_names

    for key in ("data", "features"):
        if not any(argument.startswith(f"{key}=") for argument in data) and key not in settings:
            raise ConfigError(f"{key}=NAME is missing (see --help)")
    if "layout" in settings:
        raise ConfigError("layout= goes with import=FILE")
    corpus, protocol = _corpus(data, composer)
    recipe = read_recipe(settings["features"]).with_settings(changes)
    try:
        made = extract_pack(
            corpus,
            protocol,
            recipe,
            out=settings.get("out"),
            workers=whole_number("workers", settings["workers"]) if "workers" in settings else None,
            executor_name=settings.get("executor", "local"),
            address=settings.get("executor.address"),
            fresh=switch(settings, "fresh"),
            retry=switch(settings, "retry"),
            strict=strict,
        )
    except KeyboardInterrupt:
        print("interrupted; go on with the same command", file=sys.stderr)
        return 130
    for line in report(made, recipe.name):
        print(line, file=sys.stderr)
    modality = read_manifest(made.folder)["modality"]
    # The name of a recipe means its own settings, at their default place; everything else is named by its folder.
    named = "out" not in settings and not changes and settings["features"] in recipe_names()
    if named:
        try:
            found = pack_folder(corpus, corpus.conversations(protocol), modality, settings["features"])
            named = Path(found).resolve() == made.folder.resolve()
        except PackError:  # there are several, or training does not look there
            named = False
    words = [*(["--config-dir", composer.config_dir] if composer.config_dir else []), *imported, *data]
    place = settings["features"] if named else str(made.folder)
    typed = command("new pack", "train", *words, settings={f"data.packs.{modality}": place})
    print(f"use it with: {typed}", file=sys.stderr)
    print(made.folder)
    return 0


def report(made: Any, recipe: str) -> list[str]:
    """What is said at the end: how much there is, and what is missing."""
    from ercfusion.data.pack import read_manifest

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
    return lines


def import_file(
    settings: dict[str, str], data: list[str], changes: dict[str, Any], config_dir: str | None = None
) -> int:
    """Read a pickle of another project, and print the folder that was made of it."""
    from ercfusion.features.imports import import_pickle

    for key in settings:
        if not _is_data(key) and key not in ("import", "layout", "out"):
            raise ConfigError(f"{key}= does not go with import=FILE")
    path = expanded(settings["import"])
    out = expanded(settings.get("out", path.stem))
    corpus, protocol = _corpus(data, Composer(config_dir=config_dir)) if data else (None, None)
    folder = import_pickle(path, settings.get("layout"), out, corpus=corpus, protocol=protocol)
    if corpus is None:
        typed = command("imported corpus", "train", settings={"data": "custom", "data.raw": str(folder.absolute())})
        print(f"use it with: {typed}", file=sys.stderr)
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


def _corpus(data: list[str], composer: Composer) -> tuple[Any, Any]:
    from ercfusion.data.corpora import open_corpus

    config = composer.compose(data)["data"]
    corpus = open_corpus(config["name"], config["raw"], **config["options"])
    return corpus, corpus.protocol(config["protocol"])


def _value(key: str, text: str) -> Any:
    from ercfusion._core.schemas.yaml_loader import parse_yaml

    if key.rpartition(".")[2] in _FOLDERS and text not in ("", "null"):
        return typed_path(text)
    value, problem = parse_yaml(text)
    if problem:
        raise ConfigError(f"{shown(f'{key}={text}')}: {problem.removeprefix(', line 1').removeprefix(': ')}")
    return value


if __name__ == "__main__":
    sys.exit(run_command(main))
