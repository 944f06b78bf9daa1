"""The documentation is true: examples run, commands compose, links lead somewhere, computed parts are current."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import CORPUS, restored

from docs.computed import COMPUTED, Part
from docs.computed.tables import table
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.tables.robustness import RobustTable

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [page.relative_to(DOCS).as_posix() for page in PAGES]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its first line (from 0), the comment before it, and its text."""

    language: str
    line: int
    comment: str
    text: str


@cache
def blocks(page: Path) -> list[Block]:
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language, comment = None, "", ""
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            before = next((other for other in reversed(lines[:number]) if other.strip()), "")
            match = re.fullmatch(r"<!-- (.*) -->", before.strip())
            start, language, comment = number + 1, line[3:].strip(), match[1] if match else ""
        elif start is not None and line.startswith("```"):
            found.append(Block(language, start, comment, "\n".join(lines[start:number]) + "\n"))
            start = None
    assert start is None, f"{page.name}: the block from line {start} on is not closed"
    return found


def prose(page: Path) -> list[str]:
    """The lines outside fenced blocks."""
    inside, lines = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            lines.append(line)
    return lines


# Examples


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, from which modules can be imported; what examples register is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    for name in ("ERCFUSION_DATA", "ERCFUSION_PACKS", "ERCFUSION_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    modules = set(sys.modules)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the examples are tiny: more threads only wait for each other
    with restored():
        yield tmp_path
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("../README.md", "corpora.md") else [])
        for name in ["../README.md", *NAMES]
        if any(b.language == "python" for b in blocks(DOCS / name))
    ],
)
def test_examples_run(name: str, workplace: Path) -> None:
    for _ in followed(DOCS / name, workplace):
        pass


def followed(page: Path, workplace: Path) -> Iterator[Block]:
    """The blocks of a page in their order, each after its file is written or its example has run."""
    namespace: dict[str, Any] = {"__name__": "example"}
    with torch.random.fork_rng(devices=[]):
        for block in blocks(page):
            kind, _, argument = block.comment.partition(": ")
            if kind == "file":
                path = workplace / argument
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "python" and kind != "not run":
                # Line breaks in front, so that a traceback names the line of the page.
                exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
            yield block


EXPERIMENTS = DOCS.parent / "experiments" / "README.md"
COMMAND_PAGES = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", EXPERIMENTS, *PAGES]


def commands_of(block: Block) -> Iterator[list[str]]:
    """The words of every command of ercfusion in a block that is not a program: its module, and what follows."""
    if block.language == "python":
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        if "-m ercfusion." not in line and not line.startswith("ercfusion "):
            continue
        words = shlex.split(re.sub(r"\$\w+", "1", line), comments=True)
        if words[0] == "ercfusion":
            yield [f"ercfusion.{words[1]}", *words[2:]]
        # After variables of the environment, python or a launcher: torchrun, srun.
        for place, (word, module) in enumerate(pairwise(words), start=1):
            if word == "-m" and module.startswith("ercfusion."):
                yield words[place:]
                break


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in COMMAND_PAGES:
        for block in blocks(page):
            yield from ((page.name, words) for words in commands_of(block))


@pytest.mark.slow
def test_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.__main__ import NAMES, declared
    from ercfusion.config.compose import Composer
    from ercfusion.config.overrides import expand_protocol

    seen = set()
    composer, sweeper = Composer(), Composer("sweep")
    groups = composer.groups()
    for each in (composer, sweeper):
        monkeypatch.setattr(each, "groups", lambda: groups)  # the same for all, and half of the time
    for page, (module, *arguments) in {tuple(words): (page, words) for page, words in commands()}.values():
        seen.add(module)
        own = ("config_dir=", "imports=", "model=my_models:")
        try:
            words = [word for word in arguments if not word.startswith(own) and not re.match(r"model=\w+:", word)]
            typed = declared(module.removeprefix("ercfusion.")).parse(words)
            if words != arguments:
                continue  # what such names are is in a page's own files
            settings = list(typed.settings)
            if module == "ercfusion.extract":
                understand_extract(composer, typed)
                continue
            if module == "ercfusion.sweep":
                understand_sweep(sweeper, settings)
                continue
            for combination in composer.expand(settings) if "multirun" in typed.flags else [settings]:
                composer.compose([part for setting in combination for part in expand_protocol(setting)])
        except Exception as error:
            raise AssertionError(f"{page}: python -m {module} {shlex.join(arguments)}: {error}") from error
    assert seen >= {f"ercfusion.{name}" for name in NAMES if name != "completion"}


