"""Tensor Fusion: one vector a modality, and a linear layer on all products of their numbers."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import ModalityProjection, PackedLSTM, PackedTransformer, RelativeBias, SharedBatchNorm
from ercfusion.layers.tensor_fusion import TensorFusion
from ercfusion.models.base import PACKED_NOTE, Architecture, Capabilities, Encoded
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone

Context = Literal["lstm", "transformer", "none"]
Norm = Literal["layer", "batch", "none"]
Activation = Literal["gelu", "relu", "tanh"]
Absent = Literal["zero", "learned", "context"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}


class Tfn(Architecture):
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
        post: Width of the two dense layers behind the tensor, and of the output.
        dropout: Dropout probability on the context's input, between its layers and on its output.
        input_dropout: Dropout probability on the features where no context reads them (``context=none``).
        fusion_dropout: Dropout probability at the tensor.
        dropout_form: What is dropped at the tensor: numbers of the z_m, or elements of the tensor as published.
        post_norm: Layer normalisation of what the linear layer makes of the tensor, before the activation: products of
            M numbers below 1 are small.
        post_dropout: Dropout probability after each of the two dense layers behind the tensor.
        absent: What replaces an absent z_m; ``context`` is what the context makes of a learned vector and the
            neighbours, and without a context the same as ``zero``.

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
        post: Width = 64,
        dropout: Share = 0.3,
        input_dropout: Share = 0.1,
        fusion_dropout: Share = 0.0,
        dropout_form: Literal["factor", "element"] = "factor",
        post_norm: bool = True,
        post_dropout: Share = 0.2,
        absent: Absent = "context",
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
        self.hidden_size = post
        self.fuse = TensorFusion(
            list(self.vectors.widths.values()),
            post,
            dropout=fusion_dropout,
            dropout_form=dropout_form,
            absent=self.vectors.absent_form,
        )
        self.post_norm = nn.LayerNorm(post) if post_norm else nn.Identity()
        self.activate = ACTIVATIONS[activation]()
        self.post = nn.Linear(post, post)
        self.post_dropout = nn.Dropout(post_dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        z = self.vectors(batch)
        fused = self.fuse(list(z.values()), self.vectors.present(batch))
        hidden = self.post_dropout(self.activate(self.post_norm(fused)))
        return Encoded(self.post_dropout(self.activate(self.post(hidden))), modalities=z)


class ModalityVectors(nn.Module):
    """One vector z_m an utterance and modality, with or without its conversation: what TFN and LMF fuse.

    Args:
        inputs: Modalities and widths.
        special: Widths of z_m by modality; 0 or a modality that is not named has ``width``.
        width: See ``special``.
        context, projection, context_layers, heads, lags, bidirectional, layers, norm, activation, text_linear,
            dropout, input_dropout, absent: See :class:`Tfn`.

    Shapes:
        batch -> {modality: (N, d_m)}.

    Raises:
        ValueError: ``projection`` is not even.
    """

    def __init__(
        self,
        inputs: InputSpec,
        special: dict[str, int],
        width: int,
        *,
        context: Context,
        projection: int,
        context_layers: int,
        heads: int,
        lags: int,
        bidirectional: bool,
        layers: int,
        norm: Norm,
        activation: Activation,
        text_linear: bool,
        dropout: float,
        input_dropout: float,
        absent: Absent,
    ) -> None:
        super().__init__()
        self.widths = {name: special.get(name, 0) or width for name in inputs.widths}
        self.context_form = context
        self.absent = "zero" if (absent, context) == ("context", "none") else absent
        self.dropout = nn.Dropout(dropout)
        self.dense_dropout = nn.Dropout(input_dropout if context == "none" else dropout)
        if context != "none" and (projection < 2 or projection % 2):
            raise ValueError(f"projection must be even and above 0, found {projection}")
        self.context = nn.ModuleDict()
        self.project = ModalityProjection(inputs.widths, 0 if context == "none" else projection)
        entering = self.project.widths
        for name in entering:
            if context == "lstm":
                units = projection // 2 if bidirectional else projection
                self.context[name] = PackedLSTM(projection, units, context_layers, dropout, bidirectional=bidirectional)
            elif context == "transformer":
                stack = PackedTransformer(
                    context_layers, projection, heads, 2 * projection, dropout, causal=not bidirectional, lags=lags
                )
                for part in stack.modules():
                    if isinstance(part, RelativeBias):
                        nn.init.normal_(part.weight, std=0.02)
                self.context[name] = stack
        norms = {"layer": nn.LayerNorm, "batch": PresentBatchNorm, "none": nn.Identity}
        self.norm = nn.ModuleDict({name: norms[norm](size) for name, size in entering.items()})
        self.dense = nn.ModuleDict()
        for name, size in entering.items():
            parts: list[nn.Module] = []
            for number in range(layers):
                parts.append(nn.Linear(size if number == 0 else self.widths[name], self.widths[name]))
                if not (text_linear and name == "text" and number == layers - 1):
                    parts.append(ACTIVATIONS[activation]())
            self.dense[name] = nn.Sequential(*parts)

    @property
    def absent_form(self) -> str:
        """The same in the words of the fusion layers: they see to it unless the context does."""
        return "learned" if self.absent == "learned" else "zero"

    def present(self, batch: ConversationBatch) -> Tensor | None:
        """(N, M) bool for the fusion layer; None where the context's vector is to be fused, whatever is present."""
        return None if self.absent == "context" else batch.present

    def forward(self, batch: ConversationBatch) -> dict[str, Tensor]:
        """See the class."""
        z = {}
        for name, x in self.project(batch).items():
            if name in self.context:
                x = self.dropout(F.gelu(x))
                layer = self.context[name]
                x = x + (
                    layer(x, batch.packing, batch.speaker)
                    if self.context_form == "transformer"
                    else layer(x, batch.packing)
                )
            norm = self.norm[name]
            x = norm(x, batch.present[:, batch.column(name)]) if isinstance(norm, PresentBatchNorm) else norm(x)
            z[name] = self.dense[name](self.dense_dropout(x))
        return z


def context_capabilities(context: str, lags: int, bidirectional: bool) -> Capabilities:
    """What an architecture can do that reads its conversation through :class:`ModalityVectors` alone."""
    if context == "none":
        return Capabilities(contextual=False, causal=True)
    if context == "transformer":
        return Capabilities(causal=not bidirectional, speakers="same_other" if lags else "none")
    return Capabilities(causal=not bidirectional, compiles=False, compile_note=PACKED_NOTE)


class PresentBatchNorm(SharedBatchNorm):
    """Batch normalisation whose statistics are those of the rows that are present; zeros in the others.

    With fewer than two such rows in train mode the running statistics are used, and left as they are.

    Shapes:
        x (N, D), present (N) bool -> (N, D).
    """

    def forward(self, x: Tensor, present: Tensor) -> Tensor:  # type: ignore[override]
        """See the class."""
        if not self.training:
            return torch.where(present[:, None], super().forward(x), 0.0)
        rows = present.nonzero().squeeze(1)
        normal = super().forward(x.index_select(0, rows))
        return torch.zeros_like(x, dtype=normal.dtype).index_copy(0, rows, normal)
