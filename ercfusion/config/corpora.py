"""Corpora as choices of the configuration. This module knows them by name, and imports none of them."""

from __future__ import annotations

from pathlib import Path

from ercfusion._core.registry import Registry

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
