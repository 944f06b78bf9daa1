"""Parts of pages about results, from the records in ``experiments/``."""

from __future__ import annotations

import textwrap
from functools import partial

from docs.computed.registry import register
from docs.computed.tables import table

SUBSETS = ("text", "audio", "visual", "text + audio", "text + visual", "audio + visual", "all three")


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


def result_subsets(preset: str, metric: str) -> list[str]:
    """A line a model, a column a subset of the modalities, from the rows `MODEL` and `MODEL, SUBSET`."""
    from ercfusion.tables.render import markdown_table, metric_name, spread

    scores = {line.row.name: spread(metric, line.test[metric]) for line in table(preset).lines}
    models = [name for name in scores if f"{name}, text" in scores]
    rows = [[model, *(scores.get(f"{model}, {subset}", scores[model]) for subset in SUBSETS)] for model in models]
    return markdown_table([[metric_name(metric), *SUBSETS], *rows]).splitlines()


for _preset in ("meld", "mosi", "demo"):
    register(f"scores {_preset}", "docs/results.md", partial(result_scores, _preset), _preset)
    register(f"verdicts {_preset}", "docs/results.md", partial(result_verdicts, _preset), _preset)
    register(f"notes {_preset}", "docs/results.md", partial(result_notes, _preset), _preset)
    register(f"optimism {_preset}", "docs/results.md", partial(result_optimism, _preset), _preset)
register("shares meld", "docs/results.md", partial(result_shares, "meld"), "meld")
register("main scores", "README.md", partial(result_scores, "meld"), "meld")
register("main notes", "README.md", partial(result_notes, "meld"), "meld")
register("main verdicts", "README.md", partial(result_verdicts, "meld"), "meld")
register("main shares", "README.md", partial(result_shares, "meld"), "meld")
for _preset, _metrics in (
    ("mosi-fusion", ("accuracy", "weighted_f1")),
    ("mosi-fusion-score", ("mae", "pearson", "acc7")),
):
    for _metric in _metrics:
        _compute = partial(result_subsets, _preset, _metric)
        register(f"subsets {_preset} {_metric}", "docs/missing-modalities.md", _compute, _preset)
    register(f"pairs {_preset}", "docs/missing-modalities.md", partial(result_pairs, _preset), _preset)
    register(
        f"pair sentences {_preset}", "docs/missing-modalities.md", partial(result_pair_sentences, _preset), _preset
    )
for _preset in ("meld-emotion", "meld-sentiment"):
    register(f"pairs {_preset}", "docs/tasks.md", partial(result_pairs, _preset), _preset)
