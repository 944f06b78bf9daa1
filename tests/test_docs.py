"""The documentation is true: its examples run, its commands compose, its links lead somewhere, its tables are current.

``python tests/test_docs.py`` writes the computed tables into the pages anew.
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import table

from ercfusion.config.architectures import ARCHITECTURES

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
    from ercfusion.config.corpora import CORPORA
    from ercfusion.metrics.registry import REGISTERED
    from ercfusion.models import ARCHITECTURES

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("ERCFUSION_QUIET", "1")
    for name in ("ERCFUSION_DATA", "ERCFUSION_PACKS", "ERCFUSION_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    registries = [(registry, dict(registry)) for registry in (CORPORA, ARCHITECTURES, REGISTERED)]
    modules = set(sys.modules)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the examples are tiny: more threads only wait for each other
    yield tmp_path
    torch.set_num_threads(threads)
    for registry, before in registries:
        registry.clear()
        registry.update(before)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("name", [name for name in NAMES if any(b.language == "python" for b in blocks(DOCS / name))])
def test_examples_run(name: str, workplace: Path) -> None:
    page = DOCS / name
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


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks(page):
            if block.language != "sh":
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words[:2] == ["python", "-m"] and words[2].startswith("ercfusion."):
                    yield page.name, words[2:]


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
    assert not [name for name in NAMES if name != "index.md" and f"({name})" not in index]


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


# Computed tables


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


def commands_table() -> list[str]:
    """One row per command, with what it declares to do."""
    from ercfusion.__main__ import NAMES, declared

    rows = ["| command | what it does |", "|---|---|"]
    return rows + [f"| `ercfusion {name}` | {declared(name).about} |" for name in NAMES]


def grammar_tables(name: str) -> list[str]:
    """One row per key and flag of a command, without those that every command takes."""
    from ercfusion.__main__ import declared

    command = declared(name)
    rows = [(key.sign, key.about) for key in command.keys] + [(flag.sign, flag.about) for flag in command.flags]
    return ["| key or flag | meaning |", "|---|---|"] + [f"| `{sign}` | {about} |" for sign, about in rows]


def groups_table() -> list[str]:
    """One row a group of presets: which is the default, and which there are."""
    from ercfusion.config.compose import Composer

    composer = Composer()
    chosen = {
        name: str(choice)
        for entry in yaml_of("train")["defaults"]
        if isinstance(entry, dict)
        for name, choice in entry.items()
        if not name.startswith("optional ")
    }
    rows = ["| group | default | choices |", "|---|---|---|"]
    for name, choices in composer.groups().items():
        if name in chosen and len(choices) > 1:
            rows.append(f"| `{name}` | `{chosen[name]}` | {', '.join(f'`{choice}`' for choice in choices)} |")
    assert len(rows) > 7
    return rows


def _cell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def settings_table(section: str) -> list[str]:
    """One row per setting, from the fields of the section."""
    from ercfusion.config.sections import CHOICES
    from ercfusion.config.settings import defaults_of, fields_in, flat, names_of

    columns = ("setting", "default", "values", "searched", "decides the result", "meaning")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    names = names_of(section) if section in CHOICES else [None]
    defaults = {name: flat(defaults_of(section, name), f"{section}." if section else "") for name in names}
    for key, field in fields_in(section).items():
        values = {name: _cell(found[key]) for name, found in defaults.items() if key in found}
        default = next(iter(values.values())) if values else _cell(field.default)
        if len(set(values.values())) > 1 or len(values) < len(names):
            default = ", ".join(f"`{name}`: {value}" for name, value in values.items())
        if section in CHOICES and key.endswith(".name"):
            default = f"`{names[0]}`"
        flags = ("yes" if field.known.searchable else "no", "yes" if field.known.decides == "result" else "no")
        cells = [f"`{key}`", default, field.values.replace("|", "\\|"), *flags, field.known.meaning]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def training_presets() -> list[str]:
    """One row a model's preset that chooses its own optimiser or schedule."""
    import ercfusion

    rows = ["| preset | `optimizer` | `scheduler` |", "|---|---|---|"]
    usual = {name: next(iter(re.findall(rf"- {name}: (\w+)", text_of("train")))) for name in ("optimizer", "scheduler")}
    for path in sorted((Path(ercfusion.__file__).parent / "conf" / "model").glob("*.yaml")):
        own = dict(re.findall(r"override /(\w+): (\w+)", path.read_text(encoding="utf-8")))
        if own:
            rows.append(f"| `{path.stem}` | {' | '.join(f'`{own.get(name, usual[name])}`' for name in usual)} |")
    return rows


