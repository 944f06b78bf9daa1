"""A number about results in a sentence is computed from the records, or it is not written.

Numbers stand in blocks that ``python -m docs.computed`` writes, in sentences that :data:`SENTENCES` computes, or in a
table of dev scores under a comment that names the command (``<!-- measured on dev: ... -->``). What a phrase of
:data:`FIXED` says is no result of a run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from docs.computed.tables import EXPERIMENTS
from ercfusion.records.groups import Group
from ercfusion.tables.preset import read_preset
from ercfusion.training.tables import read_table_records, wanted_records

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "experiments/README.md",
    *(f"docs/{name}.md" for name in ("results", "statistics", "missing", "curricula")),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs" / "models").glob("*.md"))),
]
_MARK = "<!-- measured on dev: "
# Words that make a number near them one about results.
RESULT = (
    r"points?|percent|%|±|\+-|better|worse|above|below|higher|lower|weighted F1|macro F1|F1|accurac\w+|MAE|errors?|"
    r"comparisons?|differences?|seeds?|losses|loses?|test (?:utterances|conversations|videos)|"
    r"of the (?:way|models|others|rows)"
)
NUMBER = r"(?<![\w.^-])[-+]?\d[\d,.]*(?:\d|(?=\W|$))"
WORDS = r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
SPAN = 4  # words between a number and what makes it one about results


@cache
def groups(preset: str) -> dict[str, Group]:
    """The runs of a table by row: records only, nothing is resampled."""
    found = read_preset(EXPERIMENTS / f"{preset}.yaml")
    records = wanted_records(found, read_table_records(found, [EXPERIMENTS / preset]))
    return {name: Group(name, tuple(part)) for name, part in records.items() if part}


def mean(preset: str, row: str, metric: str, split: str = "test") -> float:
    return float(groups(preset)[row].values(metric, split).mean())


def class_f1(row: str, label: str) -> float:
    return 100 * float(np.mean([r["splits"]["test"]["per_class"][label]["f1"] for r in groups("meld")[row].records]))


def size(preset: str) -> int:
    return int(next(iter(groups(preset).values())).records[0]["splits"]["test"]["conversations"])


# Sentences with numbers


def conversations(preset: str, words: str) -> Callable[[], str]:
    return lambda: words.format(size(preset))


def fear_and_disgust() -> str:
    """How often the rare classes are found."""
    first = groups("meld")["concat"].records[0]["splits"]["test"]
    rare = sum(int(first["per_class"][label]["support"]) for label in ("fear", "disgust"))
    rows = [name for name in groups("meld") if name not in ("majority", "cogmen, class weights")]
    best = {label: max(rows, key=lambda row: class_f1(row, label)) for label in ("fear", "disgust")}
    told = " and ".join(f"{class_f1(row, label):.1f} % for {label} (`{row}`)" for label, row in best.items())
    return f"Without class weights the highest F1 is {told}, {rare} of {first['utterances']:,} test utterances."


def dev_accuracy() -> str:
    """That dev cannot choose on CMU-MOSI."""
    rows = groups("mosi-fusion")
    text, visual = (
        {round(100 * mean("mosi-fusion", row, "accuracy", "dev")) for row in rows if row.endswith(f", {name}")}
        for name in ("text", "visual")
    )
    (one,) = text
    low, high = sorted(visual)
    return (
        f"Dev accuracy on text rounds to {one} % with every model, and on the visual vectors to {low} or {high} %, "
        "although they predict nothing on test."
    )


SENTENCES: dict[str, list[Callable[[], str]]] = {
    "README.md": [conversations("meld", "The test split has {} conversations.")],
    "docs/results.md": [
        conversations("meld", "Seven emotions, {} test conversations."),
        conversations("mosi", "Negative or positive, {} test videos."),
        conversations("demo", "Six emotions, {} test conversations, **synthetic**."),
        fear_and_disgust,
    ],
    "docs/missing.md": [dev_accuracy],
}
"""By page: sentences that hold numbers, as the records say them."""

CLAIMS: dict[str, tuple[str, Callable[[], bool]]] = {
    "even their best test epochs, a diagnostic, do not reach it": (
        "docs/models/bclstm.md",
        lambda: all(
            float(np.mean([record["optimism"]["test_selected"] for record in groups("mosi")[row].records])) < 0.803
            for row in ("bclstm, hierarchical", "bclstm, as published")
        ),
    ),
    "Audio and visual features on their own are below the majority class with every model.": (
        "docs/missing.md",
        lambda: all(
            mean("mosi-fusion", row, "accuracy") < mean("mosi-fusion", "majority", "accuracy")
            for row in groups("mosi-fusion")
            if row.endswith((", audio", ", visual"))
        ),
    ),
}
"""Clauses without a computed number, the page they are on, and whether the records say so."""


def test_the_first_row_of_cogmens_table_is_the_recorded_one() -> None:
    values = groups("meld")["cogmen"].values("weighted_f1", "dev")
    row = f"| none | {values.mean():.4f} +- {values.std(ddof=1):.4f} |"
    assert row in (ROOT / "docs" / "models" / "cogmen.md").read_text(encoding="utf-8")


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("page", "compute"), [(page, compute) for page, several in SENTENCES.items() for compute in several]
)
def test_sentences_with_numbers_follow_from_the_records(page: str, compute: Callable[[], str]) -> None:
    sentence = compute()
    assert sentence in flat((ROOT / page).read_text(encoding="utf-8")), f"{page} should say: {sentence}"


@pytest.mark.parametrize("clause", CLAIMS)
def test_clauses_follow_from_the_records(clause: str) -> None:
    page, holds = CLAIMS[clause]
    assert clause in flat((ROOT / page).read_text(encoding="utf-8"))
    assert holds()


# The scan

# What is no result of a run, by page ("" for all), as regular expressions: definitions, settings, rules, sizes.
FIXED: dict[str, tuple[str, ...]] = {
    "": (
        r"\b95 % (interval|prediction)",
        r"intervals? that leaves? out 0",
        r"(seeds|of seeds) 0 to [24]\b",
        r"(is|are)? ?above 0\b",
        r"(all )?[Tt]hree modalities",
        r"[Tt]wo questions",
        r"two (other )?forms",
        r"three highest means",
        r"(the|these|those) two modalities",
    ),
    "docs/results.md": (r"between the majority class \(0 %\) and the exact posterior \(100 %\)",),
    "docs/statistics.md": (
        r"of 20 pairs of equal models one has p < 0\.05",
        r"adjusted p below 0\.05",
        r"fewer than five seeds \(`FEW_SEEDS`\) or 20 conversations",
        r"Percent of 1,000 replicates, weighted F1 \(standard error 0\.7\)\. Accepted: 92 to 98 for intervals, 2 to 8",
        r"truth of macro F1 on 31 conversations in 86\.2 % only",
        r"fewer than 12 test conversations \(with 8, an interval of one run held the truth in 89\.0 %\)",
        r"fewer than 5 conversations with an error",
        r"between seeds above 0\.035",
    ),
    "docs/missing.md": (r"seven models that take any subset",),
    "docs/models/dialoguernn.md": (r"at 0\.1, after 20 utterances 12 % of a state's numbers have never been dropped",),
}
# Pages with tables of a simulation: a number of the prose may be one of the tables, rounded or not.
PRINTED = ("docs/statistics.md",)


def printed(page: str) -> set[str]:
    """The numbers in the tables of a page, with all digits and rounded."""
    lines = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    numbers = re.findall(r"\d+(?:\.\d+)?", " ".join(lines))
    return {*numbers, *(f"{float(each):.{digits}f}" for each in numbers for digits in (0, 1, 2))}


def prose(page: str) -> str:
    """The text of a page without code blocks, computed blocks, tables and comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    text = re.sub(r"(?s)<!-- computed: (.*?) -->.*?<!-- end: \1 -->", "", text)
    text = re.sub(r"(?s)<!--.*?-->", "", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))


