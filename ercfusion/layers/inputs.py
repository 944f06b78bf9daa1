"""From a batch's modalities to one vector per utterance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.layers.absent import absent_vectors, put_absent


class Standardize(nn.Module):
    """Standardisation of every dimension of every modality with training statistics.

    The statistics are buffers, saved with the model. Dimensions constant in training are only centred.

    Args:
        widths: Dimensions of each modality.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.modalities = tuple(widths)
        for name, width in widths.items():
            self.register_buffer(f"mean_{name}", torch.zeros(width))
            self.register_buffer(f"scale_{name}", torch.ones(width))

    @torch.no_grad()
    def fit(self, batch: ConversationBatch) -> None:
        """Compute the statistics from the available utterances of ``batch``, a whole training split."""
        for name in self.modalities:
            present = batch.present[:, batch.column(name)]
            stored = batch.sequences.get(name)
            if stored is None:
                rows = batch.features[name][present].double()
            else:
                rows = stored.values[torch.repeat_interleave(present, stored.offsets.diff())].double()
            if not len(rows):
                continue  # no training turn has the modality: later values stay unchanged
            deviation = rows.std(0, correction=0)
            self.get_buffer(f"mean_{name}").copy_(rows.mean(0))
            self.get_buffer(f"scale_{name}").copy_(torch.where(deviation > 1e-8, 1 / deviation.clamp(min=1e-8), 1.0))

    def apply_to(self, name: str, values: Tensor) -> Tensor:
        """Standardised values of one modality, (..., D) -> (..., D)."""
        return (values - self.get_buffer(f"mean_{name}")) * self.get_buffer(f"scale_{name}")

    def forward(self, batch: ConversationBatch) -> ConversationBatch:
        """The batch with standardised features and sequence features."""
        from dataclasses import replace

        return replace(
            batch,
            features={name: self.apply_to(name, value) for name, value in batch.features.items()},
            sequences={
                name: replace(stored, values=self.apply_to(name, stored.values))
                for name, stored in batch.sequences.items()
            },
        )


class ModalityProjection(nn.Module):
    """Modalities at a common width, or unchanged: the input of most architectures.

    With a common width: one linear layer per modality, and a learned vector for an absent one (zero under a policy).
    Without: the features, zero if absent.

    Args:
        widths: Dimensions of each modality.
        out_features: Common width; 0 for none.
        policy: :attr:`ercfusion.batch.inputs.InputSpec.policy`; with one, an absent modality is zero.

    Attributes:
        widths: Dimensions of each modality in the result.
        merged_features: D of :meth:`merge`.

    Shapes:
        batch -> {modality: (N, D_m)}.
    """

    def __init__(self, widths: Mapping[str, int], out_features: int, policy: str | None = None) -> None:
        super().__init__()
        projected = widths if out_features else {}
        self.project = nn.ModuleDict({name: nn.Linear(width, out_features) for name, width in projected.items()})
        self.absent = absent_vectors(dict.fromkeys(projected, out_features), policy)
        self.out_features = out_features
        self.widths = {name: out_features or width for name, width in widths.items()}
        self.merged_features = out_features or sum(widths.values())

    def forward(self, batch: ConversationBatch) -> dict[str, Tensor]:
        """The vectors of each modality."""
        if not self.out_features:
            return {name: batch.values(name) for name in self.widths}
        present = batch.present
        projected = {}
        for name, layer in self.project.items():
            here = present[:, batch.column(name)]
            projected[name] = put_absent(layer(batch.values(name)), here, self.absent, name)
        return projected

    def merge(self, batch: ConversationBatch) -> Tensor:
        """One vector per utterance, (N, merged_features): the sum at a common width, else the concatenation."""
        values = list(self(batch).values())
        return torch.stack(values).sum(0) if self.out_features else torch.cat(values, dim=1)

    def mixer(self, dropout: float) -> nn.Module:
        """A new module for the output of :meth:`merge`, of the same width.

        GELU, dropout and a linear layer after a sum; the identity after a concatenation.
        """
        if not self.out_features:
            return nn.Identity()
        return nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(self.out_features, self.out_features))
