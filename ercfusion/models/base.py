"""Base of all architectures."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, get_args

from torch import Tensor, nn

from ercfusion._core.errors import BatchError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.options import check_options, options_of
from ercfusion.models.options import Space
from ercfusion.ops.processes import Shares


@dataclass(frozen=True)
class BatchLoss:
    """Auxiliary loss of a batch: values per utterance, and the function reducing them.

    Distributed training gathers the values of all processes before calling ``function``.

    Args:
        function: Maps values and packing of the same utterances to a scalar.
        values: (N, ...) each.
    """

    function: Callable[..., Tensor]
    values: tuple[Tensor, ...]

    def __call__(self, shares: Shares) -> Tensor:
        """Loss of the batch shared by the processes, a scalar."""
        return self.function(*map(shares.gather, self.values), shares.packing)


@dataclass(frozen=True)
class LabelLoss(BatchLoss):
    """The first task's loss on other logits than the predicted ones; see :meth:`Labels.loss`.

    The objective calls ``function`` with its settings, such as ``weights`` (C) or None, as for the term ``task``.
    """

    def __call__(self, shares: Shares, **settings: Any) -> Tensor:
        """Loss of the batch shared by the processes, a scalar."""
        return self.function(*map(shares.gather, self.values), shares.packing, **settings)


@dataclass
class Encoded:
    """Output of an architecture.

    Args:
        hidden: (N, hidden_size), the input of the heads.
        modalities: Representations (N, D_m) by modality, if any; the objective term ``unimodal`` puts a head on each.
        attention: Attention maps (B, H, L, L) by name, [b, h, receiver, source], if ``keep_attention`` is set.
        losses: Auxiliary losses by name, weighted by ``objective.weights.NAME``; distributed training needs a
            :class:`BatchLoss`, not a scalar.
        logits: (N, C) logits of the first task, required from and reserved for :attr:`Capabilities.label_wise`.
    """

    hidden: Tensor
    modalities: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor | BatchLoss] = field(default_factory=dict)
    logits: Tensor | None = None


class Outcomes(Protocol):
    """Classifiers on single modalities, called during encoding: the request ``outcomes``."""

    def __call__(self, modality: str, representation: Tensor) -> Tensor | None:
        """Logits of mutually exclusive outcomes; None if the task has no probabilities (regression).

        Args:
            modality: Name of the modality.
            representation: (N, D), as in :attr:`Encoded.modalities`.

        Returns:
            (N, Q, C): Q questions with C outcomes each.
        """


class Labels(Protocol):
    """The first task for architectures with a representation per label: the request ``labels``.

    N utterances, C labels.
    """

    def targets(self, batch: ConversationBatch) -> tuple[Tensor, Tensor] | None:
        """(N, C) share of each label, (N) bool, True if labelled; None without targets.

        The share is 0 or 1 except in a distribution; 0 for unlabelled utterances.
        """

    def loss(self, logits: Tensor, batch: ConversationBatch, counted: Tensor | None = None) -> BatchLoss:
        """The task's loss, with the settings of ``objective``.

        Args:
            logits: (N, C), or (N, R, C) of R readings of each utterance.
            batch: With targets; utterances without a label do not count.
            counted: (N, R) bool, the readings that count; None for all.
        """

    def mass_loss(self, logits: Tensor, mass: Tensor, **settings: Any) -> Tensor:
        """Loss on labels put together from several utterances, a scalar; for the function of a :class:`LabelLoss`.

        Args:
            logits: (N, C).
            mass: (N, C) share of each label.
            settings: Of the :class:`LabelLoss`; only ``weights`` applies.
        """

    def outputs(self, logits: Tensor) -> Tensor:
        """(N, C) probabilities of logits."""

    def logits(self, outputs: Tensor) -> Tensor:
        """(N, C) logits of probabilities, the inverse of :meth:`outputs`."""


class Ratings(Protocol):
    """Targets as numbers, for architectures that estimate them themselves: the request ``ratings``.

    Of the first regression task, scaled so that its range is [-1, 1]; without one, the shares of the first task's
    labels. The constructor reads the K names in :attr:`InputSpec.dimensions`.
    """

    def targets(self, batch: ConversationBatch) -> tuple[Tensor, Tensor] | None:
        """(N, K) numbers, (N) bool, True if labelled; None without targets. Numbers of unlabelled utterances are 0."""


Request = Literal["outcomes", "labels", "ratings"]
"""Keyword arguments of ``forward`` that an architecture may request from the recognizer.