def sentences(text: str) -> Iterator[str]:
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for block in re.split(r"\n\s*\n|\n(?=- )", text):
        yield from re.split(r"(?<=[.:;!?])\s+(?=[A-Z`*(\[-])", flat(block))


def suspects(sentence: str) -> list[str]:
    """Numbers close to a word about results."""
    bare = re.sub(r"`[^`]*`", "CODE", sentence)
    gap = rf"(?:\s*\S+){{0,{SPAN}}}?\s*"
    number = f"(?:{NUMBER}|{WORDS})"
    near = re.compile(rf"({number}){gap}(?:{RESULT})(?!\w)|(?<!\w)(?:{RESULT}){gap}({number})")
    return [(match[1] or match[2]).rstrip(",.") for match in near.finditer(bare)]


def unregistered(page: str, text: str) -> list[str]:
    """Sentences that hold a number about results and are not computed."""
    known = [compute() for compute in SENTENCES.get(page, ())]
    known += [clause for clause, (where, _) in CLAIMS.items() if where == page]
    # A known sentence may be cut in several parts by the splitting, and a phrase is part of one.
    text = flat(text)
    for entry in sorted(known, key=len, reverse=True):
        text = text.replace(entry, "KNOWN.")
    for pattern in (*FIXED.get(page, ()), *FIXED[""]):
        text = re.sub(pattern, "FIXED", text)
    allowed = printed(page) if page in PRINTED else set()
    return [sentence for sentence in sentences(text) if set(suspects(sentence)) - allowed]


