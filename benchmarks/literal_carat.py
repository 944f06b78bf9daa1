"""CARAT's operations as in its authors' program, for comparison.

Peng et al., "CARAT: Contrastive Feature Reconstruction and Aggregation" (AAAI 2024), in our own code. A loop over
utterances and labels updates prototypes and reads each label on the host. The contrastive term has all similarities and
a mask of the same size. Permutations are drawn on the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.packing import Packing
from ercfusion.layers import LabelPrototypes
from ercfusion.losses import LabelContrast
from ercfusion.models.base import Labels
from ercfusion.models.carat import Carat

Permutations = tuple[Tensor, Tensor]
"""Utterance and modality (N, M, C) taken by each slot."""


class LiteralPrototypes(LabelPrototypes):
    """Prototypes which all have been updated before."""

    def forward(self, latents: Tensor) -> Tensor:
        """Mixture of both prototypes, (N, M, C, Z) -> the same."""
        negative, positive = self.prototypes.clone()
        similar = [F.cosine_similarity(latents, prototypes, dim=-1) for prototypes in (negative, positive)]
        weights = torch.stack(similar).softmax(0)[..., None]
        return weights[0] * negative + weights[1] * positive

    @torch.no_grad()
    def update(self, latents: Tensor, positive: Tensor, valid: Tensor | None = None, shares: Any = None) -> None:
        """Move the prototypes, one utterance after another."""
        for m in range(latents.shape[1]):
            for b in range(latents.shape[0]):
                for c in range(latents.shape[2]):
                    if valid is None or valid[b, m].item():
                        prototype = self.prototypes[int(positive[b, c].item()), m, c]
                        prototype.copy_(self.momentum * prototype + (1 - self.momentum) * latents[b, m, c])


class LiteralContrast(LabelContrast):
    """Supervised contrast of all vectors of the batch and the queue, with all similarities at once."""

    def forward(self, latents: Tensor, positive: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean over all vectors; then the batch enters the queue."""
        N, S, M, C, _ = latents.shape
        classes = torch.stack([(2 * m + positive.long()) * C + torch.arange(C) for m in range(M)], 1)
        classes = classes[:, None].expand(N, S, M, C).reshape(-1)
        own = F.normalize(latents.reshape(N * S * M * C, -1), dim=1)
        if valid is not None:
            chosen = valid[:, None, :, None].expand(N, S, M, C).reshape(-1)
            own, classes = own[chosen], classes[chosen]
        rows, names = own, classes
        if self.queue is not None:
            held, held_classes = self.queue.content()
            rows, names = torch.cat([own, held]), torch.cat([classes, held_classes])
        logits = rows @ rows.t() / self.temperature
        logits = logits - logits.max(1, keepdim=True).values.detach()
        others = 1 - torch.eye(len(rows), dtype=rows.dtype)
        same = (names[:, None] == names[None]).to(rows) * others
        logarithms = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        loss = -((same * logarithms).sum(1) / same.sum(1).clamp(min=1)).mean()
        if self.queue is not None:
            self.queue.push(own.detach(), classes)
        return loss


def literal_shuffle(values: Tensor, mass: Tensor, permutations: Permutations | None = None) -> Permutations:
    """New (N, M, C, D) and their labels (N, M, C), with permutations drawn on the host unless given."""
    N, M, C, _ = values.shape
    if permutations is None:
        samples = torch.stack([torch.stack([torch.randperm(N) for _ in range(C)], 1) for _ in range(M)], 1)
        modalities = torch.stack([torch.stack([torch.randperm(M) for _ in range(C)], 1) for _ in range(N)])
        modalities = modalities.gather(0, samples)
    else:
        samples, modalities = permutations
    labels = torch.arange(C).expand(N, M, C)
    return values[samples, modalities, labels], mass[samples, labels]


class LiteralCarat(Carat):
    """The library's network with the literal operations; all utterances are labelled."""

    permutations: Permutations | None = None

    @staticmethod
    def of(model: Carat) -> LiteralCarat:
        """Replace the operations of ``model``, which keeps its weights and state."""
        for name, kind in (("prototypes", LiteralPrototypes), ("contrastive", LiteralContrast)):
            getattr(model, name).__class__ = kind
        model.__class__ = LiteralCarat
        assert isinstance(model, LiteralCarat)
        return model

    def _shuffled(
        self, labels: Labels, vectors: Tensor, mass: Tensor, valid: Tensor, packing: Packing, **settings: Any
    ) -> Tensor:
        mixed, drawn = literal_shuffle(vectors, mass, self.permutations)
        return labels.mass_loss(self._aggregated(mixed)[1].flatten(0, 1), drawn.flatten(0, 1), **settings)
