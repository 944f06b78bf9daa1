"""Names, defaults, ranges and meanings of all settings.

Those that depend on a choice are in :mod:`ercfusion.config.choices`; options of models and corpora are in the
constructors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ercfusion.config.fields import setting
from ercfusion.config.missing_policies import POLICIES
from ercfusion.config.terms import TASK_LOSSES

_MANY = 1_000_000
THRESHOLDS = ("dev", "uniform", "half")
REGRESSION_LOSSES = ("mse", "mae", "ccc", "gaussian")


@dataclass(frozen=True)
class Root:
    """Top level."""

    seed: int = setting(
        0,
        "seed of initial weights, batches and dropout (of the corpus `demo`: `data.options.seed`)",
        low=-(1 << 63),
        high=(1 << 63) - 1,
        searchable=False,
        decides="run",
    )
    imports: tuple[str, ...] = setting(
        (),
        "your modules with models, corpora, metrics, task kinds or loss terms: `imports=[my_models]`",
        pattern="module",
        searchable=False,
        decides="run",
    )
    run: str | None = setting(
        None,
        "folder of the run, empty or absent; null: a new one in `output`",
        path="file",
        searchable=False,
        decides="nothing",
    )
    output: str = setting(
        "outputs",
        "parent of run folders: `OUTPUT/train/MODEL-DATA/TIME-seedSEED`",
        path="file",
        searchable=False,
        decides="nothing",
    )
    resume: str | None = setting(
        None, "folder of an interrupted run to resume", path="file", searchable=False, decides="nothing"
    )


@dataclass(frozen=True)
class Training:
    """Training of a model."""

    batch_size: int = setting(16, "conversations per batch, over all processes", low=1, high=_MANY)
    length_aware: bool = setting(True, "sort by length within pools of 8 batches, to reduce padding")
    standardize: bool = setting(True, "standardise feature dimensions with mean and deviation of the training split")
    max_epochs: int = setting(30, "maximum number of epochs", low=1, high=_MANY)
    patience: int = setting(10, "epochs without a better dev score before training stops; 0: never", low=0, high=_MANY)
    gradient_clip: float = setting(1.0, "maximum gradient norm; 0: no clipping", low=0)
    accumulate_grad_batches: int = setting(
        1,
        "batches per optimiser step (gradients are averaged); the rest of an epoch is one step",
        low=1,
        high=_MANY,
    )
    limit_train_batches: int | float | None = setting(
        None,
        "batches per epoch: a share (0.1) or a number (10), new ones in each epoch; null: all",
        above=0,
        share=True,
    )
    modality_dropout: float = setting(
        0.0,
        "probability of hiding a modality of an utterance in training; at least one remains",
        low=0,
        high=1,
    )
    complete_pass: bool = setting(
        False,
        "before each batch with hidden modalities, a pass and an optimiser step on the complete batch, the teacher of "
        "`objective.weights.guidance`, `distillation` and `imputation`",
        if_given=True,
    )
    teacher: str | None = setting(
        None,
        "a stage of the recipe, or a run folder: the teacher of `objective.weights.guidance` and `distillation`",
        path="file",
        searchable=False,
        decides="nothing",
        if_given=True,
    )
    metric: str | None = setting(
        None,
        "dev score that selects the checkpoint; null: the protocol's",
        searchable=False,
    )
    keep_every_epoch: bool = setting(
        False, "save the model of every epoch, for `evaluate RUN --optimism`", searchable=False, decides="nothing"
    )
    threads: int | None = setting(
        None,
        "torch threads; null: torch's default",
        low=1,
        high=4096,
        searchable=False,
        decides="nothing",
    )
    thresholds: str = setting(
        "dev",
        "decision thresholds of label sets: `dev`: the best F1 of each label on dev; `uniform`: above 1/C; `half`: 0.5",
        choices=THRESHOLDS,
        searchable=False,
    )
    tensorboard: bool = setting(
        False,
        "log to TensorBoard in the run folder (extra `report`)",
        searchable=False,
        decides="nothing",
    )
    bootstrap: int = setting(
        2000,
        "resamples of conversations for the test intervals",
        low=1,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    pictures: bool = setting(
        True,
        "draw curves, confusion matrices and reliability diagrams",
        searchable=False,
        decides="nothing",
    )
    start_from: str | None = setting(
        None,
        "initial weights: a run folder or a saved model; null: random, from `seed`",
        path="file",
        searchable=False,
        decides="nothing",
        if_given=True,
    )
    load: tuple[str, ...] | None = setting(
        None,
        "parts taken from `start_from`, as beginnings of parameter names; null: all that both models have",
        searchable=False,
        if_given=True,
    )
    freeze: tuple[str, ...] = setting(
        (),
        "parts that are not trained, as beginnings of parameter names: `training.freeze=[architecture.project]`",
        searchable=False,
        if_given=True,
    )


@dataclass(frozen=True)
class Objective:
    """The training objective; ``parts`` has the settings of each loss and term (:mod:`ercfusion.config.terms`)."""

    weights: Mapping[str, float] = setting(
        {"task": 1.0, "unimodal": 0.0},
        "weights by term: `task` (loss of the first task), names of further tasks, `unimodal` (a classifier per "
        "modality), and representation terms; terms with weight 0 are not built",
    )
    class_weights: str | Mapping[str, float] = setting(
        "none",
        "`none`, `balanced` (1 / n_c in train), `effective` (effective number of samples), or a weight per label: "
        "`{anger: 2, joy: 1}`",
    )
    label_smoothing: float = setting(
        0.0, "label smoothing of single-label tasks; for distributions, of each annotator's vote", low=0, high=1
    )
    regression_loss: str = setting(
        "mse",
        "loss of regression tasks; `ccc`: 1 - concordance correlation; `gaussian`: likelihood of a predicted mean and "
        "variance",
        choices=REGRESSION_LOSSES,
    )
    dimension_weights: Mapping[str, float] = setting(
        {},
        "weights of the dimensions of regression tasks, `{valence: 1, arousal: 0.5}`; others have 1, ratios matter",
        low=0,
    )
    ccc_over: str = setting(
        "batch",
        "utterances of the concordance `ccc`: the batch, or the training set with stored predictions of the others",
        choices=("batch", "set"),
    )
    gaussian_beta: float = setting(
        0.0,
        "weight of hard utterances for `gaussian`: 0 likelihood, 1 as squared errors (beta-NLL)",
        low=0,
        high=1,
    )
    label_texts: str | None = setting(
        None,
        "texts whose vectors from `data.encoder` are the weights of the classifiers: `names` or `definitions` of the "
        "labels, or a YAML file with a text per label; null: linear classifiers",
        path="file",
        if_given=True,
    )
    probe: bool = setting(False, "no gradient from the classifiers: the architecture learns from the other terms")
    loss: str = setting(
        "cross_entropy",
        "loss of single-label tasks and distributions; `cross_entropy` keeps the default of other task kinds",
        choices=tuple(TASK_LOSSES),
    )
    penalty: bool = setting(
        False,
        "multiply the loss by a penalty on predicted labels that rarely occur with the utterance's labels in the "
        "votes of train (first task)",
    )
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Corpus and features."""

    name: str = setting("demo", "corpus; set by `data=NAME`", searchable=False)
    raw: str | None = setting(
        None,
        "folder of the released files; null: `$ERCFUSION_DATA/NAME`",
        path="file",
        searchable=False,
        decides="nothing",
    )
    protocol: str | None = setting(None, "protocol (`meld/3way` or `3way`); null: the corpus's first", searchable=False)
    tasks: tuple[str, ...] | None = setting(
        None,
        "tasks learned together, `[emotion,sentiment]`; the first selects the checkpoint; null: the protocol's",
        searchable=False,
    )
    views: tuple[str, ...] | None = setting(
        None,
        "further tasks with the same labels, `[emotion_distribution]`: the outputs are scored against them, they are "
        "not learned",
        searchable=False,
        if_given=True,
    )
    modalities: tuple[str, ...] | None = setting(None, "modalities in this order; null: all of corpus and packs")
    encoder: str = setting(
        "all-MiniLM-L6-v2",
        "text encoder for corpora without features: a name or folder for sentence-transformers",
        path="file",
    )
    packs: Mapping[str, str] = setting(
        {},
        "feature packs by modality, instead of the corpus's features: `data.packs.audio=FOLDER_OR_RECIPE`; under a "
        "name other than text, audio and visual a pack is a further modality",
        path="file",
        searchable=False,
        decides="nothing",
    )
    options: Mapping[str, Any] = setting({}, "options of the corpus's reader", searchable=False)


