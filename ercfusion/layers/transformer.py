"""Transformer encoder on packed conversations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ercfusion.batch.packing import Packing, check_rows, check_speakers
from ercfusion.layers.relative import RelativeBias
from ercfusion.ops.attention import attend, check_heads

LONG = 48
"""From this length on, on a CPU, each conversation is attended to separately, which avoids padding and masks. Shorter
ones are faster together (``benchmarks/``).
"""


class TransformerBlock(nn.Module):
    """Parameters and feed-forward part of a Transformer encoder layer; a subclass attends.

    Args:
        width, heads, feedforward, dropout, norm_first, activation, lags: See :class:`PackedTransformerLayer`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        norm_first: bool,
        activation: str,
        lags: int,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        if activation not in ("relu", "gelu"):
            raise ValueError(f"activation must be 'relu' or 'gelu', found {activation!r}")
        self.width, self.heads, self.norm_first, self.dropout_rate = width, heads, norm_first, dropout
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

    def _feed(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))


class PackedTransformerLayer(TransformerBlock):
    """A Transformer encoder layer in which every utterance attends to its own conversation.

    Vaswani et al., "Attention Is All You Need" (2017). The dense products run on the N packed utterances; only the
    attention is padded, with padding masked. With ``norm_first=False`` it equals ``torch.nn.TransformerEncoderLayer``
    under a key-padding mask.

    Args:
        width: D; a multiple of ``heads``.
        heads: H.
        feedforward: Hidden width of the feed-forward part.
        dropout: Dropout probability on attention weights, in the feed-forward part and on both residual branches.
        norm_first: Layer normalisation before each part (pre-norm) instead of after.
        activation: ``relu`` or ``gelu``.
        causal: Attend to the past and the utterance itself only.
        lags: Distances of a :class:`~ercfusion.layers.relative.RelativeBias`; 0 for no bias.

    Shapes:
        x (N, D), and with ``lags`` speaker (N) -> (N, D). With present (N) bool, an utterance attends to itself and to
        the present ones.
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
        causal: bool = False,
        lags: int = 0,
    ) -> None:
        super().__init__(width, heads, feedforward, dropout, norm_first=norm_first, activation=activation, lags=lags)
        self.causal = causal

    def forward(
        self, x: Tensor, packing: Packing, speaker: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """(N, D) -> (N, D)."""
        check_rows(x, packing, self.width)
        if self.norm_first:
            x = x + self.dropout(self._attend(self.norm_attention(x), packing, speaker, present))
            return x + self.dropout(self._feed(self.norm_feedforward(x)))
        x = self.norm_attention(x + self.dropout(self._attend(x, packing, speaker, present)))
        return self.norm_feedforward(x + self.dropout(self._feed(x)))

    def _attend(self, x: Tensor, packing: Packing, speaker: Tensor | None, present: Tensor | None) -> Tensor:
        if self.bias is not None and speaker is None:
            raise ValueError("a layer with lags needs the speakers; give speaker (N)")
        if speaker is not None:
            check_speakers(speaker, packing)
        qkv = self.qkv(x)
        if packing.longest < LONG or packing.size == 1 or qkv.device.type != "cpu" or torch.compiler.is_compiling():
            return self.out(self._mix(qkv, packing, speaker, present))
        parts = []
        for number, rows in enumerate(qkv.split(list(packing.lengths))):
            own = Packing([len(rows)], packing.device)
            first = sum(packing.lengths[:number])
            places = slice(first, first + len(rows))
            parts.append(self._mix(rows, own, *(None if each is None else each[places] for each in (speaker, present))))
        return self.out(torch.cat(parts))

    def _mix(self, qkv: Tensor, packing: Packing, speaker: Tensor | None, present: Tensor | None) -> Tensor:
        """(N, 3 D) queries, keys and values -> (N, D) mixed values, by padded attention."""
        heads = packing.pad(qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, L, d)
        q, k, v = heads.unbind()  # not heads[0], ...: each index would create a gradient of the size of all three

        def mask(start: int, stop: int) -> Tensor | None:
            allowed = self._mask(packing, present, start, stop)
            if self.bias is None or speaker is None:
                return allowed
            bias = self.bias(packing, speaker, start, stop).to(q.dtype)
            return bias if allowed is None else bias.masked_fill(~allowed, -math.inf)

        mixed = attend(q, k, v, mask, self.dropout_rate if self.training else 0.0)
        return packing.pack(mixed.transpose(1, 2).flatten(2))

    def _mask(self, packing: Packing, present: Tensor | None, start: int, stop: int) -> Tensor | None:
        """Allowed keys of each query, broadcastable to (B, H, stop - start, L); None if all are allowed."""
        L = packing.longest
        if not self.causal and present is None and min(packing.lengths) == L:
            return None
        query = torch.arange(start, stop, device=packing.device)[:, None]
        key = torch.arange(L, device=packing.device)
        # A padded row attends to itself, so no softmax is empty.
        keys = packing.mask if present is None else packing.pad(present)
        mask = keys[:, None, None, :] | (query == key)
        return mask & (key <= query) if self.causal else mask


class PackedTransformer(nn.Module):
    """A stack of :class:`PackedTransformerLayer`, with a final normalisation if the layers are pre-norm.

    Args:
        layers: Number of layers; 0 is the identity.
        width, heads, feedforward, dropout, norm_first, activation, causal, lags: See :class:`PackedTransformerLayer`.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.1,
        *,
        norm_first: bool = True,
        activation: str = "gelu",
        causal: bool = False,
        lags: int = 0,
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(
            PackedTransformerLayer(
                width,
                heads,
                feedforward,
                dropout,
                norm_first=norm_first,
                activation=activation,
                causal=causal,
                lags=lags,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if norm_first and layers else nn.Identity()

    def forward(
        self, x: Tensor, packing: Packing, speaker: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """(N, D) -> (N, D)."""
        check_rows(x, packing, self.width)
        for layer in self.layers:
            x = layer(x, packing, speaker, present)
        return self.norm(x)
