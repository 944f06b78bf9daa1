"""Absent modalities: values in their place, or layers without them.

M modalities, N utterances of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch, SequenceValues
from ercfusion.batch.packing import Packing

FILLS = ("zero", "mean", "learned")
"""Policies that fill absent modalities."""

Standardization = Callable[[str, Tensor], Tensor]
"""Standardised values of a modality, (..., D) -> (..., D)."""


class FillAbsent(nn.Module):
    """Fills absent modalities of a standardised batch and marks them as present: ``zero``, ``mean`` and ``learned``.

    - ``zero``: 0 before standardisation, so ``-mean / deviation`` after it.
    - ``mean``: 0 after standardisation. Without statistics (``training.standardize=false``) the same as ``zero``.
    - ``learned``: a trained vector per modality, initially 0: the mean. It draws no random numbers.

    An absent sequence, or one without steps, becomes one step. Stored values of absent modalities are never read.

    Args:
        widths: Dimensions of each modality.
        policy: One of the three.
        trained: Whether a model reads the vectors; False for ``learned`` without parameters, which fills the mean.

    Raises:
        ValueError: another policy.
    """

    def __init__(self, widths: Mapping[str, int], policy: str, *, trained: bool = True) -> None:
        super().__init__()
        if policy not in FILLS:
            raise ValueError(f"policy must be one of {', '.join(FILLS)}; found {policy!r}")
        self.policy = policy
        learned = widths if policy == "learned" and trained else {}
        self.vectors = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in learned.items()})

    def forward(self, batch: ConversationBatch, standardize: Standardization) -> ConversationBatch:
        """The filled batch, complete.

        Args:
            batch: Standardised.
            standardize: :meth:`ercfusion.layers.Standardize.apply_to`.
        """
        present = batch.present
        features, sequences = dict(batch.features), dict(batch.sequences)
        for column, (name, values) in enumerate(batch.features.items()):
            here, fill = present[:, column], self._fill(name, values, standardize)
            if name in sequences:
                here = here & (sequences[name].offsets.diff() > 0)
                sequences[name] = _filled(sequences[name], here, fill)
            features[name] = torch.where(here[:, None], values, fill)
        return replace(
            batch, features=features, sequences=sequences, available=torch.ones_like(batch.available), drop=None
        )

    def _fill(self, name: str, values: Tensor, standardize: Standardization) -> Tensor:
        """(D) value of an absent modality."""
        if name in self.vectors:
            return self.vectors[name].to(values.dtype)
        zeros = values.new_zeros(values.shape[1])
        return standardize(name, zeros).to(values.dtype) if self.policy == "zero" else zeros


def _filled(stored: SequenceValues, here: Tensor, fill: Tensor) -> SequenceValues:
    """The sequences of the utterances ``here`` (N), and one step ``fill`` (D) for every other one."""
    counts = torch.where(here, stored.offsets.diff(), 1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    rows = stored.offsets[owner] + torch.arange(len(owner), device=counts.device) - offsets[owner]
    rows = torch.where(here[owner], rows, len(stored.values))
    values = torch.cat([stored.values, fill[None]]).index_select(0, rows)
    if stored.positions is None:
        return SequenceValues(values, offsets)
    positions = torch.cat([stored.positions, stored.positions.new_zeros(1)]).index_select(0, rows)
    return SequenceValues(values, offsets, positions)


def absent_vectors(widths: Mapping[str, int], policy: str | None) -> nn.ParameterDict:
    """An architecture's own learned vectors for absent modalities, initially zero; none under a policy.

    Under a policy nothing is absent, or everything absent is left out.
    """
    own = widths if policy is None else {}
    return nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in own.items()})


def put_absent(values: Tensor, present: Tensor, vectors: nn.ParameterDict, name: str) -> Tensor:
    """(N, D) values with the vector of ``name`` in rows that are not ``present`` (N); zero without a vector."""
    return torch.where(present[:, None], values, vectors.get(name, 0.0))


def over_present(layer: Callable[..., Tensor], x: Tensor, present: Tensor, packing: Packing, *more: Tensor) -> Tensor:
    """A layer over the present utterances of each conversation, as if the others did not exist.

    Args:
        layer: Called with rows, their packing, and the rows of ``more``.
        x: (N, D).
        present: (N) bool.
        packing: Of the N utterances.
        more: (N, ...) each.

    Returns:
        (N, D'), zero for the others.
    """
    rows = present.nonzero().squeeze(1)
    if not len(rows):  # One row, not used: distributed training waits for a gradient of every parameter.
        rows = torch.zeros(1, dtype=torch.long, device=x.device)
    counts = torch.zeros(packing.size, dtype=torch.long, device=x.device)
    counts = counts.index_add(0, packing.conversation[rows], torch.ones_like(rows))
    part = Packing([count for count in counts.tolist() if count], x.device)
    y = layer(x.index_select(0, rows), part, *(each.index_select(0, rows) for each in more))
    spread = y.new_zeros(len(x), y.shape[1]).index_copy(0, rows, y)
    return torch.where(present[:, None], spread, 0.0)
