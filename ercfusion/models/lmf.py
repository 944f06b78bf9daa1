"""Low-rank multimodal fusion: one vector a modality, and sums of products of linear maps of them."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.tensor_fusion import LowRankFusion
from ercfusion.models.base import Architecture, Encoded
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone
from ercfusion.models.tfn import Absent, Activation, Context, ModalityVectors, Norm, context_capabilities


class Lmf(Architecture):
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
        context: Layer that reads the conversation, one per modality.
        projection: Width of the projected modalities that the context reads; even, and for the Transformer a multiple
            of ``heads``. Not used with ``context=none``.
        context_layers: Layers of the context.
        heads: Heads of the Transformer.
        lags: Distances that the Transformer tells apart, for the same and for another speaker; 0 for none.
        bidirectional: False reads forwards only, which makes the model causal.
        width: Width d_m of the vector z_m of a modality.
        text_width: Width of z_m of the modality ``text``; 0 is ``width``.
        audio_width: Width of z_m of the modality ``audio``; 0 is ``width``.
        visual_width: Width of z_m of the modality ``visual``; 0 is ``width``.
        layers: Dense layers from a modality's vector to z_m.
        norm: Normalisation before these layers; ``batch`` is over the utterances that have the modality.
        activation: Activation of all dense layers.
        text_linear: The last dense layer of the modality ``text`` has no activation.
        rank: Number of products that are summed.
        fused: Width of the fused vector, and of the output.
        dropout: Dropout probability on the context's input, between its layers and on its output.
        input_dropout: Dropout probability on the features where no context reads them (``context=none``).
        fusion_dropout: Dropout probability on the z_m as they enter the fusion.
        post_norm: Layer normalisation of the fused vector: the size of products of M numbers varies with the power M.
        post_dropout: Dropout probability on the fused vector.
        absent: What replaces an absent z_m; ``context`` is what the context makes of a learned vector and the
            neighbours, and without a context the same as ``zero``.
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
        context: Context = "lstm",
        projection: WidthOrNone = 128,
        context_layers: Count = 1,
        heads: Count = 4,
        lags: WidthOrNone = 10,
        bidirectional: bool = True,
        width: Width = 32,
        text_width: WidthOrNone = 0,
        audio_width: WidthOrNone = 0,
        visual_width: WidthOrNone = 0,
        layers: Count = 2,
        norm: Norm = "layer",
        activation: Activation = "tanh",
        text_linear: bool = False,
        rank: Count = 8,
        fused: Width = 64,
        dropout: Share = 0.4,
        input_dropout: Share = 0.1,
        fusion_dropout: Share = 0.0,
        post_norm: bool = True,
        post_dropout: Share = 0.2,
        absent: Absent = "context",
        initial: Literal["glorot", "released"] = "glorot",
    ) -> None:
        super().__init__(inputs)
        self.capabilities = context_capabilities(context, lags, bidirectional)
        self.vectors = ModalityVectors(
            inputs,
            {"text": text_width, "audio": audio_width, "visual": visual_width},
            width,
            context=context,
            projection=projection,
            context_layers=context_layers,
            heads=heads,
            lags=lags,
            bidirectional=bidirectional,
            layers=layers,
            norm=norm,
            activation=activation,
            text_linear=text_linear,
            dropout=dropout,
            input_dropout=input_dropout,
            absent=absent,
        )
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
