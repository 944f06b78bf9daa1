"""What can be known about splits and features before anything is trained.

A run opens the test split last. Whatever is wrong with it must be found before the first epoch, and what is wrong with
the conversations before features are extracted, which may take much longer than training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ercfusion._core.errors import BatchError, ConfigError
from ercfusion.data.corpus import Protocol, Splits
from ercfusion.data.features import FeatureTable
from ercfusion.data.store import encode_targets

logger = logging.getLogger("ercfusion")

LABELLED = ("train", "dev")
"""Splits that cannot do without labels: one is trained on, the other chooses the epoch."""


def check_splits(protocol: Protocol, splits: Splits, needed: Sequence[str] = ("train", "dev", "test")) -> list[str]:
    """Check that every split that a run needs is there, can be read and, but for test, has labels.

    Args:
        protocol: Its tasks are looked at; only train needs labels of all of them.
        splits: As the corpus gives them.
        needed: Names of the splits that will be used.

    Returns:
        Those without any label of the first task, which are then predicted but not scored: ``["test"]`` or nothing.

    Raises:
        ConfigError: a split is missing or empty, or train or dev has no label.
        CorpusFormatError: a target is not one of the task's; the message names conversation and turn.
    """
    sizes = ", ".join(f"{name}: {len(part)}" for name, part in splits.items())
    unlabelled = []
    for split in needed:
        conversations = splits.get(split, [])
        if not conversations:
            raise ConfigError(
                f"{protocol.id}: the {split} split has no conversations (conversations found: {sizes}). Training needs "
                "train, dev and test; only the turns of test may be without labels."
            )
        for task in protocol.tasks:
            valid = encode_targets(conversations, task).valid
            if bool(valid.any()):
                continue
            if split in LABELLED and (split == "train" or task == protocol.task):
                purpose = "nothing could be learned" if split == "train" else "no epoch could be chosen"
                raise ConfigError(
                    f"{protocol.id}: none of the {len(valid)} utterances of the {split} split is labelled for the task "
                    f"{task.name!r}, so that {purpose}. Label some of them, or choose another protocol "
                    "(data.protocol=...)."
                )
            if task == protocol.task:
                unlabelled.append(split)
    return unlabelled


def check_presence(tables: Sequence[FeatureTable], splits: Splits, places: Mapping[str, str]) -> None:
    """Warn of a modality that a whole split lacks; its turns are treated as any turn without the modality.

    Args:
        tables: The features that will be used.
        splits: All conversations of the corpus.
        places: Where features came from, by modality, for modalities from a pack.

    Raises:
        BatchError: a table holds no turn of the corpus, or all turns of a split lack all modalities.
    """
    keys = {split: [key for one in part for key in one.keys()] for split, part in splits.items() if part}  # noqa: SIM118
    held = {
        table.modality: {split: int((table.rows(turns) >= 0).sum()) for split, turns in keys.items()}
        for table in tables
    }
    for table in tables:
        if keys and not any(held[table.modality].values()):
            where = f" (data.packs.{table.modality}={places[table.modality]})" if table.modality in places else ""
            first = next(iter(keys.values()))[0]
            raise BatchError(
                f"features {table.modality!r}{where} hold none of the {sum(map(len, keys.values()))} turns of the "
                f"corpus (first looked for: {first}; first held: {table.keys[0] if table.keys else 'none'}): they "
                "were made for other conversation and turn ids. Make them for this corpus."
            )
    for split, turns in keys.items():
        lacking = [table.modality for table in tables if not held[table.modality][split]]
        if tables and len(lacking) == len(tables):
            raise BatchError(
                f"none of the {len(turns)} turns of the {split} split has any features ({', '.join(lacking)}): extract "
                f"them for the {split} split too"
            )
        for name in lacking:
            where = f" (data.packs.{name}={places[name]})" if name in places else ""
            logger.warning(
                "none of the %d turns of the %s split has the modality %r%s: they are treated as turns without it",
                len(turns),
                split,
                name,
                where,
            )
