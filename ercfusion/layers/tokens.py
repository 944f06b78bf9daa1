"""Transformer layers over tokens: several per utterance, of features and of labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing, check_rows
from ercfusion.layers.relative import RelativeBias
from ercfusion.layers.transformer import LONG
from ercfusion.ops.attention import attend

Exchange = Literal["all", "turn", "none"]
"""Which class tokens a class token attends to: all, those of its turn, or itself. Feature tokens attend to class tokens
only under ``all``."""


@dataclass(frozen=True)
class Tokens:
    """The T tokens of B conversations, packed by conversation.

    Args:
        packing: Tokens per conversation.
        turn: (T) position of the token's turn in its conversation.
        speaker: (T) number of the turn's speaker.
        label: (T) number of the label of a class token, -1 for a feature token.
        present: (T) bool, False for feature tokens of absent modalities, to which nothing attends.
    """

    packing: Packing
    turn: Tensor
    speaker: Tensor
    label: Tensor
    present: Tensor

    def of(self, conversation: int) -> Tokens:
        """The tokens of one conversation."""
        lengths = self.packing.lengths
        first = sum(lengths[:conversation])
        rows = slice(first, first + lengths[conversation])
        own = Packing([lengths[conversation]], self.packing.device)
        return Tokens(own, self.turn[rows], self.speaker[rows], self.label[rows], self.present[rows])


class TokenTransformerLayer(nn.Module):
    """A pre-norm or post-norm Transformer encoder layer over the tokens of each conversation.

    Vaswani et al., "Attention Is All You Need" (2017). A token attends to the tokens of its conversation allowed by the
    options, never to absent ones; every token attends to itself.

    Args:
        width: D; a multiple of ``heads``.
        heads: H.
        feedforward: Hidden width of the feed-forward part.
        dropout: Dropout probability on attention weights, in the feed-forward part and on both residual branches.
        norm_first: Layer normalisation before each part (pre-norm) instead of after.
        activation: ``relu`` or ``gelu``.
        exchange: See :data:`Exchange`.
        window: Largest distance in turns; -1 for any.
        causal: Never attend to later turns.
        lags: Distances in turns of a :class:`~ercfusion.layers.relative.RelativeBias`; 0 for no bias.

    Shapes:
        x (T, D), tokens -> (T, D).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.1,
        *,
        norm_first: bool = True,
        activation: str = "gelu",
        exchange: Exchange = "all",
        window: int = -1,
        causal: bool = False,
        lags: int = 0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        if activation not in ("relu", "gelu"):
            raise ValueError(f"activation must be 'relu' or 'gelu', found {activation!r}")
        self.width, self.heads = width, heads
        self.norm_first, self.exchange, self.window, self.causal = norm_first, exchange, window, causal
        self.dropout_rate = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.activation: nn.Module = nn.ReLU() if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.bias = RelativeBias(heads, lags) if lags else None
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tokens, maps: list[Tensor] | None = None) -> Tensor:
        """(T, D) -> (T, D); appends the attention map (B, H, L, L) to ``maps``, L tokens, zero in the padding."""
        check_rows(x, tokens.packing, self.width)
        if self.norm_first:
            x = x + self.dropout(self._attend(self.norm_attention(x), tokens, maps))
            return x + self.dropout(self._feed(self.norm_feedforward(x)))
        x = self.norm_attention(x + self.dropout(self._attend(x, tokens, maps)))
        return self.norm_feedforward(x + self.dropout(self._feed(x)))

    def allowed(self, tokens: Tokens, start: int = 0, stop: int | None = None) -> Tensor | None:
        """(B, stop - start, L) bool, the keys of each query; None if all are allowed. Padding is not."""
        packing = tokens.packing
        pad = packing.pad
        L = packing.longest
        rows = slice(start, stop)
        mask: Tensor | None = None

        def restrict(condition: Tensor) -> Tensor:
            return condition if mask is None else mask & condition

        if torch.compiler.is_compiling() or min(packing.lengths) < L or not bool(tokens.present.all()):
            mask = pad(tokens.present)[:, None, :].expand(-1, len(range(L)[rows]), -1)
        if self.window >= 0 or self.causal or self.exchange == "turn":
            turn = pad(tokens.turn)
            lag = turn[:, rows, None] - turn[:, None, :]
            if self.window >= 0:
                mask = restrict(lag.abs() <= self.window)
            if self.causal:
                mask = restrict(lag >= 0)
        if self.exchange != "all":
            label = pad(tokens.label, fill=-1)
            own = (label[:, rows, None] >= 0) & (lag == 0) if self.exchange == "turn" else False
            mask = restrict((label[:, None, :] < 0) | own)
        if mask is None:
            return None
        itself = torch.arange(L, device=packing.device)
        return mask | (itself[rows, None] == itself)

    def _attend(self, x: Tensor, tokens: Tokens, maps: list[Tensor] | None) -> Tensor:
        qkv = self.qkv(x)
        packing = tokens.packing
        if maps is not None:
            return self.out(self._mix(qkv, tokens, maps))
        if packing.longest < LONG or packing.size == 1 or qkv.device.type != "cpu" or torch.compiler.is_compiling():
            return self.out(self._mix(qkv, tokens))
        parts = qkv.split(list(packing.lengths))
        return self.out(torch.cat([self._mix(part, tokens.of(number)) for number, part in enumerate(parts)]))

    def _mix(self, qkv: Tensor, tokens: Tokens, maps: list[Tensor] | None = None) -> Tensor:
        """(T, 3 D) queries, keys and values -> (T, D) mixed values, by padded attention."""
        packing = tokens.packing
        heads = packing.pad(qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, L, d)
        q, k, v = heads.unbind()  # not heads[0], ...: each index would create a gradient of the size of all three

        def mask(start: int, stop: int) -> Tensor | None:
            allowed = self.allowed(tokens, start, stop)
            allowed = None if allowed is None else allowed[:, None]
            if self.bias is None:
                return allowed
            turn, speaker = packing.pad(tokens.turn), packing.pad(tokens.speaker)
            rows = slice(start, stop)
            same = speaker[:, rows, None] == speaker[:, None, :]
            bias = self.bias.pairs(turn[:, rows, None] - turn[:, None, :], same).transpose(0, 1).to(q.dtype)
            return bias if allowed is None else bias.masked_fill(~allowed, -math.inf)

        dropout = self.dropout_rate if self.training else 0.0
        if maps is None:
            mixed = attend(q, k, v, mask, dropout)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            shift = mask(0, packing.longest)
            if shift is not None:
                scores = scores.masked_fill(~shift, -math.inf) if shift.dtype == torch.bool else scores + shift
            weights = scores.softmax(-1)
            maps.append(weights * packing.mask[:, None, :, None])
            mixed = F.dropout(weights, dropout) @ v
        return packing.pack(mixed.transpose(1, 2).flatten(2))

    def _feed(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))
