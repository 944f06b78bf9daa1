"""Parts of pages about results, from the records in ``experiments/``."""

from __future__ import annotations

import re
import textwrap
from functools import partial

from docs.computed.registry import register
from docs.computed.tables import table

SUBSETS = ("text", "audio", "visual", "text + audio", "text + visual", "audio + visual", "all three")


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
    for verdict in verdict_lines(table(preset)):
        line = re.sub(r" \(([\d.]+, )?(not certain)\)", r" (\2)", re.sub(r" \([\d.]+\)", "", verdict))
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
    from ercfusion.tables.cells import number

    computed = table(preset)
    better = "higher" if computed.metric == "accuracy" else "lower"
    lines: list[str] = []
    for words, part in (
        ("All three modalities minus text", [pair for pair in computed.comparisons if ", text" in pair.names[1]]),
        ("All three modalities, minus `concat`", [pair for pair in computed.comparisons if pair.names[1] == "concat"]),
    ):
        ends = [f(part, key=lambda pair: pair.difference) for f in (min, max)]
        least, most = (f"{number(computed.metric, e.difference, sign=True)} (`{e.names[0]}`)" for e in ends)
        shown = [f"`{e.names[0]}`" + ("" if e.certain else " (not certain)") for e in part if e.shown]
        verdict = f"shown for {', '.join(shown)}" if shown else "none is shown"
        lines += textwrap.wrap(
            f"- {words}: {least} to {most}, {better} is better; {verdict}.", 120, subsequent_indent="  "
        )
    return lines


def result_subsets(preset: str, metric: str) -> list[str]:
    """One row per model, one column per subset of the modalities, from the rows `MODEL` and `MODEL, SUBSET`."""
    from ercfusion.tables.cells import markdown_table, metric_name, spread

    scores = {line.row.name: spread(metric, line.test[metric]) for line in table(preset).lines}
    models = [name for name in scores if f"{name}, text" in scores]
    rows = [[model, *(scores.get(f"{model}, {subset}", scores[model]) for subset in SUBSETS)] for model in models]
    return markdown_table([[metric_name(metric), *SUBSETS], *rows]).splitlines()


for _preset in ("meld", "mosi", "demo"):
    register(f"scores {_preset}", "docs/results.md", partial(result_scores, _preset), _preset)
    register(f"verdicts {_preset}", "docs/results.md", partial(result_verdicts, _preset), _preset)
    register(f"notes {_preset}", "docs/results.md", partial(result_notes, _preset), _preset)
register("shares meld", "docs/results.md", partial(result_shares, "meld"), "meld")
register("main scores", "README.md", partial(result_scores, "meld", complete=False), "meld")
register(
    "subsets mosi-fusion accuracy", "docs/missing.md", partial(result_subsets, "mosi-fusion", "accuracy"), "mosi-fusion"
)
for _preset in ("mosi-fusion", "mosi-fusion-score"):
    register(f"pair sentences {_preset}", "docs/missing.md", partial(result_pair_sentences, _preset), _preset)
