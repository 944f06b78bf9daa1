"""DialogueGCN: a context LSTM, then two graph convolutions over a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion._core.errors import BatchError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import ModalityProjection, PackedLSTM
from ercfusion.models.base import PACKED_NOTE, PADDING_NOTE, Architecture, Capabilities, Encoded, Limits
from ercfusion.models.options import Count, CountOrNone, Share, Space, Width, WidthOrNone, Window, WindowOrAll
from ercfusion.ops.graph import Relations, WindowGraph


class EdgeAttention(nn.Module):
    r"""Edge weights of a window graph: a softmax over the members of each utterance's window.

    - ``bilinear``, eq. 1 of Ghosal et al. (EMNLP 2019):
      :math:`\alpha_{tu} = \mathrm{softmax}_{u \in N(t)} (x_t^\top W x_u)`.
    - ``position``, the released code: :math:`\alpha_{tu} = \mathrm{softmax}_{u \in N(t)} (w_t^\top x_u)`, with a
      learned vector per absolute position t.

    Args:
        features: Width of x.
        positions: Number of positions for ``position``; 0 for ``bilinear``.

    Shapes:
        x (N, features), graph over the same N utterances -> (B, L, L), [b, t, u]; zero outside the window.

    Raises:
        BatchError: a conversation is longer than ``positions``.
    """

    def __init__(self, features: int, positions: int = 0) -> None:
        super().__init__()
        self.positions = positions
        self.score = nn.Linear(features, positions or features, bias=False)

    def forward(self, x: Tensor, graph: WindowGraph) -> Tensor:
        """Edge weights of the graph."""
        packing = graph.packing
        if self.positions:
            if packing.longest > self.positions:
                raise BatchError(
                    f"edges='position' has {self.positions} positions, a conversation {packing.longest} utterances. "
                    "Set model.positions or split the conversation."
                )
            scores = packing.pad(self.score(x)).transpose(1, 2)[:, : packing.longest]
        else:
            padded = packing.pad(x)
            scores = packing.pad(self.score(x)) @ padded.transpose(1, 2)
        # A padded row has no neighbour and attends to itself: a softmax over nothing is NaN.
        itself = torch.eye(packing.longest, dtype=torch.bool, device=x.device)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.masked_fill(~(graph.adjacency | itself), -math.inf).softmax(-1)
        return weights * packing.mask[:, :, None]


class WeightedRelationalConv(nn.Module):
    r"""Relational graph convolution with edge weights and optional shared basis matrices.

    .. math:: x_t' = W_0 x_t + b + \sum_r \sum_{u \in N_r(t)} \frac{\alpha_{tu}}{c_{tr}} W_r x_u, \quad
              W_r = \sum_k a_{rk} V_k

    Ghosal et al. (EMNLP 2019), eq. 3, after Schlichtkrull et al., "Modeling Relational Data with Graph Convolutional
    Networks" (ESWC 2018), eqs. 2 and 3. Neighbours are summed before the transformation, in one slot per relation
    possible at the receiver's speaker.

    Args:
        in_features, out_features: Widths.
        num_relations: R, as in the graphs.
        bases: Number of V_k; 0 for one matrix per relation.
        normalize: ``sum`` (c = 1) or ``relation`` (c: number of neighbours in relation r).
        initial: Initial values: ``glorot`` (Glorot uniform, no bias); ``released``: uniform within 1 / sqrt(bases *
            in_features), as in the released code's graph library.

    Shapes:
        x (N, in_features), graph over the same N utterances, weights (B, L, L), [b, t, u] -> (N, out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_relations: int,
        bases: int = 0,
        normalize: Literal["sum", "relation"] = "sum",
        initial: Literal["glorot", "released"] = "glorot",
    ) -> None:
        super().__init__()
        self.num_relations = num_relations
        self.normalize = normalize
        self.weight = nn.Parameter(torch.empty(bases or num_relations, in_features, out_features))
        bound = math.sqrt(6 / (in_features + out_features))
        nn.init.uniform_(self.weight, -bound, bound)
        self.shares = nn.Parameter(torch.empty(num_relations, bases)) if bases else None
        if self.shares is not None:
            nn.init.xavier_uniform_(self.shares)
        self.root = nn.Linear(in_features, out_features)
        nn.init.xavier_uniform_(self.root.weight)
        nn.init.zeros_(self.root.bias)
        if initial == "released":
            bound = 1 / math.sqrt(len(self.weight) * in_features)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def matrices(self) -> Tensor:
        """(R, in_features, out_features): W_r."""
        if self.shares is None:
            return self.weight
        return (self.shares @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])

    def forward(self, x: Tensor, graph: WindowGraph, weights: Tensor) -> Tensor:
        """One round of messages."""
        R, S = self.num_relations, graph.num_speakers
        if graph.num_relations != R:
            raise ValueError(
                f"the graph has {graph.num_relations} relations, the layer {R}. Give both the same number."
            )
        slot, slots = graph.relation_blocks, R
        if graph.relations == "speaker_pair":
            # r = 2 * (S * speaker_u + speaker_t) + c; slots omit speaker_t, which selects the matrices below
            slot, slots = torch.where(slot < R, 2 * (slot // (2 * S)) + slot % 2, R), 2 * S
        edges = slot[:, None] == torch.arange(slots, device=x.device)[:, None, None]  # (B, slots, L, L)
        blocks = edges * weights[:, None]
        if self.normalize == "relation":
            blocks = blocks / edges.sum(-1, keepdim=True).clamp(min=1)
        B, _, L, _ = blocks.shape
        sums = torch.bmm(blocks.to(x.dtype).view(B, slots * L, L), graph.packing.pad(x)).view(B, slots, L, -1)
        sums = graph.packing.pack(sums.transpose(1, 2)).flatten(1)  # (N, slots * in_features)
        out, matrices = self.root(x), self.matrices()
        if graph.relations == "same_other":
            return out + sums @ matrices.flatten(0, 1)
        by_target = matrices.unflatten(0, (S, S, 2)).transpose(0, 1).flatten(1, 3)
        for speaker_t in range(S):
            rows = (graph.number == speaker_t).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, (sums.index_select(0, rows) @ by_target[speaker_t]).to(out.dtype))
        return out


class WindowConv(nn.Module):
    r"""Graph convolution without relations: :math:`x_t' = W_0 x_t + b + W \sum_{u \in N(t)} x_u / c_t`.

    Ghosal et al. (EMNLP 2019), eq. 4; Morris et al., "Weisfeiler and Leman Go Neural" (AAAI 2019).

    Args:
        in_features, out_features: Widths.
        aggregate: ``mean`` (c: number of neighbours) or ``sum`` (c = 1, as published).

    Shapes:
        x (N, in_features), graph over the same N utterances -> (N, out_features).
    """

    def __init__(self, in_features: int, out_features: int, aggregate: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.aggregate = aggregate
        self.neighbours = nn.Linear(in_features, out_features)
        self.root = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor, graph: WindowGraph) -> Tensor:
        """One round of messages."""
        adjacency = graph.adjacency.to(x.dtype)
        if self.aggregate == "mean":
            adjacency = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1)
        return self.root(x) + self.neighbours(graph.packing.pack(torch.bmm(adjacency, graph.packing.pad(x))))


