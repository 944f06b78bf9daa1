"""One vector per utterance and modality, with or without context: the input of TFN and LMF."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import ModalityProjection, PackedLSTM, PackedTransformer, RelativeBias, SharedBatchNorm
from ercfusion.layers.absent import over_present
from ercfusion.models.base import PACKED_NOTE, AbsentForm, Architecture, Capabilities, Request
from ercfusion.models.options import Count, Share, Width, WidthOrNone

Context = Literal["lstm", "transformer", "none"]
Norm = Literal["layer", "batch", "none"]
Activation = Literal["gelu", "relu", "tanh"]
Absent = Literal["zero", "learned", "context"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}


class VectorFusion(Architecture):
    """Base of the architectures fusing one vector z_m per modality.

    A subclass passes the common options on: ``super().__init__(inputs, **encoder)``.

    Args:
        inputs: Modalities and widths.
        context: Layer over the conversation, one per modality.
        projection: Width of the context's input; even, for the Transformer a multiple of ``heads``.
        context_layers: Number of context layers.
        heads: Attention heads of the Transformer.
        lags: Distances with a learned bias in the Transformer; 0 for none.
        bidirectional: Read both directions; false is causal.
        width: Width d_m of z_m.
        text_width: Width of z_m of ``text``; 0 for ``width``.
        audio_width: Width of z_m of ``audio``; 0 for ``width``.
        visual_width: Width of z_m of ``visual``; 0 for ``width``.
        layers: Dense layers before z_m.
        norm: Normalisation before these layers; ``batch`` is over present utterances.
        activation: Activation of all dense layers.
        text_linear: No activation after the last dense layer of ``text``.
        dropout: Dropout probability around and between context layers.
        input_dropout: Dropout probability on the features with ``context=none``.
        absent: Replacement of an absent z_m; ``context``: output of the context for a learned vector, ``zero`` without
            a context.

    Attributes:
        vectors: Module computing the z_m.
    """

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
        dropout: Share = 0.4,
        input_dropout: Share = 0.1,
        absent: Absent = "context",
    ) -> None:
        super().__init__(inputs)
        self.activation = activation
        self.capabilities = context_capabilities(context, lags, bidirectional, absent)
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


class ModalityVectors(nn.Module):
    """One vector z_m per utterance and modality. Other arguments are those of :class:`VectorFusion`.

    Args:
        inputs: Modalities and widths.
        special: Widths of z_m by modality; 0 or a missing name means ``width``.
        width: Default width of z_m.

    Shapes:
        batch -> {modality: (N, d_m)}.

    Raises:
        ValueError: ``projection`` is odd or not positive.
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
        self.skip = inputs.policy == "skip"
        # Under a policy nothing is absent, or what is absent stays zero.
        self.absent = "zero" if inputs.policy is not None else absent_form(absent, context)
        self.dropout = nn.Dropout(dropout)
        self.dense_dropout = nn.Dropout(input_dropout if context == "none" else dropout)
        if context != "none" and (projection < 2 or projection % 2):
            raise ValueError(f"projection must be even and above 0, found {projection}. Choose an even number.")
        self.context = nn.ModuleDict()
        self.project = ModalityProjection(inputs.widths, 0 if context == "none" else projection, inputs.policy)
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
        """Option ``absent`` of the fusion layers; without effect if the context replaces absent vectors."""
        return "learned" if self.absent == "learned" else "zero"

    def present(self, batch: ConversationBatch) -> Tensor | None:
        """(N, M) bool for the fusion layer; None if the context replaces absent vectors."""
        return None if self.absent == "context" else batch.present

    def forward(self, batch: ConversationBatch) -> dict[str, Tensor]:
        """The vectors z_m by modality."""
        z = {}
        for name, x in self.project(batch).items():
            here = batch.present[:, batch.column(name)]
            if name in self.context:
                x = self.dropout(F.gelu(x))
                layer = self.context[name]
                if self.context_form == "transformer":
                    x = x + layer(x, batch.packing, batch.speaker, here if self.skip else None)
                else:
                    x = x + (over_present(layer, x, here, batch.packing) if self.skip else layer(x, batch.packing))
            norm = self.norm[name]
            x = norm(x, here) if isinstance(norm, PresentBatchNorm) else norm(x)
            z[name] = self.dense[name](self.dense_dropout(x))
            if self.skip:
                z[name] = torch.where(here[:, None], z[name], 0.0)
        return z


def absent_form(absent: Absent, context: Context) -> Absent:
    """The replacement of an absent z_m: without a context, ``context`` is ``zero``."""
    return "zero" if (absent, context) == ("context", "none") else absent


def context_capabilities(
    context: Context,
    lags: int,
    bidirectional: bool,
    absent: Absent = "learned",
    *,
    asks: tuple[Request, ...] = (),
) -> Capabilities:
    """Capabilities of an architecture reading the conversation only through :class:`ModalityVectors`."""
    every = Capabilities(skips=True, asks=asks)
    if context == "none":
        form: AbsentForm = "skip" if absent_form(absent, context) == "zero" else "vector"
        return replace(every, contextual=False, causal=True, absent=form)
    if context == "transformer":
        return replace(every, causal=not bidirectional, speakers="same_other" if lags else "none")
    return replace(every, causal=not bidirectional, compiles=False, compile_note=PACKED_NOTE)


class PresentBatchNorm(SharedBatchNorm):
    """Batch normalisation over the present rows; zeros in the absent ones.

    With fewer than two present rows in train mode, it uses the running statistics unchanged.

    Shapes:
        x (N, D), present (N) bool -> (N, D).
    """

    def forward(self, x: Tensor, present: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise the present rows."""
        if not self.training:
            return torch.where(present[:, None], super().forward(x), 0.0)
        rows = present.nonzero().squeeze(1)
        normal = super().forward(x.index_select(0, rows))
        return torch.zeros_like(x, dtype=normal.dtype).index_copy(0, rows, normal)
