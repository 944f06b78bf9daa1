"""Tensor Fusion: a linear layer on all products of the modalities' elements."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.tensor_fusion import TensorFusion
from ercfusion.models.base import Encoded
from ercfusion.models.options import Share, Space, Width
from ercfusion.models.vectors import ACTIVATIONS, VectorFusion


class Tfn(VectorFusion):
    """TFN: Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis" (EMNLP 2017).

    Each modality becomes one vector z_m. A linear layer reads the outer product of the [1; z_m]: each modality, each
    pair and the product of all. A dense layer follows.

    - *Paper*: one utterance at a time. Averaged audio and visual features pass through three ReLU layers of 32, words
      through an LSTM and two ReLU layers of 128. Dropout acts on the tensor.
    - *Circulating code* (in benchmark suites): normalises audio and visual input over the batch with padding; a linear
      layer follows the text LSTM. A batch of one loses its last axis.
    - *Here*: text is one vector, too; one to four modalities. An LSTM per modality reads the conversation first, unless
      ``context=none``. Dropout acts on the z_m by default. The tensor is never formed
      (:class:`ercfusion.layers.tensor_fusion.TensorFusion`). An absent modality is the context's output; without a
      context its products vanish.

    The preset ``model=tfn_released`` has the published sizes.

    Args:
        inputs: Modalities and widths; at most four.
        encoder: Options of :class:`~ercfusion.models.vectors.VectorFusion`.
        post: Width of the two dense layers after the tensor.
        fusion_dropout: Dropout probability at the tensor.
        dropout_form: Dropped elements: ``factor``, of the z_m; ``element``, of the tensor, as published.
        post_norm: Layer normalisation after the tensor; products of small numbers are tiny.
        post_dropout: Dropout probability after each of these dense layers.

    Shapes:
        batch -> hidden (N, post); one representation (N, d_m) per modality.
    """

    # Not searched: context and bidirectional (different information), widths of single modalities, absent (matters
    # only with missing modalities).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.width": {"choices": [8, 16, 32]},
        "model.layers": {"low": 1, "high": 3},
        "model.activation": {"choices": ["gelu", "tanh"]},
        "model.post": {"choices": [32, 64, 128]},
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
        post: Width = 64,
        dropout: Share = 0.3,
        fusion_dropout: Share = 0.0,
        dropout_form: Literal["factor", "element"] = "factor",
        post_norm: bool = True,
        post_dropout: Share = 0.2,
        **encoder: Any,
    ) -> None:
        super().__init__(inputs, dropout=dropout, **encoder)
        self.hidden_size = post
        self.fuse = TensorFusion(
            list(self.vectors.widths.values()),
            post,
            dropout=fusion_dropout,
            dropout_form=dropout_form,
            absent=self.vectors.absent_form,
        )
        self.post_norm = nn.LayerNorm(post) if post_norm else nn.Identity()
        self.activate = ACTIVATIONS[self.activation]()
        self.post = nn.Linear(post, post)
        self.post_dropout = nn.Dropout(post_dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the modalities and fuse them."""
        z = self.vectors(batch)
        fused = self.fuse(list(z.values()), self.vectors.present(batch))
        hidden = self.post_dropout(self.activate(self.post_norm(fused)))
        return Encoded(self.post_dropout(self.activate(self.post(hidden))), modalities=z)