``outcomes``: an :class:`Outcomes`; ``labels``: a :class:`Labels`; ``ratings``: a :class:`Ratings`, declared by the
class. A new request needs a name here, a protocol above, and its value in
:meth:`ercfusion.tasks.recognizer.Recognizer.lent`.
"""

AbsentForm = Literal["vector", "mean", "generated", "skip", "unread"]
"""See :attr:`Capabilities.absent`."""


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can do and needs; tests and the documentation's matrix follow from it.

    Args:
        learns: Its output depends on the input.
        contextual: Reads other utterances of the conversation.
        causal: Never reads later utterances.
        absent: What it reads in place of an absent modality, without a policy: a learned ``vector`` of its own, the
            ``mean`` of train (zeros), nothing (``skip``), or nothing of any modality (``unread``).
            With ``generated``, it makes values from the present ones.
        skips: With the policy ``skip`` absent modalities enter no sum, attention or graph; see
            :attr:`InputSpec.policy`.
        speakers: ``none`` (ignored), ``same_other`` (whether two turns have the same speaker) or ``numbered`` (order of
            first appearance).
        needs_unimodal: Parts of it learn only from the objective term ``unimodal``.
        requires: Required modalities.
        asks: Keyword arguments of ``forward`` provided by the recognizer; optional without one.
        compiles: Runs under ``torch.compile``.
        compile_note: Reason if it does not.
        label_wise: Represents each label of the first task: the constructor reads :attr:`InputSpec.labels`, and
            ``forward`` returns :attr:`Encoded.logits`. Without a recognizer there are no labels; use one then.

    Raises:
        ValueError: unknown name in ``asks``.
    """

    learns: bool = True
    contextual: bool = True
    causal: bool = False
    absent: AbsentForm = "vector"
    skips: bool = False
    speakers: Literal["none", "same_other", "numbered"] = "none"
    needs_unimodal: bool = False
    requires: tuple[str, ...] = ()
    asks: tuple[Request, ...] = ()
    compiles: bool = True
    compile_note: str = ""
    label_wise: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.asks) - set(get_args(Request)):
            raise ValueError(f"asks: unknown request {min(unknown)!r}. Choose from {', '.join(get_args(Request))}.")

    @property
    def missing_aware(self) -> bool:
        """Whether it treats an absent modality differently from zeros."""
        return self.absent in ("vector", "generated", "skip")


BATCH_NOTE = "the score of an utterance depends on the other conversations of its batch, because {}"
"""Note of runs, records and tables on an architecture with :attr:`Limits.batch_dependence`."""

PACKED_NOTE = "packed sequences (torch.nn.utils.rnn) are not traced by torch.compile"
"""Compile note of architectures with a packed recurrent layer."""

PADDING_NOTE = "mask_padding=false lets its LSTM read padding"
"""Batch dependence of architectures with a context LSTM and ``mask_padding=false``."""


@dataclass(frozen=True)
class Limits:
    """Consequences of an architecture's options, known before data are loaded.

    Args:
        longest: Longest conversation in utterances; None for any.
        batch_dependence: Why scores depend on the rest of the batch, as a sentence after "because"; empty if they do
            not.
    """

    longest: int | None = None
    batch_dependence: str = ""