def understand_extract(composer: Any, typed: Any) -> None:
    from ercfusion.config.overrides import expand_protocol
    from ercfusion.extract import changes_of
    from ercfusion.features.imports import LAYOUTS
    from ercfusion.features.recipe import read_recipe

    settings, changes = typed.keys, changes_of(typed)
    composer.compose([part for argument in typed.settings for part in expand_protocol(argument)])
    if "import" in settings:
        assert settings["layout"] in LAYOUTS
    elif "features" in settings and not settings["features"].endswith(".yaml"):
        recipe = read_recipe(settings["features"]).with_settings(changes)
        assert set(changes) <= set(recipe.settings), changes


def understand_sweep(composer: Any, settings: list[str]) -> None:
    from ercfusion.search.config import compose_sweep

    if any(setting.startswith("resume=") for setting in settings):
        composer.compose(settings)
    else:
        compose_sweep(composer, [], settings)


TINY_RUN = ("training.max_epochs=1", "training.bootstrap=50", "training.pictures=false", "training.threads=1",
            "trainer=cpu")  # fmt: skip
TINY_SWEEP = ("sweep.trials=2", "sweep.rerun=0", "sweep.workers=1")


def shortened(words: list[str], *groups: tuple[str, ...]) -> list[str]:
    """A command with tiny sizes: of several values of a setting the first two, and other sizes than those typed."""
    tiny = {word.partition("=")[0]: word for group in groups for word in group}
    kept = [word for word in words if word.partition("=")[0] not in tiny]
    if {"-m", "--multirun"} & set(words):
        kept = [",".join(word.split(",")[:2]) if "[" not in word else word for word in kept]
        return [*kept, *tiny.values(), "workers=1"]
    return [*kept, *tiny.values()]


