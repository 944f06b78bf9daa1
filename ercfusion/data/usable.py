"""Checks of splits and features before training.

The test split is opened last, and extraction of features may take longer than training: faults are reported first.
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
"""Splits that need labels."""


def check_splits(protocol: Protocol, splits: Splits, needed: Sequence[str] = ("train", "dev", "test")) -> list[str]:
    """Check that the splits of a run exist, can be read and, except for test, have labels.

    Only train needs labels of all tasks.

    Returns:
        Splits without labels of the first task, which are predicted but not scored: ``["test"]`` or nothing.

    Raises:
        ConfigError: a split is missing or empty, or train or dev has no label.
        CorpusFormatError: an invalid target.
    """
    sizes = ", ".join(f"{name}: {len(part)}" for name, part in splits.items())
    unlabelled = []
    for split in needed:
        conversations = splits.get(split, [])
        if not conversations:
            raise ConfigError(
                f"{protocol.id}: the {split} split has no conversations (conversations found: {sizes}). Add some: "
                "training needs train, dev and test (which may be unlabelled)."
            )
        for task in protocol.tasks:
            valid = encode_targets(conversations, task).valid
            if bool(valid.any()):
                continue
            if split in LABELLED and (split == "train" or task == protocol.task):
                purpose = "nothing could be learned" if split == "train" else "no epoch could be chosen"
                raise ConfigError(
                    f"{protocol.id}: none of the {len(valid)} utterances of the {split} split is labelled for the task "
                    f"{task.name!r}: {purpose}. Label some of them, or choose another protocol "
                    "(data.protocol=...) or other tasks (data.tasks=...)."
                )
            if task == protocol.task:
                unlabelled.append(split)
    return unlabelled


def check_presence(tables: Sequence[FeatureTable], splits: Splits, places: Mapping[str, str]) -> None:
    """Warn of modalities missing in all turns of a split; ``places`` are folders of packs, by modality.

    Raises:
        BatchError: a table has no turn of the corpus, or no turn of a split has any modality.
    """
    keys = {split: [key for one in part for key in one.keys()] for split, part in splits.items() if part}  # noqa: SIM118
    present = {
        table.modality: {split: int((table.rows(turns) >= 0).sum()) for split, turns in keys.items()}
        for table in tables
    }
    for table in tables:
        if keys and not any(present[table.modality].values()):
            where = f" (data.packs.{table.modality}={places[table.modality]})" if table.modality in places else ""
            first = next(iter(keys.values()))[0]
            raise BatchError(
                f"features {table.modality!r}{where} hold none of the {sum(map(len, keys.values()))} turns of the "
                f"corpus (first looked for: {first}; first held: {table.keys[0] if table.keys else 'none'}): they "
                "were made for other conversation and turn ids. Make them for this corpus."
            )
    for split, turns in keys.items():
        lacking = [table.modality for table in tables if not present[table.modality][split]]
        if tables and len(lacking) == len(tables):
            raise BatchError(
                f"none of the {len(turns)} turns of the {split} split has any features ({', '.join(lacking)}). Extract "
                f"them for the {split} split too."
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
