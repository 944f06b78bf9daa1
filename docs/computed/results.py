"""Parts of pages about results, from the records in ``experiments/``."""

from __future__ import annotations

import re
import textwrap
from functools import partial

from docs.computed.registry import register
from docs.computed.tables import table, verdict


def result_scores(preset: str, *, complete: bool = True) -> list[str]:
    """The first score of a table; if complete, with the second, optimism, the choice of settings, published scores."""
    from ercfusion.tables.cells import interval, markdown_table, metric_name, number, spread
    from ercfusion.tables.render import published_text
    from ercfusion.tables.tuning import tuning_of

    computed = table(preset)
    first, second = computed.metrics[:2]
    rows = [["model", f"test {metric_name(first)}", "95 % interval"]]
    with_published = any(line.published for line in computed.lines)
    if complete:
        reached = ["reached"] if computed.reachable is not None else []
        rows[0] += [metric_name(second), *reached, "optimism", "settings", *["published"] * with_published]
    for line in computed.lines:
        score = line.test[first]
        row = [
            line.row.name,
            spread(first, score),
            interval(first, score.low, score.high, bool(score.cautions)),
        ]
        if complete:
            row.append(number(second, line.test[second].mean))
        if complete and computed.reachable is not None and computed.floor is not None:
            share = 100 * (score.mean - computed.floor) / (computed.reachable - computed.floor)
            row.append(f"{round(share, 1) + 0.0:.1f} %")  # + 0.0: -0.0 becomes 0.0
        if complete:
            row.append(number(first, line.optimism.gap, sign=True) if line.optimism else "")
            kind = tuning_of(line, computed.preset.config_dir).kind
            row.append("" if kind == "none" else kind)
        if complete and with_published:
            row.append("; ".join(published_text(first, paper, gap) for paper, gap in line.published))
        rows.append(row)
    return markdown_table(rows).splitlines()


def result_notes(preset: str) -> list[str]:
    """Which rows of a table were tuned, and the marks of its published numbers."""
    from ercfusion.tables.render import published_legend
    from ercfusion.tables.tuning import tuning_note

    legend = published_legend(table(preset))
    if legend:
        legend = f"*Published* has our mean minus it in parentheses. {legend}"
    notes = [note for note in (tuning_note(table(preset), brief=True), legend) if note]
    return "\n\n".join(textwrap.fill(note, 120, break_on_hyphens=False) for note in notes).splitlines()


def result_verdicts(preset: str) -> list[str]:
    """The shown differences of a table as sentences; their sizes are on the table's page."""
    from ercfusion.tables.verdicts import verdict_lines

    lines: list[str] = []
    for sentence in verdict_lines(table(preset)):
        line = re.sub(r" \(([\d.]+, )?(not certain)\)", r" (\2)", re.sub(r" \([\d.]+\)", "", sentence))
        lines += textwrap.wrap(line, 120, subsequent_indent="  " if line.startswith("- ") else "") or [""]
    return lines


def result_shares(preset: str) -> list[str]:
    """Number of shown differences to the variants of `cogmen`, and of the others."""
    shown = [pair.names for pair in table(preset).comparisons if pair.shown]
    forms = ("cogmen, class weights", "cogmen, as released")
    against = [sum(form in names for names in shown) for form in forms]
    left = sum(not set(forms) & set(names) for names in shown)
    text = (
        f"Of the {len(shown)} shown differences {against[0]} involve `{forms[0]}`, {against[1]} involve "
        f"`{forms[1]}`, and {left} are between other rows."
    )
    return textwrap.wrap(text, 120)


def result_pair_sentences(preset: str) -> list[str]:
    """Results of the planned comparisons of modalities as sentences."""
    computed = table(preset)
    lines: list[str] = []
    for words, part in (
        ("All three modalities minus text", [pair for pair in computed.comparisons if ", text" in pair.names[1]]),
        ("All three modalities, minus `concat`", [pair for pair in computed.comparisons if pair.names[1] == "concat"]),
    ):
        text = verdict(computed.metric, [(pair.names[0], pair) for pair in part])
        lines += textwrap.wrap(f"- {words}: {text}.", 120, subsequent_indent="  ")
    return lines


for _preset in ("meld", "mosi", "demo"):
    register(f"scores {_preset}", "docs/results.md", partial(result_scores, _preset), _preset)
    register(f"verdicts {_preset}", "docs/results.md", partial(result_verdicts, _preset), _preset)
    register(f"notes {_preset}", "docs/results.md", partial(result_notes, _preset), _preset)
register("shares meld", "docs/results.md", partial(result_shares, "meld"), "meld")
register("main scores", "README.md", partial(result_scores, "meld", complete=False), "meld")
for _preset in ("mosi-fusion", "mosi-fusion-score"):
    register(f"pair sentences {_preset}", "docs/missing.md", partial(result_pair_sentences, _preset), _preset)
