"""A training step of CARAT as in its authors' program, for comparison.

Peng et al., "CARAT: Contrastive Feature Reconstruction and Aggregation for Multi-Modal Multi-Label Emotion Recognition"
(AAAI 2024), in our own code: prototypes updated in a loop over utterances and labels that reads each label on the host,
a contrastive term with all similarities and a mask of the same size, and permutations drawn on the host.

The released program's errors are repaired: it cannot run as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM, TEMPERATURE = 0.99, 0.07

Permutations = tuple[Tensor, Tensor]
"""Rows (N, M, C) of the utterance, and of the modality, that each slot takes."""


class LabelAttention(nn.Module):
    """A Transformer encoder of one modality, and one attention over its steps per label."""

    def __init__(
        self,
        width: int,
        labels: int,
        *,
        hidden: int,
        layers: int,
        heads: int,
        feedforward: int,
        steps: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.project = nn.Linear(width, hidden)
        self.places = nn.Parameter(0.02 * torch.randn(steps, hidden))
        self.first = nn.Sequential(nn.LayerNorm(hidden, eps=1e-12), nn.Dropout(dropout))
        layer = nn.TransformerEncoderLayer(hidden, heads, feedforward, dropout, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.query = nn.Linear(hidden, labels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, C, hidden)."""
        x = self.encoder(self.first(self.project(self.norm(x)) + self.places))
        return self.query(x).softmax(1).transpose(1, 2) @ x


