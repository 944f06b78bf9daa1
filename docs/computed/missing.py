"""Parts of the page about missing modalities."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from docs.computed.registry import register

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


register("missing laws", PAGE, missing_laws)
register("missing groups", PAGE, missing_groups)
register("missing policies", PAGE, missing_policies)
register("demo missing", PAGE, demo_missing)
