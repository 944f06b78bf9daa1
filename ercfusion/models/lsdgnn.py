"""LSDGNN: a short-distance and a long-distance DAG-ERC that exchange what they found."""

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
"""Added to the distance of the two stacks, so that the term ``difference`` is at most 1 / FLOOR a layer."""


class BiaffineExchange(nn.Module):
    r"""Each of two sequences of vectors looks up, at every utterance, what the other has for the conversation.

    .. math:: S' = \mathrm{softmax}(S W_1 K^\top) K, \quad K' = \mathrm{softmax}(K W_2 S^\top) S

    The softmax runs over the utterances of the same conversation only, and with ``causal`` over those up to oneself.

    Args:
        width: D.
        causal: See above.
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
        """See the class."""
        # (B, ..., T, D), T the longest conversation
        padded = [packing.pad(value).movedim(1, -2) for value in (short, long)]
        mask = packing.mask[:, None].expand(-1, packing.longest, -1)
        if self.causal:
            mask = mask.tril()
        mask = mask.view(packing.size, *[1] * (short.ndim - 2), *mask.shape[1:])

        def look(asking: Tensor, weight: Tensor, other: Tensor) -> Tensor:
            score = (asking @ weight @ other.mT * self.scale).masked_fill(~mask, -math.inf)
            return packing.pack((score.softmax(-1) @ other).movedim(-2, 1))

        return look(padded[0], self.short_long, padded[1]), look(padded[1], self.long_short, padded[0])


def difference(short: Tensor, long: Tensor, packing: Packing | None = None) -> Tensor:
    """One over the distance of two stacks, summed over the layers: small where they find different things.

    Vectors are brought to length 1 and their distances averaged over the utterances, so the value depends neither on
    padding nor on how utterances are spread over conversations. The distance d of a layer enters as 1 / (d + 0.1):
    the term stays below 10 a layer, and keeps a gradient, where the stacks agree.

    Args:
        short, long: (N, L, D).
        packing: Of the N utterances; makes no difference here.

    Returns:
        A scalar, at least in single precision.
    """
    wide = torch.promote_types(short.dtype, torch.float32)
    unit = [F.normalize(value.to(wide), dim=-1, eps=1e-6) for value in (short, long)]
    distance = ((unit[0] - unit[1]).square().sum(-1) + 1e-12).sqrt().mean(0)  # (L)
    return (1 / (distance + FLOOR)).sum()


def difference_released(short: Tensor, long: Tensor, packing: Packing) -> Tensor:
    """The regulariser of the released code: whole padded conversations, centred over the batch, one over the distance.

    It depends on the batch and on padding (here zeros; in the released code whatever it computes there). For a
    batch of one conversation, where centring leaves nothing, the released code gives infinity without a gradient; here
    it is 0.

    Args:
        short, long: (N, L, D).
        packing: Of the N utterances.

    Returns:
        A scalar, at least in single precision.
    """
    wide = torch.promote_types(short.dtype, torch.float32)
    if packing.size == 1:
        return short.to(wide).sum() * 0.0
    unit = []
    for value in (short, long):
        rows = packing.pad(value.to(wide)).transpose(1, 2).flatten(2)  # (B, L, T * D)
        rows = rows - rows.mean(0)
        unit.append(rows / (rows.norm(dim=2, keepdim=True) + 1e-6))
    distance = ((unit[0] - unit[1]).square().sum(2) + 1e-12).sqrt().mean(0)  # (L)
    return (1 / distance).sum()


class Lsdgnn(Architecture):
    """LSDGNN: Li, Xu and Qiao, "Long-Short Distance Graph Neural Networks" (ECAI 2025, arXiv 2507.15205).

    Two DAG-ERC stacks (:class:`~ercfusion.models.dagerc.DagErc`) on the same input: the short one hears back to its
    speaker's last utterance, the long one to the speaker's fifth last. Layer by layer each then looks up the other's
    vectors by biaffine attention, and a regulariser pulls the two apart. All modalities are used. The paper's
    curriculum is a matter of training, not of this network.

    *The released code* lets the biaffine attention see padding, so the output depends on the other conversations of a
    batch. It also sees later utterances: the network is not causal as DAG-ERC is. The looked-up vectors replace the
    stacks' own, which are lost. The regulariser includes padding, depends on the batch, and is infinite for
    a batch of one conversation. The attention inside the stacks is that of DAG-ERC, whose query cancels.

    *Here* the exchange stays within a conversation, and with ``causal=True`` before it; the stacks' own vectors are
    kept beside what they looked up (``residual``, a sum); scores are scaled; the regulariser is the auxiliary loss
    ``difference`` on the stacks' own vectors, an average over real utterances and bounded. Weigh it by
    ``objective.weights.difference`` (0 switches it off). The preset ``model=lsdgnn_released`` sets ``residual=false
    scale=false difference=released``; the exchange is masked there, too.

    Args:
        inputs: Modalities and widths.
        projection: Width to which the modalities are projected and summed; 0 concatenates the features as they are.
        hidden: Width of the stacks and of the output.
        layers: Layers of each stack.
        short: Window of the short stack: number of earlier utterances of its own speaker to which an utterance reaches
            back.
        long: Window of the long stack.
        attention: Attention inside the stacks: ``dagerc`` as published; ``gat`` has weights that depend on the
            receiver.
        causal: The exchange reads no later utterance, which makes the model causal.
        residual: Add the stacks' own vectors to the vectors that they looked up.
        scale: Divide the scores of the exchange by the square root of ``hidden``.
        difference: The regulariser; ``utterance`` is an average over utterances.
        mlp_layers: Linear layers between the concatenation and the head.
        dropout: Dropout probability on what is exchanged in all layers but the last, and before the head.
        input_dropout: Dropout probability on the encoded input.

    Shapes:
        batch -> hidden (N, hidden); the loss ``difference``.
    """

    capabilities = Capabilities(speakers="same_other")

    # Not searched: causal, which changes what the model may know; the windows, which define the two stacks; the forms
    # of the released code.
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
        self.capabilities = replace(self.capabilities, causal=causal, missing_aware=projection > 0)
        self.hidden_size = hidden
        self.residual = residual
        self.difference = difference
        self.encode = UtteranceInput(inputs, projection, hidden, input_dropout)
        self.recur = DagStack(hidden, layers, (short, long), attention)
        self.exchange = BiaffineExchange(hidden, causal=causal, scale=scale)
        self.dropout = nn.Dropout(dropout)
        self.readout = readout(2 * (layers + 1) * hidden + self.encode.out_features, hidden, mlp_layers, dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        x, h = self.encode(batch)
        short, long = self.recur(h, batch.speaker, batch.packing).transpose(1, 2)  # (N, L, hidden) each
        apart = BatchLoss(difference_released if self.difference == "released" else difference, (short, long))
        found = torch.stack(self.exchange(short, long, batch.packing), dim=2)  # (N, L, 2, hidden)
        found = torch.cat([self.dropout(found[:, :-1]), found[:, -1:]], dim=1)
        if self.residual:
            found = found + torch.stack([short, long], dim=2)
        features = torch.cat([h, h, found.to(h.dtype).flatten(1), x], dim=1)
        return Encoded(self.readout(features), losses={"difference": apart})
