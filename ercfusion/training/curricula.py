"""The curriculum of a run: made from its training split, written to its folder and logged."""

from __future__ import annotations

import logging
from pathlib import Path

from ercfusion.config.choices import EmotionShift
from ercfusion.config.settings import Config
from ercfusion.data.curriculum import TABLE, Curriculum, build_curriculum, write_table
from ercfusion.data.store import ConversationStore
from ercfusion.training.callbacks import LAST

logger = logging.getLogger("ercfusion")


def curriculum_of(config: Config, train_store: ConversationStore) -> Curriculum | None:
    """The curriculum of ``config``, or None."""
    return build_curriculum(config.curriculum, train_store.conversations, train_store.tasks[0], config.root.seed)


def announce(config: Config, folder: Path, curriculum: Curriculum) -> None:
    """Write the curriculum's table and log its schedule."""
    settings, full = config.curriculum, curriculum.full_from + 1
    assert isinstance(settings, EmotionShift)
    if not (folder / LAST).is_file():  # a checkpoint of another curriculum is refused later
        write_table(folder / TABLE, curriculum)
    lowered = f" ({settings.buckets} were asked for)" if settings.buckets > curriculum.buckets else ""
    logger.info(
        "curriculum %s, %s: %d buckets%s; all conversations are in use from epoch %d",
        settings.choice + (" reversed" if settings.reverse else ""),
        curriculum.pacing,
        curriculum.buckets,
        lowered,
        full,
    )
    if config.training.max_epochs < full:
        logger.warning("training.max_epochs=%d: training ends before all are in use", config.training.max_epochs)
