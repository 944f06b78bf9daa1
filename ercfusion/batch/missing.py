"""Draw the holes of a law of missing modalities.

A law's function gets the law, the :class:`Layout` of a batch or split, and random numbers::

    def first_turns(law: FirstTurns, layout: Layout, draws: Draws) -> Hidden:
        late = layout.packing.position >= law.turns
        return Hidden(late[:, None].expand(layout.available.shape))

It makes the same draws for every content of ``available``, and does not wait for a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.packing import Packing
from ercfusion.config.missing_laws import (
    Block,
    Complete,
    Law,
    Pattern,
    Patterns,
    Rate,
    Rmfm,
    RmfmReleased,
    Rmm,
    Stmfm,
    Tmfm,
    in_order,
)

Generators = torch.Generator | Callable[[str], torch.Generator]
"""One generator, or a function from the name of a stream to its generator."""


@dataclass(frozen=True)
class Hidden:
    """Holes, for :meth:`ercfusion.batch.ConversationBatch.hide`.

    Args:
        drop: (N, M) bool, True if the modality of the utterance is hidden.
        steps: (sum of T_i) bool by modality with sequences, True if the step is hidden.
    """

    drop: Tensor
    steps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Everything a law can depend on: no values, no targets.

    Args:
        packing: Lengths of the conversations.
        modalities: Names of the M columns.
        available: (N, M) bool, True if the data have the modality.
        steps: (N) steps of every utterance, by modality with sequences.
        rows: Sum of ``steps``, on the host.
    """

    packing: Packing
    modalities: tuple[str, ...]
    available: Tensor
    steps: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: ConversationBatch) -> Layout:
        """The layout of a batch; values already hidden count as not available."""
        return cls(
            batch.packing,
            batch.modalities,
            batch.present,
            {name: stored.offsets.diff() for name, stored in batch.sequences.items()},
            {name: len(stored.values) for name, stored in batch.sequences.items()},
        )

    @property
    def vectors(self) -> list[int]:
        """Columns of the modalities with one vector per utterance."""
        return [column for column, name in enumerate(self.modalities) if name not in self.steps]

    def nothing(self) -> Tensor:
        """(N, M) bool, False."""
        return torch.zeros_like(self.available)

    def per_step(self, name: str, values: Tensor) -> Tensor:
        """(N, ...) values of utterances, repeated for the steps of a modality."""
        return torch.repeat_interleave(values, self.steps[name], dim=0, output_size=self.rows[name])

    def place(self, name: str) -> Tensor:
        """(sum of T_i) place of each step of a modality in its utterance, from 0."""
        counts = self.steps[name]
        first = self.per_step(name, counts.cumsum(0) - counts)
        return torch.arange(self.rows[name], device=first.device) - first


class Draws:
    """Uniform random numbers from 0 to below 1, drawn on the CPU and moved to a device.

    Args:
        generators: None for torch's global generator.
        device: Of the results.
    """

    def __init__(self, generators: Generators | None, device: torch.device | str = "cpu") -> None:
        self._generators = generators
        self._streams: dict[str, torch.Generator] = {}
        self._device = torch.device(device)

    def __call__(self, size: int, stream: str) -> Tensor:
        """``size`` float32 numbers of a stream; streams are independent if every one has a generator."""
        generator = self._generators
        if callable(generator):
            if stream not in self._streams:
                self._streams[stream] = generator(stream)
            generator = self._streams[stream]
        return torch.rand(size, generator=generator).to(self._device, non_blocking=True)

    def columns(self, size: int, layout: Layout) -> Tensor:
        """(size, M) numbers; every modality has its own stream."""
        return torch.stack([self(size, name) for name in layout.modalities], dim=1)


def draw(law: Law, batch: ConversationBatch | Layout, generator: Generators | None = None) -> Hidden:
    """Draw the holes of a batch or split.

    Args:
        law: Any law, for any modalities of the batch.
        batch: Its lengths, availability and numbers of steps are read; no values. A modality without steps counts as
            not available.
        generator: On the CPU; None for torch's global one, as in training. With a function the holes of a modality do
            not depend on other modalities, unless the law itself does.

    Returns:
        Masks on the batch's device. The order of the modalities has no influence.

    Raises:
        ConfigError: The law does not fit the modalities; see :meth:`ercfusion.config.missing_laws.Law.check`.
    """
    layout = batch if isinstance(batch, Layout) else Layout.of(batch)
    law.check(layout.modalities)
    names = in_order(layout.modalities)
    columns = [layout.modalities.index(name) for name in names]
    available = layout.available.clone()
    for name, counts in layout.steps.items():
        available[:, layout.modalities.index(name)] &= counts > 0
    ordered = Layout(
        layout.packing,
        tuple(names),
        available[:, columns],
        {name: layout.steps[name] for name in names if name in layout.steps},
        layout.rows,
    )
    hidden: Hidden = law.load()(law, ordered, Draws(generator, layout.available.device))
    return Hidden(hidden.drop[:, [names.index(name) for name in layout.modalities]], hidden.steps)


# The laws


def complete(law: Complete, layout: Layout, draws: Draws) -> Hidden:
    """Nothing is hidden."""
    return Hidden(layout.nothing())


def pattern(law: Pattern, layout: Layout, draws: Draws) -> Hidden:
    """All modalities but the kept ones are hidden."""
    drop = layout.nothing()
    drop[:, [column for column, name in enumerate(layout.modalities) if name not in law.kept]] = True
    return Hidden(drop)


