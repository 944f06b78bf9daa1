"""``python -m ercfusion.extract``: features from recordings and texts, and from published feature files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, PackError
from ercfusion._core.files import expanded
from ercfusion._core.schemas.yaml_loader import parse_yaml
from ercfusion.cli import run_command
from ercfusion.config.hints import command
from ercfusion.config.overrides import expand_protocol, shown, typed_path
from ercfusion.config.settings import section_from
from ercfusion.grammar import COMMON_KEYS, Command, Flag, Key, Typed

if TYPE_CHECKING:
    from ercfusion.data.corpus import Corpus, Protocol


def _recipes() -> list[str]:
    from ercfusion.features.recipe import recipe_names

    return list(recipe_names())


def _layouts() -> list[str]:
    from ercfusion.features.imports import LAYOUTS

    return list(LAYOUTS)


COMMAND = Command(
    "extract",
    "Compute a feature pack: the vectors of one modality for all utterances of a corpus",
    (
        ("data=emodb features=egemaps data.raw=DIR", "88 acoustic functionals per recording"),
        ("data=meld features=compare data.raw=DIR workers=8", "from the sound tracks of MELD's clips"),
        ("data=meld features=roberta-cls data.raw=DIR", "text vectors, with a model from the hub"),
        ("data=custom features=egemaps data.raw=MY_CORPUS", "your own corpus"),
        ("data=emodb features=egemaps features.feature_set=IS10 data.raw=DIR", "change a setting of the recipe"),
        ("import=IEMOCAP_features_raw.pkl layout=dialoguernn-iemocap out=iemocap", "import a published pickle"),
        ("--list", "list recipes and layouts"),
    ),
    usage=(
        "data=NAME features=RECIPE [data.raw=DIR] [out=PACK] [key=value ...] [flags]",
        "import=FILE layout=NAME [out=DIR] [data=NAME data.raw=DIR]",
    ),
    keys=(
        Key(
            "features",
            "recipe: a name from --list, or your own YAML file",
            choices=_recipes,
            free=True,
            value="RECIPE",
        ),
        Key("features.KEY", "a setting of the recipe", value="VALUE"),
        Key("out", "folder of the pack (default: in the cache, by recipe)", "path"),
        Key("workers", "parallel processes (default: one per core); no effect on the values", "whole"),
        Key(
            "executor",
            "local: processes on this machine; dask: a dask.distributed cluster",
            default="local",
            choices=("local", "dask"),
        ),
        Key("executor.address", "scheduler of the cluster (default: a local cluster)", value="URL"),
        Key("import", "feature pickle of another project; its code is never run", "file"),
        Key("layout", "layout of the pickle, from --list", choices=_layouts, free=True),
    ),
    flags=(
        Flag("fresh", "start again, replacing an existing pack"),
        Flag("retry", "retry missing recordings of an existing pack, and compare recordings by content"),
        Flag("strict", "stop at the first recording without features"),
        Flag("list", "list recipes and layouts"),
    ),
    config="train",
    sections=("data",),
    groups=("data",),
    details="""
