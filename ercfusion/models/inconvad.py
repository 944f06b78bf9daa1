"""Towers with uncertainty, a classifier of their inconsistency, and fusion only as far as they agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import GatedFusion
from ercfusion.losses import gaussian_nll, gaussian_spread
from ercfusion.models.base import Architecture, BatchLoss, Encoded, Ratings
from ercfusion.models.options import Share, Space, Width
from ercfusion.models.vectors import Absent, Context, ModalityVectors, context_capabilities

FLOOR = 0.01
"""Smallest standard deviation of a tower, on a scale on which the range of the targets has length 2."""
LIMIT = 6.0
"""Bound of a log-variance, reached smoothly."""


@dataclass
class Towers:
    """Output of the towers for N utterances, M modalities and K numbers.

    Args:
        vectors: (N, M, D).
        mean: (N, M, K), on the scale of :class:`ercfusion.models.base.Ratings`.
        log_variance: (N, M, K).
        here: (N, M) bool, True if the tower counts: its modality is present or inferred from context.
    """

    vectors: Tensor
    mean: Tensor
    log_variance: Tensor
    here: Tensor

    @property
    def deviation(self) -> Tensor:
        """(N, M, K) standard deviations."""
        return gaussian_spread(self.log_variance, FLOOR)


class Inconvad(Architecture):
    """InconVAD: Li et al., "A Two-Stage Dual-Tower Framework for Multimodal Emotion Inconsistency Detection" (arXiv
    2509.20140).

    A tower per modality estimates valence, arousal and dominance, each with a variance. A classifier says whether two
    towers are inconsistent, and their vectors are fused only as far as they agree. Our reading of the abstract and of
    summaries: the equations, and the source of the inconsistency labels, were not available.

    - *Paper*: speech and text; towers on frames (two Conformer blocks) and words (RoBERTa). First the towers are
      trained, then the classifier and the gate.
    - *Here*: any number of modalities, one vector each, after a layer over the conversation. The towers learn the
      numbers of the first regression task; without one, the shares of the labels. ``recipe=inconvad`` has the two
      stages; without it everything is trained together.
    - *Inconsistency labels*: our rule, ``quantile``. The distance of two towers is the root mean square of the
      differences of their means in standard deviations; it is inconsistent above this quantile of the training batch.

    With pair probabilities :math:`p_{ab}` and :math:`c` the mean of :math:`1 - p_{ab}`, the fused vector is :math:`c` x
    (gated sum of all towers) + :math:`(1 - c)` x (sum of the towers weighted by their precision). The classifier's
    input has no gradient, so it does not change the towers.

    Losses: ``towers``, the Gaussian negative log-likelihood of all towers; ``inconsistency``, cross-entropy of the
    classifier.

    Args:
        inputs: Modalities and widths.
        context: Layer over the conversation in each tower.
        projection: Width of its input; even, for the Transformer a multiple of 4.
        bidirectional: Read both directions; false is causal.
        width: Width of the towers' vectors.
        layers: Dense layers of a tower after the context.
        absent: Vector of an absent modality; ``context``: output of the context for a learned vector, ``zero`` without
            a context.
        fusion: ``agreement``, as described; ``precision``: only the sum weighted by precision, without a classifier.
        quantile: Share of the pairs in a training batch that count as consistent.
        pair: Hidden width of the classifier.
        hidden: Width of the output.
        dropout: Dropout probability in the towers and around the output layer.

    Shapes:
        batch -> hidden (N, hidden); one representation (N, width) per modality.
    """

    # Not searched: context and bidirectional (different information), absent, fusion (a stage).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.width": {"choices": [32, 64, 128]},
        "model.layers": {"low": 1, "high": 3},
        "model.quantile": {"low": 0.5, "high": 0.9, "step": 0.05},
        "model.pair": {"choices": [16, 32, 64]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "objective.weights.towers": {"low": 0.1, "high": 2.0, "log": True},
        "training.batch_size": {"choices": [8, 16, 32]},
    }
    capabilities = context_capabilities("lstm", 0, True, asks=("ratings",))
    loss_weights: ClassVar[Mapping[str, float]] = {"towers": 1.0, "inconsistency": 1.0}  # type: ignore[misc]

    def __init__(
        self,
        inputs: InputSpec,
        *,
        context: Context = "lstm",
        projection: Width = 128,
        bidirectional: bool = True,
        width: Width = 64,
        layers: Width = 1,
        absent: Absent = "context",
        fusion: Literal["agreement", "precision"] = "agreement",
        quantile: Share = 0.75,
        pair: Width = 32,
        hidden: Width = 64,
        dropout: Share = 0.3,
    ) -> None:
        super().__init__(inputs)
        self.capabilities = context_capabilities(context, 10, bidirectional, absent, asks=("ratings",))
        self.hidden_size = hidden
        self.quantile = quantile
        names = list(inputs.widths)
        numbers = max(1, len(inputs.dimensions))
        self.vectors = ModalityVectors(
            inputs,
            {},
            width,
            context=context,
            projection=projection,
            context_layers=1,
            heads=4,
            lags=10,
            bidirectional=bidirectional,
            layers=layers,
            norm="layer",
            activation="tanh",
            text_linear=False,
            dropout=dropout,
            input_dropout=0.1,
            absent=absent,
        )
        self.estimates = nn.ModuleDict({name: nn.Linear(width, 2 * numbers) for name in names})
        fused = fusion == "agreement" and len(names) > 1
        self.pairs = list(itertools.combinations(range(len(names)), 2)) if fused else []
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width + 3 * numbers, pair), nn.ReLU(), nn.Linear(pair, 1)) for _ in self.pairs
        )
        self.gate = GatedFusion(width, len(names)) if fused else None
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(width, hidden)

    def forward(self, batch: ConversationBatch, ratings: Ratings | None = None) -> Encoded:
        """Estimate the numbers of every tower, and fuse the towers."""
        towers = self._towers(batch)
        logits = self._pair_logits(towers)
        hidden = self.dropout(F.gelu(self.readout(self.dropout(self._fused(towers, logits)))))
        targets = None if ratings is None else ratings.targets(batch)
        losses: dict[str, Tensor | BatchLoss] = {}
        if targets is not None:
            value, valid = targets
            known = batch.present & valid[:, None]
            losses["towers"] = BatchLoss(tower_loss, (towers.mean, towers.log_variance, value, known))
            if self.pairs:
                losses["inconsistency"] = BatchLoss(
                    partial(inconsistency_loss, quantile=self.quantile),
                    (logits, self._distances(towers), self._both(batch.present)),
                )
        named = dict(zip(self.inputs.widths, towers.vectors.unbind(1), strict=True))
        return Encoded(hidden, modalities=named, losses=losses)

    def inconsistency(self, batch: ConversationBatch) -> dict[tuple[str, str], Tensor]:
        """(N) probability that two modalities are inconsistent, by pair; empty with ``fusion=precision``.

        Args:
            batch: Standardised, as in ``recognizer.prepared(batch)``.
        """
        probabilities = self._pair_logits(self._towers(batch)).sigmoid()
        names = list(self.inputs.widths)
        return {(names[a], names[b]): probabilities[:, p] for p, (a, b) in enumerate(self.pairs)}

    def _towers(self, batch: ConversationBatch) -> Towers:
        z = self.vectors(batch)
        estimates = torch.stack([self.estimates[name](vector) for name, vector in z.items()], dim=1)
        mean, log_variance = estimates.chunk(2, dim=-1)
        present = self.vectors.present(batch)
        here = torch.ones_like(batch.present) if present is None else present
        return Towers(torch.stack(list(z.values()), dim=1), mean, LIMIT * torch.tanh(log_variance / LIMIT), here)

    def _pair_logits(self, towers: Towers) -> Tensor:
        """(N, P) logits of inconsistency; their input has no gradient."""
        vectors, mean, deviation = towers.vectors.detach(), towers.mean.detach(), towers.deviation.detach()
        columns = [
            classify(
                torch.cat(
                    [
                        *(vectors[:, a], vectors[:, b]),
                        *((mean[:, a] - mean[:, b]).abs(), deviation[:, a], deviation[:, b]),
                    ],
                    dim=1,
                )
            )
            for classify, (a, b) in zip(self.classifiers, self.pairs, strict=True)
        ]
        return torch.cat(columns, dim=1) if columns else vectors.new_zeros(len(vectors), 0)

    def _distances(self, towers: Towers) -> Tensor:
        """(N, P) distances of two towers in standard deviations, without gradient."""
        mean, variance = towers.mean.detach(), towers.deviation.detach().square()
        columns = [
            ((mean[:, a] - mean[:, b]).square() / (variance[:, a] + variance[:, b])).mean(-1).sqrt()
            for a, b in self.pairs
        ]
        return torch.stack(columns, dim=1)

    def _both(self, mask: Tensor) -> Tensor:
        """(N, P) bool, True if both modalities of a pair are in ``mask`` (N, M)."""
        return torch.stack([mask[:, a] & mask[:, b] for a, b in self.pairs], dim=1)

    def _fused(self, towers: Towers, logits: Tensor) -> Tensor:
        """(N, width)."""
        here = towers.here
        precision = -towers.log_variance.mean(-1)  # (N, M): log of the geometric mean over the numbers
        weights = precision.masked_fill(~here, torch.finfo(precision.dtype).min).softmax(1)
        selected = (torch.where(here, weights, 0.0)[..., None] * towers.vectors).sum(1)
        if self.gate is None:
            return selected
        both = self._both(here)
        agreement = torch.where(both, 1 - logits.sigmoid(), 0.0).sum(1) / both.sum(1).clamp(min=1)
        joint = self.gate(towers.vectors.unbind(1), here)
        return selected + agreement[:, None] * (joint - selected)


def tower_loss(mean: Tensor, log_variance: Tensor, value: Tensor, known: Tensor, packing: Packing) -> Tensor:
    """Sum over the modalities of the mean Gaussian negative log-likelihood of the known targets.

    Shapes:
        mean, log_variance (N, M, K), value (N, K), known (N, M) bool -> scalar.
    """
    each = gaussian_nll(mean, log_variance, value[:, None].expand_as(mean), floor=FLOOR).mean(-1)
    return (torch.where(known, each, 0.0).sum(0) / known.sum(0).clamp(min=1)).sum()


def inconsistency_loss(logits: Tensor, distance: Tensor, both: Tensor, packing: Packing, *, quantile: float) -> Tensor:
    """Mean over the pairs of the binary cross-entropy for "the distance is above this quantile of the batch".

    The quantile is the lower one: the largest distance with at most this share of the others below it.

    Shapes:
        logits, distance (N, P), both (N, P) bool, True if the pair counts -> scalar.
    """
    count = both.sum(0)
    ordered = torch.where(both, distance, torch.inf).sort(0).values
    place = (quantile * (count - 1).clamp(min=0)).floor().long()
    label = (distance > ordered.gather(0, place[None])).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return (torch.where(both, each, 0.0).sum(0) / count.clamp(min=1)).mean()
