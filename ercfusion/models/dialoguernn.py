"""DialogueRNN: global, party and emotion states with attention."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import ModalityProjection
from ercfusion.layers.dialogue_rnn import DialogueRecurrence
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Share, Space, Width, WidthOrNone


class DialogueRnn(Architecture):
    """DialogueRNN: Majumder et al., "DialogueRNN: An Attentive RNN for Emotion Detection in Conversations" (AAAI 2019).

    A global state follows the conversation, each speaker has a party state, and emotion states follow the current
    speaker's (equations: :mod:`ercfusion.layers.dialogue_rnn`). A second attention mixes all emotion states for each
    utterance.

    - *Paper*: five variants: forwards; with ``listener`` updates; ``bidirectional``; with ``emotion_attention``; the
      last two together, its best. Listeners use visual cues, if any.
    - *Released code*: listeners read the utterance and the speaker's new state. Dropout acts on every recurring state,
      and on emotion states at 0.15 above the setting. The number of parties is fixed; the epoch is chosen by the test
      loss. Early revisions reverse utterances but not speakers. Padding is harmless.
    - *Here*: the released listeners and dropouts, each with an option; any number of speakers. By default the
      classifier also reads the utterance's own input and states: the mixture starts nearly equal everywhere, and on its
      own does not fit two conversations in 400 steps.

    The preset ``model=dialoguernn_released`` has the released form and widths.

    Args:
        inputs: Modalities and widths.
        projection: Width of the summed modality projections; 0 concatenates the features.
        global_size: Width of the global state per direction.
        party_size: Width of a party state per direction.
        emotion_size: Width of the emotion state per direction.
        hidden: Width of the dense layer before the classifier.
        listener: Also update the listeners' party states.
        bidirectional: Read both directions; causal if this and ``emotion_attention`` are false.
        emotion_attention: Attention over all emotion states; without ``residual`` the classifier reads only its result.
        residual: Also feed the encoded input and the utterance's emotion states to the classifier.
        dropout: Dropout probability on the projected input and before the classifier.
        state_dropout: Dropout probability on new states inside the recurrence.
        emotion_dropout: Dropout probability on the emotion states after the recurrence.

    Shapes:
        batch -> hidden (N, hidden).
    """

    capabilities = Capabilities(
        speakers="same_other",
        compiles=False,
        compile_note="the recurrence loops over the utterances of the longest conversation in Python",
        skips=True,
    )

    # Not searched: bidirectional and emotion_attention (different information), listener (worse in the paper, slow),
    # residual (needed, docs/models/dialoguernn.md).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 3e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.global_size": {"choices": [64, 128, 256]},
        "model.party_size": {"choices": [64, 128, 256]},
        "model.emotion_size": {"choices": [64, 128, 256]},
        "model.hidden": {"choices": [64, 128, 256]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "model.state_dropout": {"low": 0.0, "high": 0.3, "step": 0.05},
        "model.emotion_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        projection: WidthOrNone = 128,
        global_size: Width = 128,
        party_size: Width = 128,
        emotion_size: Width = 128,
        hidden: Width = 128,
        listener: bool = False,
        bidirectional: bool = True,
        emotion_attention: bool = True,
        residual: bool = True,
        dropout: Share = 0.4,
        state_dropout: Share = 0.1,
        emotion_dropout: Share = 0.25,
    ) -> None:
        super().__init__(inputs)
        self.capabilities = replace(
            self.capabilities,
            causal=not (bidirectional or emotion_attention),
            absent="vector" if projection else "mean",
        )
        chances = {"dropout": dropout, "state_dropout": state_dropout, "emotion_dropout": emotion_dropout}
        for name, chance in chances.items():
            if not 0 <= chance < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, found {chance}. Choose a smaller probability."
                )
        self.hidden_size = hidden
        self.residual = residual
        self.project = ModalityProjection(inputs.widths, projection, inputs.policy)
        self.fuse = self.project.mixer(dropout)
        width = self.project.merged_features
        self.recurrence = DialogueRecurrence(
            width,
            global_size,
            party_size,
            emotion_size,
            listener=listener,
            bidirectional=bidirectional,
            dropout=state_dropout,
        )
        states = self.recurrence.out_features
        self.emotion_dropout = nn.Dropout(emotion_dropout)
        self.match = nn.Linear(states, states) if emotion_attention else None
        own = (states if emotion_attention else 0) + width
        self.dense = nn.Linear(states + (own if residual else 0), hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the conversations."""
        x = self.fuse(self.project.merge(batch))
        emotions = self.emotion_dropout(self.recurrence(x, batch.speaker, batch.packing))
        parts, attention = [emotions], {}
        if self.match is not None:
            mixed = self._attend(emotions, batch.packing)
            parts = [mixed, emotions] if self.residual else [mixed]
            if self.keep_attention:
                attention["emotions"] = self.attention_map(emotions, batch.packing)
        if self.residual:
            parts.append(x)
        hidden = self.dropout(F.relu(self.dense(torch.cat(parts, dim=1))))
        return Encoded(hidden, attention=attention)

    def attention_map(self, emotions: Tensor, packing: Packing) -> Tensor:
        """(B, 1, L, L) attention of the emotion states (N, D), [b, 0, receiver, source]; rows sum to 1."""
        assert self.match is not None
        scores = packing.pad(self.match(emotions)) @ packing.pad(emotions).transpose(1, 2)
        weights = scores.masked_fill(~packing.mask[:, None], -torch.inf).softmax(-1)
        return (weights * packing.mask[:, :, None])[:, None]

    def _attend(self, emotions: Tensor, packing: Packing) -> Tensor:
        """Mixtures (N, D) of the emotion states, by the softmax of e_i . (W e_t + b) over the conversation."""
        assert self.match is not None
        query, states = packing.pad(self.match(emotions)), packing.pad(emotions)
        # Unscaled, as published. Under autocast query and states differ in precision.
        mask = packing.mask[:, None, None]
        states = states[:, None].to(query.dtype)
        mixed = F.scaled_dot_product_attention(query[:, None], states, states, attn_mask=mask, scale=1.0)
        return packing.pack(mixed[:, 0])
