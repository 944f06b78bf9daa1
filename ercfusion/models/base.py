"""What every architecture is: a module from a packed batch to one vector an utterance."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """An auxiliary loss of a whole batch, in two parts: what each utterance brings, and what is made of it.

    Kept apart, because in distributed training the utterances of a batch are spread over processes: those of all of
    them are collected before ``function`` is called. A loss that is a mean over utterances is one of them, and so is
    one that compares utterances with each other.

    Args:
        function: Called with the values and the packing of the same utterances; returns a scalar.
        values: (N, ...) each.
    """

    function: Callable[..., Tensor]
    values: tuple[Tensor, ...]

    def __call__(self, shares: Shares) -> Tensor:
        """The loss of the batch that the processes share, a scalar."""
        return self.function(*map(shares.gather, self.values), shares.packing)


@dataclass
class Encoded:
    """What an architecture makes of a batch.

    Args:
        hidden: (N, hidden_size); a head turns it into the task's outputs.
        modalities: Per-modality representations (N, D_m), where the architecture has them; the objective term
            ``unimodal`` puts a head on each.
        attention: Attention maps (B, H, L, L) by name, [b, h, receiver, source], if ``keep_attention`` asks for them.
        losses: Auxiliary losses by name; the objective weighs them by that name. A scalar will do for a single process;
            distributed training needs a :class:`BatchLoss`.
    """

    hidden: Tensor
    modalities: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor | BatchLoss] = field(default_factory=dict)


class Outcomes(Protocol):
    """The classifiers on single modalities, asked while a batch is encoded: the request ``outcomes``."""

    def __call__(self, modality: str, representation: Tensor) -> Tensor | None:
        """Logits of outcomes of which exactly one occurs; None if the task has no probabilities (regression).

        Args:
            modality: Its name.
            representation: (N, D), what the architecture returns in :attr:`Encoded.modalities`.

        Returns:
            (N, Q, C): Q questions with C outcomes each.
        """


Request = Literal["outcomes"]
"""What an architecture may ask for beyond the batch, by the keyword argument of ``forward`` that takes it.

