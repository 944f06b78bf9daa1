"""Parts of the page about missing modalities."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from docs.computed.registry import register
from docs.computed.tables import table, verdict
from ercfusion.tables.robustness import RobustTable

PAGE = "docs/missing.md"
PROTOCOL = "demo/missing"


def missing_laws() -> list[str]:
    """One row per law: how it is typed, what it hides, and its name in papers."""
    from ercfusion.config.missing_laws import LAWS, meaning, syntax

    papers: dict[str, str] = {}
    rows = ["| law | meaning | published as |", "|---|---|---|"]
    for law in LAWS.values():
        names = []
        sources = law.paper.split("; ") if law.paper else []
        published_names = law.published.split("; ") if len(sources) > 1 else [law.published] * len(sources)
        for paper, published in zip(sources, published_names, strict=True):
            short, _, about = paper.partition(" (")
            papers[short] = about.replace(")", "", 1)
            names.append(f"{short}: {published}" if published else short)
        rows.append(f"| `{syntax(law)}` | {meaning(law)} | {'; '.join(names)} |")
    return [*rows, "", *textwrap.wrap("; ".join(f"{short}: {about}" for short, about in papers.items()) + ".", 120)]


def missing_groups() -> list[str]:
    """The law of every choice of the group ``missing``."""
    from importlib.resources import files

    import yaml

    folder = files("ercfusion") / "conf" / "missing"
    names = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
    laws = {name: yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))["train"] for name in names}
    return textwrap.wrap(", ".join(f"`missing={name}`: `{law}`" for name, law in laws.items()) + ".", 120)


def missing_policies() -> list[str]:
    """What every policy puts in place of an absent modality."""
    from ercfusion.config.missing_policies import POLICIES

    return [f"- `{name}`: {meaning}." for name, meaning in POLICIES.items()]


def demo_missing() -> list[str]:
    """Test weighted F1 of the exact posterior of ``demo/missing`` under every law of the standard grid."""
    from ercfusion.config.missing import grid_laws
    from ercfusion.data import ConversationStore, open_corpus

    corpus = open_corpus("demo")
    protocol = corpus.protocol(PROTOCOL)
    conversations = corpus.conversations(protocol)["test"]
    store = ConversationStore(conversations, list(corpus.features(protocol).values()), [protocol.task])

    def cells() -> Iterator[tuple[str, str]]:
        for law in grid_laws("standard", protocol.modalities):
            reached = corpus.reachable(protocol, "test", store.hidden(law, 0, "test").seen)
            yield str(law), f"{reached[protocol.task.metric]:.3f}"

    scores = dict(cells())
    patterns = {law.removeprefix("pattern:"): score for law, score in scores.items() if law.startswith("pattern")}
    rates = {law.removeprefix("rate:"): score for law, score in scores.items() if law.startswith("rate")}
    lines: list[str] = []
    for name, part in (("pattern", patterns), ("rate", rates)):
        lines += ["", f"| {name} | {' | '.join(part)} |", f"|---{'|---:' * len(part)}|"]
        lines.append(f"| exact posterior | {' | '.join(part.values())} |")
    return lines[1:]


COMPLETE = "rate:0"
HALF = "rate:0.5"
AREA = "AUILC rate"
TITLES = {COMPLETE: "complete", HALF: HALF, AREA: "AUILC"}


def _split_rows(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Rows ``MODEL, VARIANT`` by model and variant, and the other rows."""
    grid: dict[str, dict[str, str]] = {}
    others = []
    for name in names:
        model, _, variant = name.rpartition(", ")
        if model:
            grid.setdefault(model, {})[variant] = name
        else:
            others.append(name)
    return grid, others


def robust_scores(preset: str, conditions: Sequence[str] = (HALF, AREA)) -> list[str]:
    """One row per model: complete data, then every variant under the conditions."""
    from ercfusion.tables.cells import markdown_table, metric_name, number

    robust = _robust(preset)
    scores = {line.name: line.scores for line in robust.lines}
    grid, others = _split_rows(scores)
    variants = list(dict.fromkeys(variant for by_variant in grid.values() for variant in by_variant))

    def cell(row: str | None, condition: str) -> str:
        return "" if row is None else number(robust.metric, scores[row][condition].mean)

    columns = [(COMPLETE, variants[0]), *((name, variant) for name in conditions for variant in variants)]
    rows = [[metric_name(robust.metric), *(f"{TITLES[name]}, {variant}" for name, variant in columns)]]
    rows += [[model, *(cell(own.get(variant), name) for name, variant in columns)] for model, own in grid.items()]
    further = {name: [f"{TITLES[key]} {cell(name, key)}" for key in (COMPLETE, *conditions)] for name in others}
    if robust.reachable:
        exact = robust.reachable
        further["exact posterior"] = [
            f"{TITLES[key]} {number(robust.metric, exact[key])}" for key in (COMPLETE, *conditions)
        ]
    items = [f"- {name}: {', '.join(cells)}." for name, cells in further.items()]
    return [*markdown_table(rows).splitlines(), *(["", *items] if items else [])]


def robust_sentences(preset: str, conditions: Sequence[str] = (HALF, AREA)) -> list[str]:
    """Results of the paired tests under the conditions, as sentences."""
    robust = _robust(preset)
    lines: list[str] = []
    for name in conditions:
        pairs = robust.areas[name] if name in robust.areas else robust.under_laws[name]
        groups: dict[str, list[tuple[str, Any]]] = {}
        for pair in pairs:
            (one, first), (other, second) = map(_model_and_variant, pair.names)
            same = one == other and first
            label = f"{first} minus {second}" if same else f"{pair.names[0]} minus {pair.names[1]}"
            groups.setdefault(label, []).append((one, pair))
        for label, group in groups.items():
            text = f"- {TITLES[name]}, {label}: {verdict(robust.metric, group)}."
            lines += textwrap.wrap(text, 120, subsequent_indent="  ")
    return lines


def guided_sentences(preset: str) -> list[str]:
    """Results of the paired tests of guided students, as sentences."""
    computed = table(preset)
    pairs = [(pair.names[1], pair) for pair in computed.comparisons]
    text = f"- Guided minus not guided: {verdict(computed.metric, pairs)}."
    return textwrap.wrap(text, 120, subsequent_indent="  ")


def _robust(preset: str) -> RobustTable:
    robust = table(preset).robustness
    if robust is None:
        raise ValueError(f"experiments/{preset}: no record has scores with missing modalities. Repeat its runs.")
    return robust


def _model_and_variant(name: str) -> tuple[str, str]:
    model, _, variant = name.rpartition(", ")
    return (model, variant) if model else (variant, "")


register("missing laws", PAGE, missing_laws)
register("missing groups", PAGE, missing_groups)
register("missing policies", PAGE, missing_policies)
register("demo missing", PAGE, demo_missing)
register("robust scores demo-missing", PAGE, partial(robust_scores, "demo-missing"), "demo-missing")
register("robust sentences demo-missing", PAGE, partial(robust_sentences, "demo-missing"), "demo-missing")
register("robust scores mosi-missing", PAGE, partial(robust_scores, "mosi-missing", (AREA,)), "mosi-missing")
register("robust sentences mosi-missing", PAGE, partial(robust_sentences, "mosi-missing", (AREA,)), "mosi-missing")
for _preset in ("mosi-guided", "emodb-guided"):
    register(f"guided sentences {_preset}", PAGE, partial(guided_sentences, _preset), _preset)
