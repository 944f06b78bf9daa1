"""Corpora as choices of the configuration: names and defaults of the readers' options.

The module of a corpus is imported when a configuration chooses it, and does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion._core.registry import Registry
from ercfusion.config.options import Option, check_options, options_of, with_defaults

CORPORA: Registry[object] = Registry(
    "corpus",
    {
        "demo": "ercfusion.data.corpora.demo:DemoCorpus",
        "meld": "ercfusion.data.corpora.meld:MeldCorpus",
        "emorynlp": "ercfusion.data.corpora.emorynlp:EmoryNlpCorpus",
        "mosi": "ercfusion.data.corpora.mosi:MosiCorpus",
        "emotionlines": "ercfusion.data.corpora.emotionlines:EmotionLinesCorpus",
        "iemocap": "ercfusion.data.corpora.iemocap:IemocapCorpus",
        "mosei": "ercfusion.data.corpora.sdk:MoseiCorpus",
        "mosi_sdk": "ercfusion.data.corpora.sdk:MosiSdkCorpus",
        "m3ed": "ercfusion.data.corpora.m3ed:M3edCorpus",
        "dailydialog": "ercfusion.data.corpora.dailydialog:DailyDialogCorpus",
        "emodb": "ercfusion.data.corpora.emodb:EmodbCorpus",
        "ravdess": "ercfusion.data.corpora.ravdess:RavdessCorpus",
        "semeval2025": "ercfusion.data.corpora.semeval2025:SemEval2025Corpus",
        "custom": "ercfusion.data.corpora.custom:CustomCorpus",
    },
)
"""The corpora by name."""


def store_corpora(config_dir: str | None) -> None:
    """Add every corpus without a file to the group ``data``."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.repo.pop("data", None)  # choices of an earlier folder
    folders = [Path(__file__).parents[1] / "conf", *([Path(config_dir)] if config_dir else [])]
    for name in CORPORA:
        if not any((folder / "data" / f"{name}.yaml").is_file() for folder in folders):
            store.store(group="data", name=name, node={"name": name})


def corpus_options(name: str) -> tuple[Option, ...]:
    """The options of a corpus's reader."""
    return options_of(CORPORA.load(name))


def complete_corpus(composed: Any) -> None:
    """Add the defaults of the corpus options to a composed configuration."""
    from omegaconf import OmegaConf, open_dict

    data = composed.get("data")
    if not data or data.get("name") not in CORPORA:
        return
    name = data["name"]
    given: Any = OmegaConf.to_container(data["options"]) if data.get("options") else {}
    with open_dict(composed):
        data["options"] = with_defaults(f"corpus {name!r}", corpus_options(name), given)


def check_corpus(data: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the options in the section ``data`` are allowed."""
    if data["name"] in CORPORA:
        check_corpus_options(data["name"], data["options"])


def check_corpus_options(name: str, given: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless a corpus has these options and allows their values."""
    check_options(f"corpus {name!r}", "data.options", corpus_options(name), given)