def runnable(module: str, words: list[str], runs: tuple[Path, Path]) -> list[str] | None:
    """A command as it can be run without restricted data: on tiny sizes, with a tiny run for each RUN; else None.

    Not run, only parsed and composed (:func:`test_commands_are_understood`): what needs a corpus under a licence, its
    recordings or pickles, several machines or GPUs; ``reproduce``, which trains a whole table; sweeps of unlimited
    length, and what continues a sweep that the page does not have.
    """
    command = module.removeprefix("ercfusion.")
    named = dict(word.split("=", 1) for word in words if "=" in word)
    own = "data.raw" in named and Path(named["data.raw"]).is_dir()
    if {"--help", "--cfg"} & set(words):
        return words
    if command == "evaluate" and not (own or named.get("data", "demo").startswith("demo")):
        return None
    if command in ("evaluate", "compare", "verify", "robustness", "conflicts"):
        first = words.index("RUN") if "RUN" in words else 0
        swapped = [str(runs[place > first]) if word == "RUN" else word for place, word in enumerate(words)]
        if command == "verify":
            swapped[1:2] = ["demo"]
        missing = [word for word in swapped[:1] if not word.startswith("-") and not Path(word).is_dir()]
        return None if missing else swapped
    if command == "doctor":
        return words if own or "data.raw" not in named else None
    if command == "reproduce" or (command == "sweep" and "sweep.trials" not in named):
        return None
    if any(word.startswith("trainer") and word != "trainer=cpu" for word in words):
        return None
    if any(not Path(named[key]).exists() for key in ("resume", "settings", "import") if key in named):
        return None
    if command == "extract":
        return words if own or "import" in named else None
    free = named.get("data", "demo").startswith("demo")
    if not (free or own) or any(word.startswith("sweep.storage") for word in words):
        return None
    if "resume" in named:
        return words
    words = [word.replace("=RUN", f"={runs[0]}") for word in words]
    sizes = (CORPUS, TINY_RUN) if free else (TINY_RUN,)
    return shortened(words, *sizes, TINY_SWEEP) if command == "sweep" else shortened(words, *sizes)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, for the first RUN of a command and the second."""
    from ercfusion.train import main

    folder = tmp_path_factory.mktemp("pages")
    tiny = [*CORPUS, *TINY_RUN, "model=concat", "training.keep_every_epoch=true"]
    for seed in (0, 1):
        assert main([*tiny, f"seed={seed}", f"run={folder / str(seed)}"]) == 0
    return folder / "0", folder / "1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem) for page in COMMAND_PAGES if any(map(list, map(commands_of, blocks(page))))],
)
def test_commands_run(page: Path, workplace: Path, tiny_runs: tuple[Path, Path]) -> None:
    """The files, programs and commands of a page, in their order."""
    for block in followed(page, workplace):
        for module, *words in commands_of(block):
            if (typed := runnable(module, words, tiny_runs)) is None:
                continue
            shown = f"{page.name}: python -m {module} {shlex.join(typed)}"
            try:
                status = importlib.import_module(module).main(typed)
            except Exception as error:
                raise AssertionError(f"{shown}: {error}") from error
            # A tiny run is outside the band of the recorded ones, and a page's corpus may have faults to show.
            assert status in ((0, 1) if module in ("ercfusion.verify", "ercfusion.doctor") else (0,)), shown


# Links and form


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = DOCS / name
    for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {link} leads nowhere"
        if anchor:
            headings = [line.lstrip("#") for line in prose(target) if line.startswith("#")]
            assert anchor in map(slug, headings), f"{name}: {link}: no such heading"


@pytest.mark.parametrize("name", NAMES)
def test_form(name: str) -> None:
    for number, line in enumerate((DOCS / name).read_text(encoding="utf-8").splitlines(), start=1):
        assert line == line.rstrip(), f"{name}:{number} ends in spaces"
        # A row of a table cannot be broken, nor a command in a comment.
        unbroken = line.startswith(("|", "<!-- measured on dev: "))
        assert len(line) <= 120 or unbroken, f"{name}:{number} is longer than 120 characters"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    models = (DOCS / "choose-a-model.md").read_text(encoding="utf-8")
    missing = [name for name in NAMES if f"({name})" not in (models if name.startswith("models/") else index)]
    assert missing == ["index.md"]


# Settings


def table_rows(page: Path) -> Iterator[dict[str, str]]:
    """The rows of all tables by column title, without code marks."""
    header: list[str] | None = None
    for line in prose(page):
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip().strip("`").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if header is None:
            header = cells
        elif not set(line) <= set("|-: "):
            yield dict(zip(header, cells, strict=True))


def test_corpora_are_documented() -> None:
    from ercfusion.data import CORPORA

    headings = [line.lstrip("# ") for line in prose(DOCS / "corpora.md") if line.startswith("## ")]
    assert set(CORPORA) <= set(headings)


def test_layers_are_documented() -> None:
    import ercfusion.layers
    import ercfusion.ops

    text = (DOCS / "layers.md").read_text(encoding="utf-8")
    assert not [name for name in (*ercfusion.layers.__all__, *ercfusion.ops.__all__) if f"`{name}`" not in text]


def test_models_have_a_page() -> None:
    for name in ARCHITECTURES:
        assert (DOCS / "models" / f"{name}.md").is_file(), f"the architecture {name} has no page"


def test_requirements_are_documented() -> None:
    from ercfusion.testing import CHECKS

    assert [row["requirement"] for row in table_rows(DOCS / "add-a-model.md") if "requirement" in row] == list(CHECKS)


def test_every_environment_variable_is_told() -> None:
    import ercfusion

    sources = sorted(Path(ercfusion.__file__).parent.rglob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    read = set(re.findall(r"""["']((?:ERCFUSION|XDG)_[A-Z_]+)["']""", text))
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`((?:ERCFUSION|XDG)_[A-Z_]+)`", page.partition("## Environment variables")[2]))
    assert told == read


def test_what_the_readme_lists_is_all_there_is() -> None:
    from ercfusion.data import CORPORA

    lines = (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| corpora |"))
    missing = [name for name in CORPORA if f"`{name}`" not in row]
    assert not missing, f"README.md does not list the corpora {', '.join(missing)}"


def test_no_number_of_things_is_typed() -> None:
    """A count in a sentence ("seven commands") is wrong after the next addition."""
    number = "four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|\\d+"
    thing = "commands|groups|corpora|recipes|layouts|extractors|metrics|presets|optimisers|schedules"
    for page in [*PAGES, DOCS.parent / "README.md"]:
        outside = "\n".join(prose(page))
        assert not (found := re.findall(rf"(?i)\b(?:{number}) (?:{thing})\b", outside)), f"{page.name}: {found}"


def test_one_wording_for_the_score_of_the_exact_posterior() -> None:
    """The most probable labels are not the best for F1, so nothing calls their score the best reachable one."""
    root = DOCS.parent
    files = [path for part in ("ercfusion", "docs", "experiments", "benchmarks") for path in (root / part).rglob("*")]
    files += [root / "README.md", root / ".ci" / "run"]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md", ".yaml", ".html")
             or path.name == "run"}  # fmt: skip
    phrase = re.compile(r"(?i)best\s+(reachable|possible)|best\s+(score\s+)?reachable")
    found = [str(path) for path, text in texts.items() if phrase.search(text)]
    assert len(texts) > 100
    assert not found


# Paired tests of a large table take half a minute each.
LARGE_TABLES = (
    *("meld", "mosi", "demo", "demo-missing", "mosi-missing", "meld-curriculum"),
    *("mosi-fusion", "mosi-fusion-score", "mosi-guided", "emodb-guided"),
)


def _marks(slow: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if slow else []


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=_marks(part.preset in LARGE_TABLES or part.measured), id=part.name)
        for part in COMPUTED.values()
    ],
)
def test_computed_parts_are_current(part: Part) -> None:
    _, written, _ = part.split()
    lines, computed = written.strip().splitlines(), part.compute()
    if part.measured:  # numbers, and how wide a column is, depend on the machine
        lines, computed = ([" ".join(re.sub(r"[<+-]?\s?\d[\d.,]*", "0", line).split()) for line in each]
                           for each in (lines, computed))  # fmt: skip
    page = part.page.removeprefix("docs/")
    assert lines == computed, f"{part.page} is out of date: python -m docs.computed {page}"


