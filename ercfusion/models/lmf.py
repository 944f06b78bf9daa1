"""Low-rank multimodal fusion: one vector a modality, and sums of products of linear maps of them."""

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
    r"""LMF: Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors" (ACL 2018).

    Tensor Fusion (:class:`ercfusion.models.tfn.Tfn`) whose weight is a sum of few products of one factor a modality:
    neither the tensor nor its weight exists, and the number of parameters grows with the sum of the widths instead of
    their product.

    *The paper* fuses as TFN does, one utterance at a time, and sums over the ranks. *The released code* weighs the
    ranks, has learning rates of their own for the factors, and builds a dropout behind the fusion that it never
    applies; what is fused is the prediction itself. *A copy that circulates* in a benchmark suite trains neither the
    weights of the ranks nor the bias, so that its LMF is weaker than the paper's.

    *Here* all parts are trained, at one learning rate. The fused vector has ``fused`` numbers, and the classifier
    reads it. As in :class:`~ercfusion.models.tfn.Tfn` any modalities will do (one or many), text comes as one vector
    an utterance, and each modality is put into the context of its conversation, absent ones too, unless
    ``context=none``: then an absent one is [1; 0]. The published sizes are the preset ``model=lmf_released``.

    Args:
        inputs: Modalities and widths.
        encoder: Options of :class:`~ercfusion.models.vectors.VectorFusion`.
        rank: Number of products that are summed.
        fused: Width of the fused vector, and of the output.
        fusion_dropout: Dropout probability on the z_m as they enter the fusion.
        post_norm: Layer normalisation of the fused vector: the size of products of M numbers varies with the power M.
        post_dropout: Dropout probability on the fused vector.
        initial: Initial values of the factors: normal with variance 2 / (d_m + 1 + fused), or 2 / ((d_m + 1 + rank) *
            fused) (see :class:`ercfusion.layers.tensor_fusion.LowRankFusion`).

    Shapes:
        batch -> hidden (N, fused); one representation (N, d_m) a modality.
    """

    # Not searched: context and bidirectional, which change what the model may know; the widths of single modalities;
    # absent, which matters if modalities are missing.
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
        """See the class."""
        z = self.vectors(batch)
        return Encoded(self.post(self.fuse(list(z.values()), self.vectors.present(batch))), modalities=z)
