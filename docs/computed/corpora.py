"""Parts of pages about corpora."""

from __future__ import annotations

from typing import Any

from docs.computed.registry import register


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


register("corpora", "docs/corpora.md", corpora_table)
register("licences", "docs/corpora.md", licences_table)
register("demo parameters", "docs/corpora.md", demo_parameters)
register("demo ceilings", "docs/corpora.md", demo_ceilings)
register("demo rules", "docs/corpora.md", demo_rules)
