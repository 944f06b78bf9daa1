"""Sections whose settings depend on a choice: optimisers, schedules of the learning rate, and curricula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ercfusion.config.fields import setting

_MANY = 1_000_000

# Optimizer

_LR = "learning rate"
_DECAY = "weight decay of matrices (not of biases, other vectors and parameters exempted by a layer)"
_EPS = "constant added to the denominator"
_BETAS = "decay rates of the running averages"


@dataclass(frozen=True)
class Optimizer:
    """Settings of every optimiser."""

    choice: ClassVar[str]

    lr: float = setting(1e-3, _LR, low=0)
    weight_decay: float = setting(0.0, _DECAY, low=0)
    decay_all: bool = setting(False, "decay biases and other vectors too, the usual default of optimisers")


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
class BertAdam(Optimizer):
    """Adam of BERT's released code: no bias correction, decoupled weight decay; use with a warm-up."""

    choice = "bert_adam"
    lr: float = setting(5e-5, _LR, low=0)
    weight_decay: float = setting(0.01, _DECAY, low=0)
    betas: tuple[float, ...] = setting((0.9, 0.999), _BETAS, low=0, below=1)
    eps: float = setting(1e-6, _EPS, low=0)
    tensor_clip: float = setting(
        0.0, "maximum gradient norm of each tensor, after `training.gradient_clip`; 0: no clipping", low=0
    )


@dataclass(frozen=True)
class Adadelta(Optimizer):
    """torch.optim.Adadelta."""

    choice = "adadelta"
    lr: float = setting(1.0, _LR, low=0)
    rho: float = setting(0.95, "decay rate of the running averages", low=0, high=1)
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
    """Linear warm-up, then cosine decay to 0 over all steps of ``training.max_epochs``."""

    choice = "cosine"
    warmup: float = setting(0.1, "share of all steps with a rising rate", low=0, high=1)


@dataclass(frozen=True)
class Linear(Scheduler):
    """Linear warm-up, then linear decay to 0 over all steps of ``training.max_epochs``."""

    choice = "linear"
    warmup: float = setting(0.1, "share of all steps with a rising rate", low=0, high=1)


@dataclass(frozen=True)
class Plateau(Scheduler):
    """Lower the rate when the dev score stops improving."""

    choice = "plateau"
    factor: float = setting(0.5, "factor of each reduction", low=0, below=1)
    patience: int = setting(3, "epochs without a better dev score before a reduction", low=0, high=_MANY)


@dataclass(frozen=True)
class Constant(Scheduler):
    """Constant rate."""

    choice = "constant"


# Curriculum


@dataclass(frozen=True)
class Curriculum:
    """All conversations in every epoch."""

    choice: ClassVar[str] = "none"


@dataclass(frozen=True)
class EmotionShift(Curriculum):
    """Conversations with few changes of label first."""

    choice = "emotion_shift"
    scope: str = setting(
        "same",
        "changes of label between utterances of one speaker, between neighbours of different speakers, or both",
        choices=("same", "different", "both"),
    )
    buckets: int = setting(5, "number of parts of the sorted conversations", low=1, high=_MANY)
    pacing: str = setting("baby_step", "schedule of the parts", choices=("baby_step", "one_pass", "linear", "root"))
    epochs_per_bucket: int = setting(1, "epochs per part", low=1, high=_MANY)
    reverse: bool = setting(False, "hard conversations first, as a control")


@dataclass(frozen=True)
class WeightedShift(EmotionShift):
    """Like ``emotion_shift``, with a higher cost for changes between similar emotions."""

    choice = "weighted_shift"
    weight: float = setting(1.0, "cost of a change: weight * similarity + beta", low=0)
    beta: float = setting(0.4, "constant part of the cost", low=0)


CHOICES: Mapping[str, tuple[type, ...]] = {
    "optimizer": (AdamW, Adam, BertAdam, Adadelta, Sgd),
    "scheduler": (Cosine, Linear, Plateau, Constant),
    "curriculum": (Curriculum, EmotionShift, WeightedShift),
}
"""Sections whose settings depend on their ``name``; the first is the default."""