class NodalAttention(nn.Module):
    r"""Attention over the whole conversation: :math:`x_t' = \sum_u \mathrm{softmax}_u (x_t^\top W x_u) x_u`.

    Ghosal et al. (EMNLP 2019), eqs. 6 and 7. As in the released code, ``tanh`` applies a hyperbolic tangent to the
    scores, which limits the ratio of two weights to e^2, and ``bias`` makes them :math:`(W^\top x_t + b)^\top x_u`.

    Shapes:
        x (N, features), packing of the N utterances -> (N, features) and the weights (B, L, L).
    """

    def __init__(self, features: int, tanh: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.tanh = tanh
        self.score = nn.Linear(features, features, bias=bias)

    def forward(self, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """Mixtures and weights."""
        padded = packing.pad(x)
        scores = packing.pad(self.score(x)) @ padded.transpose(1, 2)
        scores = scores.tanh() if self.tanh else scores
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.masked_fill(~packing.mask[:, None, :], -math.inf).softmax(-1)
        return packing.pack(weights.to(padded.dtype) @ padded), weights


class DialogueGcn(Architecture):
    """DialogueGCN: Ghosal et al., "DialogueGCN: A Graph Convolutional Neural Network for Emotion Recognition in
    Conversation" (EMNLP 2019).

    An LSTM gives the sequential context; a relational graph convolution over a window, weighted by a learned
    similarity, and a plain one give the speakers' context. The classifier reads both through attention over the
    conversation.

    - *Paper* (section 3.3): a softmax of a bilinear form weights the edges (eq. 1). Relations encode both speakers'
      numbers and the order. Messages are divided by their number per relation again (eq. 3), those of the second
      convolution summed (eq. 4). Text only.
    - *Released code*: edge weights depend on the centre's position, not its content: at most 110 utterances. Messages
      run from the centre to the members, so received weights do not sum to 1; they are summed (later versions of the
      graph library average) through 30 shared basis matrices, without activation. The attention has a bias and a tanh.
      The first convolution starts much smaller. The LSTM reads padding, without dropout after it.
    - *Here*: bilinear weights summing to 1, not divided again; relations for any number of speakers. The second
      convolution averages: a sum would depend on the distance from the ends. The classifier also reads the utterance's
      own vector, because the attention starts nearly equal everywhere. The LSTM is packed.

    The preset ``model=dialoguegcn_released`` is the released form; add ``model.mask_padding=false`` for its padding.
    ``normalize=relation aggregate=sum`` are eqs. 3 and 4.

    Args:
        inputs: Modalities and widths.
        projection: Width of the summed modality projections; 0 concatenates the features.
        context: LSTM units per direction.
        layers: Stacked LSTM layers.
        bidirectional: Read both directions.
        hidden: Width of the graph convolutions, and of the output.
        past: Earlier utterances in the window; -1 for all.
        future: Later utterances in the window; -1 for all.
        edges: Edge weights: ``bilinear``, or ``position`` with a learned vector per absolute position.
        positions: Longest conversation with ``edges=position``.
        relations: Speakers in relations: same or other, or both numbers.
        max_speakers: Most numbered speakers (at most those in training); further ones share the last number.
        bases: Basis matrices shared by the relations; 0 for one matrix per relation.
        normalize: ``relation`` divides each relation's messages by their number.
        aggregate: Aggregation in the second convolution.
        direction: ``paper``: receive from ``past`` before and ``future`` after; ``released``: the reverse, weights
            normalised over sent messages.
        activation: Activation after each convolution.
        nodal: Attention before the classifier; ``tanh`` of the scores as released.
        residual: Also feed the utterance's own vector to the classifier.
        nodal_bias: Bias in the scores of that attention.
        dropout: Dropout probability on the projected input, in and after the LSTM, and before the head.
        context_dropout: Dropout after the LSTM.
        initial: Initial first convolution; ``released``: uniform within 1 / sqrt(bases * 2 * context).
        mask_padding: False reads padding, as released; scores depend on the batch.

    Shapes:
        batch -> hidden (N, hidden).
    """

    capabilities = Capabilities(speakers="same_other", compiles=False, compile_note=PACKED_NOTE, skips=True)

    # Not searched: the released forms, those of eqs. 3 and 4, projection=0, bidirectional (different information).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.context": {"choices": [32, 64, 128]},
        "model.layers": {"low": 1, "high": 2},
        "model.hidden": {"choices": [32, 64, 128]},
        "model.past": {"low": 1, "high": 12},
        "model.future": {"low": 0, "high": 12},
        "model.nodal": {"choices": ["softmax", "none"]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    @classmethod
    def limits(cls, options: Mapping[str, Any]) -> Limits:
        """Position vectors limit the length; reading padding makes scores depend on the batch."""
        longest = options["positions"] if options["edges"] == "position" else None
        return Limits(longest, "" if options["mask_padding"] else PADDING_NOTE)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        projection: WidthOrNone = 128,
        context: Width = 64,
        layers: Count = 2,
        bidirectional: bool = True,
        hidden: Width = 64,
        past: WindowOrAll = 10,
        future: WindowOrAll = 10,
        edges: Literal["bilinear", "position"] = "bilinear",
        positions: Window = 110,
        relations: Relations = "same_other",
        max_speakers: Count = 9,
        bases: CountOrNone = 0,
        normalize: Literal["sum", "relation"] = "sum",
        aggregate: Literal["mean", "sum"] = "mean",
        direction: Literal["paper", "released"] = "paper",
        activation: Literal["relu", "none"] = "relu",
        nodal: Literal["softmax", "tanh", "none"] = "softmax",
        residual: bool = True,
        nodal_bias: bool = False,
        dropout: Share = 0.4,
        context_dropout: bool = True,
        initial: Literal["glorot", "released"] = "glorot",
        mask_padding: bool = True,
    ) -> None:
        super().__init__(inputs)
        self.mask_padding = mask_padding
        self.past, self.future = past, future
        self.relations: Relations = relations
        self.direction = direction
        self.num_speakers = min(inputs.speakers, max_speakers)
        self.hidden_size = hidden
        looks_ahead = bidirectional or future != 0 or direction == "released" or nodal != "none"
        self.capabilities = replace(
            self.capabilities, causal=not looks_ahead, absent="vector" if projection else "mean"
        )
        if relations == "speaker_pair":
            self.capabilities = replace(self.capabilities, speakers="numbered" if self.num_speakers > 1 else "none")
        self.dropout = nn.Dropout(dropout)
        self.project = ModalityProjection(inputs.widths, projection, inputs.policy)
        self.fuse = self.project.mixer(dropout)
        width = self.project.merged_features
        self.lstm = PackedLSTM(width, context, layers, dropout, bidirectional=bidirectional)
        width = self.lstm.out_features
        self.edges = EdgeAttention(width, positions if edges == "position" else 0)
        num_relations = 4 if relations == "same_other" else 2 * self.num_speakers**2
        self.relational = WeightedRelationalConv(width, hidden, num_relations, bases, normalize, initial)
        self.plain = WindowConv(hidden, hidden, aggregate)
        self.activate: nn.Module = nn.ReLU() if activation == "relu" else nn.Identity()
        self.nodal = None if nodal == "none" else NodalAttention(width + hidden, nodal == "tanh", nodal_bias)
        self.residual = residual
        self.context_dropout = context_dropout
        parts = 2 if residual and self.nodal is not None else 1
        self.classifier = nn.Linear(parts * (width + hidden), hidden)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the conversations."""
        packing = batch.packing
        x = self.fuse(self.project.merge(batch))
        context = self.lstm(x, packing, None if self.mask_padding else x.new_zeros(x.shape[1]))
        context = self.dropout(context) if self.context_dropout else context

        graph = self._graph(batch, self.past, self.future)
        weights = self.edges(context, graph)
        if self.direction == "released":
            # Weights of sent messages: [t, u] becomes the weight of receiver t in the window of centre u.
            graph, weights = self._graph(batch, self.future, self.past), weights.transpose(1, 2)
        messages = self.activate(self.relational(context, graph, weights))
        local = self.activate(self.plain(messages, graph))

        out = torch.cat([context, local], dim=1)
        attention = {"edges": weights[:, None]}
        if self.nodal is not None:
            attended, over = self.nodal(out, packing)
            out = torch.cat([out, attended], dim=1) if self.residual else attended
            attention["nodal"] = over[:, None] * packing.mask[:, None, :, None]
        hidden = self.dropout(F.relu(self.classifier(out)))
        return Encoded(hidden, attention=attention if self.keep_attention else {})

    def _graph(self, batch: ConversationBatch, past: int, future: int) -> WindowGraph:
        return WindowGraph(batch.packing, batch.speaker, past, future, self.relations, self.num_speakers)