def shown_pairs(preset: str) -> set[tuple[str, str]]:
    """(lower, higher) of every difference that the table shows."""
    return {
        entry.names if entry.difference < 0 else entry.names[::-1] for entry in table(preset).comparisons if entry.shown
    }


def mean(preset: str, row: str, metric: str | None = None) -> float:
    """The test score of a row."""
    found = table(preset)
    return next(float(line.test[metric or found.metric].mean) for line in found.lines if line.row.name == row)


def robust(preset: str) -> RobustTable:
    """The comparison with missing modalities of a table."""
    compared = table(preset).robustness
    assert compared is not None
    return compared


SPEAKERS = ("dialoguernn", "dialoguegcn", "cogmen")
CLAIMS: dict[str, tuple[str, Callable[[], bool]]] = {
    "No model with context is shown to be better than `concat`, which has none;": (
        "results.md",
        lambda: not any("concat" in pair for pair in shown_pairs("meld")),
    ),
    "`broad_mamba`, `dagerc` and the two other forms of `cogmen` have a lower mean.": (
        "results.md",
        lambda: (
            {line.row.name for line in table("meld").lines if line.test["weighted_f1"].mean < mean("meld", "concat")}
            == {"majority", "broad_mamba", "dagerc", "cogmen, as released", "cogmen, class weights"}
        ),
    ),
    "Class weights raise macro F1 and lower weighted F1.": (
        "results.md",
        lambda: (
            mean("meld", "cogmen, class weights", "macro_f1") > mean("meld", "cogmen", "macro_f1")
            and ("cogmen, class weights", "cogmen") in shown_pairs("meld")
        ),
    ),
    "`cogmen, as released` is below the majority class; the cause is unknown.": (
        "results.md",
        lambda: mean("mosi", "cogmen, as released") < mean("mosi", "majority"),
    ),
    "Three modalities are not shown to be better than text for any model": (
        "results.md",
        lambda: not any(f"{high}, text" == low for low, high in shown_pairs("mosi")),
    ),
    "Every model with context is shown to be above `concat`.": (
        "results.md",
        lambda: (
            {high for low, high in shown_pairs("demo") if low == "concat"}
            == {line.row.name for line in table("demo").lines} - {"concat", "majority"}
        ),
    ),
    "`dialoguernn`, `dialoguegcn` and `cogmen`, which use speakers, have the three highest means; no difference "
    "between them is shown.": (
        "results.md",
        lambda: (
            sorted(table("demo").lines, key=lambda line: -line.test["weighted_f1"].mean)[2].row.name in SPEAKERS
            and not any(low in SPEAKERS and high in SPEAKERS for low, high in shown_pairs("demo"))
        ),
    ),
    "`dagerc` attends only to the past; `lsdgnn`, which also attends to the future, is above it.": (
        "results.md",
        lambda: ("dagerc", "lsdgnn") in shown_pairs("demo"),
    ),
    "On CMU-MOSI no difference between the flat form and the hierarchical ones is shown.": (
        "models/bclstm.md",
        lambda: not any(low.startswith("bclstm") and high.startswith("bclstm") for low, high in shown_pairs("mosi")),
    ),
    "On MELD no model with context is shown to be above it.": (
        "models/concat.md",
        lambda: not any("concat" in pair for pair in shown_pairs("meld")),
    ),
    "On MELD no difference between the sound form and `bclstm` is shown; the sound form is shown to be above the "
    "released one.": (
        "models/cogmen.md",
        lambda: (
            not {("bclstm", "cogmen"), ("cogmen", "bclstm")} & shown_pairs("meld")
            and ("cogmen, as released", "cogmen") in shown_pairs("meld")
        ),
    ),
    "On `demo` the sound form is shown to be above `bclstm`.": (
        "models/cogmen.md",
        lambda: ("bclstm", "cogmen") in shown_pairs("demo"),
    ),
    "no gain is shown, and `cogmen` is lower on emotion with sentiment": (
        "tasks.md",
        lambda: (
            shown_pairs("meld-emotion") == {("cogmen, with sentiment", "cogmen")} and not shown_pairs("meld-sentiment")
        ),
    ),
    "No gain from holes in training is shown here": (
        "missing.md",
        lambda: (
            not any(
                pair.shown and pair.difference > 0
                for pairs in (robust("mosi-missing").areas, robust("mosi-missing").under_laws)
                for group in pairs.values()
                for pair in group
            )
        ),
    ),
    "No model with context is shown to be better than `concat`.": (
        "../README.md",
        lambda: not any("concat" in pair for pair in shown_pairs("meld")),
    ),
}
"""Sentences about verdicts, the page they are on, and whether the tables say so."""


@pytest.mark.parametrize("sentence", CLAIMS)
def test_sentences_about_verdicts_are_on_their_pages(sentence: str) -> None:
    assert sentence in " ".join((DOCS / CLAIMS[sentence][0]).read_text(encoding="utf-8").split())


@pytest.mark.slow
@pytest.mark.parametrize("sentence", CLAIMS)
def test_sentences_about_verdicts_are_true(sentence: str) -> None:
    assert CLAIMS[sentence][1]()