@dataclass(frozen=True)
class Missing:
    """Missing modalities, by a law such as `rate:0.5`; the data themselves stay complete."""

    train: str | None = setting(None, "law in training, drawn again for every batch; null: none", if_given=True)
    dev: str | None = setting(
        None, "law on dev, which selects the checkpoint; null: as in training", searchable=False, if_given=True
    )
    eval: str | None = setting(
        None, "law of the reported test scores; null: as in training", searchable=False, if_given=True
    )
    seed: int = setting(
        0,
        "seed of the masks of dev and test: equal for all models",
        low=0,
        high=(1 << 63) - 1,
        searchable=False,
        if_given=True,
    )
    policy: str | None = setting(
        None,
        "input in place of an absent modality: "
        + "; ".join(f"`{name}`, {meaning}" for name, meaning in POLICIES.items())
        + "; null: as the architecture does",
        choices=tuple(POLICIES),
        if_given=True,
    )
    grid: str | tuple[str, ...] | None = setting(
        None,
        "laws under which the finished run is also scored on test: a list, or `standard`: all patterns, and the rates "
        "0 to 0.7",
        searchable=False,
        decides="run",
        if_given=True,
    )


@dataclass(frozen=True)
class Trainer:
    """Hardware and precision."""

    accelerator: str = setting("auto", "device type; `auto`: a GPU if available", searchable=False, decides="nothing")
    devices: int = setting(1, "devices or processes per node", low=1, high=4096, searchable=False, decides="nothing")
    num_nodes: int = setting(1, "number of machines", low=1, high=4096, searchable=False, decides="nothing")
    strategy: str = setting("auto", "Lightning strategy, such as `ddp`", searchable=False, decides="nothing")
    # Other precisions convert the inputs, which the trainer cannot do with packed batches.
    precision: str = setting(
        "32-true", "number format in training", choices=("32-true", "bf16-mixed", "16-mixed"), searchable=False
    )


