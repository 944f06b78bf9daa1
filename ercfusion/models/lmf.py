"""Low-rank multimodal fusion: one vector a modality, and sums of products of linear maps of them."""

from __future__ import annotations

from torch import nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.tensor_fusion import LowRankFusion
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.tfn import ModalityVectors, context_capabilities


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
        context, projection, context_layers, heads, lags, bidirectional: See :class:`~ercfusion.models.tfn.Tfn`.
        width, text_width, audio_width, visual_width: The same.
        layers, norm, activation, text_linear, dropout, input_dropout, absent: The same.
        rank: Products that are summed.
        fused: Width of the fused vector.
        fusion_dropout: Probability, on the z_m as they enter the fusion.
        post_norm: Layer normalisation of the fused vector: the size of products of M numbers varies with the power M.
        post_dropout: Probability, on the fused vector.
        initial: Initial values of the factors: ``glorot`` or ``released`` (see
            :class:`ercfusion.layers.tensor_fusion.LowRankFusion`).

    Shapes:
        batch -> hidden (N, fused); one representation (N, d_m) a modality.
    """

    def __init__(
        self,
        inputs: InputSpec,
        *,
        context: str = "lstm",
        projection: int = 128,
        context_layers: int = 1,
        heads: int = 4,
        lags: int = 10,
        bidirectional: bool = True,
        width: int = 32,
        text_width: int = 0,
        audio_width: int = 0,
        visual_width: int = 0,
        layers: int = 2,
        norm: str = "layer",
        activation: str = "tanh",
        text_linear: bool = False,
        rank: int = 8,
        fused: int = 64,
        dropout: float = 0.4,
        input_dropout: float = 0.1,
        fusion_dropout: float = 0.0,
        post_norm: bool = True,
        post_dropout: float = 0.2,
        absent: str = "context",
        initial: str = "glorot",
    ) -> None:
        self.reads = context_capabilities(context, lags, bidirectional)
        super().__init__(inputs)
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

    @property
    def capabilities(self) -> Capabilities:
        """As its context."""
        return self.reads

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        self.check_inputs(batch)
        z = self.vectors(batch)
        return Encoded(self.post(self.fuse(list(z.values()), self.vectors.present(batch))), modalities=z)
