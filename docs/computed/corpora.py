"""Parts of pages about corpora."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from docs.computed.registry import register, register_built


def _outputs(protocol: Any) -> str:
    task = protocol.task
    outputs = f"{task.size}" if task.schema else f"{task.low:g} to {task.high:g}"
    kind = task.kind.replace("_", " ")
    if protocol.view is not None:
        kind = f"{kind} of [dialogues](tasks.md#dialogue-sets)"
    return outputs if task.kind == "single_label" else f"{kind}, {outputs}"


def _sizes(corpus: Any, protocol: Any) -> list[str]:
    counts: Mapping[str, Mapping[str, int]] = corpus.card.counts
    if corpus.card.synthetic:
        splits = corpus().conversations(protocol)
        counts = {
            split: {"conversations": len(part), "utterances": sum(map(len, part))} for split, part in splits.items()
        }
    return [
        "{conversations:,} / {utterances:,}".format(**counts[split]) if split in counts else ""
        for split in ("train", "dev", "test")
    ]


def corpora_table() -> list[str]:
    """One row per group of protocols with the same task and sizes, from the cards."""
    from ercfusion.data import CORPORA
    from ercfusion.data.corpora import corpus_class

    rows = ["| protocol | labels or range | metric | train | dev | test |", "|---|---|---|---|---|---|"]
    for name in CORPORA:
        corpus = corpus_class(name)
        groups: dict[tuple[str, ...], list[str]] = {}
        for identifier, protocol in corpus.protocols.items():
            cells = (_outputs(protocol), f"`{protocol.task.metric}`", *_sizes(corpus, protocol))
            groups.setdefault(cells, []).append(identifier)
        before: tuple[str, ...] = ()
        for cells, (first, *more) in groups.items():
            label = f"`{first}`" + (f" (+{len(more)})" if more else "")
            sizes = ("",) * 3 if cells[2:] == before else cells[2:]
            rows.append(f"| {' | '.join([label, *cells[:2], *sizes])} |")
            before = cells[2:]
    return rows


def card_of(name: str) -> list[str]:
    """How to get a corpus, its modalities, licence, dev split, files, paper and known issues, from its card."""
    from ercfusion.data.corpora import corpus_class

    corpus = corpus_class(name)
    card = corpus.card
    sources = dict.fromkeys(protocol.dev_source for protocol in corpus.protocols.values())
    modalities = dict.fromkeys(one for protocol in corpus.protocols.values() for one in protocol.modalities)
    lines = [f"**{card.title}.** {card.citation}", "", f"*How to get it*: {card.obtain}", ""]
    lines += [f"- *Modalities*: {', '.join(modalities)}", f"- *Licence*: {card.licence}"]
    lines += [f"- *Dev split*: {'; '.join(sources)}", ""]
    if card.layout:
        lines += ["Files in `DIR`:", "", "```text", *card.layout, "```", ""]
    if card.known_issues:
        lines += ["Known issues:", "", *(f"- {issue}" for issue in card.known_issues)]
    return [*lines, ""]


def iemocap_sessions() -> list[str]:
    """One row per session of IEMOCAP: rated and labelled utterances."""
    from ercfusion.data.corpora.iemocap import LABELS, UTTERANCES

    labels = list(LABELS[1])
    rows = [f"| session | rated | {' | '.join(labels)} |", "|---" * (len(labels) + 2) + "|"]
    for session, counts in LABELS.items():
        cells = [f"{session}", f"{UTTERANCES[session]:,}", *(f"{counts[label]}" for label in labels)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def demo_parameters() -> list[str]:
    """One row per variant: the parameters of its process."""
    from ercfusion.data.corpora.demo import PROCESSES

    names = ("inertia", "contagion", "groups", "flat", "product", "cue", "key", "recall_rate", "recall_gap", "missing")
    rows = [f"| protocol | {' | '.join(f'`{name}`' for name in (*names, 'turns'))} |", "|---" * (len(names) + 2) + "|"]
    for identifier, process in PROCESSES.items():
        cells = []
        for name in names:
            value = getattr(process, name)
            shown = ", ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value:g}"
            cells.append("" if shown == "0" or (name == "recall_gap" and not process.recall_rate) else shown)
        rows.append(f"| `{identifier}` | {' | '.join(cells)} | {process.turns[0]}-{process.turns[1]} |")
    return rows


def demo_ceilings() -> list[str]:
    """One row per variant: test weighted F1 of exact observers, of guesses, and the gain of the F1-optimal rule."""
    from ercfusion.data import open_corpus
    from ercfusion.data.corpora.demo import DemoCorpus

    corpus = open_corpus("demo")
    assert isinstance(corpus, DemoCorpus)
    scores = {name: corpus.ceilings(protocol, "test") for name, protocol in corpus.protocols.items()}
    observers = list(dict.fromkeys(observer for by_observer in scores.values() for observer in by_observer))
    header = [*(f"`{name}`" for name in observers), "guess", "F1 rule"]
    rows = [f"| protocol | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for name, by_observer in scores.items():
        cells = [
            f"{by_observer[observer]['weighted_f1']:.3f}" if observer in by_observer else "" for observer in observers
        ]
        guess, gain = _guess_and_gain(corpus, corpus.protocols[name])
        rows.append(f"| `{name}` | {' | '.join([*cells, f'{guess:.3f}', f'+{gain:.4f}'])} |")
    return rows


def _guess_and_gain(corpus: Any, protocol: Any) -> tuple[float, float]:
    """Weighted F1 of guesses by the prior, and the expected gain of the F1-optimal rule over the most probable labels.

    An F1-optimal decision maximises the expected score under the posterior p, sum over c of w_c 2 h_c / s_c with
    h_c = sum of p_ic over the turns with label c, and s_c = sum of p_ic plus the number of these turns. Fixed points
    find it: the gain of one more turn with c is w_c (2 p_ic / s_c - 2 h_c / s_c ** 2).
    """
    import numpy as np

    from ercfusion.data.corpora.demo import PROCESSES

    several = protocol.task.kind == "multi_label"
    truth = np.array([target_of(turn, protocol.task.name) for one in corpus.conversations(protocol)["test"]
                      for turn in one.turns])  # fmt: skip
    share = truth.sum(axis=0) / truth.sum()
    rate = np.array(PROCESSES[protocol.id].prior) @ PROCESSES[protocol.id].label_rates
    # F1 of a class with the true rate t, guessed at the rate r: 2 t r / (t + r).
    guess = float((share * 2 * truth.mean(axis=0) * rate / (truth.mean(axis=0) + rate)).sum())
    p = corpus.posterior(protocol, "test")

    def decided(value: Any) -> Any:
        return value > 0 if several else value == value.max(axis=1, keepdims=True)

    def expected(d: Any) -> float:
        return float((p.sum(axis=0) / p.sum() * 2 * (p * d).sum(axis=0) / (p.sum(axis=0) + d.sum(axis=0))).sum())

    decisions = [decided(p - 0.5)]
    for _ in range(20):
        size, hits = p.sum(axis=0) + decisions[-1].sum(axis=0), (p * decisions[-1]).sum(axis=0)
        decisions.append(decided(p.sum(axis=0) / p.sum() * (2 * p / size - 2 * hits / size**2)))
    return guess, max(map(expected, decisions)) - expected(decisions[0])


def target_of(turn: Any, task: str) -> list[bool]:
    """The label set of a turn of demo, in the schema's order."""
    from ercfusion.data.corpora._demo_process import SCHEMA

    value = turn.targets[task].value
    names = {value} if isinstance(value, str) else set(value)
    return [label in names for label in SCHEMA.labels]


def _register_cards() -> None:
    from ercfusion.config.corpora import CORPORA

    def part(name: str) -> Callable[[], list[str]]:
        return lambda: card_of(name)

    for name in CORPORA:
        if name != "custom":
            register_built(f"card of {name}", "docs/corpora.md", part(name))


register("corpora", "docs/corpora.md", corpora_table)
register_built("demo parameters", "docs/corpora.md", demo_parameters)
register("demo ceilings", "docs/corpora.md", demo_ceilings)
register_built("iemocap sessions", "docs/corpora.md", iemocap_sessions)
_register_cards()