class LiteralCarat(nn.Module):
    """CARAT and its training loss.

    Args:
        widths: Widths of the features by modality.
        labels: C.
        layers: Transformer layers per modality.
        hidden, latent: Widths.
        steps: T.
        queue: Number of earlier latent vectors; all are random at first.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        labels: int,
        *,
        layers: Sequence[int],
        hidden: int,
        latent: int,
        heads: int,
        feedforward: int,
        steps: int,
        queue: int,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        M, options = len(widths), {"hidden": hidden, "heads": heads, "feedforward": feedforward, "steps": steps}
        self.encoders = nn.ModuleList(
            LabelAttention(width, labels, layers=number, dropout=dropout, **options)
            for width, number in zip(widths.values(), layers, strict=True)
        )
        self.down = nn.ModuleList(_two_layers(hidden, hidden // 2, latent) for _ in widths)
        self.up = nn.ModuleList(_two_layers(latent, hidden // 2, hidden) for _ in widths)
        self.reconstruct = nn.ModuleList(nn.Linear(M * hidden, hidden) for _ in widths)
        self.weights = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(M * labels, hidden)).view(M, labels, hidden))
        self.aggregate = nn.Sequential(nn.Linear(labels * hidden, hidden), nn.ReLU(), nn.Linear(hidden, labels))
        self.make_state(M, labels, latent, queue)

    def make_state(self, modalities: int, labels: int, latent: int, queue: int) -> None:
        """Create the prototypes (negative, positive) and the queue."""
        self.register_buffer("prototypes", torch.randn(2, modalities, labels, latent))
        self.register_buffer("queue", F.normalize(torch.randn(queue, latent), dim=1))
        self.register_buffer("queue_classes", torch.randint(2 * modalities * labels, (queue,)))

    def forward(self, features: Sequence[Tensor], positive: Tensor, permutations: Permutations | None = None) -> Tensor:
        """The training loss.

        Args:
            features: (N, T, D) by modality.
            positive: (N, C) bool.
            permutations: Instead of random ones.
        """
        target = positive.to(features[0])
        u = torch.stack([encoder(x) for encoder, x in zip(self.encoders, features, strict=True)], 1)
        z = _each(self.down, u)
        decoded, filled = _each(self.up, z), _each(self.up, self.fill(z))
        first = self.rebuild(decoded, filled)
        second = self.rebuild(first, first)
        latents = torch.stack([z, _each(self.down, first), _each(self.down, second)], 1)
        loss = F.mse_loss(decoded, u) * u.shape[1] + F.mse_loss(first, u) * u.shape[1]
        for weight, stage in ((0.01, u), (0.1, first), (1.0, second)):
            logits = (stage * self.weights).sum(-1).amax(1)
            loss = loss + weight * F.binary_cross_entropy_with_logits(logits, target)
        mixed, mixed_target = self.shuffle(second, positive, permutations)
        for weight, stage, truth in (
            (1.0, second, target[:, None].expand(-1, u.shape[1], -1)),
            (0.1, mixed, mixed_target),
        ):
            loss = loss + weight * F.binary_cross_entropy_with_logits(
                self.aggregate(stage.flatten(2)), truth.to(target)
            )
        loss = loss + self.contrast(latents, positive)
        self.update(z.detach(), positive)
        return loss

    def rebuild(self, other: Tensor, own: Tensor) -> Tensor:
        """Each modality from its own part and the other modalities, (N, M, C, hidden) -> the same."""
        parts = []
        for m, layer in enumerate(self.reconstruct):
            chosen = [(own if m == k else other)[:, k] for k in range(other.shape[1])]
            parts.append(layer(torch.cat(chosen, -1)))
        return torch.stack(parts, 1)

    def fill(self, z: Tensor) -> Tensor:
        """Mixture of both prototypes, (N, M, C, latent) -> the same."""
        negative, positive = self.prototypes.clone()
        similar = [F.cosine_similarity(z, prototypes, dim=-1) for prototypes in (negative, positive)]
        weights = torch.stack(similar).softmax(0)[..., None]
        return weights[0] * negative + weights[1] * positive

    @torch.no_grad()
    def update(self, z: Tensor, positive: Tensor) -> None:
        """Move the prototypes, one utterance after another."""
        for m in range(z.shape[1]):
            for b in range(z.shape[0]):
                for c in range(z.shape[2]):
                    prototype = self.prototypes[int(positive[b, c].item()), m, c]
                    prototype.copy_(MOMENTUM * prototype + (1 - MOMENTUM) * z[b, m, c])

    def contrast(self, latents: Tensor, positive: Tensor) -> Tensor:
        """Supervised contrast of all vectors of the batch and the queue; then the batch enters the queue."""
        N, S, M, C, _ = latents.shape
        own = F.normalize(latents.reshape(N * S * M * C, -1), dim=1)
        classes = torch.stack([(2 * m + positive.long()) * C + torch.arange(C) for m in range(M)], 1)
        classes = classes[:, None].expand(N, S, M, C).reshape(-1)
        rows, names = torch.cat([own, self.queue]), torch.cat([classes, self.queue_classes])
        logits = rows @ rows.t() / TEMPERATURE
        logits = logits - logits.max(1, keepdim=True).values.detach()
        others = 1 - torch.eye(len(rows), dtype=rows.dtype)
        same = (names[:, None] == names[None]).to(rows) * others
        logarithms = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        loss = -((same * logarithms).sum(1) / same.sum(1).clamp(min=1)).mean()
        with torch.no_grad():
            size = len(self.queue)
            self.queue.copy_(torch.cat([own, self.queue])[:size])
            self.queue_classes.copy_(torch.cat([classes, self.queue_classes])[:size])
        return loss

    def shuffle(self, values: Tensor, positive: Tensor, permutations: Permutations | None) -> Permutations:
        """New (N, M, C, hidden) and their labels (N, M, C), with permutations drawn on the host."""
        N, M, C, _ = values.shape
        if permutations is None:
            samples = torch.stack([torch.stack([torch.randperm(N) for _ in range(C)], 1) for _ in range(M)], 1)
            modalities = torch.stack([torch.stack([torch.randperm(M) for _ in range(C)], 1) for _ in range(N)])
            modalities = modalities.gather(0, samples)
        else:
            samples, modalities = permutations
        labels = torch.arange(C).expand(N, M, C)
        return values[samples, modalities, labels], positive[samples, labels]


def _two_layers(first: int, middle: int, last: int) -> nn.Module:
    return nn.Sequential(nn.Linear(first, middle), nn.ReLU(), nn.Linear(middle, last))


def _each(layers: Any, x: Tensor) -> Tensor:
    """Layer m on modality m, (N, M, C, D) -> (N, M, C, E)."""
    return torch.stack([layer(x[:, m]) for m, layer in enumerate(layers)], 1)