``outcomes``: an :class:`Outcomes`. To add one, name it here, declare its protocol above, and lend it in
:meth:`ercfusion.tasks.recognizer.Recognizer.lent`.
"""


@dataclass(frozen=True)
class Capabilities:
    """What an architecture can do and needs; tests and the documentation's matrix are computed from it.

    Args:
        learns: Its output depends on the input at all (False for the majority floor).
        contextual: Reads other utterances of the conversation.
        causal: Never reads later utterances.
        missing_aware: Treats an absent modality otherwise than as zeros.
        speakers: ``none`` (ignores speakers), ``same_other`` (only whether two turns have the same speaker) or
            ``numbered`` (the order of first appearance matters).
        needs_unimodal: Parts of it learn from the objective's term ``unimodal`` only.
        requires: Modalities without which it cannot run; empty means that any will do.
        asks: What the recognizer lends to ``forward``, as keyword arguments of these names. They have defaults, so that
            the architecture runs without a recognizer too.
        compiles: Runs under ``torch.compile``; otherwise ``compile_note`` says why not.

    Raises:
        ValueError: ``asks`` names what nobody lends.
    """

    learns: bool = True
    contextual: bool = True
    causal: bool = False
    missing_aware: bool = True
    speakers: Literal["none", "same_other", "numbered"] = "none"
    needs_unimodal: bool = False
    requires: tuple[str, ...] = ()
    asks: tuple[Request, ...] = ()
    compiles: bool = True
    compile_note: str = ""

    def __post_init__(self) -> None:
        if unknown := set(self.asks) - set(get_args(Request)):
            raise ValueError(f"asks: {min(unknown)!r} is none of {', '.join(get_args(Request))}")


BATCH_NOTE = "the score of an utterance depends on the other conversations of its batch, because {}"
"""What runs, records and tables say of an architecture with :attr:`Limits.batch_dependence`."""

PACKED_NOTE = "packed sequences (torch.nn.utils.rnn) are not traced by torch.compile"
"""Why an architecture with a packed recurrent layer does not compile."""

PADDING_NOTE = "mask_padding=false lets its LSTM read padding"
"""Why the score of an utterance depends on its batch, of architectures with a context LSTM and the option."""


@dataclass(frozen=True)
class Limits:
    """What follows from an architecture's options without its inputs, so that it is known before data are loaded.

    Args:
        longest: The most utterances that a conversation may have; None for any number.
        batch_dependence: Why the score of an utterance depends on the other conversations of its batch, as the end of
            a sentence that begins with "because"; empty where it does not.
    """

    longest: int | None = None
    batch_dependence: str = ""


class Architecture(nn.Module, ABC):
    """Base of all architectures.

    A subclass is constructed as ``Subclass(inputs, *, option=default, ...)`` with options of plain types, calls
    ``super().__init__(inputs)`` first, sets ``hidden_size``, and implements :meth:`forward`. What it can do is declared
    in ``capabilities``. Batches that do not fit the inputs never reach :meth:`forward`.

    Args:
        inputs: What the data delivers.
    """

    capabilities: Capabilities = Capabilities()
    """What all instances can do. A constructor replaces it on the instance if the options or the inputs decide; but
    ``requires`` is read from the class."""

    hidden_size: int
    keep_attention: bool = False
    """Set it on an instance to have attention maps in :attr:`Encoded.attention`, where the architecture has any."""

    search_space: ClassVar[Space] = {}
    """What a sweep searches: options (``model.hidden``) and settings of the training that belong to them."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Have the constructor check its options before anything is built."""
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__init__ = _checked(cls, cls.__init__)  # type: ignore[method-assign]

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__()
        self.inputs = inputs
        missing = [name for name in self.capabilities.requires if name not in inputs.widths]
        if missing:
            raise BatchError(
                f"{type(self).__name__} needs the modality {missing[0]!r}; the data has {', '.join(inputs.widths)}"
            )

    @classmethod
    def limits(cls, options: Mapping[str, Any]) -> Limits:
        """The limits of an instance with ``options``; a subclass that has any overrides this.

        Call :func:`ercfusion.models.architecture_limits`, which fills in the defaults.

        Args:
            options: All options of the constructor.
        """
        return Limits()

    def __call__(self, batch: ConversationBatch, **lent: Any) -> Encoded:
        """Check that ``batch`` has the modalities and widths this was built for, then :meth:`forward`.

        Args:
            batch: N utterances.
            lent: What :attr:`Capabilities.asks` names.

        Raises:
            BatchError: other modalities, or other widths; both sides are named.
        """
        self.check_inputs(batch)
        encoded: Encoded = super().__call__(batch, **lent)
        return encoded

    @abstractmethod
    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the N utterances of ``batch``."""

    def check_inputs(self, batch: ConversationBatch) -> None:
        """Raise :class:`BatchError`, naming both sides, if a batch does not have the widths this was built for."""
        check_widths(self.inputs.widths, {name: value.shape[1] for name, value in batch.features.items()})


def _checked(cls: type[Architecture], construct: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(construct)
    def checked(self: Architecture, *arguments: Any, **options: Any) -> None:
        # Only the class that is built: one that inherits may pass its parent what the parent's own options exclude.
        if type(self) is cls:
            known = options_of(cls)
            names = {option.name for option in known}
            given = {name: value for name, value in options.items() if name in names}
            check_options(f"model {cls.__name__!r}", "model", known, given)
        construct(self, *arguments, **options)

    return checked


def check_widths(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raise :class:`BatchError` unless the data has the modalities and widths that a model expects, in its order."""
    for name, width in expected.items():
        if name not in found:
            raise BatchError(f"the model was built for the modality {name!r}; the data has {', '.join(found)}")
        if found[name] != width:
            raise BatchError(f"modality {name!r}: the model was built for width {width}, the data has {found[name]}")
    if list(expected) != list(found):
        raise BatchError(
            f"the model was built for {', '.join(expected)} in this order; the data has {', '.join(found)}"
        )
