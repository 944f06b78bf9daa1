"""MMGCN: one deep graph over the utterances of a conversation in all their modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import ModalityProjection, PackedLSTM
from ercfusion.layers.gcn2 import GCN2, AngularGraph
from ercfusion.models.base import PACKED_NOTE, PADDING_NOTE, Architecture, Encoded, Limits
from ercfusion.models.options import Count, CountOrNone, Positive, Share, Space, Width

TEXT = "text"
"""The modality that the published model treats differently."""

Scope = Literal["all", "text", "none"]


class Mmgcn(Architecture):
    r"""MMGCN: Hu et al., "MMGCN: Multimodal Fusion via Deep Graph Convolution Network for Emotion Recognition in
    Conversation" (ACL 2021).

    Every modality of every utterance is a node. Nodes of one modality are joined throughout the conversation, the
    nodes of one utterance among each other, each edge weighed by the angle between its nodes' vectors. A deep graph
    convolution (GCNII) runs over this graph; the classifier reads, for all modalities of an utterance, what went into
    the graph and what came out.

    *The paper* (section 3) encodes text by a bidirectional LSTM and the other modalities by a linear layer, adds an
    embedding of the speaker to every node, and runs plain GCNII layers, 4 of them on IEMOCAP. *The
    released code* differs: the speaker's embedding is added to the text alone; its layers are the variant with a
    second matrix for the initial representation; the number of layers that the run script sets (4) is ignored for the
    64 that are written into the branch for three modalities; and the LSTM reads padding, so that an utterance's score
    depends on the other conversations of its batch. It also builds one dense matrix over all nodes of the batch, with
    two dense products to normalise it, although it is block-diagonal.

    *Here* the defaults follow the paper. The LSTM is packed, the graph has no entry that is zero by construction
    (:class:`ercfusion.layers.gcn2.AngularGraph`), and a node's weight with itself is a constant instead of an
    arccosine at its steepest, whose rounding errors the published gradient multiplies by 224. An absent modality is
    no node: it takes no part in the graph, and the classifier reads a learned vector in its place. Any modalities
    will do, one or many. The literal form is the preset ``model=mmgcn_released``, which sets ``speakers=text
    speaker_std=1 variant=true layers=64 activation=relu residual_dropout=true``; it packs the LSTM, too, unless
    ``mask_padding=false``.

    Args:
        inputs: Modalities and widths.
        projection: Width to which each modality is projected, and of the vectors that are compared; even.
        recurrent: Modalities that pass through a bidirectional LSTM; ``text`` is the modality of that name, if there is
            one.
        lstm_layers: Stacked LSTM layers.
        speakers: Modalities to which the speaker's embedding is added. There are as many embeddings as a training
            conversation has speakers at most; further speakers share the last one.
        speaker_std: Standard deviation of the speaker embeddings' initial values (released code: 1). At the size of the
            projected features the speaker decides every angle.
        hidden: Width of the graph convolutions.
        layers: Number of graph convolutions; 0 leaves them out.
        alpha: Share of a node's initial representation in every layer.
        theta: Strength of the layers' matrices: that of layer l is ln(theta / l + 1).
        variant: GCNII's second form, with a matrix of its own for the initial representation.
        activation: Activation before the classifier; ``relu`` as published.
        dropout: Dropout probability between LSTM layers, in the graph convolutions (not in the angles) and before the
            classifier.
        residual_dropout: Drop the graph's input also on its way around the graph, and again before the classifier, as
            in the released code.
        mask_padding: False lets the LSTM read padding (projected zeros) after the shorter conversations of a batch, as
            in the released code; scores then depend on the batch.

    Shapes:
        batch -> hidden (N, M * (projection + hidden)); one representation (N, projection + hidden) a modality.
    """

    # Not searched: activation, and speakers=text, which is what the released code does.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.recurrent": {"choices": ["text", "all", "none"]},
        "model.hidden": {"choices": [32, 64, 128]},
        "model.layers": {"low": 1, "high": 16},
        "model.alpha": {"low": 0.05, "high": 0.5, "step": 0.05},
        "model.theta": {"low": 0.25, "high": 1.5, "step": 0.25},
        "model.variant": {"choices": [False, True]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    @classmethod
    def limits(cls, options: Mapping[str, Any]) -> Limits:
        """With padding in the recurrence, its amount matters."""
        return Limits(batch_dependence="" if options["mask_padding"] else PADDING_NOTE)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        projection: Width = 128,
        recurrent: Scope = "text",
        lstm_layers: Count = 2,
        speakers: Scope = "all",
        speaker_std: Positive = 0.1,
        hidden: Width = 64,
        layers: CountOrNone = 4,
        alpha: Share = 0.1,
        theta: Positive = 0.5,
        variant: bool = False,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: Share = 0.4,
        residual_dropout: bool = False,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(inputs)
        self.residual_dropout = residual_dropout
        self.mask_padding = mask_padding
        self.num_speakers = inputs.speakers
        names = list(inputs.widths)
        if projection < 2 or projection % 2:
            raise ValueError(f"projection must be even and above 0, found {projection}")
        if speakers == TEXT and TEXT not in names:
            raise ValueError(f"speakers='text' needs the modality 'text'; the data has {', '.join(names)}")
        self.hidden_size = len(names) * (projection + hidden)
        self.activate: nn.Module = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.project = ModalityProjection(inputs.widths, projection)
        for vector in self.project.absent.values():
            nn.init.normal_(vector, std=0.1)  # a ReLU lets no gradient through at exactly zero
        self.context = nn.ModuleDict()
        for name in _within(recurrent, names):
            self.context[name] = PackedLSTM(projection, projection // 2, lstm_layers, dropout)
        self.embedded = _within(speakers, names)
        if self.embedded:
            self.speaker = nn.Embedding(self.num_speakers, projection)
            nn.init.normal_(self.speaker.weight, std=speaker_std)
        if self.embedded and self.num_speakers > 1:
            self.capabilities = replace(self.capabilities, speakers="numbered")
        if self.context:
            self.capabilities = replace(self.capabilities, compiles=False, compile_note=PACKED_NOTE)
        self.graph = GCN2(projection, hidden, layers, alpha=alpha, theta=theta, variant=variant, dropout=dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        nodes = self.project(batch)
        for name, layer in self.context.items():
            padding = None if self.mask_padding else self.project.project[name].bias
            nodes[name] = layer(nodes[name], batch.packing, padding)
        if self.embedded:
            who = self.speaker(batch.speaker.clamp(max=self.num_speakers - 1))
            nodes |= {name: nodes[name] + who for name in self.embedded}
        x = torch.stack(list(nodes.values()))  # (M, N, projection)

        graph = AngularGraph(x, batch.present, batch.packing)
        x = self.dropout(x) if self.residual_dropout else x
        exchanged = self.graph(x, graph, dropped=self.residual_dropout)
        # What the stack makes of an absent node is no message of anybody's; it must not look like one.
        exchanged = exchanged.masked_fill(~batch.present.t()[:, :, None], 0.0)
        out = self.dropout(self.activate(torch.cat([x, exchanged], dim=2)))
        return Encoded(
            out.transpose(0, 1).flatten(1), modalities={name: out[m] for m, name in enumerate(batch.modalities)}
        )


def _within(scope: str, names: list[str]) -> list[str]:
    """The modalities that a scope means."""
    return {"all": names, "text": [name for name in names if name == TEXT], "none": []}[scope]