def text_of(name: str) -> str:
    """The file of a configuration."""
    import ercfusion

    return (Path(ercfusion.__file__).parent / "conf" / f"{name}.yaml").read_text(encoding="utf-8")


def yaml_of(name: str) -> Any:
    import yaml

    return yaml.safe_load(text_of(name))


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


def corpora_table() -> list[str]:
    """One row a protocol, from the cards."""
    from ercfusion.data import CORPORA
    from ercfusion.data.corpora import corpus_class

    rows = ["| protocol | task | chosen on dev | modalities | train | dev | test |", "|---|---|---|---|---|---|---|"]
    for name in CORPORA:
        corpus = corpus_class(name)
        for identifier, protocol in corpus.protocols.items():
            counts = corpus.card.counts
            if corpus.card.synthetic:
                splits = corpus().conversations(protocol)
                counts = {
                    split: {"conversations": len(part), "utterances": sum(map(len, part))}
                    for split, part in splits.items()
                }
            sizes = [
                "{conversations:,} / {utterances:,}".format(**counts[split]) if split in counts else "not counted"
                for split in ("train", "dev", "test")
            ]
            task = protocol.task
            outputs = f"{task.size} labels" if task.schema else f"{task.low:g} to {task.high:g}"
            cells = [f"`{identifier}`", f"{task.kind.replace('_', ' ')}, {outputs}", f"`{task.metric}`"]
            rows.append(f"| {' | '.join([*cells, ', '.join(protocol.modalities), *sizes])} |")
    return rows


def licences_table() -> list[str]:
    """One row a corpus: licence, origin of the dev split, how to get it."""
    from ercfusion.data import CORPORA
    from ercfusion.data.corpora import corpus_class

    rows = ["| corpus | licence | dev split |", "|---|---|---|"]
    for name in CORPORA:
        corpus = corpus_class(name)
        sources = dict.fromkeys(protocol.dev_source for protocol in corpus.protocols.values())
        rows.append(f"| [`{name}`](#{name}) | {corpus.card.licence} | {'; '.join(sources)} |")
    return rows


@cache
def model_presets() -> dict[str, dict[str, Any]]:
    """The options of every preset."""
    from ercfusion.config.compose import Composer
    from ercfusion.config.reference import presets_of

    return presets_of(Composer())


def model_list() -> list[str]:
    """A sentence with all models, for the main page."""
    links = [f"[`{name}`](docs/models/{name}.md)" for name in ARCHITECTURES]
    return textwrap.wrap(f"The models: {', '.join(links)}.", 120, break_on_hyphens=False)


def model_pages() -> list[str]:
    """One row a model: its page, and what its class says that it is."""
    from ercfusion.config.reference import about

    rows = ["| page | what it is |", "|---|---|"]
    classes = {name: ARCHITECTURES.load(name) for name in ARCHITECTURES}
    return rows + [f"| [models/{name}.md](models/{name}.md) | {about(found)} |" for name, found in classes.items()]


def model_options(name: str) -> list[str]:
    """One row an option of an architecture, from its constructor."""
    from ercfusion.config.reference import options_table

    return options_table(name, model_presets())


def corpus_options_table() -> list[str]:
    """One row per option of a corpus's reader."""
    from ercfusion.config.reference import corpora_table

    return corpora_table()


def _settings_cell(section: type, shared: set[str]) -> str:
    """Settings of a loss with their defaults, without those that it shares with all others."""
    own = [field for field in fields(section) if field.name not in shared]
    return ", ".join(f"`{field.name}` {_cell(field.default)}" for field in own)


