"""A run: from a configuration to a folder with a dev-selected model and its record.

A run folder has the files below; with a curriculum also ``curriculum.csv`` (difficulty and first epoch of every
conversation), with ``task.export`` also ``packs`` (one feature pack per modality)::

    config.json          the resolved configuration      overrides.json   what the user typed
    environment.json     versions and machine            train.log        the log
    metrics.csv          one row per epoch               checkpoints/     last.ckpt, to resume from
    model/               the chosen model (save_pretrained)
    predictions.parquet  dev and test                    plots/*.png
    record.json          written last: a folder with it is complete
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError, TrainingError, first_line, require_extra
from ercfusion._core.files import sha256_of
from ercfusion._core.registry import import_modules as import_modules
from ercfusion._core.schemas.reading import failure
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.views import source_of
from ercfusion.config.missing import training_law
from ercfusion.config.settings import Config
from ercfusion.data.sampler import ConversationSampler
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import LoadedData, load_data
from ercfusion.metrics.registry import get_metric
from ercfusion.models.base import BATCH_NOTE
from ercfusion.plots.curriculum import plot_curriculum
from ercfusion.plots.pictures import draw_pictures, task_history
from ercfusion.records.missing import hidden_store, missing_record
from ercfusion.records.predictions import prediction_file, write_predictions
from ercfusion.records.record import FORMAT, RECORD, read_record, task_record, write_record
from ercfusion.records.robust_runs import exact_scores
from ercfusion.tables.report import model_card, summary
from ercfusion.tasks.heads import class_weights
from ercfusion.tasks.objective import build_objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.build import batch_dependence, build_recognizer, untrained
from ercfusion.training.callbacks import (
    HISTORY,
    LAST,
    MODEL,
    BatchSeed,
    RestrictedCheckpointIO,
    Selection,
    TrainingBar,
    best_row,
    read_history,
)
from ercfusion.training.checkpoint_schema import ADVICE
from ercfusion.training.checks import (
    before_features,
    check_disk,
    check_finite,
    check_selectable,
    check_thresholds,
)
from ercfusion.training.cost import RunClock, count_parameters, peak_memory_mib, reset_peak_memory
from ercfusion.training.curricula import announce, curriculum_of
from ercfusion.training.export import check_exportable, export
from ercfusion.training.folder import FOLDER_VARIABLE as FOLDER_VARIABLE  # re-exported for users of this module
from ercfusion.training.folder import discard_if_empty as discard_if_empty
from ercfusion.training.folder import free_folder as free_folder
from ercfusion.training.folder import (
    has_begun,
    is_first_process,
    log_file,
    quiet_trainer,
    read_environment,
    read_overrides,
)
from ercfusion.training.folder import new_run_folder as new_run_folder
from ercfusion.training.folder import open_run_folder as open_run_folder
from ercfusion.training.module import ConversationModule, TrainingBatches
from ercfusion.training.origin import make_origin, other_versions
from ercfusion.training.processes import end_meeting, from_first_process, joint_step, trainer_environment
from ercfusion.training.scoring import robust_parts, scored_splits, scored_views, view_record
from ercfusion.training.stages import staged, train_stages
from ercfusion.training.start import begin, write_start
from ercfusion.training.teacher import teacher_line, teacher_outputs, teacher_record, write_teacher

logger = logging.getLogger("ercfusion")

# Lightning logs hints at INFO, and sets that level on import.
for _chatty in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)

# Training


def train(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Train or resume in ``folder``, then score the chosen model once on test.

    Args:
        config: As in ``config.json``.
        folder: From :func:`new_run_folder` or :func:`open_run_folder`.

    Returns:
        The record; None in additional processes.
    """
    if (folder / RECORD).is_file():
        logger.info("%s: this run is complete already", folder)
        return read_record(folder) if is_first_process() else None
    with joint_step("the folder and the imports"):
        if is_first_process():  # find damage before training
            read_overrides(folder)
            read_environment(folder)
        import_modules(config["imports"])
    settings = Config.from_dict(config)
    with log_file(folder / "train.log") as write_log, quiet_trainer():
        if settings.training.threads is not None:
            torch.set_num_threads(settings.training.threads)
        with joint_step("the data"):
            begun = has_begun(folder)
            if begun and is_first_process() and (versions := other_versions(folder)):
                logger.warning("resuming with other versions than at the start: %s", ", ".join(versions))
            data = load_data(settings.data, before_features(settings), refuse_changed=not begun)
            train_store, dev_store = data.store("train"), data.store("dev")
            metric = settings.training.metric or data.protocol.task.metric
            origin = make_origin(config, folder, data)
        reset_peak_memory()
        with from_first_process():
            effective, stages = train_stages(config, folder, data, untrained, fit)
            clock = RunClock()
            device = fit(effective, folder, train_store, dev_store, metric, origin, clock.epoch)
        if not is_first_process():
            return None
        seconds = clock.seconds(read_history(folder / HISTORY))
        record = finish(settings, folder, data, train_store, dev_store, metric, device, seconds, stages)
        write_log(f"{summary(record)}\n{folder}")
        return record