class Architecture(nn.Module, ABC):
    """Base of all architectures.

    A subclass has the constructor ``Subclass(inputs, *, option=default, ...)``, calls ``super().__init__(inputs)``
    first, sets ``hidden_size``, declares ``capabilities`` and implements :meth:`forward`.

    Args:
        inputs: Modalities and widths of the data.
    """

    capabilities: Capabilities = Capabilities()
    """Capabilities of all instances. A constructor may replace them on the instance, but not ``requires`` or
    ``label_wise``."""

    hidden_size: int
    keep_attention: bool = False
    """Whether :attr:`Encoded.attention` is filled, if the architecture has attention maps; set it on the instance."""

    search_space: ClassVar[Space] = {}
    """Search space of a sweep: options (``model.hidden``) and settings of the training."""

    loss_weights: Mapping[str, float] = MappingProxyType({})
    """Default weights of auxiliary losses and of ``task``, used unless ``objective.weights`` has the name. A
    configuration contains the weights of the class; a constructor may replace them for other uses."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Make the constructor check its options first."""
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = _checked(cls, cls.__init__)  # type: ignore[method-assign]

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__()
        self.inputs = inputs
        missing = [name for name in self.capabilities.requires if name not in inputs.widths]
        if missing:
            raise BatchError(
                f"{type(self).__name__} needs the modality {missing[0]!r}; the data has {', '.join(inputs.widths)}. "
                "Add the modality or choose another model."
            )

    @classmethod
    def limits(cls, options: Mapping[str, Any]) -> Limits:
        """Limits of an instance; :func:`ercfusion.models.architecture_limits` adds the defaults.

        Args:
            options: All options of the constructor.
        """
        return Limits()

    def __call__(self, batch: ConversationBatch, **lent: Any) -> Encoded:
        """Check the modalities and widths of ``batch``, then call :meth:`forward`.

        Args:
            batch: N utterances.
            lent: Arguments named in :attr:`Capabilities.asks`.

        Raises:
            BatchError: other modalities or widths, with both sides.
        """
        self.check_inputs(batch)
        encoded: Encoded = super().__call__(batch, **lent)
        return encoded

    @abstractmethod
    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the N utterances of ``batch``."""

    def kept(self, batch: ConversationBatch, modality: str) -> Tensor | None:
        """(N) bool, the utterances that have a modality, with the policy ``skip``; else None: all are read."""
        return batch.present[:, batch.column(modality)] if self.inputs.policy == "skip" else None

    def check_inputs(self, batch: ConversationBatch) -> None:
        """Raise :class:`BatchError`, with both sides, if the widths of ``batch`` differ from the model's."""
        check_widths(self.inputs.widths, {name: value.shape[1] for name, value in batch.features.items()})


def _checked(cls: type[Architecture], construct: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(construct)
    def checked(self: Architecture, *arguments: Any, **options: Any) -> None:
        # Only for the class being built: a subclass may pass its parent values outside the parent's options.
        if type(self) is cls:
            declared = options_of(cls)
            names = {option.name for option in declared}
            values = {name: value for name, value in options.items() if name in names}
            check_options(f"model {cls.__name__!r}", "model", declared, values)
        construct(self, *arguments, **options)

    return checked


def check_widths(expected: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """Raise :class:`BatchError` unless the data has the model's modalities, in its order, with its widths."""
    for name, width in expected.items():
        if name not in widths:
            raise BatchError(
                f"the model was built for the modality {name!r}; the data has {', '.join(widths)}. "
                "Use the features of the training."
            )
        if widths[name] != width:
            raise BatchError(
                f"modality {name!r}: the model was built for width {width}, the data has {widths[name]}. "
                "Use the features of the training."
            )
    if list(expected) != list(widths):
        raise BatchError(
            f"the model was built for {', '.join(expected)} in this order; the data has {', '.join(widths)}. "
            "Give the modalities in the model's order."
        )