def task_losses_table() -> list[str]:
    """One row per loss of a single-label task that has settings."""
    from ercfusion.config.reference import about
    from ercfusion.config.terms import TASK_LOSSES

    rows = ["| loss | settings, defaults | what it is |", "|---|---|---|"]
    for name, section in TASK_LOSSES.items():
        if section is not None:
            rows.append(f"| `{name}` | {_settings_cell(section, set())} | {about(section)} |")
    return rows


def loss_terms_table() -> list[str]:
    """One row per term of the package: the kinds of task that have what it reads, and its own settings."""
    from ercfusion.batch.kinds import KINDS, task_kind
    from ercfusion.config.reference import about
    from ercfusion.config.terms import TERMS, Term

    shared = {field.name for field in fields(Term)}
    rows = ["| term | tasks | settings, defaults | what it is |", "|---|---|---|---|"]
    for name, section in TERMS.items():
        if section.__module__ == Term.__module__:
            kinds = [f"`{kind}`" for kind in KINDS if task_kind(kind).representation == section.reads]
            tasks = ", ".join(kinds) if section.reads else "all"
            rows.append(f"| `{name}` | {tasks} | {_settings_cell(section, shared)} | {about(section)} |")
    return rows


def recipes_table() -> list[str]:
    """One row a recipe."""
    from ercfusion.features.recipe import read_recipe, recipe_names

    rows = ["| recipe | tool | what comes out |", "|---|---|---|"]
    for recipe in map(read_recipe, recipe_names()):
        rows.append(f"| `{recipe.name}` | {recipe.tool} | {recipe.about} |")
    return rows


def demo_parameters() -> list[str]:
    """One row a variant: the parameters of its process."""
    from ercfusion.data.corpora.demo import PROCESSES

    names = ("inertia", "contagion", "groups", "flat", "product", "cue", "key", "recall_rate", "recall_gap", "missing")
    rows = [f"| protocol | {' | '.join(f'`{name}`' for name in (*names, 'turns'))} |", "|---" * (len(names) + 2) + "|"]
    for identifier, process in PROCESSES.items():
        cells = []
        for name in names:
            value = getattr(process, name)
            shown = ", ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value:g}"
            cells.append("" if name == "recall_gap" and not process.recall_rate else shown)
        rows.append(f"| `{identifier}` | {' | '.join(cells)} | {process.turns[0]} to {process.turns[1]} |")
    return rows


