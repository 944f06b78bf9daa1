"""DialogueRNN as in its authors' program, for comparison.

Majumder et al., "DialogueRNN: An Attentive RNN for Emotion Detection in Conversations" (AAAI 2019), in our own code.
Batches are padded, directions run one after the other in a Python loop over utterances. Every party's update is
computed and only the speaker's is used. States are selected per conversation, histories grow by concatenation, and
attention runs once per receiver.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def select(states: Tensor, number: Tensor) -> Tensor:
    """(B, S, D), (B) -> (B, D), one conversation at a time."""
    return torch.stack([row[index] for row, index in zip(states, number, strict=True)])


def reverse(values: Tensor, lengths: Tensor) -> Tensor:
    """(L, B, ...) with every conversation reversed within its length, then zeros."""
    parts = [values[: int(length), b].flip(0) for b, length in enumerate(lengths)]
    return nn.utils.rnn.pad_sequence(parts)


class LiteralCell(nn.Module):
    """One step of all conversations of a batch."""

    def __init__(
        self, width: int, global_size: int, party_size: int, emotion_size: int, dropout: float, *, listener: bool
    ) -> None:
        super().__init__()
        self.query = nn.Linear(width, global_size, bias=False)
        self.global_gru = nn.GRUCell(width + party_size, global_size)
        self.party_gru = nn.GRUCell(width + global_size, party_size)
        self.emotion_gru = nn.GRUCell(party_size, emotion_size)
        self.listener_gru = nn.GRUCell(width + party_size, party_size) if listener else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, u: Tensor, speaks: Tensor, history: Tensor, parties: Tensor, emotion: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, D), speaks (B, S) one-hot, history (t, B, Dg), parties (B, S, Dp), emotion (B, De)."""
        B, S = speaks.shape
        speaker = speaks.argmax(1)
        before = u.new_zeros(B, self.global_gru.hidden_size) if len(history) == 0 else history[-1]
        g = self.dropout(self.global_gru(torch.cat([u, select(parties, speaker)], 1), before))
        context = torch.zeros_like(g)
        if len(history):
            keys = history.permute(1, 2, 0)
            weights = torch.bmm(self.query(u)[:, None], keys).softmax(2)
            context = torch.bmm(weights, history.transpose(0, 1))[:, 0]
        party_input = torch.cat([u, context], 1)[:, None].expand(-1, S, -1).flatten(0, 1)
        updated = self.dropout(self.party_gru(party_input, parties.flatten(0, 1)).view(B, S, -1))
        others = parties
        if self.listener_gru is not None:
            listener_input = torch.cat([u, select(updated, speaker)], 1)[:, None].expand(-1, S, -1).flatten(0, 1)
            others = self.dropout(self.listener_gru(listener_input, parties.flatten(0, 1)).view(B, S, -1))
        chosen = speaks[:, :, None]
        parties = others * (1 - chosen) + updated * chosen
        emotion = self.dropout(self.emotion_gru(select(parties, speaker), emotion))
        return g, parties, emotion


class LiteralDialogueRnn(nn.Module):
    """From padded features to log-probabilities of the packed utterances.

    Args:
        width: D, of the concatenated modalities.
        classes: Number of classes.
        speakers: S.
        global_size, party_size, emotion_size: Of one direction.
        hidden: Of the dense layer.
        dropout: Before the classifier.
        state_dropout: On every new state.
        emotion_dropout: On the emotion states of each direction.
        listener: Update the listeners.

    Shapes:
        features (B, L, D), speaker (B, L), lengths (B) -> (N, classes).
    """

    def __init__(
        self,
        width: int,
        classes: int,
        speakers: int = 2,
        *,
        global_size: int = 500,
        party_size: int = 500,
        emotion_size: int = 300,
        hidden: int = 600,
        dropout: float = 0.1,
        state_dropout: float = 0.1,
        emotion_dropout: float = 0.25,
        listener: bool = False,
    ) -> None:
        super().__init__()
        self.speakers = speakers
        self.cells = nn.ModuleList(
            LiteralCell(width, global_size, party_size, emotion_size, state_dropout, listener=listener)
            for _ in range(2)
        )
        self.emotion_dropout = nn.Dropout(emotion_dropout)
        self.match = nn.Linear(2 * emotion_size, 2 * emotion_size)
        self.dense = nn.Linear(2 * emotion_size, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, classes)

    def read(self, cell: nn.Module, features: Tensor, speaks: Tensor) -> Tensor:
        """One direction, (L, B, D) and (L, B, S) -> (L, B, De)."""
        B, De, Dp = features.shape[1], cell.emotion_gru.hidden_size, cell.party_gru.hidden_size
        history, emotions = features.new_zeros(0, B, cell.global_gru.hidden_size), features.new_zeros(0, B, De)
        parties, emotion = features.new_zeros(B, self.speakers, Dp), features.new_zeros(B, De)
        for u, who in zip(features, speaks, strict=True):
            g, parties, emotion = cell(u, who, history, parties, emotion)
            history = torch.cat([history, g[None]])
            emotions = torch.cat([emotions, emotion[None]])
        return emotions

    def forward(self, features: Tensor, speaker: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities (N, classes)."""
        features, speaks = features.transpose(0, 1), F.one_hot(speaker, self.speakers).transpose(0, 1).float()
        mask = (torch.arange(len(features)) < lengths[:, None]).float()  # (B, L)
        forwards = self.emotion_dropout(self.read(self.cells[0], features, speaks))
        backwards = self.read(self.cells[1], reverse(features, lengths), reverse(speaks, lengths))
        backwards = self.emotion_dropout(reverse(backwards, lengths))
        emotions = torch.cat([forwards, backwards], 2)
        rows = []
        for query in emotions:  # one receiver per conversation at a time
            scores = torch.bmm(self.match(query)[:, None], emotions.permute(1, 2, 0)) * mask[:, None]
            weights = scores.softmax(2) * mask[:, None]
            weights = weights / weights.sum(2, keepdim=True)
            rows.append(torch.bmm(weights, emotions.transpose(0, 1))[:, 0][None])
        hidden = self.dropout(F.relu(self.dense(torch.cat(rows))))
        logits = self.output(hidden).transpose(0, 1)
        return F.log_softmax(torch.cat([row[: int(length)] for row, length in zip(logits, lengths, strict=True)]), -1)
