"""DialogueRNN: global, party and emotion states that follow the conversation, and attention over the emotion states."""

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
    """Majumder et al., "DialogueRNN: An Attentive RNN for Emotion Detection in Conversations" (AAAI 2019).

    A global state follows the conversation, every speaker has a party state, and the emotion states follow the party
    states of whoever speaks (:mod:`ercfusion.layers.dialogue_rnn` has the equations). A second attention lets every
    utterance look at the emotion states of the whole conversation.

    *The paper* has five variants: DialogueRNN reads forwards; with the listeners' states updated too (``listener``);
    in both directions (``bidirectional``); with attention over the emotion states (``emotion_attention``); and with the
    last two, its best one. It updates listeners with visual cues of their own where there are any.

    *The released code* updates listeners with the utterance and the speaker's new state instead; drops numbers of
    every state inside the recurrence, and 0.15 more than it is told of the emotion states; computes every party's
    update at every utterance and keeps the speaker's; knows a fixed number of parties; and chooses its epoch by the
    loss on the test split. Early revisions read the backward direction's utterances with the speakers in forward order.
    Its context attention ends before the present, so padding does no harm there, and the attention over emotion states
    is masked.

    *Here* the listeners' update and the dropouts are the released ones, each dropout with an option of its own; any
    number of speakers will do. The default is the last variant with two changes: the modalities are projected to a
    common width first, and the classifier is given the utterance's own input and emotion states beside the attention's
    mixture. That one begins as nearly the same mean for all utterances of a conversation, and with nothing beside it
    may stay there: two conversations are not learned by heart in 400 steps. The published form is the preset
    ``model=dialoguernn_released``, which sets ``projection=0 residual=false`` and the published widths.

    Args:
        inputs: Modalities and widths.
        projection: Width to which the modalities are projected and summed; 0 concatenates the features as they are.
        global_size: Width of the global state per direction.
        party_size: Width of a party state per direction.
        emotion_size: Width of the emotion state per direction.
        hidden: Width of the dense layer before the classifier, and of the output.
        listener: Also update the states of the parties who listen.
        bidirectional: Also read from the end; false and ``emotion_attention=false`` make the model causal.
        emotion_attention: Attention over all emotion states of the conversation; without ``residual`` the classifier
            receives its result instead of the utterance's own state.
        residual: Give the classifier also the encoded input and the utterance's own emotion states.
        dropout: Dropout probability on the projected input and before the classifier.
        state_dropout: Dropout probability on every new state inside the recurrence.
        emotion_dropout: Dropout probability on the emotion states that leave the recurrence.

    Shapes:
        batch -> hidden (N, hidden).
    """

    capabilities = Capabilities(
        speakers="same_other",
        compiles=False,
        compile_note="the recurrence loops over the utterances of the longest conversation in Python",
    )

    # Not searched: bidirectional and emotion_attention, which change what the model may know; listener, which the paper
    # found worse and which takes several times as long; residual, without which it learns badly
    # (docs/models/dialoguernn.md).
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
            self.capabilities, causal=not (bidirectional or emotion_attention), missing_aware=projection > 0
        )
        chances = {"dropout": dropout, "state_dropout": state_dropout, "emotion_dropout": emotion_dropout}
        for name, chance in chances.items():
            if not 0 <= chance < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, found {chance}")
        self.hidden_size = hidden
        self.residual = residual
        self.project = ModalityProjection(inputs.widths, projection)
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
        """See the class."""
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
        """(B, 1, L, L) weights of the emotion states (N, D), [b, 0, receiver, source]; rows of utterances sum to 1."""
        assert self.match is not None
        scores = packing.pad(self.match(emotions)) @ packing.pad(emotions).transpose(1, 2)
        weights = scores.masked_fill(~packing.mask[:, None], -torch.inf).softmax(-1)
        return (weights * packing.mask[:, :, None])[:, None]

    def _attend(self, emotions: Tensor, packing: Packing) -> Tensor:
        """Matching attention (N, D) -> (N, D): softmax over the conversation of e_i . (W e_t + b), mixing the e_i."""
        assert self.match is not None
        query, states = packing.pad(self.match(emotions)), packing.pad(emotions)
        # Unscaled, as published. Autocast gives the query in another precision than the states.
        mask = packing.mask[:, None, None]
        states = states[:, None].to(query.dtype)
        mixed = F.scaled_dot_product_attention(query[:, None], states, states, attn_mask=mask, scale=1.0)
        return packing.pack(mixed[:, 0])
