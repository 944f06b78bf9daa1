"""Corpora as choices of the configuration: their names, and the defaults of their readers' options.

This module knows corpora by name, and imports none of them; that of a corpus is imported when a configuration chooses
it, and loads no torch.
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
        "custom": "ercfusion.data.corpora.custom:CustomCorpus",
    },
)
"""The corpora by name."""


def store_corpora(config_dir: str | None) -> None:
    """Make every corpus a choice of the group ``data`` that has no file of its name there.

    Args:
        config_dir: A user's own folder of groups.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.repo.pop("data", None)  # what another folder left to be stored
    folders = [Path(__file__).parents[1] / "conf", *([Path(config_dir)] if config_dir else [])]
    for name in CORPORA:
        if not any((folder / "data" / f"{name}.yaml").is_file() for folder in folders):
            store.store(group="data", name=name, node={"name": name})


def corpus_options(name: str) -> tuple[Option, ...]:
    """The options of a corpus: those of its reader's constructor."""
    return options_of(CORPORA.load(name))


def complete_corpus(composed: Any) -> None:
    """Give a composed configuration the defaults of the options of its corpus.

    Args:
        composed: Of omegaconf; changed in place.

    Raises:
        ConfigError: a preset names an option that its corpus does not have.
    """
    from omegaconf import OmegaConf, open_dict

    data = composed.get("data")
    if not data or data.get("name") not in CORPORA:
        return
    name = data["name"]
    given: Any = OmegaConf.to_container(data["options"]) if data.get("options") else {}
    with open_dict(composed):
        data["options"] = with_defaults(f"corpus {name!r}", corpus_options(name), given)


def check_corpus(data: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the options in the section ``data`` can have their values."""
    if data["name"] in CORPORA:
        check_corpus_options(data["name"], data["options"])


def check_corpus_options(name: str, given: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the corpus has these options and they can have their values."""
    check_options(f"corpus {name!r}", "data.options", corpus_options(name), given)
