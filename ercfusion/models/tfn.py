"""Tensor Fusion: one vector a modality, and a linear layer on all products of their numbers."""

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
    r"""TFN: Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis" (EMNLP 2017).

    Each modality of an utterance becomes one vector z_m; a linear layer reads the outer product of the [1; z_m], which
    holds every single modality, every pair and the product of all; a second dense layer and the classifier follow.

    *The paper* sees one utterance at a time. Audio and visual features, averaged over the utterance, pass through
    three ReLU layers of 32, the words through an LSTM and two ReLU layers of 128; single elements of the tensor are
    dropped. *The code that circulates* (a re-implementation that benchmark suites took over) normalises the audio and
    visual input over the batch, padding included, has one linear layer without activation behind the text LSTM, and
    drops its last axis at batch size 1.

    *Here* every modality, text too, comes as one vector an utterance, so that the LSTM over words has no part; any one
    to four modalities will do. By default each modality is first put into the context of its conversation, by an LSTM
    of its own; ``context=none`` is the published form, utterance by utterance. Layer normalisation, or batch
    normalisation over the utterances that have the modality. Numbers of the z_m are dropped instead of elements of the
    tensor (``dropout_form=element`` drops those), and the tensor is never formed:
    :class:`ercfusion.layers.tensor_fusion.TensorFusion`. For an absent modality stands what its context says about it;
    without a context, or with ``absent=zero``, its terms vanish. The published sizes are the preset
    ``model=tfn_released``.

    Args:
        inputs: Modalities and widths; at most four.
        encoder: Options of :class:`~ercfusion.models.vectors.VectorFusion`.
        post: Width of the two dense layers behind the tensor, and of the output.
        fusion_dropout: Dropout probability at the tensor.
        dropout_form: What is dropped at the tensor: numbers of the z_m, or elements of the tensor as published.
        post_norm: Layer normalisation of what the linear layer makes of the tensor, before the activation: products of
            M numbers below 1 are small.
        post_dropout: Dropout probability after each of the two dense layers behind the tensor.

    Shapes:
        batch -> hidden (N, post); one representation (N, d_m) a modality.
    """

    # Not searched: context and bidirectional, which change what the model may know; the widths of single modalities;
    # absent, which matters if modalities are missing.
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
        """See the class."""
        z = self.vectors(batch)
        fused = self.fuse(list(z.values()), self.vectors.present(batch))
        hidden = self.post_dropout(self.activate(self.post_norm(fused)))
        return Encoded(self.post_dropout(self.activate(self.post(hidden))), modalities=z)
