"""Low-rank fusion: sums of products of linear maps of the modalities."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.tensor_fusion import LowRankFusion
from ercfusion.models.base import Encoded
from ercfusion.models.options import Count, Share, Space, Width
from ercfusion.models.vectors import VectorFusion


class Lmf(VectorFusion):
    """LMF: Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors" (ACL 2018).

    Tensor Fusion (:class:`ercfusion.models.tfn.Tfn`) with a low-rank weight: a sum of products with one factor per
    modality. Parameters grow with the sum of the widths.

    - *Paper*: one utterance at a time; products are summed over the ranks.
    - *Released code*: weights the ranks, has separate learning rates for the factors, never applies its dropout after
      the fusion. The fused vector is the prediction.
    - *Circulating copy* (in a benchmark suite): trains neither rank weights nor bias.
    - *Here*: all parts are trained at one rate; the classifier reads the fused vector. Context as in
      :class:`~ercfusion.models.tfn.Tfn`; with ``context=none`` an absent modality is [1; 0].

    The preset ``model=lmf_released`` has the published sizes.

    Args:
        inputs: Modalities and widths.
        encoder: Options of :class:`~ercfusion.models.vectors.VectorFusion`.
        rank: Number of products.
        fused: Width of the fused vector.
        fusion_dropout: Dropout probability on the z_m before the fusion.
        post_norm: Layer normalisation of the fused vector; the size of products varies strongly.
        post_dropout: Dropout probability on the fused vector.
        initial: Variance of the initial factors: 2 / (d_m + 1 + fused), or 2 / ((d_m + 1 + rank) * fused).

    Shapes:
        batch -> hidden (N, fused); one representation (N, d_m) per modality.
    """

    # Not searched: context and bidirectional (different information), widths of single modalities, absent (matters
    # only with missing modalities).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.width": {"choices": [16, 32, 64]},
        "model.layers": {"low": 1, "high": 3},
        "model.activation": {"choices": ["gelu", "tanh"]},
        "model.rank": {"choices": [1, 4, 8, 16]},
        "model.fused": {"choices": [32, 64, 128]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "model.fusion_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "model.post_norm": {"choices": [False, True]},
        "model.post_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        rank: Count = 8,
        fused: Width = 64,
        fusion_dropout: Share = 0.0,
        post_norm: bool = True,
        post_dropout: Share = 0.2,
        initial: Literal["glorot", "released"] = "glorot",
        **encoder: Any,
    ) -> None:
        super().__init__(inputs, **encoder)
        self.hidden_size = fused
        self.fuse = LowRankFusion(
            list(self.vectors.widths.values()),
            fused,
            rank,
            dropout=fusion_dropout,
            absent=self.vectors.absent_form,
            initial=initial,
        )
        self.post = nn.Sequential(nn.LayerNorm(fused) if post_norm else nn.Identity(), nn.Dropout(post_dropout))

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the modalities and fuse them."""
        z = self.vectors(batch)
        return Encoded(self.post(self.fuse(list(z.values()), self.vectors.present(batch))), modalities=z)
