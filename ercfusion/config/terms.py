"""Losses of the objective: what can be set of each, and which function computes it.

A loss term is one class here, or in a module of one's own, with the decorator :func:`term`. Its settings, their ranges
and meanings, the section ``objective.NAME``, the checks and the reference page follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, TypeVar

from ercfusion._core.errors import ConfigError
from ercfusion.config.fields import setting

OF = ("hidden", "modalities", "both")


@dataclass(frozen=True)
class Term:
    """Settings of a loss over representations; a subclass adds its own, which the function gets as keywords.

    Class attributes:
        function: ``function(vectors, target, **settings)`` returns the sum of losses and what to divide it by; a
            callable, or ``"module:function"``.
        reads: What it reads from the targets: ``classes``, ``numbers``, or nothing.
        queue: A subclass with a setting of this name gets ``memory=(vectors, targets)``, the earlier utterances.
    """

    function: ClassVar[str | Callable[..., Any]] = ""
    reads: ClassVar[Literal["", "classes", "numbers"]] = ""

    of: str = setting(
        "hidden",
        "what it reads: `hidden`, the vector of the head; `modalities`, each modality's representation; or `both`",
        choices=OF,
    )
    projection: int = setting(
        0, "width of a network between the representation and the loss; 0 for none", low=0, high=1_000_000
    )

    @classmethod
    def load(cls) -> Callable[..., Any]:
        """The function."""
        if isinstance(cls.function, str):
            module, _, name = cls.function.partition(":")
            loaded: Callable[..., Any] = getattr(import_module(module), name)
            return loaded
        return cls.function


T = TypeVar("T", bound=type[Term])

TERMS: dict[str, type[Term]] = {}
"""Loss terms by name: keys of ``objective.weights``, and sections of ``objective``."""


def term(name: str) -> Callable[[T], T]:
    """Make a loss term known by a name.

    Raises:
        ConfigError: another class has the name.
    """

    def register(section: T) -> T:
        known = TERMS.get(name, section)
        if (known.__module__, known.__qualname__) != (section.__module__, section.__qualname__):
            raise ConfigError(f"the name {name!r} of a loss term is taken by {known.__module__}:{known.__qualname__}")
        TERMS[name] = section
        return section

    return register


_QUEUE = "number of earlier utterances that are keys as well"
_LONELY = "also count utterances without another of their class in the batch"


@term("supcon")
@dataclass(frozen=True)
class SupCon(Term):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020)."""

    function = "ercfusion.losses.contrastive:supervised_contrastive"
    reads = "classes"

    temperature: float = setting(0.07, "divides the similarities", above=0)
    include_lonely: bool = setting(False, _LONELY)
    queue: int = setting(0, _QUEUE, low=0, high=1_000_000)


@term("inter_class")
@dataclass(frozen=True)
class InterClass(Term):
    """Contrast against utterances of other classes only (after Yeh et al., ECCV 2022; Shi et al., ICIC 2024)."""

    function = "ercfusion.losses.contrastive:inter_class_contrastive"
    reads = "classes"

    temperature: float = setting(0.07, "divides the similarities", above=0)
    include_lonely: bool = setting(False, _LONELY)
    queue: int = setting(0, _QUEUE, low=0, high=1_000_000)


@term("triplet")
@dataclass(frozen=True)
class Triplet(Term):
    """Triplet loss (Schroff et al., CVPR 2015); adaptive margins are those of M2FNet (Chudasama et al., CVPRW 2022)."""

    function = "ercfusion.losses.terms:triplet"
    reads = "classes"

    mining: str = setting(
        "hard",
        "which triplets count: the hardest of each anchor, all, or all with a loss above 0",
        choices=("hard", "all", "active"),
    )
    adaptive: bool = setting(False, "margins of M2FNet, which depend on the distances, instead of `margin`")
    margin: float = setting(0.2, "by how much a negative must be farther away than a positive", low=0)
    scale: float = setting(0.1, "of adaptive margins", low=0)
    literal: bool = setting(False, "adaptive margins with the formula as printed")
    hinge: bool = setting(True, "a triplet that is right already costs nothing (false with `adaptive` only)")


@term("variance")
@dataclass(frozen=True)
class Variance(Term):
    """Keeps the standard deviation of every dimension up (VICReg; Bardes et al., ICLR 2022)."""

    function = "ercfusion.losses.terms:variance"

    std: float = setting(1.0, "standard deviation below which a dimension costs something", above=0)


@term("covariance")
@dataclass(frozen=True)
class Covariance(Term):
    """Keeps the dimensions uncorrelated (VICReg; Bardes et al., ICLR 2022)."""

    function = "ercfusion.losses.terms:covariance"


@term("rank")
@dataclass(frozen=True)
class Rank(Term):
    """Rank-N-Contrast, for continuous labels (Zha et al., NeurIPS 2023)."""

    function = "ercfusion.losses.contrastive:rank_n_contrast"
    reads = "numbers"

    temperature: float = setting(2.0, "divides the similarities", above=0)
    normalize: bool = setting(False, "compare unit vectors")


@dataclass(frozen=True)
class Focal:
    """Focal loss (Lin et al., ICCV 2017)."""

    gamma: float = setting(2.0, "how much less an utterance that is right already counts; 0 is cross-entropy", low=0)


@dataclass(frozen=True)
class ClassBalanced:
    """Classes weighed by their effective number of samples (Cui et al., CVPR 2019)."""

    beta: float = setting(0.999, "the effective number of n samples is (1 - beta^n) / (1 - beta)", low=0, below=1)
    gamma: float = setting(0.0, "above 0 makes it focal as well", low=0)


_SHIPPED = frozenset(TERMS)


def own_terms() -> list[str]:
    """The terms that a user's modules have registered."""
    return [name for name in TERMS if name not in _SHIPPED]


TASK_LOSSES: dict[str, type | None] = {"cross_entropy": None, "focal": Focal, "class_balanced": ClassBalanced}
"""Losses of a single-label task with their settings; ``cross_entropy`` is the usual loss of every task."""
