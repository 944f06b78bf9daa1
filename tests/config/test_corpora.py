"""The options of a corpus are those of its reader's constructor, for the package's corpora and one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config.compose import Composer
from ercfusion.config.corpora import CORPORA, corpus_options
from ercfusion.data import open_corpus
from ercfusion.train import main as train

OWN = '''
from typing import Annotated, Literal

from ercfusion.config.options import IfGiven, Range
from ercfusion.data.corpora import register
from ercfusion.data.corpora.meld import MeldCorpus


class Counted(MeldCorpus):
    """Counts.

    Args:
        size: How many; None for all.
        kind: Which.
    """

    def __init__(
        self,
        raw=None,
        *,
        size: Annotated[int, Range(1, 8)] | None = 3,
        kind: Literal["a", "b"] = "a",
        words: tuple[str, ...] = ("x",),
        part: Annotated[int | None, Range(1, 8), IfGiven] = None,
    ):
        super().__init__(raw)
        self.given = (size, kind, words, part)


register("counted_corpus", "my_counted_corpus:Counted")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a corpus of one's own, which is registered."""
    (tmp_path / "my_counted_corpus.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(CORPORA, "counted_corpus", "my_counted_corpus:Counted")
    monkeypatch.delitem(sys.modules, "my_counted_corpus", raising=False)
    return "counted_corpus"


def test_a_configuration_has_the_options_of_its_corpus() -> None:
    found = {name: Composer().compose([f"data={name}"], options=False)["data"]["options"] for name in CORPORA}
    sdk = {"text": "GloVe", "audio": "COVAREP", "visual": "Facet42", "level": "utterance", "align": "none"}
    assert {name: options for name, options in found.items() if options} == {
        "demo": {"seed": 0},
        "mosei": sdk,
        "mosi_sdk": sdk,
        "semeval2025": {"language": "eng"},
        "custom": {"split_seed": None, "encoding": None, "missing": [], "order": None},
    }
    for name, options in found.items():
        assert list(options) == [option.name for option in corpus_options(name) if not option.if_given]


def test_every_option_has_a_meaning() -> None:
    assert not [(name, entry.name) for name in CORPORA for entry in corpus_options(name) if not entry.meaning]
    assert not [(name, entry.name) for name in CORPORA for entry in corpus_options(name) if entry.type is None]


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("mosei", "level=word", r"data\.options\.level must be one of utterance, sequence; found 'word' \(corpus 'mo"),
        ("custom", "split_seed=[1]", r"data\.options\.split_seed takes a whole number, found "),
        ("custom", "order=last", r"data\.options\.order must be one of turn, start, file, or null; found 'last'"),
        ("demo", "train=0", r"data\.options\.train must be from 1 to .*, found 0 \(corpus 'demo'\)"),
        ("demo", "seed=-1", r"data\.options\.seed must be from 0 to .*, found -1"),
        ("demo", "sede=1", r"corpus 'demo' has no setting 'sede'\. Did you mean 'seed'\?"),
        ("meld", "sede=1", r"corpus 'meld' has no setting 'sede'\. It has none: remove it\."),
    ],
)
def test_wrong_values_are_refused_before_anything_is_read(name: str, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Composer().compose([f"data={name}", f"data.options.{setting}"], options=False)


def test_a_file_is_named_with_its_wrong_value(tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text("data: mosei\ndata.options.level: word\n")
    with pytest.raises(ConfigError, match=r"best\.yaml.*: data\.options\.level must be one of"):
        Composer().compose(Composer().settings(str(tmp_path / "best.yaml")), options=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: demo\noptions:\n  train: 9\n")
    assert Composer(config_dir=str(tmp_path)).compose(["data=mine"])["data"]["options"] == {"seed": 0, "train": 9}
    (tmp_path / "data" / "mine.yaml").write_text("name: demo\noptions:\n  trian: 9\n")
    with pytest.raises(ConfigError, match=r"no setting 'trian'\. Did you mean 'train'"):
        Composer(config_dir=str(tmp_path)).compose(["data=mine"])


def test_a_corpus_of_ones_own(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    composed = Composer().compose([f"data={own}", "data.options.size=5"], options=False)["data"]["options"]
    assert composed == {"size": 5, "kind": "a", "words": ["x"]}
    assert open_corpus(own, None, **composed, part=2).given == (5, "a", ["x"], 2)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"data\.options\.kind must be one of a, b; found 'c'"):
        open_corpus(own, kind="c")
    with pytest.raises(ConfigError, match=r"data\.options\.words takes a list, found 'x'"):
        open_corpus(own, words="x")
    assert train([f"data={own}", "data.options.size=7", "--help"]) == 0
    assert capsys.readouterr().out == (
        "data=counted_corpus: Counts.\n\n"
        "Options (value: allowed values):\n"
        "  data.options.size=7 (default: 3): 1 to 8, or null\n      How many; null for all\n"
        "  data.options.kind=a: a, b\n      Which\n"
        "  data.options.words=[x]: a list\n"
        "  data.options.part=null: 1 to 8, or null\n"
    )


def test_help_of_a_corpus_without_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--help", "data=meld"]) == 0
    assert capsys.readouterr().out.endswith("\n\nIts reader has no options.\n")


def test_the_readers_load_no_torch() -> None:
    code = (
        "import sys; from ercfusion.config.corpora import CORPORA, corpus_options\n"
        "for name in CORPORA: corpus_options(name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
