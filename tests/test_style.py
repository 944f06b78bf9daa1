"""The language of the pages and the package: ``python tests/style.py`` prints what these tests refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import style

GROUPS = {"pages": style.pages, "package": style.modules}
EACH = pytest.mark.parametrize("group", ["pages", pytest.param("package", marks=pytest.mark.slow)])


def test_the_pages_have_at_most_so_many_words() -> None:
    total = sum(sum(style.count(path)) for path in style.pages())
    assert 1000 < total <= style.WORDS


@EACH
def test_no_long_sentence_no_refused_phrase_no_name_without_meaning(group: str) -> None:
    paths = GROUPS[group]()
    assert len(paths) > 20
    assert not [fault for path in paths for fault in style.faults(path)]


@EACH
def test_rates_of_words_are_those_of_readable_projects(group: str) -> None:
    rates = style.rates(GROUPS[group]())
    assert not {word: rate for word, rate in rates.items() if rate > style.RATES[word]}


def test_faults_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nIt starts anew.\n\n{'word ' * 40}end.\n\n```\nanew\n```\n", encoding="utf-8")
    module = tmp_path / "module.py"
    module.write_text('"""Says it anew."""\n\nfound = 1  # beside it\n', encoding="utf-8")
    assert len(list(style.faults(page))) == 2
    assert len(list(style.faults(module))) == 3
    assert style.count(page) == (46, 0)
