"""MMGCN: a deep graph over a conversation's utterances in all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import ModalityProjection, PackedLSTM
from ercfusion.layers.absent import over_present
from ercfusion.layers.gcn2 import GCN2, AngularGraph
from ercfusion.models.base import PACKED_NOTE, PADDING_NOTE, Architecture, Capabilities, Encoded, Limits
from ercfusion.models.options import Count, CountOrNone, Positive, Share, Space, Width

TEXT = "text"
"""The modality with a role of its own in the paper."""

Scope = Literal["all", "text", "none"]


class Mmgcn(Architecture):
    """MMGCN: Hu et al., "MMGCN: Multimodal Fusion via Deep Graph Convolution Network for Emotion Recognition in
    Conversation" (ACL 2021).

    Each modality of each utterance is a node. Edges join the nodes of one modality in the conversation, and those of
    one utterance, weighted by the angle between their vectors. The classifier reads input and output of a deep graph
    convolution (GCNII).

    - *Paper* (section 3): a bidirectional LSTM on text, a linear layer on other modalities, a speaker embedding on each
      node, plain GCNII layers (4 on IEMOCAP).
    - *Released code*: the embedding is on text only; layers have a second matrix for the initial representation; with
      three modalities there are 64, whatever is set. The LSTM reads padding. The graph is one dense matrix over the
      batch.
    - *Here*: the paper's form, packed, without structural zeros (:class:`ercfusion.layers.gcn2.AngularGraph`). A node's
      weight with itself is a constant: the gradient of the arccosine there multiplies rounding errors by 224. Absent
      modalities are not nodes.

    The preset ``model=mmgcn_released`` is the released form; add ``model.mask_padding=false`` for its padding.

    Args:
        inputs: Modalities and widths.
        projection: Width of each modality's projection; even.
        recurrent: Modalities with a bidirectional LSTM.
        lstm_layers: Stacked LSTM layers.
        speakers: Modalities with a speaker embedding; speakers beyond those in training share the last one.
        speaker_std: Standard deviation of initial speaker embeddings (released code: 1); large ones dominate the
            angles.
        hidden: Width of the graph convolutions.
        layers: Number of graph convolutions.
        alpha: Share of a node's initial representation in each layer.
        theta: Strength of the matrices: ln(theta / l + 1) in layer l.
        variant: GCNII's second form, with a matrix for the initial representation.
        activation: Activation before the classifier; ``relu`` as published.
        dropout: Dropout probability in LSTM and graph convolutions (not the angles) and before the classifier.
        residual_dropout: Also drop the graph's input on its path around the graph, as released.
        mask_padding: False reads padding (projected zeros), as released; scores depend on the batch.

    Shapes:
        batch -> hidden (N, M * (projection + hidden)); one representation (N, projection + hidden) per modality.
    """

    capabilities = Capabilities(skips=True)

    # Not searched: activation and speakers=text, parts of the released form.
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
        """Scores depend on the batch if the LSTM reads padding."""
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
            raise ValueError(f"projection must be even and above 0, found {projection}. Choose an even number.")
        if speakers == TEXT and TEXT not in names:
            raise ValueError(
                f"speakers='text' needs the modality 'text'; the data has {', '.join(names)}. Choose all or none."
            )
        self.hidden_size = len(names) * (projection + hidden)
        self.activate: nn.Module = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.project = ModalityProjection(inputs.widths, projection, inputs.policy)
        for vector in self.project.absent.values():
            nn.init.normal_(vector, std=0.1)  # a ReLU has no gradient at zero
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
        """Encode the conversations."""
        nodes = self.project(batch)
        for name, layer in self.context.items():
            padding = None if self.mask_padding else self.project.project[name].bias
            kept = self.kept(batch, name)
            if kept is None:
                nodes[name] = layer(nodes[name], batch.packing, padding)
            else:
                nodes[name] = over_present(partial(layer, padding=padding), nodes[name], kept, batch.packing)
        if self.embedded:
            speaker = self.speaker(batch.speaker.clamp(max=self.num_speakers - 1))
            nodes |= {name: nodes[name] + speaker for name in self.embedded}
        x = torch.stack(list(nodes.values()))  # (M, N, projection)
        if self.inputs.policy == "skip":
            x = x.masked_fill(~batch.present.t()[:, :, None], 0.0)

        graph = AngularGraph(x, batch.present, batch.packing)
        x = self.dropout(x) if self.residual_dropout else x
        exchanged = self.graph(x, graph, dropped=self.residual_dropout)
        # An absent node receives no message; its output must not look like one.
        exchanged = exchanged.masked_fill(~batch.present.t()[:, :, None], 0.0)
        out = self.dropout(self.activate(torch.cat([x, exchanged], dim=2)))
        return Encoded(
            out.transpose(0, 1).flatten(1), modalities={name: out[m] for m, name in enumerate(batch.modalities)}
        )


def _within(scope: str, names: list[str]) -> list[str]:
    """Modalities of a scope."""
    return {"all": names, "text": [name for name in names if name == TEXT], "none": []}[scope]