@dataclass(frozen=True)
class Task:
    """The purpose of a run."""

    name: str = setting("recognition", "purpose of the run; set by `task=NAME`", searchable=False, decides="run")
    export: bool = setting(
        False,
        "write the vectors of every modality as feature packs: `RUN/packs/MODALITY`; from complete data, also under "
        "`missing`",
        searchable=False,
        decides="run",
    )


@dataclass(frozen=True)
class Recipe:
    """Several trainings in one run."""

    name: str | None = setting(
        None, "set by `recipe=NAME`; null: stages of your own, or none", searchable=False, decides="run", if_given=True
    )
    stages: Mapping[str, Any] = setting(
        {},
        "trainings before the run's own, by name, with the settings that differ: "
        "`recipe.stages.first.training.max_epochs=5`; each starts from the weights of the one before",
        searchable=False,
        if_given=True,
        nested=True,
    )


@dataclass(frozen=True)
class Sweep:
    """The search for settings."""

    trials: int = setting(
        50,
        "number of trials, over all machines and resumptions",
        low=1,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    workers: int | None = setting(
        None,
        "processes on this machine; null: one per core (as memory allows) or per GPU",
        low=1,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    metric: str | None = setting(
        None,
        "dev score to maximise, also selects each trial's epoch; null: `training.metric`",
        searchable=False,
    )
    sampler: str = setting(
        "tpe",
        "choice of settings: `tpe` learns from earlier trials, `random` does not",
        choices=("tpe", "random"),
        searchable=False,
    )
    pruner: str = setting(
        "median",
        "early end of trials: below the median at the same epoch, or hyperband",
        choices=("median", "hyperband", "none"),
        searchable=False,
    )
    startup: int = setting(5, "trials before the median pruner starts", low=0, high=_MANY, searchable=False)
    warmup: int | None = setting(
        None,
        "epochs before a trial may be pruned; null: a quarter of `training.max_epochs`",
        low=0,
        high=_MANY,
        searchable=False,
    )
    seed: int = setting(
        0,
        "seed of the search (trials train with `seed`)",
        low=-(1 << 63),
        high=(1 << 63) - 1,
        searchable=False,
    )
    only: tuple[str, ...] | None = setting(
        None, "settings to search; null: the whole space", searchable=False, decides="run"
    )
    storage: str | None = setting(
        None,
        "database URL or `journal:FILE`; null: `$ERCFUSION_SWEEP_STORAGE`, else `study.db` in the folder",
        path="file",
        searchable=False,
        decides="nothing",
    )
    name: str | None = setting(
        None,
        "name of the study, shared by sweeps with the same storage and name; null: a new one",
        path="name",
        searchable=False,
        decides="run",
    )
    rerun: int = setting(
        5,
        "additional training runs of the best settings with new seeds",
        low=0,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    timeout: float | None = setting(
        None, "hours after which no trial starts", above=0, searchable=False, decides="nothing"
    )


SECTIONS: Mapping[str, type] = {
    "training": Training,
    "objective": Objective,
    "data": Data,
    "missing": Missing,
    "trainer": Trainer,
    "task": Task,
    "recipe": Recipe,
    "sweep": Sweep,
}
"""Sections with fixed settings."""
