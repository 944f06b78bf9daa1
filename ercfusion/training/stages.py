"""Run the stages of a recipe: each but the last is a complete training in ``RUN/stages/1-NAME``.

A stage has its own ``config.json``, log, history, checkpoint and dev-selected model, and never reads the test split.
``stage.json`` is written last: a stage with it is complete. The next stage starts from its chosen model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ercfusion._core.errors import RunError
from ercfusion._core.files import sha256_of, write_json
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.settings import Config
from ercfusion.config.stages import stage_configs
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData, load_data
from ercfusion.records.run_schema import Stage as StageFile
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.callbacks import HISTORY, LAST, MODEL, best_row, read_history
from ercfusion.training.checks import before_features
from ercfusion.training.cost import RunClock, count_parameters
from ercfusion.training.folder import CONFIG, STAGES, has_begun, log_file
from ercfusion.training.origin import make_origin
from ercfusion.training.start import freeze, matching, model_folder, read_start

logger = logging.getLogger("ercfusion")

STAGE = "stage.json"


@dataclass(frozen=True)
class Staged:
    """A stage before the run itself.

    Args:
        name: Of the stage.
        folder: ``RUN/stages/1-NAME``.
        content: Resolved configuration.
        config: The same, typed, with the folder of its initial weights.
        data: Corpus and features.
    """

    name: str
    folder: Path
    content: dict[str, Any]
    config: Config
    data: LoadedData

    @property
    def metric(self) -> str:
        """The score that chooses its epoch."""
        return self.config.training.metric or self.data.protocol.task.metric


def train_stages(
    content: Mapping[str, Any],
    folder: Path,
    data: LoadedData,
    build: Callable[[Config, ConversationStore], Recognizer],
    fit: Callable[..., str],
) -> tuple[Config, list[dict[str, Any]]]:
    """Train or resume the stages before the run itself.

    Args:
        content: Configuration of the run.
        folder: Of the run.
        data: Of the run.
        build: Creates an unprepared recognizer, to check all stages before the first one is trained.
        fit: :func:`ercfusion.training.run.fit`.

    Returns:
        The configuration of the run itself, with its initial weights; and the contents of all ``stage.json``.

    Raises:
        ConfigError: a stage does not fit the one before.
        RunError: a stage is damaged or incomplete although a later one began.
    """
    own = Config.from_dict(content)
    stages = _stages(content, folder, data)
    if not stages:
        return own, []
    last = _following(own, stages, own.training.teacher)
    waiting = [stage for stage in stages if not (stage.folder / STAGE).is_file()]
    _check_order(stages, folder)
    if waiting:
        ordered = [(stage.config, stage.data) for stage in stages if stage.name != own.training.teacher]
        _check_parts([*ordered, (last, data)], build)
    records = []
    for number, stage in enumerate(stages, start=1):
        logger.info(
            "stage %d of %d: %s%s", number, len(stages) + 1, stage.name, "" if stage in waiting else ", complete"
        )
        if stage in waiting:
            _train(stage, folder, fit)
        records.append(read_json(stage.folder / STAGE, StageFile, advice="Restore the file, or begin a new run."))
    logger.info("stage %d of %d: the run itself", len(stages) + 1, len(stages) + 1)
    return last, records


def _following(config: Config, stages: Sequence[Staged], teacher: str | None) -> Config:
    """A configuration that starts from the last stage, and learns from its teacher; ``teacher`` is not a start."""
    before = [stage.folder for stage in stages if stage.name != teacher]
    taught = [str(stage.folder) for stage in stages if stage.name == config.training.teacher]
    training = replace(config.training, start_from=str(before[-1])) if before else config.training
    return replace(config, training=replace(training, teacher=taught[0]) if taught else training)


def _stages(content: Mapping[str, Any], folder: Path, data: LoadedData) -> list[Staged]:
    stages: list[Staged] = []
    teacher = content["training"].get("teacher")
    for number, (name, own) in enumerate(stage_configs(content).items(), start=1):
        config = Config.from_dict(own)
        if name != teacher:
            config = _following(config, stages, teacher)
        check = before_features(config, ("train", "dev"))
        if own["data"] == content["data"]:
            loaded = data
            check(data.protocol, data.splits)
        else:
            loaded = load_data(config.data, check)
        stages.append(Staged(name, folder / STAGES / f"{number}-{name}", own, config, loaded))
    return stages


def _check_order(stages: list[Staged], folder: Path) -> None:
    """Raise :class:`RunError` for an incomplete stage although a later one, or the run itself, has a checkpoint."""
    begun = [(stage.folder / LAST).is_file() for stage in stages] + [(folder / LAST).is_file()]
    for number, stage in enumerate(stages):
        if any(begun[number + 1 :]) and not (stage.folder / STAGE).is_file():
            raise RunError(
                f"{stage.folder} has no {STAGE}, although a later stage began. Restore the folder, or begin a new run."
            )


def _check_parts(
    parts: list[tuple[Config, LoadedData]], build: Callable[[Config, ConversationStore], Recognizer]
) -> None:
    """Raise :class:`ConfigError` for parts to load or freeze that do not exist, before anything is trained."""
    before: Recognizer | None = None
    for config, data in parts:
        recognizer = build(config, data.store("train"))
        if before is None and config.training.start_from is not None:
            before = Recognizer.from_pretrained(model_folder(config.training.start_from))
        if before is not None:
            matching(recognizer, before, config.training.load)
        freeze(recognizer, config.training.freeze)
        before = recognizer


def _train(stage: Staged, run: Path, fit: Callable[..., str]) -> None:
    """Train or resume one stage, and write its ``stage.json``."""
    folder = stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_json(folder / CONFIG, stage.content)
        clock = RunClock()
        train_store, dev_store = stage.data.store("train"), stage.data.store("dev")
        with log_file(folder / "train.log"):
            origin = make_origin(stage.content, run, stage.data)
            fit(stage.config, folder, train_store, dev_store, stage.metric, origin, clock.epoch)
    except BaseException:
        if not has_begun(folder):
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
        raise
    history = read_history(folder / HISTORY, stage.metric)
    best = best_row(history, stage.metric)
    start = read_start(folder)
    model = Recognizer.from_pretrained(folder / MODEL)
    content = {
        "name": stage.name,
        "protocol": stage.data.protocol.id,
        "selection": {"split": "dev", "metric": stage.metric, "epoch": int(best["epoch"]), "epochs": len(history)},
        "score": round(best[f"dev/{stage.metric}"], 6),
        "parameters": count_parameters(model) if start is None else start["trainable"],
        "seconds": round(clock.seconds(history), 2),
        "sha256": sha256_of(folder / MODEL / "model.safetensors"),
        **({} if start is None else {"start": start}),
    }
    write_json(folder / STAGE, content)


def staged(config: Config, folder: Path, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record's parts about initial weights, frozen parts and stages; empty if all is as usual."""
    parts: dict[str, Any] = {}
    if (start := read_start(folder)) is not None:
        parts["start"] = start
    if stages:
        parts["recipe"] = {"name": config.recipe.name, "stages": list(stages)}
    return parts
