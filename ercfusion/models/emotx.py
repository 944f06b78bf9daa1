"""EmoTx: class tokens, one per label and turn, in a Transformer over the tokens of all modalities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import RelativeBias, Tokens, TokenTransformerLayer
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone, WindowOrNone


class Token(NamedTuple):
    """Name of a token.

    Args:
        turn: Position of its turn in the conversation.
        source: The label of a class token, or the modality of a feature token.
        step: Step of a feature token in its turn; -1 for a class token.
    """

    turn: int
    source: str
    step: int


@dataclass(frozen=True)
class LabelAttention:
    """Attention of the class tokens of one conversation with n turns, K tokens and C labels.

    Args:
        tokens: Names of the K tokens; absent modalities have none.
        labels: Names of the C labels.
        weights: (n, C, K) weights of each turn's class tokens over the tokens; every row sums to 1.
    """

    tokens: tuple[Token, ...]
    labels: tuple[str, ...]
    weights: Tensor


class EmoTx(Architecture):
    """EmoTx: Srivastava, Singh, Tapaswi, "How you feelin'? Learning Emotions and Mental States in Movie Scenes" (2023).

    A Transformer encoder reads the tokens of a whole conversation: the features of every turn, a token per modality (or
    per step of a sequence), and C class tokens per turn, one per label. After the encoder each label has its own linear
    map from its class token to one logit, shared between turns.

    - *Paper* (CVPR 2023): the turns are a movie scene and its characters, with tokens of frames, faces and subtitles.
      A token is a linear map of its features plus embeddings of its type, time and character. Binary cross-entropy has
      a weight per label; scores are mean average precision.
    - *Released code*: two layers, eight heads, width 512, at most four characters and 300 tokens per group.
    - *Here*: our reading, for turns of any kind: utterances, or scene and speakers under a protocol of dialogue sets.
      The time is the turn's position and the step's. Feature tokens do not attend to class tokens, and class tokens
      attend to those of their turn (``exchange``). Attention has a learned bias for distance and same speaker
      (``lags``), and class tokens start from their turn's features (``anchor``).

    The preset ``model=emotx_released`` is the published form. The cost grows with the square of the tokens of a
    conversation, L (C + M) for L turns, in blocks of bounded memory; ``window`` restricts reading, not cost.

    Args:
        inputs: Modalities, widths, levels, and the labels of the first task; without labels there is one.
        width: D, width of the tokens; a multiple of ``heads``.
        layers: Transformer layers.
        heads: Attention heads.
        feedforward: Width of the feed-forward layers.
        exchange: Class tokens to which a class token attends: ``all`` (and feature tokens too), as published; those of
            its ``turn``; or ``none``, which predicts labels separately.
        anchor: Class tokens start from the mean of their turn's feature tokens; false as published.
        speakers: Speaker embedding: ``numbered`` (speakers beyond those in training share the last one) or ``none``.
        lags: Distances with a learned bias for same and different speakers; 0 for none, as published.
        window: Largest distance of attention in turns; 0 for any.
        norm_first: Pre-norm Transformer layers.
        activation: Activation of the feed-forward layers.
        dropout: Dropout probability in the layers, on the feature tokens and before the logits.
        causal: Never read later turns.

    Shapes:
        batch -> hidden (N, D), the mean of the class tokens; logits (N, C).
    """

    capabilities = Capabilities(speakers="same_other", label_wise=True, absent="skip", skips=True)

    # Not searched: causal and window (different information), speakers, norm_first and activation.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 3e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.width": {"choices": [64, 128, 256]},
        "model.layers": {"low": 1, "high": 3},
        "model.exchange": {"choices": ["all", "turn"]},
        "model.anchor": {"choices": [False, True]},
        "model.lags": {"low": 0, "high": 15, "step": 5},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        width: Width = 128,
        layers: Count = 2,
        heads: Count = 4,
        feedforward: Width = 256,
        exchange: Literal["all", "turn", "none"] = "turn",
        anchor: bool = True,
        speakers: Literal["numbered", "none"] = "none",
        lags: WidthOrNone = 10,
        window: WindowOrNone = 0,
        norm_first: bool = True,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: Share = 0.3,
        causal: bool = False,
    ) -> None:
        super().__init__(inputs)
        self.labels = inputs.labels or ("label",)  # one without a recognizer
        numbered = speakers == "numbered" and inputs.speakers > 1
        self.capabilities = replace(
            self.capabilities,
            causal=causal,
            speakers="numbered" if numbered else "same_other" if lags else "none",
        )
        self.hidden_size = width
        self.anchor = anchor
        self.project = nn.ModuleDict({name: nn.Linear(size, width) for name, size in inputs.widths.items()})
        self.types = nn.Embedding(1 + len(inputs.widths), width)  # class tokens, then the modalities
        self.class_tokens = nn.Parameter(0.1 * torch.randn(len(self.labels), width))
        self.speaker = nn.Embedding(inputs.speakers, width) if numbered else None
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)  # codes of size 1 hide the features: learning starts slowly
        self.time_scale = nn.Parameter(torch.full((2,), 0.1))  # of turns and steps
        self.layers = nn.ModuleList(
            TokenTransformerLayer(
                width,
                heads,
                feedforward,
                dropout,
                norm_first=norm_first,
                activation=activation,
                exchange=exchange,
                window=window,
                causal=causal,
                lags=lags,
            )
            for _ in range(layers)
        )
        for module in self.modules():
            if isinstance(module, RelativeBias):
                nn.init.normal_(module.weight, std=0.02)  # at zero, the model would start blind to speakers
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(len(self.labels), width))
        self.bias = nn.Parameter(torch.zeros(len(self.labels)))
        nn.init.uniform_(self.weight, -(width**-0.5), width**-0.5)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode all tokens and read the class tokens."""
        classes, features, tokens = self._embed(batch)
        maps: list[Tensor] | None = [] if self.keep_attention else None
        for number, layer in enumerate(self.layers, start=1):
            classes, features = layer(classes, features, tokens, last=number == len(self.layers), maps=maps)
        classes = self.dropout(self.norm(classes)).unflatten(0, (-1, len(self.labels)))
        logits = (classes * self.weight).sum(-1) + self.bias
        attention = {f"layer {number}": value for number, value in enumerate(maps or ())}
        return Encoded(classes.mean(1), attention=attention, logits=logits)

    @torch.no_grad()
    def label_attention(self, batch: ConversationBatch, layer: int = -1) -> list[LabelAttention]:
        """What the class tokens attend to in one layer, as the mean over heads, per conversation.

        Args:
            batch: Standardised, as the recognizer passes it on.
            layer: Number of the layer; the last one by default.
        """
        was_training, kept = self.training, self.keep_attention
        self.eval().keep_attention = True
        try:
            maps = list(self(batch).attention.values())
        finally:
            self.train(was_training).keep_attention = kept
        attention = []
        parts = self._embed(batch)[2].split()
        for names, part, weights in zip(self.token_names(batch), parts, maps[layer].mean(1), strict=True):
            size, present = part.joint.total, part.joint_present
            received = weights[:size, :size][part.joint_class][:, present]
            kept_tokens = tuple(name for name, here in zip(names, present.tolist(), strict=True) if here)
            rows = received.unflatten(0, (-1, len(self.labels)))
            attention.append(LabelAttention(kept_tokens, self.labels, rows))
        return attention

    def token_names(self, batch: ConversationBatch) -> list[tuple[Token, ...]]:
        """Names of the tokens of each conversation, in the order of :attr:`Encoded.attention`.

        Those of absent modalities are included.
        """
        names: list[tuple[Token, ...]] = []
        offsets = {name: batch.sequence(name).offsets.tolist() for name in self.inputs.widths}
        first = 0
        for length in batch.packing.lengths:
            own = [Token(turn, label, -1) for turn in range(length) for label in self.labels]
            for name, bounds in offsets.items():
                for turn in range(length):
                    steps = bounds[first + turn + 1] - bounds[first + turn]
                    own += [Token(turn, name, step) for step in range(steps)]
            if len(own) == length * len(self.labels):
                own.append(Token(0, next(iter(offsets)), 0))  # see _embed
            names.append(tuple(own))
            first += length
        return names

    def _embed(self, batch: ConversationBatch) -> tuple[Tensor, Tensor, Tokens]:
        """Embedded class tokens (N C, D), feature tokens (T, D), and their places."""
        packing, device, D = batch.packing, batch.device, self.hidden_size
        place = self.time_scale[0] * sinusoids(packing.position, D, self.time_scale.dtype)
        if self.speaker is not None:
            place = place + self.speaker(batch.speaker.clamp(max=self.speaker.num_embeddings - 1))
        every = torch.arange(packing.total, device=device)
        sums, counts = place.new_zeros(packing.total, D), place.new_zeros(packing.total)
        features, owners, presents = [], [], []
        lengths = [0] * packing.size
        for number, (name, project) in enumerate(self.project.items(), start=1):
            stored = batch.sequence(name)
            size, owner, bounds = len(stored.values), every, list(packing.lengths)
            embedded = self.dropout(project(stored.values))
            if name in batch.sequences:
                owner = torch.repeat_interleave(every, stored.offsets.diff(), output_size=size)
                embedded = embedded + self.time_scale[1] * sinusoids(stored.places, D, self.time_scale.dtype)
                bounds = stored.offsets[packing.offsets].diff().tolist()
            present = batch.present[:, batch.column(name)][owner]
            if self.anchor:
                sums = sums.index_add(0, owner, torch.where(present[:, None], embedded, 0.0).to(sums.dtype))
                counts = counts.index_add(0, owner, present.to(counts.dtype))
            features.append(embedded + self.types.weight[number] + place[owner])
            owners.append(owner)
            presents.append(present)
            lengths = [total + own for total, own in zip(lengths, bounds, strict=True)]
        if bare := [number for number, length in enumerate(lengths) if not length]:
            # A packing has no empty conversation: an absent token takes the place.
            features.append(place.new_zeros(len(bare), D))
            owners.append(packing.offsets[torch.tensor(bare, device=device)])
            presents.append(torch.zeros(len(bare), dtype=torch.bool, device=device))
            lengths = [max(length, 1) for length in lengths]
        start = place + self.types.weight[0]
        if self.anchor:
            start = start + sums / counts.clamp(min=1)[:, None]
        classes = (start[:, None] + self.class_tokens).flatten(0, 1)
        owner = torch.cat(owners)
        order = torch.argsort(packing.conversation[owner], stable=True)
        tokens = Tokens(
            packing,
            batch.speaker,
            len(self.labels),
            Packing(lengths, device),
            owner[order],
            torch.cat(presents)[order],
        )
        return classes, torch.cat(features)[order], tokens


def sinusoids(position: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N) positions -> (N, width) sines and cosines of rising wavelengths (Vaswani et al., 2017, section 3.5)."""
    half = (width + 1) // 2
    rate = torch.exp(torch.arange(half, device=position.device, dtype=dtype) * (-math.log(10_000.0) / half))
    angle = position[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]
