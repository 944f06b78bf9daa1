"""The sections of a configuration and their settings: the one source of defaults, ranges and meanings.

Options of an architecture and of a corpus's reader are not here: their constructors are the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ercfusion.config.fields import setting
from ercfusion.config.terms import TASK_LOSSES

_MANY = 1_000_000
REGRESSION_LOSSES = ("mse", "mae", "ccc")


@dataclass(frozen=True)
class Root:
    """Top level."""

    seed: int = setting(
        0,
        "decides initial weights, batches and dropout (not the corpus `demo`: `data.options.seed`)",
        low=-(1 << 63),
        high=(1 << 63) - 1,
        searchable=False,
        decides="run",
    )
    imports: tuple[str, ...] = setting(
        (),
        "modules to import first; they register models, corpora, metrics, task kinds and loss terms of your own: "
        "`imports=[my_models]`",
        pattern="module",
        searchable=False,
        decides="run",
    )
    run: str | None = setting(
        None,
        "folder of this run, which must be empty or absent; null makes one below `output`",
        path="file",
        searchable=False,
        decides="nothing",
    )
    output: str = setting(
        "outputs",
        "where run folders are made: `OUTPUT/train/MODEL-DATA/TIME-seedSEED`",
        path="file",
        searchable=False,
        decides="nothing",
    )
    resume: str | None = setting(
        None, "folder of an interrupted run to continue", path="file", searchable=False, decides="nothing"
    )


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    batch_size: int = setting(16, "conversations in a batch, over all processes", low=1, high=_MANY)
    length_aware: bool = setting(
        True, "sort by length within pools of 8 batches, so that layers that must pad waste little"
    )
    standardize: bool = setting(
        True, "standardise every feature dimension with the training split's mean and deviation"
    )
    max_epochs: int = setting(30, "most epochs", low=1, high=_MANY)
    patience: int = setting(
        10, "epochs without a better dev score before training stops; 0 trains all epochs", low=0, high=_MANY
    )
    gradient_clip: float = setting(1.0, "largest norm of the gradient; 0 does not clip", low=0)
    accumulate_grad_batches: int = setting(
        1,
        "batches whose gradients are averaged for one step of the optimiser; what is left at the end of an epoch makes "
        "a step too",
        low=1,
        high=_MANY,
    )
    limit_train_batches: int | float | None = setting(
        None,
        "batches of an epoch, for trials: a share (0.1) or a number (10), other ones in every epoch; null takes all",
        above=0,
        share=True,
    )
    modality_dropout: float = setting(
        0.0,
        "probability that a modality of an utterance is hidden in training, with any model; at least one stays",
        low=0,
        high=1,
    )
    metric: str | None = setting(
        None,
        "dev score that chooses the checkpoint ([names](runs.md#metrics)); null takes the protocol's own",
        searchable=False,
    )
    keep_every_epoch: bool = setting(
        False, "keep the model of every epoch, for `evaluate RUN --optimism`", searchable=False, decides="nothing"
    )
    threads: int | None = setting(
        None,
        "threads of torch; null leaves torch's own choice",
        low=1,
        high=4096,
        searchable=False,
        decides="nothing",
    )
    tensorboard: bool = setting(
        False,
        "also log to TensorBoard, into the run folder (needs the extra `report`)",
        searchable=False,
        decides="nothing",
    )
    bootstrap: int = setting(
        2000,
        "resamples of the conversations for the test intervals",
        low=1,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    pictures: bool = setting(
        True,
        "draw curves, confusion matrices and reliability diagrams at the end",
        searchable=False,
        decides="nothing",
    )


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    Args:
        parts: Settings of each loss and term, by its name; see :mod:`ercfusion.config.terms`.
    """

    weights: Mapping[str, float] = setting(
        {"task": 1.0, "unimodal": 0.0},
        "weights by term: `task` is the first task's loss, a further task's loss has the task's name, `unimodal` is a "
        "classifier on each modality (0 does not build them); "
        "a term on representations without a weight, or with 0, is not built",
    )
    class_weights: str | Mapping[str, float] = setting(
        "none",
        "from the training split: `none`, `balanced` (1 / n_c) or `effective` (effective number of samples); or a "
        "weight for every label by name, `{anger: 2, joy: 1}`",
    )
    label_smoothing: float = setting(0.0, "for single-label tasks", low=0, high=1)
    regression_loss: str = setting(
        "mse",
        "for regression tasks; `ccc` is 1 - concordance correlation over the batch",
        choices=REGRESSION_LOSSES,
    )
    probe: bool = setting(False, "classifiers send no gradient back: the architecture learns from the other terms only")
    loss: str = setting(
        "cross_entropy",
        "of a single-label task; `cross_entropy` is the usual loss of every task",
        choices=tuple(TASK_LOSSES),
    )
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Corpus and features."""

    name: str = setting("demo", "registry name of the corpus; set by `data=NAME`", searchable=False)
    raw: str | None = setting(
        None,
        "folder with the released files; null looks in `$ERCFUSION_DATA/NAME`",
        path="file",
        searchable=False,
        decides="nothing",
    )
    protocol: str | None = setting(
        None, "protocol by its id (`meld/3way`, or `3way`); null takes the corpus's first", searchable=False
    )
    tasks: tuple[str, ...] | None = setting(
        None,
        "tasks to learn together, `[emotion,sentiment]`; the first one chooses the checkpoint; null takes the "
        "protocol's own",
        searchable=False,
    )
    modalities: tuple[str, ...] | None = setting(
        None, "modalities to use, in this order; null takes all that corpus and packs offer"
    )
    encoder: str = setting(
        "all-MiniLM-L6-v2",
        "encoder of text features where the corpus brings none: a name or folder for sentence-transformers",
        path="file",
    )
    packs: Mapping[str, str] = setting(
        {},
        "feature packs by modality: `data.packs.audio=FOLDER`, or the name of a recipe whose pack was made; they "
        "replace the corpus's own features",
        path="file",
        searchable=False,
        decides="nothing",
    )
    options: Mapping[str, Any] = setting({}, "settings of the corpus's reader", searchable=False)


# Optimizer

_LR = "learning rate"
_DECAY = "of matrices only: biases, other vectors and what a layer exempts are not decayed"
_EPS = "added to the denominator"
_BETAS = "decays of the running averages"


@dataclass(frozen=True)
class Optimizer:
    """What all optimisers have."""

    choice: ClassVar[str]

    lr: float = setting(1e-3, _LR, low=0)
    weight_decay: float = setting(0.0, _DECAY, low=0)
    decay_all: bool = setting(
        False, "decay biases and other vectors too, as optimisers do if nobody tells them otherwise"
    )


@dataclass(frozen=True)
class AdamW(Optimizer):
    """torch.optim.AdamW."""

    choice = "adamw"
    weight_decay: float = setting(0.01, _DECAY, low=0)
    betas: tuple[float, ...] = setting((0.9, 0.999), _BETAS, low=0, below=1)
    eps: float = setting(1e-8, _EPS, low=0)


@dataclass(frozen=True)
class Adam(Optimizer):
    """torch.optim.Adam."""

    choice = "adam"
    lr: float = setting(5e-4, _LR, low=0)
    betas: tuple[float, ...] = setting((0.9, 0.999), _BETAS, low=0, below=1)
    eps: float = setting(1e-8, _EPS, low=0)


@dataclass(frozen=True)
class Adadelta(Optimizer):
    """torch.optim.Adadelta."""

    choice = "adadelta"
    lr: float = setting(1.0, _LR, low=0)
    rho: float = setting(0.95, "decay of the running averages", low=0, high=1)
    eps: float = setting(1e-6, _EPS, low=0)


@dataclass(frozen=True)
class Sgd(Optimizer):
    """torch.optim.SGD."""

    choice = "sgd"
    lr: float = setting(0.05, _LR, low=0)
    momentum: float = setting(0.9, "momentum", low=0)
    nesterov: bool = setting(False, "Nesterov momentum")


# Scheduler


@dataclass(frozen=True)
class Scheduler:
    """Learning rate over the epochs."""

    choice: ClassVar[str]


@dataclass(frozen=True)
class Cosine(Scheduler):
    """Rises, then falls to 0 over all steps of ``training.max_epochs``."""

    choice = "cosine"
    warmup: float = setting(0.1, "fraction of all steps over which the rate rises", low=0, high=1)


@dataclass(frozen=True)
class Plateau(Scheduler):
    """Falls when the dev score gets no better."""

    choice = "plateau"
    factor: float = setting(0.5, "what the rate is multiplied with", low=0, below=1)
    patience: int = setting(3, "epochs without a better dev score before the rate falls", low=0, high=_MANY)


@dataclass(frozen=True)
class Constant(Scheduler):
    """Stays as it is."""

    choice = "constant"


# Curriculum


@dataclass(frozen=True)
class Curriculum:
    """Which conversations an epoch uses; this one: all."""

    choice: ClassVar[str] = "none"


@dataclass(frozen=True)
class EmotionShift(Curriculum):
    """Conversations in which labels change rarely come first."""

    choice = "emotion_shift"
    scope: str = setting(
        "same",
        "which changes of label count: between a speaker's utterances, between neighbours of different speakers, or "
        "between all neighbours",
        choices=("same", "different", "both"),
    )
    buckets: int = setting(
        5, "parts into which the sorted conversations are cut, at most one per conversation", low=1, high=_MANY
    )
    pacing: str = setting("baby_step", "how they come into use", choices=("baby_step", "one_pass", "linear", "root"))
    epochs_per_bucket: int = setting(1, "epochs until the next part comes into use", low=1, high=_MANY)
    reverse: bool = setting(False, "hard ones first, as a control")


@dataclass(frozen=True)
class WeightedShift(EmotionShift):
    """As ``emotion_shift``, but a change between similar emotions counts for more."""

    choice = "weighted_shift"
    weight: float = setting(1.0, "a change costs weight * similarity + beta", low=0)
    beta: float = setting(0.4, "see `weight`", low=0)


@dataclass(frozen=True)
class Trainer:
    """What computes."""

    accelerator: str = setting("auto", "`auto` takes a GPU where there is one", searchable=False, decides="nothing")
    devices: int = setting(
        1, "devices or processes, on each node", low=1, high=4096, searchable=False, decides="nothing"
    )
    num_nodes: int = setting(1, "machines that train together", low=1, high=4096, searchable=False, decides="nothing")
    strategy: str = setting("auto", "how they share the work", searchable=False, decides="nothing")
    # Others would have to convert the inputs, which the trainer cannot do with packed batches.
    precision: str = setting(
        "32-true", "of the numbers in training", choices=("32-true", "bf16-mixed", "16-mixed"), searchable=False
    )


@dataclass(frozen=True)
class Task:
    """What is done with the model."""

    name: str = setting("recognition", "what the run is for; set by `task=NAME`", searchable=False, decides="run")
    export: bool = setting(
        False,
        "at the end, write the vectors of every modality as packs, `RUN/packs/MODALITY`",
        searchable=False,
        decides="run",
    )


@dataclass(frozen=True)
class Sweep:
    """How settings are searched."""

    trials: int = setting(
        50, "trials in all, over all machines and resumptions", low=1, high=_MANY, searchable=False, decides="nothing"
    )
    workers: int | None = setting(
        None,
        "processes on this machine, each one trial at a time; null: one per core, as memory allows, or one per GPU",
        low=1,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    metric: str | None = setting(
        None,
        "dev score to search for, which also chooses each trial's epoch; null takes `training.metric`",
        searchable=False,
    )
    sampler: str = setting(
        "tpe",
        "how settings are chosen: `tpe` learns from the trials so far, `random` does not",
        choices=("tpe", "random"),
        searchable=False,
    )
    pruner: str = setting(
        "median",
        "what stops trials early: worse than half of the trials at the same epoch, or hyperband",
        choices=("median", "hyperband", "none"),
        searchable=False,
    )
    startup: int = setting(5, "trials before the median pruner begins", low=0, high=_MANY, searchable=False)
    warmup: int | None = setting(
        None,
        "epochs before a trial may be pruned; null takes a quarter of `training.max_epochs`",
        low=0,
        high=_MANY,
        searchable=False,
    )
    seed: int = setting(
        0,
        "decides which settings are tried (all trials train on `seed`)",
        low=-(1 << 63),
        high=(1 << 63) - 1,
        searchable=False,
    )
    only: tuple[str, ...] | None = setting(
        None, "settings of the space to search; null searches all", searchable=False, decides="run"
    )
    storage: str | None = setting(
        None,
        "database URL or `journal:FILE`; null takes `$ERCFUSION_SWEEP_STORAGE`, else `study.db` in the folder",
        path="file",
        searchable=False,
        decides="nothing",
    )
    name: str | None = setting(
        None,
        "name of the study; sweeps of one storage and name search together; null makes one of its own",
        path="name",
        searchable=False,
        decides="run",
    )
    rerun: int = setting(
        5,
        "fresh seeds on which the winner is trained again; 0 for none",
        low=0,
        high=_MANY,
        searchable=False,
        decides="nothing",
    )
    timeout: float | None = setting(
        None, "hours after which no trial is begun", above=0, searchable=False, decides="nothing"
    )


# All of them

SECTIONS: Mapping[str, type] = {
    "training": Training,
    "objective": Objective,
    "data": Data,
    "trainer": Trainer,
    "task": Task,
    "sweep": Sweep,
}
"""Sections that have one form."""

CHOICES: Mapping[str, tuple[type, ...]] = {
    "optimizer": (AdamW, Adam, Adadelta, Sgd),
    "scheduler": (Cosine, Plateau, Constant),
    "curriculum": (Curriculum, EmotionShift, WeightedShift),
}
"""Sections whose settings depend on a choice, which is their setting ``name``; the first is the default."""
