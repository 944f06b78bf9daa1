"""DAG-ERC as its authors' program computes it, written out literally, to compare with.

Shen et al., "Directed Acyclic Graph Network for Conversational Emotion Recognition" (ACL 2021). This is our own writing
of the algorithm: a padded batch, adjacency and speaker masks filled by Python loops for every batch, and one layer
after the other, one utterance after the other, through padding too. Each utterance asks all utterances before it
(those that it does not hear are masked out), all of which are projected anew through both relation matrices, and
the vectors of the layer grow by concatenation. Parameters that the authors' program makes and never uses are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build_adjacency(speakers: Sequence[Sequence[int]], longest: int, window: int) -> Tensor:
    """(B, L, L): 1 where the row's utterance hears the column's, by stepping back from each utterance."""
    matrices = []
    for spoke in speakers:
        adjacency = torch.zeros(longest, longest)
        for i, speaker in enumerate(spoke):
            seen = 0
            for j in reversed(range(i)):
                adjacency[i, j] = 1
                seen += spoke[j] == speaker
                if seen == window:
                    break
        matrices.append(adjacency)
    return torch.stack(matrices)


def build_same_speaker(speakers: Sequence[Sequence[int]], longest: int) -> Tensor:
    """(B, L, L): 1 where two utterances have the same speaker, one entry at a time."""
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

    def forward(self, asks: Tensor, before: Tensor, heard: Tensor, same: Tensor) -> Tensor:
        """asks (B, D), before (B, i, D), heard and same (B, i) -> (B, D)."""
        pairs = torch.cat([asks[:, None].expand_as(before), before], 2)
        scores = self.score(pairs)[:, :, 0] - (1 - heard) * 1e30
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
        """See the class."""
        longest = features.shape[1]
        speakers = [row[:length] for row, length in zip(speaker.tolist(), lengths.tolist(), strict=True)]
        adjacency, same = build_adjacency(speakers, longest, self.window), build_same_speaker(speakers, longest)
        vectors = [F.relu(self.encode(features))]
        for layer in self.layers:
            vectors.append(layer(vectors[-1], adjacency, same))
        hidden = F.relu(self.first(torch.cat([*vectors, features], 2)))
        logits = self.output(self.dropout(F.relu(self.second(hidden))))
        return F.log_softmax(torch.cat([row[: int(length)] for row, length in zip(logits, lengths, strict=True)]), -1)