@pytest.mark.parametrize("page", PAGES)
def test_no_number_about_results_is_typed(page: str) -> None:
    text = "\n\n".join(part for part in re.split(r"\n\s*\n", prose(page)))
    found = [entry for block in re.split(r"\n\s*\n|\n(?=- )", text) for entry in unregistered(page, block)]
    assert not found, f"{page}: computed (tests/test_prose.py, python -m docs.computed), or removed: {found}"


@pytest.mark.parametrize(
    "sentence",
    [
        "`bclstm` is 3.4 points better.",
        "Seven others are 2 to 3 points better.",
        "Of 154 comparisons 16 are shown.",
        "It goes 88 % of the way.",
        "The mean is 0.806 ± 0.007 over five seeds.",
        "It reaches an accuracy of 77.1.",
        "Its weighted F1 is 0.81.",
        "`a` and 74.4 of `b`, which is above it.",
        "The intervals are 2.5 points wide.",
    ],
)
def test_the_scan_finds_typed_numbers(sentence: str) -> None:
    assert unregistered("docs/results.md", sentence)


def typed_tables(page: str) -> Iterator[tuple[str, str]]:
    """Header of every table that is not computed, and the comment before it."""
    text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"(?s)<!-- computed: (.*?) -->.*?<!-- end: \1 -->", "", text)
    lines = [line for line in text.splitlines() if line.strip()]
    for before, line, after in zip(["", *lines], lines, lines[1:]):
        if line.startswith("|") and re.fullmatch(r"[|:\- ]+", after):
            yield before, line


SCORED = re.compile(r"(?i)\b(train|dev|test|f1|accuracy|mae|loss|score)\b")


@pytest.mark.parametrize("page", PAGES)
def test_typed_tables_of_scores_show_dev_only_and_name_the_command(page: str) -> None:
    from ercfusion.config.compose import Composer
    from ercfusion.config.overrides import expand_protocol

    for before, header in typed_tables(page):
        if not SCORED.search(header):
            continue
        assert not re.search(r"(?i)\btest\b", header), f"{page}: test scores are computed from records: {header}"
        assert before.startswith(_MARK), f"{page}: no command before the table {header}"
        words = shlex.split(before.removeprefix(_MARK).removesuffix(" -->"))
        assert words[:3] == ["python", "-m", "ercfusion.train"]
        composer = Composer()
        for combination in composer.expand([word for word in words[3:] if word != "-m"]):
            composer.compose([part for setting in combination for part in expand_protocol(setting)])
