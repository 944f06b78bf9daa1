"""DAG-ERC as in its authors' program, for comparison.

Shen et al., "Directed Acyclic Graph Network for Conversational Emotion Recognition" (ACL 2021), in our own code.
Batches are padded, and Python loops fill adjacency and speaker masks for every batch. Layers and utterances run one
after another, through padding too. Every step projects all earlier utterances through both relation matrices, and
vectors grow by concatenation. Unused parameters of the authors' program are omitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build_adjacency(speakers: Sequence[Sequence[int]], longest: int, window: int) -> Tensor:
    """(B, L, L): 1 if the row's utterance receives from the column's."""
    matrices = []
    for spoke in speakers:
        adjacency = torch.zeros(longest, longest)
        for i, speaker in enumerate(spoke):
            count = 0
            for j in reversed(range(i)):
                adjacency[i, j] = 1
                count += spoke[j] == speaker
                if count == window:
                    break
        matrices.append(adjacency)
    return torch.stack(matrices)


def build_same_speaker(speakers: Sequence[Sequence[int]], longest: int) -> Tensor:
    """(B, L, L): 1 if two utterances have the same speaker."""
    matrices = []
    for spoke in speakers:
        same = torch.zeros(longest, longest)
        for i, one in enumerate(spoke):
            for j, other in enumerate(spoke):
                if one == other:
                    same[i, j] = 1
        matrices.append(same)
    return torch.stack(matrices)


class LiteralAttention(nn.Module):
    """The message to one utterance of every conversation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(2 * width, 1)
        self.same = nn.Linear(width, width, bias=False)
        self.other = nn.Linear(width, width, bias=False)

    def forward(self, receiver: Tensor, before: Tensor, adjacency: Tensor, same: Tensor) -> Tensor:
        """receiver (B, D), before (B, i, D), adjacency and same (B, i) -> (B, D)."""
        pairs = torch.cat([receiver[:, None].expand_as(before), before], 2)
        scores = self.score(pairs)[:, :, 0] - (1 - adjacency) * 1e30
        projected = self.same(before) * same[:, :, None] + self.other(before) * (1 - same)[:, :, None]
        return torch.bmm(scores.softmax(1)[:, None], projected)[:, 0]


class LiteralLayer(nn.Module):
    """One layer, from the first utterance to the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = LiteralAttention(width)
        self.utterance_gru = nn.GRUCell(width, width)
        self.message_gru = nn.GRUCell(width, width)

    def forward(self, below: Tensor, adjacency: Tensor, same: Tensor) -> Tensor:
        """below (B, L, D), adjacency and same (B, L, L) -> (B, L, D)."""
        done = below[:, :0]
        for i in range(below.shape[1]):
            x = below[:, i]
            message = torch.zeros_like(x)
            if i:
                message = self.attention(x, done, adjacency[:, i, :i], same[:, i, :i])
            new = self.utterance_gru(x, message) + self.message_gru(message, x)
            done = torch.cat([done, new[:, None]], 1)
        return done


class LiteralDagErc(nn.Module):
    """From padded features to log-probabilities of the packed utterances.

    Args:
        width: D, of the features.
        classes: Number of classes.
        hidden: H, of the recurrence and of the linear layers behind it.
        layers: Of the recurrence.
        window: How many earlier utterances of its own speaker an utterance reaches back to.
        dropout: Before the classifier.

    Shapes:
        features (B, L, D), speaker (B, L), lengths (B) -> (N, classes).
    """

    def __init__(
        self, width: int, classes: int, *, hidden: int = 300, layers: int = 4, window: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.window = window
        self.encode = nn.Linear(width, hidden)
        self.layers = nn.ModuleList(LiteralLayer(hidden) for _ in range(layers))
        self.first = nn.Linear((layers + 1) * hidden + width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, classes)

    def forward(self, features: Tensor, speaker: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities (N, classes)."""
        longest = features.shape[1]
        speakers = [row[:length] for row, length in zip(speaker.tolist(), lengths.tolist(), strict=True)]
        adjacency, same = build_adjacency(speakers, longest, self.window), build_same_speaker(speakers, longest)
        vectors = [F.relu(self.encode(features))]
        for layer in self.layers:
            vectors.append(layer(vectors[-1], adjacency, same))
        hidden = F.relu(self.first(torch.cat([*vectors, features], 2)))
        logits = self.output(self.dropout(F.relu(self.second(hidden))))
        return F.log_softmax(torch.cat([row[: int(length)] for row, length in zip(logits, lengths, strict=True)]), -1)