Train with the pack by the recipe's name: data.packs.audio=egemaps (or data.packs.audio=DIR after out=DIR). After an
interruption, repeat the command: it continues. An unreadable recording is listed as missing in the pack, with the
reason. If a pack exists, only changed recordings are extracted. Corpus settings are those of train: data.KEY=VALUE.
""",
)

_FOLDERS = ("folder", "encoder")  # settings of recipes with a path, used verbatim


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, _act)


def _act(typed: Typed) -> int:
    if "list" in typed.flags:
        print(listing())
        return 0
    return import_file(typed) if "import" in typed.keys else extract(typed)


def changes_of(typed: Typed) -> dict[str, Any]:
    """Recipe settings on the command line."""
    return {key: _value(f"features.{key}", text) for key, text in typed.below("features.").items()}


def extract(typed: Typed) -> int:
    """Create a pack and print its folder; returns the exit status."""
    from ercfusion.data.pack import read_manifest
    from ercfusion.features.extraction import extract_pack
    from ercfusion.features.loading import pack_folder
    from ercfusion.features.recipe import read_recipe, recipe_names

    keys = typed.keys
    if not any(argument.startswith("data=") for argument in typed.settings):
        raise ConfigError("data=NAME is missing. Add it, for example data=meld.")
    if "features" not in keys:
        raise ConfigError("features=NAME is missing. Choose a recipe from --list.")
    if "layout" in keys:
        raise ConfigError("layout= goes with import=FILE. Remove one, or add the other.")
    corpus, protocol = _corpus(typed)
    changes = changes_of(typed)
    recipe = read_recipe(keys["features"]).with_settings(changes)
    try:
        made = extract_pack(
            corpus,
            protocol,
            recipe,
            out=keys.get("out"),
            workers=keys.get("workers"),
            executor_name=keys.get("executor", "local"),
            address=keys.get("executor.address"),
            fresh="fresh" in typed.flags,
            retry="retry" in typed.flags,
            strict="strict" in typed.flags,
        )
    except KeyboardInterrupt:
        print("interrupted. Repeat the command to continue.", file=sys.stderr)
        return 130
    for line in report(made, recipe.name):
        print(line, file=sys.stderr)
    modality = read_manifest(made.folder)["modality"]
    # A recipe's name means a pack with its default settings in the default folder; other packs need their folder.
    named = "out" not in keys and not changes and keys["features"] in recipe_names()
    if named:
        try:
            default = pack_folder(corpus, corpus.conversations(protocol), modality, keys["features"])
            named = Path(default).resolve() == made.folder.resolve()
        except PackError:  # several packs, or not in the default folder
            named = False
    place = keys["features"] if named else str(made.folder)
    words = [*typed.common(), *typed.settings]
    again = command("new pack", "train", *words, settings={f"data.packs.{modality}": place})
    print(f"use it with: {again}", file=sys.stderr)
    print(made.folder)
    return 0


def report(made: Any, recipe: str) -> list[str]:
    """The messages at the end: the amount of features, and what is missing."""
    from ercfusion.data.pack import read_manifest

    manifest = read_manifest(made.folder)
    amount = f"{manifest['keys']:,} utterances, {manifest['width']:,} dimensions"
    if manifest["level"] == "sequence":
        amount += f", {manifest['rows']:,} time steps"
    lines = [f"{'exists already: ' if made.existed else ''}{manifest['modality']} features ({recipe}): {amount}"]
    for what, entries in (("missing", made.missing), ("questionable", made.notes)):
        if entries:
            lines.append(f"{what}: {len(entries)} (all with their reasons in {made.folder / 'pack.json'})")
            lines += [f"  {'/'.join(key)}: {reason}" for key, reason in list(entries.items())[:5]]
            lines += ["  ..."] if len(entries) > 5 else []
    return lines


def import_file(typed: Typed) -> int:
    """Import a pickle of another project, and print the folder of the pack."""
    from ercfusion.features.imports import import_pickle

    own = [key.name for key in COMMON_KEYS]
    for key in typed.keys:
        if key not in ("import", "layout", "out", *own):
            raise ConfigError(f"{key}= does not go with import=FILE. Remove it.")
    path = expanded(typed.keys["import"])
    out = expanded(typed.keys.get("out", path.stem))
    corpus, protocol = _corpus(typed) if typed.settings else (None, None)
    folder = import_pickle(path, typed.keys.get("layout"), out, corpus=corpus, protocol=protocol)
    if corpus is None:
        again = command("imported corpus", "train", settings={"data": "custom", "data.raw": str(folder.absolute())})
        print(f"use it with: {again}", file=sys.stderr)
    print(folder)
    return 0


def listing() -> str:
    """Recipes and layouts, one per line."""
    from ercfusion.features.imports import LAYOUTS
    from ercfusion.features.recipe import read_recipe, recipe_names

    recipes = {name: read_recipe(name).about for name in recipe_names()}
    width = max(map(len, [*recipes, *LAYOUTS]))
    lines = ["recipes (features=NAME)", *(f"  {name:<{width}}  {about}" for name, about in recipes.items())]
    lines += ["layouts (import=FILE layout=NAME)", *(f"  {name:<{width}}  {about}" for name, about in LAYOUTS.items())]
    return "\n".join(lines)


def _corpus(typed: Typed) -> tuple[Corpus, Protocol]:
    from ercfusion.data.corpora import open_corpus

    settings = [part for argument in typed.settings for part in expand_protocol(argument)]
    data = section_from("data", typed.composer.compose(settings, options=False)["data"])
    corpus = open_corpus(data.name, data.raw, **data.options)
    return corpus, corpus.protocol(data.protocol)


def _value(key: str, text: str) -> Any:
    if key.rpartition(".")[2] in _FOLDERS and text not in ("", "null"):
        return typed_path(text)
    value, problem = parse_yaml(text)
    if problem:
        problem = problem.removeprefix(", line 1").removeprefix(": ")
        raise ConfigError(f"{shown(f'{key}={text}')}: {problem}. Correct the value.")
    return value


if __name__ == "__main__":
    sys.exit(run_command(main))
