"""COGMEN: a Transformer over the conversation, then a relational graph over a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import GraphAttention, ModalityProjection, PackedTransformer, RelationalConv, SharedBatchNorm
from ercfusion.models.base import Architecture, Capabilities, Encoded, Limits
from ercfusion.models.options import Count, CountOrNone, Share, Space, Width, WidthOrNone, WindowOrAll
from ercfusion.ops.graph import Relations, WindowGraph
from ercfusion.ops.processes import longest_over_processes


class Cogmen(Architecture):
    """COGMEN: Joshi et al., "COGMEN: COntextualized GNN based Multimodal Emotion recognitioN" (NAACL 2022).

    A Transformer reads the conversation. Then utterances exchange messages within a window: a relational graph
    convolution, with relations for speakers and order, and graph attention.

    - *Paper*: the Transformer runs on concatenated modalities. The window has P utterances before and F after its
      centre.
    - *Released code*: messages run from the centre to the window, so an utterance receives from F before and P after.
      The Transformer attends to padding. Relations number the speakers. The classifier reads only the last layer; batch
      normalisation mixes conversations.
    - *Here*: modalities are projected, the Transformer is packed, relations suit any number of speakers, the direction
      is the paper's. ``docs/models/cogmen.md`` has the effect of the options on MELD dev.

    The preset ``model=cogmen_released`` is the released form.

    Args:
        inputs: Modalities and widths.
        projection: Width of the summed modality projections; 0 concatenates the features.
        layers: Number of Transformer layers.
        context_heads: Transformer heads; 0 takes the first of 7 to 14 that divides the width, else 1, as released.
        feedforward: Width of the Transformer's feed-forward layers.
        hidden: Width of the graph's input, of one graph head, and of the output.
        graph_heads: Heads of the graph attention.
        past: Earlier utterances in the window; -1 for all.
        future: Later utterances in the window; -1 for all.
        lags: Distances with a learned bias in both attentions; 0 for none, as published.
        relations: Speakers in relations: same or other, or both numbers.
        direction: ``paper``: receive from ``past`` before and ``future`` after; ``released``: the reverse.
        dropout: Dropout probability in the Transformer, on its input and before the classifier.
        residual: Also feed the encoded input and the Transformer's output to the classifier.
        norm: Normalisation after the graph; ``batch`` is over all utterances.
        norm_first: Pre-norm Transformer layers.
        activation: Activation of the Transformer.
        mask_padding: False attends to padding, as released; scores depend on the batch.

    Shapes:
        batch -> hidden (N, hidden).
    """

    # Not searched: residual, layers=0 and projection=0 (measured, docs/models/cogmen.md) and the released forms. Four
    # heads divide all widths.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 2e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.layers": {"low": 1, "high": 3},
        "model.hidden": {"choices": [32, 64, 128]},
        "model.past": {"low": 1, "high": 12},
        "model.future": {"low": 0, "high": 12},
        "model.lags": {"low": 0, "high": 15, "step": 5},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [16, 32, 64]},
    }

    @classmethod
    def limits(cls, options: Mapping[str, Any]) -> Limits:
        """Scores depend on the batch if the Transformer attends to padding."""
        masked = options["mask_padding"]
        return Limits(batch_dependence="" if masked else "mask_padding=false lets its Transformer attend to padding")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        projection: WidthOrNone = 128,
        layers: CountOrNone = 2,
        context_heads: CountOrNone = 4,
        feedforward: Width = 256,
        hidden: Width = 64,
        graph_heads: Count = 4,
        past: WindowOrAll = 5,
        future: WindowOrAll = 5,
        lags: WidthOrNone = 10,
        relations: Relations = "same_other",
        direction: Literal["paper", "released"] = "paper",
        dropout: Share = 0.4,
        residual: bool = True,
        norm: Literal["layer", "batch"] = "layer",
        norm_first: bool = True,
        activation: Literal["gelu", "relu"] = "gelu",
        mask_padding: bool = True,
    ) -> None:
        super().__init__(inputs)
        self.relations: Relations = relations
        self.capabilities = Capabilities(
            absent="vector" if projection else "mean",
            skips=True,
            speakers="same_other" if relations == "same_other" else "numbered",
        )
        self.hidden_size = hidden
        self.past, self.future = past, future
        if direction == "released":
            self.past, self.future = future, past
        self.residual = residual
        self.mask_padding = mask_padding
        self.num_speakers = inputs.speakers
        self.dropout = nn.Dropout(dropout)

        self.project = ModalityProjection(inputs.widths, projection, inputs.policy)
        self.fuse = self.project.mixer(dropout)
        width = self.project.merged_features
        heads = context_heads or next((number for number in range(7, 15) if width % number == 0), 1)
        self.context = PackedTransformer(
            layers, width, heads, feedforward, dropout, norm_first=norm_first, activation=activation, lags=lags
        )
        self.narrow = nn.Linear(width, hidden)
        num_relations = 4 if relations == "same_other" else 2 * self.num_speakers**2
        self.relational = RelationalConv(hidden, hidden, num_relations)
        self.attention = GraphAttention(hidden, hidden, graph_heads, lags=lags)
        graph_width = hidden * graph_heads
        self.norm: nn.Module = SharedBatchNorm(graph_width) if norm == "batch" else nn.LayerNorm(graph_width)
        self.classifier = nn.Linear(graph_width + (2 * width if residual else 0), hidden)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the conversations."""
        packing = batch.packing
        x = self.fuse(self.project.merge(batch))
        context = self._contextualize(x, batch)

        graph = WindowGraph(packing, batch.speaker, self.past, self.future, self.relations, self.num_speakers)
        exchanged = self.relational(self.narrow(context), graph)
        local = F.leaky_relu(self.norm(self.attention(exchanged, graph)))

        out = torch.cat([x, context, local], dim=1) if self.residual else local
        hidden = self.dropout(F.relu(self.classifier(self.dropout(out) if self.residual else out)))
        attention = {"graph": self.attention.attention_map(exchanged, graph)} if self.keep_attention else {}
        return Encoded(hidden, attention=attention)

    def _contextualize(self, x: Tensor, batch: ConversationBatch) -> Tensor:
        packing = batch.packing
        if self.mask_padding:
            return self.context(x, packing, batch.speaker)
        # As released: every conversation has the length of the longest, and attention includes the padding. In training
        # the batch includes the conversations of other processes.
        longest = max(packing.longest, longest_over_processes(packing)) if self.training else packing.longest
        full = Packing([longest] * packing.size, packing.device)
        extra = longest - packing.longest
        padded = [F.pad(packing.pad(value), (0, 0) * (value.ndim - 1) + (0, extra)) for value in (x, batch.speaker)]
        context = self.context(padded[0].flatten(0, 1), full, padded[1].flatten())
        return packing.pack(context.unflatten(0, (packing.size, -1))[:, : packing.longest])
