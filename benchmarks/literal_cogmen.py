"""COGMEN as in its authors' program, for comparison.

Joshi et al., "COGMEN: COntextualized GNN based Multimodal Emotion recognitioN" (NAACL 2022), in our own code: a padded
Transformer without a padding mask, a graph built edge by edge in Python in every forward pass, and PyTorch Geometric's
convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import RGCNConv, TransformerConv


def window_pairs(length: int, past: int, future: int) -> set[tuple[int, int]]:
    """Pairs (centre, member of its window) of a conversation; -1 for an unlimited side."""
    pairs = set()
    for centre in range(length):
        first = 0 if past < 0 else max(0, centre - past)
        last = length - 1 if future < 0 else min(length - 1, centre + future)
        for member in range(first, last + 1):
            pairs.add((centre, member))
    return pairs


def relation_numbers(speakers: int) -> dict[tuple[int, int, int], int]:
    """Number per (speaker of the source, speaker of the target, 0 if the source is first else 1)."""
    numbers: dict[tuple[int, int, int], int] = {}
    for source in range(speakers):
        for target in range(speakers):
            for order in (0, 1):
                numbers[source, target, order] = len(numbers)
    return numbers


def build_graph(
    lengths: Tensor, speaker: Tensor, past: int, future: int, numbers: dict[tuple[int, int, int], int]
) -> tuple[Tensor, Tensor]:
    """Edges (2, E) and their relations (E) for a batch; messages run from a window's centre to its members.

    Args:
        lengths: (B).
        speaker: (B, L).
        past, future: The window.
        numbers: From :func:`relation_numbers`.
    """
    counts = []
    for conversation in range(len(lengths)):
        counts.append(len(window_pairs(int(lengths[conversation].item()), past, future)))

    edges: list[Tensor] = []
    relations: list[int] = []
    first = 0
    for conversation in range(len(lengths)):
        length = int(lengths[conversation].item())
        pairs = window_pairs(length, past, future)  # a second time
        assert len(pairs) == counts[conversation]
        for source, target in pairs:
            edges.append(torch.tensor([first + source, first + target]))
            speaker_s = speaker[conversation, source].item()
            speaker_t = speaker[conversation, target].item()
            relations.append(numbers[int(speaker_s), int(speaker_t), 0 if source < target else 1])
        first += length
    return torch.stack(edges).t().contiguous(), torch.tensor(relations)


def context_heads(width: int) -> int:
    """The first of 7 to 14 that divides the width, else 1."""
    for heads in range(7, 15):
        if width % heads == 0:
            return heads
    return 1


class LiteralCogmen(nn.Module):
    """From padded features to log-probabilities of the packed utterances.

    Args:
        width: D, of the concatenated modalities.
        classes: Number of classes.
        speakers: S.
        past, future: The window.
        layers, feedforward: Of the Transformer.
        hidden: Width of the graph.
        graph_heads: Heads of the graph attention.
        dropout: Probability.

    Shapes:
        features (B, L, D), speaker (B, L), lengths (B) -> (N, classes).
    """

    def __init__(
        self,
        width: int,
        classes: int,
        speakers: int = 2,
        *,
        past: int = 10,
        future: int = 10,
        layers: int = 2,
        feedforward: int = 2048,
        hidden: int = 100,
        graph_heads: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.past, self.future = past, future
        self.numbers = relation_numbers(speakers)
        layer = nn.TransformerEncoderLayer(
            d_model=width, nhead=context_heads(width), dim_feedforward=feedforward, dropout=dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=layers, enable_nested_tensor=False)
        self.narrow = nn.Linear(width, hidden)
        self.relational = RGCNConv(hidden, hidden, num_relations=len(self.numbers))
        self.attention = TransformerConv(hidden, hidden, heads=graph_heads, concat=True)
        self.norm = nn.BatchNorm1d(hidden * graph_heads)
        self.classifier = nn.Linear(hidden * graph_heads, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, speaker: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities (N, classes)."""
        encoded = self.narrow(self.encoder(features))  # padding takes part in the attention
        nodes = torch.cat([encoded[row, : int(lengths[row].item())] for row in range(len(lengths))])
        edges, relations = build_graph(lengths, speaker, self.past, self.future, self.numbers)
        nodes = self.relational(nodes, edges, relations)
        nodes = self.attention(nodes, edges)
        nodes = F.leaky_relu(self.norm(nodes))
        return F.log_softmax(self.output(self.dropout(F.relu(self.classifier(nodes)))), dim=-1)
