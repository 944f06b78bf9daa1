"""Losses of the objective: their settings and functions.

A loss term is one class with the decorator :func:`term`, here or in a user's module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from ercfusion._core.registry import adding, loaded_function
from ercfusion.config.fields import setting

OF = ("hidden", "modalities", "both")


@dataclass(frozen=True)
class Term:
    """Settings of a loss on representations; a subclass adds its own, passed to the function as keywords.

    - ``function(vectors, target, **settings)`` returns the sum of losses and its divisor; a callable or
      ``"module:function"``.
    - ``reads``: targets of the function: ``classes``, ``numbers``, or empty for none.
    - A setting named ``queue`` adds ``memory=(vectors, targets)``, the earlier utterances.
    """

    function: ClassVar[str | Callable[..., Any]] = ""
    reads: ClassVar[Literal["", "classes", "numbers"]] = ""

    of: str = setting(
        "hidden",
        "input: `hidden` (the head's input vector), `modalities` (each modality's representation) or `both`",
        choices=OF,
    )
    projection: int = setting(0, "width of a projection network before the loss; 0: none", low=0, high=1_000_000)

    @classmethod
    def load(cls) -> Callable[..., Any]:
        """The loss function."""
        return loaded_function(cls.function)


@dataclass(frozen=True)
class Guidance:
    """Distance of the head's input from the teacher's, for all utterances (CIDer; MMG-style guidance)."""

    distance: str = setting(
        "cosine", "`cosine`: 1 - cosine similarity; `mse`: mean squared difference", choices=("cosine", "mse")
    )


@dataclass(frozen=True)
class Distillation:
    """Divergence of the outputs from the teacher's: KL of labels, squared difference of numbers."""

    temperature: float = setting(
        1.0, "divisor of the logits of labels; the loss is multiplied by its square (Hinton et al., 2015)", above=0
    )


@dataclass(frozen=True)
class Imputation:
    """Smooth L1 loss of the standardised inputs that were hidden, predicted from the head's input (CIDer)."""

    beta: float = setting(1.0, "difference between squared and absolute errors", above=0)


TEACHER_TERMS: dict[str, type] = {
    "guidance": Guidance,
    "distillation": Distillation,
    "imputation": Imputation,
}
"""Loss terms with a teacher by name (:mod:`ercfusion.tasks.teaching`); in a configuration only if a setting is changed.

The teacher is the complete view (``training.complete_pass``), or another model (``training.teacher``).
"""


T = TypeVar("T", bound=type[Term])

TERMS: dict[str, type[Term]] = {}
"""Loss terms by name: keys of ``objective.weights`` and sections of ``objective``."""


def term(name: str) -> Callable[[T], T]:
    """Register a loss term.

    Raises:
        ConfigError: Another class has the name.
    """
    return adding("loss term", name, TERMS, TEACHER_TERMS)


_QUEUE = "number of earlier utterances used as additional keys"
_LONELY = "include utterances without another of their class in the batch"


@term("supcon")
@dataclass(frozen=True)
class SupCon(Term):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020)."""

    function = "ercfusion.losses.contrastive:supervised_contrastive"
    reads = "classes"

    temperature: float = setting(0.07, "temperature: divisor of the similarities", above=0)
    include_lonely: bool = setting(False, _LONELY)
    queue: int = setting(0, _QUEUE, low=0, high=1_000_000)


@term("inter_class")
@dataclass(frozen=True)
class InterClass(Term):
    """Contrast with other classes only (after Yeh et al., ECCV 2022; Shi et al., ICIC 2024)."""

    function = "ercfusion.losses.contrastive:inter_class_contrastive"
    reads = "classes"

    temperature: float = setting(0.07, "temperature: divisor of the similarities", above=0)
    include_lonely: bool = setting(False, _LONELY)
    queue: int = setting(0, _QUEUE, low=0, high=1_000_000)


@term("triplet")
@dataclass(frozen=True)
class Triplet(Term):
    """Triplet loss (Schroff et al., CVPR 2015); adaptive margins as in M2FNet (Chudasama et al., CVPRW 2022)."""

    function = "ercfusion.losses.terms:triplet"
    reads = "classes"

    mining: str = setting(
        "hard",
        "triplets: the hardest of each anchor, all, or all with a loss above 0",
        choices=("hard", "all", "active"),
    )
    adaptive: bool = setting(False, "distance-dependent margins of M2FNet instead of `margin`")
    margin: float = setting(0.2, "required distance between negatives and positives", low=0)
    scale: float = setting(0.1, "scale of adaptive margins", low=0)
    literal: bool = setting(False, "adaptive margins with the published formula")
    hinge: bool = setting(True, "no loss for correct triplets (false only with `adaptive`)")


@term("variance")
@dataclass(frozen=True)
class Variance(Term):
    """Penalty on small standard deviations per dimension (VICReg; Bardes et al., ICLR 2022)."""

    function = "ercfusion.losses.terms:variance"

    std: float = setting(1.0, "standard deviation below which a dimension is penalised", above=0)


@term("covariance")
@dataclass(frozen=True)
class Covariance(Term):
    """Penalty on correlated dimensions (VICReg; Bardes et al., ICLR 2022)."""

    function = "ercfusion.losses.terms:covariance"


@term("rank")
@dataclass(frozen=True)
class Rank(Term):
    """Rank-N-Contrast, for continuous labels (Zha et al., NeurIPS 2023)."""

    function = "ercfusion.losses.contrastive:rank_n_contrast"
    reads = "numbers"

    temperature: float = setting(2.0, "temperature: divisor of the similarities", above=0)
    normalize: bool = setting(False, "compare unit vectors")


@dataclass(frozen=True)
class Focal:
    """Focal loss (Lin et al., ICCV 2017)."""

    gamma: float = setting(2.0, "reduction of the loss of well-classified utterances; 0: cross-entropy", low=0)


@dataclass(frozen=True)
class ClassBalanced:
    """Class weights by effective number of samples (Cui et al., CVPR 2019)."""

    beta: float | None = setting(
        0.999, "effective number of n samples: (1 - beta^n) / (1 - beta); null: (N - 1) / N", low=0, below=1
    )
    gamma: float = setting(0.0, "focal reduction if above 0 (single-label tasks)", low=0)


_SHIPPED = frozenset(TERMS)


def own_terms() -> list[str]:
    """Loss terms registered by users' modules."""
    return [name for name in TERMS if name not in _SHIPPED]


TASK_LOSSES: dict[str, type | None] = {
    "cross_entropy": None,
    "focal": Focal,
    "class_balanced": ClassBalanced,
    "kl": None,
    "chosen_labels": None,
}
"""Losses of single-label tasks and distributions with their settings; ``cross_entropy`` is the default of every kind.

``kl`` and ``chosen_labels`` (binary cross-entropy, 1 for every label with a vote) are for distributions.
"""