def demo_ceilings() -> list[str]:
    """One row a variant: test weighted F1 of exact observers."""
    from ercfusion.data import open_corpus
    from ercfusion.data.corpora.demo import DemoCorpus

    corpus = open_corpus("demo")
    assert isinstance(corpus, DemoCorpus)
    found = {name: corpus.ceilings(protocol, "test") for name, protocol in corpus.protocols.items()}
    observers = list(dict.fromkeys(observer for by_observer in found.values() for observer in by_observer))
    rows = [f"| protocol | {' | '.join(f'`{name}`' for name in observers)} |", "|---" * (len(observers) + 1) + "|"]
    for name, by_observer in found.items():
        cells = [
            f"{by_observer[observer]['weighted_f1']:.3f}" if observer in by_observer else "" for observer in observers
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return rows


def demo_rules() -> list[str]:
    """One row a variant: weighted F1 without evidence, and what another rule than the most probable label gains.

    An F1-optimal decision maximises the expected score under the posterior p, sum over c of w_c 2 h_c / s_c with
    h_c = sum of p_ic over the turns that get c, and s_c = sum of p_ic plus the number of these turns. It is found by
    fixed points: the gain of one more turn with c is w_c (2 p_ic / s_c - 2 h_c / s_c ** 2).
    """
    import numpy as np

    from ercfusion.data import open_corpus
    from ercfusion.data.corpora.demo import PROCESSES, DemoCorpus

    corpus = open_corpus("demo")
    assert isinstance(corpus, DemoCorpus)
    rows = [
        "| protocol | `majority` | guess by the prior | `text` | F1-optimal minus most probable |",
        "|---|---|---|---|---|",
    ]
    for name, protocol in corpus.protocols.items():
        several = protocol.task.kind == "multi_label"
        truth = np.array([target_of(turn, protocol.task.name) for one in corpus.conversations(protocol)["test"]
                          for turn in one.turns])  # fmt: skip
        share = truth.sum(axis=0) / truth.sum()
        rate = np.array(PROCESSES[name].prior) @ PROCESSES[name].label_rates
        # F1 of a class that is guessed at the rate r and there at the rate t: 2 t r / (t + r).
        guess = float((share * 2 * truth.mean(axis=0) * rate / (truth.mean(axis=0) + rate)).sum())
        p = corpus.posterior(protocol, "test")

        def decided(value: Any, several: bool = several) -> Any:
            return value > 0 if several else value == value.max(axis=1, keepdims=True)

        def expected(d: Any, p: Any = p) -> float:
            return float((p.sum(axis=0) / p.sum() * 2 * (p * d).sum(axis=0) / (p.sum(axis=0) + d.sum(axis=0))).sum())

        found = [decided(p - 0.5)]
        for _ in range(20):
            size, hits = p.sum(axis=0) + found[-1].sum(axis=0), (p * found[-1]).sum(axis=0)
            found.append(decided(p.sum(axis=0) / p.sum() * (2 * p / size - 2 * hits / size**2)))
        gain = max(map(expected, found)) - expected(found[0])
        ceilings = corpus.ceilings(protocol, "test")
        cells = [ceilings["majority"]["weighted_f1"], guess, ceilings["text"]["weighted_f1"]]
        rows.append(f"| `{name}` | {' | '.join(f'{cell:.3f}' for cell in cells)} | {gain:.4f} |")
    return rows


def target_of(turn: Any, task: str) -> list[bool]:
    """The label set of a turn of demo, in the schema's order."""
    from ercfusion.data.corpora._demo_process import SCHEMA

    value = turn.targets[task].value
    names = {value} if isinstance(value, str) else set(value)
    return [label in names for label in SCHEMA.labels]


def result_scores(preset: str) -> list[str]:
    """The scores of a table, from the records of its runs."""
    from ercfusion.tables.render import markdown_table, score_cells

    return markdown_table(score_cells(table(preset))).splitlines()


def result_optimism(preset: str) -> list[str]:
    """What choosing on test would have pretended, from the same records."""
    from ercfusion.tables.render import markdown_table, optimism_cells

    return markdown_table(optimism_cells(table(preset))).splitlines()


def result_pairs(preset: str) -> list[str]:
    """The differences that a table tests, from the same records."""
    from ercfusion.tables.render import comparison_cells, markdown_table

    return markdown_table(comparison_cells(table(preset))).splitlines()


def result_notes(preset: str) -> list[str]:
    """How the rows of a table were tuned, and what the marks of its published numbers mean."""
    from ercfusion.tables.render import published_legend
    from ercfusion.tables.tuning import tuning_note

    notes = [note for note in (tuning_note(table(preset)), published_legend(table(preset))) if note]
    return "\n\n".join(textwrap.fill(note, 120, break_on_hyphens=False) for note in notes).splitlines()


def result_verdicts(preset: str) -> list[str]:
    """Which differences a table shows, as sentences."""
    from ercfusion.tables.verdicts import verdict_lines

    lines: list[str] = []
    for line in verdict_lines(table(preset)):
        lines += textwrap.wrap(line, 120, subsequent_indent="  " if line.startswith("- ") else "") or [""]
    return lines


def result_shares(preset: str) -> list[str]:
    """How many of the shown differences are against the rows that are no rivals: other forms of one model."""
    shown = [entry.names for entry in table(preset).comparisons if entry.shown]
    forms = ("cogmen, class weights", "cogmen, as released")
    against = [sum(form in names for names in shown) for form in forms]
    left = sum(not set(forms) & set(names) for names in shown)
    text = (
        f"Of the {len(shown)} shown differences {against[0]} are against `{forms[0]}` and {against[1]} against "
        f"`{forms[1]}`; {left} are between other rows."
    )
    return textwrap.wrap(text, 120)


def result_pair_sentences(preset: str) -> list[str]:
    """What the planned comparisons of modalities found, as sentences."""
    from ercfusion.tables.render import number

    found = table(preset)
    better = "higher" if found.metric == "accuracy" else "lower"
    lines: list[str] = []
    for words, part in (
        ("All three modalities minus text alone", [entry for entry in found.comparisons if ", text" in entry.names[1]]),
        ("Minus `concat`, on all three", [entry for entry in found.comparisons if entry.names[1] == "concat"]),
    ):
        ends = [f(part, key=lambda entry: entry.difference) for f in (min, max)]
        least, most = (f"{number(found.metric, e.difference, sign=True)} (`{e.names[0]}`)" for e in ends)
        shown = [f"`{e.names[0]}`" + ("" if e.certain else " (not certain)") for e in part if e.shown]
        told = f"shown for {', '.join(shown)}" if shown else "none of them is shown"
        lines += textwrap.wrap(
            f"- {words}: {least} to {most}, {better} is better; {told}.", 120, subsequent_indent="  "
        )
    return lines


def result_curriculum() -> list[str]:
    """What a curriculum changes in the table ``meld-curriculum``."""
    found = table("meld-curriculum")
    lines = {line.row.name: line for line in found.lines}
    models = [name for name in lines if f"{name}, curriculum" in lines]
    pairs = {frozenset(entry.names): entry for entry in found.comparisons}
    own = {name: pairs[frozenset((name, f"{name}, curriculum"))] for name in models}

    def gain(name: str, metric: str) -> float:
        return round(100 * (lines[f"{name}, curriculum"].test[metric].mean - lines[name].test[metric].mean), 2)

    gains = {name: gain(name, found.metric) for name in models}
    shift = {name: gain(name, "shift_accuracy") for name in models}
    worst, best = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    spread = {name: [100 * lines[each].test[found.metric].std for each in (f"{name}, curriculum", name)]
              for name in models}  # fmt: skip
    wider = max(spread, key=lambda name: spread[name][0] - spread[name][1])
    text = (
        f"With the curriculum {sum(value > 0 for value in gains.values())} of the {len(models)} models are higher and "
        f"{sum(value < 0 for value in gains.values())} lower, between {gains[best]:+.2f} (`{best}`) and "
        f"{gains[worst]:+.2f} (`{worst}`) points of weighted F1. {sum(entry.shown for entry in own.values())} of these "
        f"differences are shown; the smallest p after Holm's correction for all pairs of the table is "
        f"{min(entry.p_holm for entry in own.values()):.2f}. At the utterances at which a speaker's emotion shifts, "
        f"{sum(value > 0 for value in shift.values())} models are higher and "
        f"{sum(value < 0 for value in shift.values())} lower. The standard deviation over the seeds grows most with "
        f"`{wider}`: {spread[wider][0]:.2f} points with the curriculum, {spread[wider][1]:.2f} without."
    )
    return textwrap.wrap(text, 120, break_on_hyphens=False)


def weak_modalities() -> list[str]:
    """Dev and test accuracy of `concat` on single modalities, from the records of ``mosi-fusion``."""
    from ercfusion.tables.render import markdown_table, number

    lines = {line.row.name: line for line in table("mosi-fusion").lines}
    rows = [["modality", "dev", "test"]]
    for name in ("text", "audio", "visual"):
        line = lines[f"concat, {name}"]
        rows.append([name, number("accuracy", line.dev.mean), number("accuracy", line.test["accuracy"].mean)])
    floor = lines["majority"]
    rows.append(
        [
            "none: the majority class",
            *(number("accuracy", value) for value in (floor.dev.mean, floor.test["accuracy"].mean)),
        ]
    )
    return markdown_table(rows).splitlines()


SUBSETS = ("text", "audio", "visual", "text + audio", "text + visual", "audio + visual", "all three")


def result_subsets(preset: str, metric: str) -> list[str]:
    """A line a model, a column a subset of the modalities, from the rows `MODEL` and `MODEL, SUBSET`."""
    from ercfusion.tables.render import markdown_table, metric_name, spread

    scores = {line.row.name: spread(metric, line.test[metric]) for line in table(preset).lines}
    models = [name for name in scores if f"{name}, text" in scores]
    rows = [[model, *(scores.get(f"{model}, {subset}", scores[model]) for subset in SUBSETS)] for model in models]
    return markdown_table([[metric_name(metric), *SUBSETS], *rows]).splitlines()


def metrics_table() -> list[str]:
    """All metrics: which tasks have them, direction, unit, whether sums give intervals, and meaning."""
    from ercfusion.batch.labels import get_schema
    from ercfusion.batch.task import TaskSpec
    from ercfusion.metrics.registry import REGISTERED, metric_names, score_source
    from ercfusion.tables.render import markdown_table

    schema = get_schema("demo6")
    kinds = {
        "single label": TaskSpec("t", "single_label", schema),
        "distribution": TaskSpec("t", "distribution", schema),
        "multi-label": TaskSpec("t", "multi_label", schema),
        "regression": TaskSpec("t", "regression", dimensions=("d",), low=0, high=9),
        "regression on [-3, 3]": TaskSpec("t", "regression", dimensions=("d",), low=-3, high=3),
        "regression on [-1, 1]": TaskSpec("t", "regression", dimensions=("d",), low=-1, high=1),
    }
    rows = [["metric", "tasks", "better", "unit", "intervals", "meaning"]]
    for name, metric in REGISTERED.items():
        tasks = {words: task for words, task in kinds.items() if name in metric_names(task)}
        sourced = [words for words, task in tasks.items() if score_source(task, name) is not None]
        words = [each for each in tasks if "regression" not in tasks or not each.startswith("regression on")]
        intervals = "yes" if len(sourced) == len(tasks) else ", ".join(sourced) or "no"
        unit = {"percent": "share", "task": "that of the target", "none": "-1 to 1"}.get(metric.unit, metric.unit)
        better = "higher" if metric.higher_is_better else "lower"
        rows.append([f"`{name}`", ", ".join(words), better, unit, intervals, metric.meaning])
    return markdown_table(rows).replace("---:|", "---|").splitlines()


SECTIONS = ("", "data", "training", "objective", "task", "optimizer", "scheduler", "curriculum", "trainer", "sweep")
COMPUTED: dict[str, tuple[str, Callable[[], list[str]]]] = {
    **{f"scores {name}": ("results.md", partial(result_scores, name)) for name in ("meld", "mosi", "demo")},
    **{f"verdicts {name}": ("results.md", partial(result_verdicts, name)) for name in ("meld", "mosi", "demo")},
    "main shares": ("../README.md", partial(result_shares, "meld")),
    "shares meld": ("results.md", partial(result_shares, "meld")),
    "weak modalities": ("models/m2fnet.md", weak_modalities),
    "curriculum effect": ("curricula.md", result_curriculum),
    **{
        f"pair sentences {name}": ("missing-modalities.md", partial(result_pair_sentences, name))
        for name in ("mosi-fusion", "mosi-fusion-score")
    },
    **{f"notes {name}": ("results.md", partial(result_notes, name)) for name in ("meld", "mosi", "demo")},
    "notes meld-curriculum": ("curricula.md", partial(result_notes, "meld-curriculum")),
    "main notes": ("../README.md", partial(result_notes, "meld")),
    "main verdicts": ("../README.md", partial(result_verdicts, "meld")),
    **{f"optimism {name}": ("results.md", partial(result_optimism, name)) for name in ("meld", "mosi", "demo")},
    **{
        f"subsets {preset} {metric}": ("missing-modalities.md", partial(result_subsets, preset, metric))
        for preset, metric in (
            ("mosi-fusion", "accuracy"),
            ("mosi-fusion", "weighted_f1"),
            ("mosi-fusion-score", "mae"),
            ("mosi-fusion-score", "pearson"),
            ("mosi-fusion-score", "acc7"),
        )
    },
    **{
        f"pairs {name}": ("missing-modalities.md", partial(result_pairs, name))
        for name in ("mosi-fusion", "mosi-fusion-score")
    },
    **{f"pairs {name}": ("tasks.md", partial(result_pairs, name)) for name in ("meld-emotion", "meld-sentiment")},
    "scores meld-curriculum": ("curricula.md", partial(result_scores, "meld-curriculum")),
    "main scores": ("../README.md", partial(result_scores, "meld")),
    "capabilities": ("choose-a-model.md", capability_matrix),
    "main models": ("../README.md", model_list),
    "models": ("index.md", model_pages),
    "metrics": ("runs.md", metrics_table),
    "commands": ("commands.md", commands_table),
    "keys of train": ("commands.md", partial(grammar_tables, "train")),
    "keys of sweep": ("commands.md", partial(grammar_tables, "sweep")),
    "keys of evaluate": ("commands.md", partial(grammar_tables, "evaluate")),
    "keys of extract": ("commands.md", partial(grammar_tables, "extract")),
    "keys of reproduce": ("experiments.md", partial(grammar_tables, "reproduce")),
    "groups": ("commands.md", groups_table),
    "presets with their own training": ("commands.md", training_presets),
    "corpora": ("corpora.md", corpora_table),
    "licences": ("corpora.md", licences_table),
    "recipes": ("features.md", recipes_table),
    **{f"options {name}": (f"models/{name}.md", partial(model_options, name)) for name in ARCHITECTURES},
    "task losses": ("losses.md", task_losses_table),
    "loss terms": ("losses.md", loss_terms_table),
    "corpus options": ("commands.md", corpus_options_table),
    **{f"settings {name or 'root'}": ("commands.md", partial(settings_table, name)) for name in SECTIONS},
    "demo parameters": ("corpora.md", demo_parameters),
    "demo ceilings": ("corpora.md", demo_ceilings),
    "demo rules": ("corpora.md", demo_rules),
}


def split_at_table(text: str, name: str) -> tuple[str, str, str]:
    start, stop = f"<!-- computed: {name} -->\n", f"<!-- end: {name} -->"
    before, found_start, rest = text.partition(start)
    table, found_stop, after = rest.partition(stop)
    assert found_start, f"the marks of the table {name!r} are missing"
    assert found_stop, f"the marks of the table {name!r} are missing"
    return before + start, table, stop + after


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
LARGE_TABLES = ("meld", "mosi", "demo", "meld-curriculum")


def _marks(slow: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if slow else []


def _needs_a_large_table(compute: Callable[[], list[str]]) -> bool:
    return compute is result_curriculum or (isinstance(compute, partial) and compute.args[0] in LARGE_TABLES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=_marks(_needs_a_large_table(compute))) for name, (_, compute) in COMPUTED.items()]
)
def test_computed_tables_are_current(name: str) -> None:
    page, compute = COMPUTED[name]
    _, found, _ = split_at_table((DOCS / page).read_text(encoding="utf-8"), name)
    assert found.strip().splitlines() == compute(), f"docs/{page} is out of date: python tests/test_docs.py"


