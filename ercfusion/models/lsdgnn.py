"""LSDGNN: a short and a long DAG-ERC with an exchange."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers.dag import DagStack
from ercfusion.models.base import Architecture, BatchLoss, Capabilities, Encoded
from ercfusion.models.dagerc import UtteranceInput, readout
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone, Window
from ercfusion.ops.dag_reference import DagAttention

FLOOR = 0.1
"""Added to the distance of the stacks: bounds ``difference`` by 1 / FLOOR per layer."""


class BiaffineExchange(nn.Module):
    r"""Two sequences of vectors attend to each other within their conversation.

    .. math:: S' = \mathrm{softmax}(S W_1 K^\top) K, \quad K' = \mathrm{softmax}(K W_2 S^\top) S

    Args:
        width: D.
        causal: Attend only to utterances up to the own one.
        scale: Divide the scores by the square root of D.

    Shapes:
        short, long (N, ..., D), packing of the N utterances -> the same two shapes.
    """

    def __init__(self, width: int, *, causal: bool = False, scale: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.scale = 1 / math.sqrt(width) if scale else 1.0
        self.short_long = nn.Parameter(torch.empty(width, width))
        self.long_short = nn.Parameter(torch.empty(width, width))
        nn.init.xavier_uniform_(self.short_long, math.sqrt(2))
        nn.init.xavier_uniform_(self.long_short, math.sqrt(2))

    def forward(self, short: Tensor, long: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """The vectors S' and K'."""
        # (B, ..., T, D), T the longest conversation
        padded = [packing.pad(value).movedim(1, -2) for value in (short, long)]
        mask = packing.mask[:, None].expand(-1, packing.longest, -1)
        if self.causal:
            mask = mask.tril()
        mask = mask.view(packing.size, *[1] * (short.ndim - 2), *mask.shape[1:])

        def attend(query: Tensor, weight: Tensor, keys: Tensor) -> Tensor:
            score = (query @ weight @ keys.mT * self.scale).masked_fill(~mask, -math.inf)
            return packing.pack((score.softmax(-1) @ keys).movedim(-2, 1))

        return attend(padded[0], self.short_long, padded[1]), attend(padded[1], self.long_short, padded[0])


def difference(short: Tensor, long: Tensor, packing: Packing | None = None) -> Tensor:
    """Inverse distance of two stacks, summed over the layers: small if they differ.

    Distances of unit vectors are averaged over the utterances, independently of padding and conversations. A layer with
    distance d contributes 1 / (d + 0.1): at most 10, with a gradient.

    Args:
        short, long: (N, L, D).
        packing: Unused.

    Returns:
        Scalar, at least in single precision.
    """
    dtype = torch.promote_types(short.dtype, torch.float32)
    unit = [F.normalize(value.to(dtype), dim=-1, eps=1e-6) for value in (short, long)]
    distance = ((unit[0] - unit[1]).square().sum(-1) + 1e-12).sqrt().mean(0)  # (L)
    return (1 / (distance + FLOOR)).sum()


def difference_released(short: Tensor, long: Tensor, packing: Packing) -> Tensor:
    """Released regulariser: inverse distance of padded conversations, centred over the batch.

    It depends on batch and padding (zeros here). For one conversation, centred to nothing, it is 0; in the released
    code infinite.

    Args:
        short, long: (N, L, D).
        packing: Packing of the N utterances.

    Returns:
        Scalar, at least in single precision.
    """
    dtype = torch.promote_types(short.dtype, torch.float32)
    if packing.size == 1:
        return short.to(dtype).sum() * 0.0
    unit = []
    for value in (short, long):
        rows = packing.pad(value.to(dtype)).transpose(1, 2).flatten(2)  # (B, L, T * D)
        rows = rows - rows.mean(0)
        unit.append(rows / (rows.norm(dim=2, keepdim=True) + 1e-6))
    distance = ((unit[0] - unit[1]).square().sum(2) + 1e-12).sqrt().mean(0)  # (L)
    return (1 / distance).sum()


class Lsdgnn(Architecture):
    """LSDGNN: Li, Xu and Qiao, "Long-Short Distance Graph Neural Networks" (ECAI 2025, arXiv 2507.15205).

    - *Paper*: two DAG-ERC stacks (:class:`~ercfusion.models.dagerc.DagErc`), reaching back to the speaker's last and
      fifth last utterance. In each layer they exchange vectors by biaffine attention; a regulariser drives them apart.
    - *Released code*: the exchange includes padding (scores depend on the batch) and later utterances (not causal), and
      replaces the stacks' own vectors. The regulariser includes padding and is infinite for one conversation.
    - *Here*: the exchange stays within a conversation; with ``causal=true``, within its past. The regulariser is the
      loss ``difference``, bounded and averaged over utterances, with the weight ``objective.weights.difference``.

    The preset ``model=lsdgnn_released`` is the released form with a masked exchange.

    Args:
        inputs: Modalities and widths.
        projection: Width of the summed modality projections; 0 concatenates the features.
        hidden: Width of the stacks and of the output.
        layers: Layers of each stack.
        short: Window of the short stack: earlier utterances of its own speaker within reach.
        long: Window of the long stack.
        attention: ``dagerc`` as published; ``gat`` with weights depending on the receiver.
        causal: No later utterances in the exchange.
        residual: Add the stacks' own vectors to the exchanged ones.
        scale: Divide the exchange's scores by the square root of ``hidden``.
        difference: Form of the regulariser; ``utterance`` averages over utterances.
        mlp_layers: Linear layers before the head.
        dropout: Dropout probability on exchanged vectors except the last layer's, and before the head.
        input_dropout: Dropout probability on the encoded input.

    Shapes:
        batch -> hidden (N, hidden); the loss ``difference``.
    """

    capabilities = Capabilities(speakers="same_other", skips=True)

    # Not searched: causal (different information), the windows (they define the stacks), the released forms.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.hidden": {"choices": [64, 128, 256]},
        "model.layers": {"low": 1, "high": 4},
        "model.attention": {"choices": ["dagerc", "gat"]},
        "model.residual": {"choices": [False, True]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "model.input_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "objective.weights.difference": {"low": 0.0, "high": 0.3, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        projection: WidthOrNone = 128,
        hidden: Width = 128,
        layers: Count = 2,
        short: Window = 1,
        long: Window = 5,
        attention: DagAttention = "dagerc",
        causal: bool = False,
        residual: bool = True,
        scale: bool = True,
        difference: Literal["utterance", "released"] = "utterance",
        mlp_layers: Count = 2,
        dropout: Share = 0.4,
        input_dropout: Share = 0.1,
    ) -> None:
        super().__init__(inputs)
        self.capabilities = replace(self.capabilities, causal=causal, absent="vector" if projection else "mean")
        self.hidden_size = hidden
        self.residual = residual
        self.difference = difference
        self.encode = UtteranceInput(inputs, projection, hidden, input_dropout)
        self.recur = DagStack(hidden, layers, (short, long), attention)
        self.exchange = BiaffineExchange(hidden, causal=causal, scale=scale)
        self.dropout = nn.Dropout(dropout)
        self.readout = readout(2 * (layers + 1) * hidden + self.encode.out_features, hidden, mlp_layers, dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the conversations."""
        x, h = self.encode(batch)
        short, long = self.recur(h, batch.speaker, batch.packing).transpose(1, 2)  # (N, L, hidden) each
        regulariser = BatchLoss(difference_released if self.difference == "released" else difference, (short, long))
        exchanged = torch.stack(self.exchange(short, long, batch.packing), dim=2)  # (N, L, 2, hidden)
        exchanged = torch.cat([self.dropout(exchanged[:, :-1]), exchanged[:, -1:]], dim=1)
        if self.residual:
            exchanged = exchanged + torch.stack([short, long], dim=2)
        features = torch.cat([h, h, exchanged.to(h.dtype).flatten(1), x], dim=1)
        return Encoded(self.readout(features), losses={"difference": regulariser})