def fit(
    config: Config,
    folder: Path,
    train_store: ConversationStore,
    dev_store: ConversationStore,
    metric: str,
    origin: Mapping[str, Any],
    on_epoch: Callable[[int, float], None] | None = None,
) -> str:
    """Run the trainer; ``folder/model`` then holds the chosen model. Returns the device's name.

    Args:
        folder: With a checkpoint, training is resumed.
        dev_store: Complete, like ``train_store``: the laws of ``config.missing`` apply here.
        metric: The score choosing the epoch.
        origin: From :func:`ercfusion.training.origin.make_origin`.
        on_epoch: See :class:`ercfusion.training.callbacks.Selection`.

    Raises:
        ResumeError: the checkpoint is of another run, settings or data.
    """
    settings, machine = config.training, config.trainer
    dev_store = hidden_store(dev_store, config.missing, "dev")
    recognizer = build_recognizer(config, train_store)
    last = folder / LAST
    start = begin(recognizer, settings, folder, resumed=last.is_file())
    if config.task.export:
        check_exportable(recognizer)  # fail before training
    task = recognizer.task
    check_selectable(dev_store, recognizer.head, metric)
    if settings.thresholds == "dev":
        check_thresholds(dev_store)
    else:
        recognizer.fix_thresholds(settings.thresholds)
    if is_first_process():
        check_disk(folder, recognizer, settings)
    targets = train_store.targets[task.name]
    weights = class_weights(targets, task, config.objective.class_weights)
    others = {name: train_store.targets[name] for name in recognizer.others}
    teacher = teacher_outputs(config, folder, train_store, recognizer, origin["data"])
    objective = build_objective(
        config.objective,
        recognizer,
        targets,
        weights,
        others,
        train_store,
        complete=settings.complete_pass,
        teacher=None if teacher is None else teacher.hidden.shape[1],
    )
    curriculum = curriculum_of(config, train_store)
    interactive = sys.stderr.isatty() and is_first_process()
    selection = Selection(
        folder,
        dev_store,
        metric,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        curriculum=curriculum,
        keep_every_epoch=settings.keep_every_epoch,
        verbose=is_first_process(),
        on_epoch=on_epoch,
    )
    callbacks: list[pl.Callback] = [BatchSeed(config.root.seed), selection]
    if interactive:
        callbacks.append(TrainingBar())
    sinks = _tensorboard(folder) if settings.tensorboard else False
    try:
        trainer = pl.Trainer(
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.num_nodes,
            strategy=machine.strategy,
            precision=machine.precision,  # type: ignore[arg-type]  # one of its choices
            max_epochs=settings.max_epochs,
            accumulate_grad_batches=settings.accumulate_grad_batches,
            gradient_clip_val=settings.gradient_clip or None,
            callbacks=callbacks,
            logger=sinks,
            plugins=[RestrictedCheckpointIO(origin), trainer_environment(machine)],
            default_root_dir=str(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=0 if curriculum is None else 1,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
    except (MisconfigurationException, ValueError) as error:
        shown = ", ".join(f"{name}={value}" for name, value in asdict(machine).items())
        reason = first_line(error).rstrip(".!")
        raise ConfigError(
            f"cannot create a trainer with {shown} on this machine: {reason}. Set "
            "trainer.accelerator and trainer.devices to what the machine has."
        ) from error
    try:
        sampler = ConversationSampler(
            train_store.lengths,
            settings.batch_size,
            config.root.seed,
            length_aware=settings.length_aware,
            world_size=trainer.world_size,
            rank=trainer.global_rank,
            curriculum=curriculum,
            limit=settings.limit_train_batches,
            passes=2 if settings.complete_pass else 1,
        )
    except ValueError as error:
        raise ConfigError(
            f"training.batch_size={settings.batch_size} with {trainer.world_size} processes: {error}. Set "
            "another training.batch_size or trainer.devices."
        ) from error
    module = ConversationModule(
        recognizer,
        objective,
        config.optimizer,
        config.scheduler,
        maximize=get_metric(metric).higher_is_better,
        steps=sampler.steps(settings.max_epochs, settings.accumulate_grad_batches),
        modality_dropout=settings.modality_dropout,
        law=training_law(config.missing),
        complete_pass=settings.complete_pass,
        teacher=teacher,
    )
    if is_first_process():
        if teacher is not None:
            write_teacher(folder, teacher)
            logger.info("%s", teacher_line(teacher.about))
        if start is not None and not last.is_file():
            write_start(folder, start)
        logger.info(
            "%s on %s: %s training utterances of %s conversations, %s parameters, %s",
            config.preset.model,
            config.data.name,
            f"{train_store.num_utterances:,}",
            f"{len(train_store):,}",
            f"{count_parameters(recognizer):,}",
            "resuming" if last.is_file() else f"up to {settings.max_epochs} epochs",
        )
        for line in () if start is None else start.lines():
            logger.info("%s", line)
        if dependence := batch_dependence(config.model):
            logger.warning("%s", BATCH_NOTE.format(dependence))
        if curriculum is not None:
            announce(config, folder, curriculum)
    batches = TrainingBatches(train_store, sampler, pin_memory=trainer.strategy.root_device.type == "cuda")
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    except ErcfusionError as error:
        if not is_first_process():
            raise SystemExit(0) from None  # the first process reports it
        if isinstance(error, TrainingError):
            left = f"{folder} has the log; {selection.progress}"
            raise TrainingError(f"{error}\n{left}. Begin a new run with other settings in another folder.") from error
        raise
    except SystemExit:
        if trainer.interrupted:  # the trainer turns Ctrl-C into an exit
            raise KeyboardInterrupt from None
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        if selection.began or not last.is_file():
            raise
        # Only a changed file makes the trainer fail on its part of a checkpoint.
        problem = f" cannot be loaded by the trainer: {type(error).__name__}: {error}"
        raise failure(RunError, last, problem, ADVICE) from error
    finally:
        if trainer.world_size > 1:
            end_meeting()
    if trainer.interrupted:
        raise KeyboardInterrupt
    if is_first_process():
        selection.check_model()
    root = trainer.strategy.root_device
    return torch.cuda.get_device_name(root) if root.type == "cuda" else "cpu"


def _tensorboard(folder: Path) -> Any:
    require_extra("tensorboard", "report", "training.tensorboard=true")
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=str(folder), name="tensorboard", version="")


# Finishing


def finish(
    config: Config,
    folder: Path,
    data: LoadedData,
    train_store: ConversationStore,
    dev_store: ConversationStore,
    metric: str,
    device: str,
    seconds: float,
    stages: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Score the chosen model on dev and test, and write all results.

    Dev and test are scored under the laws of ``config.missing``. Without test labels the split is predicted only;
    ``unlabelled`` of the record says so.

    Raises:
        TrainingError: a test output is not finite.
    """
    recognizer = Recognizer.from_pretrained(folder / MODEL)
    task = recognizer.task
    rule = config.training.thresholds
    dev_store = hidden_store(dev_store, config.missing, "dev")
    dev = {name: recognizer.choose_thresholds(part, rule) for name, part in recognizer.predict_all(dev_store).items()}
    test_store = hidden_store(data.store("test"), config.missing, "test")
    test = recognizer.predict_all(test_store)
    stores = {"dev": dev_store, "test": test_store}
    predictions = {name: {"dev": dev[name], "test": test[name]} for name in dev}
    for outputs in test.values():
        check_finite(outputs, "test")
    views = scored_views(recognizer.tasks, data.views, predictions, stores, rule)
    metrics = {name: metric if name == task.name else parts["dev"].task.metric for name, parts in predictions.items()}
    scored = {
        name: scored_splits(parts, train_store, metrics[name], config.training) for name, parts in predictions.items()
    }
    history = read_history(folder / HISTORY, metric)
    best = best_row(history, metric)
    corpus, protocol = data.corpus, data.protocol
    own = scored.pop(task.name)
    # The exact posterior sees the run's modalities, with the same holes.
    reachable = {}
    for split, store in stores.items():
        exact = exact_scores(data, split)
        reachable[split] = {} if exact is None else dict(exact(store.seen))
    record: dict[str, Any] = {
        "format": FORMAT,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": {key: value for key, value in read_overrides(folder).items() if key != "run"},
        "config": config.to_dict(),
        "environment": read_environment(folder),
        "seed": config.root.seed,
        "device": device,
        "protocol": protocol.id,
        "task": task.to_dict(),
        "corpus": {
            "name": corpus.name,
            "synthetic": corpus.card.synthetic,
            "fingerprint": data.fingerprint,
            "dev_source": protocol.dev_source,
            "train": {"conversations": len(train_store), "utterances": train_store.num_utterances},
            **{f"reachable_{name}": value for name, value in reachable["test"].items()},
        },
        "features": [
            {"modality": table.modality, "width": table.width, "level": table.level, "source": table.source}
            for table in data.tables
        ],
        "selection": {"split": "dev", "metric": metric, "epoch": int(best["epoch"]), "epochs": len(history)},
        **{key: own.pop(key) for key in ("metrics", "intervals", "majority", "splits")},
        "cost": {
            "parameters": count_parameters(recognizer),
            "seconds": round(seconds + sum(stage["seconds"] for stage in stages), 2),
            "seconds_per_epoch": round(float(np.mean([row["seconds"] for row in history])), 3),
            "peak_memory_mib": round(peak_memory_mib(device), 1),
            "threads": torch.get_num_threads(),
        },
    }
    record |= own | staged(config, folder, stages) | teacher_record(folder)
    if missing := missing_record(config.missing, stores):
        record["missing"] = missing
    if "start" in record:
        record["cost"]["parameters"] = record["start"]["trainable"]
    robust = robust_parts(config.missing, recognizer, data, test_store, test, metrics)
    record |= robust[task.name]
    if scored:
        record["others"] = {
            name: {**_about(predictions[name]["dev"].task, data, record), **sections, **robust[name]}
            for name, sections in scored.items()
        }
    if views:
        record["views"] = {
            name: {
                **_about(parts["dev"].task, data, record),
                **view_record(parts, source_of(parts["dev"].task, recognizer.tasks), train_store, config.training),
            }
            for name, parts in views.items()
        }
    if dependence := batch_dependence(config.model):
        record["batch_dependence"] = dependence
    if corpus.card.synthetic:
        record["corpus"]["reachable"] = reachable
    recognizer.save_pretrained(folder / MODEL, card=model_card(record, corpus.card))
    record["files"] = {}
    for name, parts in (predictions | views).items():
        file = write_predictions(folder / prediction_file(record, name), parts)
        record["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    if config.training.pictures:
        draw_pictures(folder / "plots", history, predictions[task.name], record)
        for name in recognizer.others:
            own_history, view = task_history(history, name), task_record(record, name)
            draw_pictures(folder / "plots" / name, own_history, predictions[name], view)
        curriculum = curriculum_of(config, train_store)
        if curriculum is not None:
            (folder / "plots").mkdir(exist_ok=True)
            plot_curriculum(
                curriculum,
                folder / "plots" / "curriculum.png",
                len(history),
                title=f"Curriculum {config.curriculum.choice} on {protocol.id}, train split",
                synthetic=corpus.card.synthetic,
            )
    if config.task.export:
        record["packs"] = export(recognizer, data, folder)
    write_record(folder, record)
    return record


def _about(task: TaskSpec, data: LoadedData, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "protocol": data.protocol_of(task.name),
        "task": task.to_dict(),
        "selection": {**record["selection"], "metric": task.metric},
    }