def shown_pairs(preset: str) -> set[tuple[str, str]]:
    """(lower, higher) of every difference that the table shows."""
    return {
        entry.names if entry.difference < 0 else entry.names[::-1] for entry in table(preset).comparisons if entry.shown
    }


def mean(preset: str, row: str, metric: str | None = None) -> float:
    """The test score of a row."""
    found = table(preset)
    return next(float(line.test[metric or found.metric].mean) for line in found.lines if line.row.name == row)


SPEAKERS = ("dialoguernn", "dialoguegcn", "cogmen")
MIDDLE = ("broad_mamba", "lsdgnn", "lmf", "bclstm")
CLAIMS: dict[str, tuple[str, Callable[[], bool]]] = {
    "No model with context is shown to be better than `concat`, which has none.": (
        "results.md",
        lambda: not any("concat" in pair for pair in shown_pairs("meld")),
    ),
    "Besides the majority class only `broad_mamba`, `dagerc` and the two other forms of `cogmen` have a lower mean.": (
        "results.md",
        lambda: (
            {line.row.name for line in table("meld").lines if line.test["weighted_f1"].mean < mean("meld", "concat")}
            == {"majority", "broad_mamba", "dagerc", "cogmen, as released", "cogmen, class weights"}
        ),
    ),
    "Weighting the classes finds some of them, and costs weighted F1.": (
        "results.md",
        lambda: (
            mean("meld", "cogmen, class weights", "macro_f1") > mean("meld", "cogmen", "macro_f1")
            and ("cogmen, class weights", "cogmen") in shown_pairs("meld")
        ),
    ),
    "`cogmen, as released` is below the majority class here (why was not looked into).": (
        "results.md",
        lambda: mean("mosi", "cogmen, as released") < mean("mosi", "majority"),
    ),
    "Three modalities are not shown to be better than text alone with any model.": (
        "results.md",
        lambda: not any(f"{high}, text" == low for low, high in shown_pairs("mosi")),
    ),
    "No difference is shown between `bclstm` and its hierarchical forms.": (
        "results.md",
        lambda: not any(low.startswith("bclstm") and high.startswith("bclstm") for low, high in shown_pairs("mosi")),
    ),
    "Every model with context is shown to be above `concat`.": (
        "results.md",
        lambda: (
            {high for low, high in shown_pairs("demo") if low == "concat"}
            == {line.row.name for line in table("demo").lines} - {"concat", "majority"}
        ),
    ),
    "`dialoguernn`, `dialoguegcn` and `cogmen`, which know who speaks, have the three highest means; no difference "
    "between them is shown.": (
        "results.md",
        lambda: (
            sorted(table("demo").lines, key=lambda line: -line.test["weighted_f1"].mean)[2].row.name in SPEAKERS
            and not any(low in SPEAKERS and high in SPEAKERS for low, high in shown_pairs("demo"))
        ),
    ),
    "No difference is shown among `broad_mamba`, `lsdgnn`, `lmf` and `bclstm`.": (
        "results.md",
        lambda: not any(low in MIDDLE and high in MIDDLE for low, high in shown_pairs("demo")),
    ),
    "No difference is shown between the two forms of `bclstm`.": (
        "results.md",
        lambda: not any(low.startswith("bclstm") and high.startswith("bclstm") for low, high in shown_pairs("demo")),
    ),
    "`m2fnet`, whose fusion keeps to text, is in the lower half.": (
        "results.md",
        lambda: (
            "m2fnet"
            in [line.row.name for line in sorted(table("demo").lines, key=lambda line: line.test["weighted_f1"].mean)][
                : len(table("demo").lines) // 2
            ]
        ),
    ),
    "`dagerc` receives only the past; `lsdgnn`, which also looks up the other utterances, is above it.": (
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
    "context is not shown to be worth anything on MELD's text": (
        "../README.md",
        lambda: not any("concat" in pair for pair in shown_pairs("meld")),
    ),
}
"""Sentences about verdicts, the page they are on, and whether the tables say so."""


@pytest.mark.parametrize(
    "sentence",
    [pytest.param(sentence, marks=_marks(page != "missing-modalities.md")) for sentence, (page, _) in CLAIMS.items()],
)
def test_sentences_about_verdicts_are_true(sentence: str) -> None:
    page, holds = CLAIMS[sentence]
    assert sentence in " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert holds()


def write_tables() -> None:
    for name, (page, compute) in COMPUTED.items():
        path = DOCS / page
        before, _, after = split_at_table(path.read_text(encoding="utf-8"), name)
        path.write_text(before + "\n" + "\n".join(compute()) + "\n\n" + after, encoding="utf-8")
        print(f"docs/{page}: {name}")


if __name__ == "__main__":
    write_tables()