def patterns(law: Patterns, layout: Layout, draws: Draws) -> Hidden:
    """One incomplete pattern with an available modality, or none."""
    available = layout.available
    total, width = available.shape
    chosen = draws(total, "incomplete") < law.rate
    numbers = draws(total, "pattern")
    kept = [one for one in itertools.product((False, True), repeat=width) if any(one) and not all(one)]
    if not kept:
        return Hidden(layout.nothing())
    table = torch.tensor(kept, device=available.device)
    allowed = (available[:, None] & table).any(2) | ~available.any(1, keepdim=True)
    counts = allowed.sum(1)
    # The k-th allowed pattern; rounding to float32 may give k = count.
    k = torch.minimum((numbers * counts).long(), counts - 1)
    index = (allowed.cumsum(1) <= k[:, None]).sum(1)
    return Hidden(~table[index] & chosen[:, None])


def rate(law: Rate, layout: Layout, draws: Draws) -> Hidden:
    """Independent holes; if all available modalities would go, the one with the largest number stays.

    All numbers are below the rate then, hence independent and uniform below it: each modality is equally likely.
    """
    numbers = draws.columns(layout.packing.total, layout)
    drop = numbers < law.rate
    largest = torch.where(layout.available, numbers, -1.0).argmax(1, keepdim=True)
    lost = ~(layout.available & ~drop).any(1, keepdim=True)
    stays = torch.zeros_like(drop).scatter(1, largest, lost)
    return Hidden(drop & ~stays)


def rmm(law: Rmm, layout: Layout, draws: Draws) -> Hidden:
    """Independent holes."""
    return Hidden(draws.columns(layout.packing.total, layout) < law.rate)


def rmfm(law: Rmfm, layout: Layout, draws: Draws) -> Hidden:
    """Steps at a rate per utterance, or turns at a rate per conversation."""
    drop, steps, packing = layout.nothing(), {}, layout.packing
    for column, name in enumerate(layout.modalities):
        if name in layout.steps:
            rates = draws(packing.total, name) if law.rate is None else law.rate
            own = layout.per_step(name, rates) if isinstance(rates, Tensor) else rates
            steps[name] = draws(layout.rows[name], name) < own
        else:
            rates = draws(packing.size, name) if law.rate is None else law.rate
            own = rates[packing.conversation] if isinstance(rates, Tensor) else rates
            drop[:, column] = draws(packing.total, name) < own
    return Hidden(drop, steps)


def rmfm_released(law: RmfmReleased, layout: Layout, draws: Draws) -> Hidden:
    """Every step at its own rate."""
    drop, steps = layout.nothing(), {}
    for column, name in enumerate(layout.modalities):
        size = layout.rows.get(name, layout.packing.total)
        hidden = draws(size, name) < draws(size, name)
        if name in layout.steps:
            steps[name] = hidden
        else:
            drop[:, column] = hidden
    return Hidden(drop, steps)


def tmfm(law: Tmfm, layout: Layout, draws: Draws) -> Hidden:
    """The same steps in all sequences, the same turns in all other modalities."""
    drop = layout.nothing()
    drop[:, layout.vectors] = (draws(layout.packing.total, "turns") < law.rate)[:, None]
    if not layout.steps:
        return Hidden(drop)
    longest, shared = _shared_steps(layout)
    # At least as many numbers as shared steps; their number itself is known to the device only.
    hidden = draws(sum(layout.rows[name] for name in layout.steps), "steps") < law.rate
    first = longest.cumsum(0) - longest
    return Hidden(drop, {name: hidden[layout.per_step(name, first) + place] for name, place in shared.items()})


def stmfm(law: Stmfm, layout: Layout, draws: Draws) -> Hidden:
    """The same block of steps in all sequences, the same block of turns in all other modalities."""
    packing, drop = layout.packing, layout.nothing()
    turns = _block(draws(packing.size, "turns"), packing.length, law.rate)
    drop[:, layout.vectors] = _inside(packing.position, *(bound[packing.conversation] for bound in turns))[:, None]
    if not layout.steps:
        return Hidden(drop)
    longest, shared = _shared_steps(layout)
    bounds = _block(draws(packing.total, "steps"), longest, law.rate)
    return Hidden(
        drop,
        {name: _inside(place, *(layout.per_step(name, bound) for bound in bounds)) for name, place in shared.items()},
    )


def block(law: Block, layout: Layout, draws: Draws) -> Hidden:
    """One block of turns per conversation and modality."""
    packing = layout.packing
    numbers = draws.columns(packing.size, layout)
    first, last = _block(numbers, packing.length[:, None], law.rate)
    position, owner = packing.position[:, None], packing.conversation
    return Hidden(_inside(position, first[owner], last.expand_as(first)[owner]))


def _block(numbers: Tensor, lengths: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """First place and end of blocks of round(share n) of n places, from uniform numbers."""
    sizes = torch.round(lengths.double() * share).long()
    first = torch.minimum((numbers * (lengths - sizes + 1)).long(), lengths - sizes)
    return first, first + sizes


def _inside(place: Tensor, first: Tensor, end: Tensor) -> Tensor:
    return (place >= first) & (place < end)


def _shared_steps(layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
    """(N) steps of each utterance's longest sequence, and each step's place in it, by modality.

    Step p of T is at the place floor(p longest / T): p itself in aligned sequences.
    """
    longest = torch.stack(list(layout.steps.values())).amax(0)
    places = {
        name: layout.place(name) * layout.per_step(name, longest) // layout.per_step(name, counts).clamp(min=1)
        for name, counts in layout.steps.items()
    }
    return longest, places
