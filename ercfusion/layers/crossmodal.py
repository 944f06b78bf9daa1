"""Cross-modal Transformer encoders on padded sequences (Tsai et al., 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.layers.transformer import TransformerBlock
from ercfusion.ops.attention import attend


def position_table(places: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Sines, then cosines, of a place.

    .. math:: \mathrm{angle}_i = (t + 1) \cdot 10000^{-i / (h - 1)}, \quad i = 0, \dots, h - 1, \quad h = \lfloor D / 2
        \rfloor

    As in the released code: places count from 1, the last rate is exactly 1/10000, and an odd width ends with a zero.

    Args:
        places: (...) integers t from 0.
        width: D, at least 2.
        dtype: Of the result.

    Returns:
        (..., D).
    """
    half = width // 2
    step = -math.log(10_000.0) / max(1, half - 1)
    # At lower precision neighbouring places would have one angle.
    exact = torch.promote_types(dtype, torch.float32)
    rate = torch.exp(torch.arange(half, device=places.device, dtype=exact) * step)
    angle = (places + 1).to(exact)[..., None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, width % 2)).to(dtype)


class CrossModalLayer(TransformerBlock):
    """A pre-norm Transformer layer whose keys and values come from another sequence.

    One normalisation serves queries and memory, as in the released code. The feed-forward part has ReLU. All matrices
    start with Xavier's uniform distribution, biases with zero.

    Args:
        width: D; a multiple of ``heads``.
        heads: H.
        feedforward: Hidden width of the feed-forward part.
        attention_dropout: Dropout probability on attention weights.
        relu_dropout: Dropout probability inside the feed-forward part.
        residual_dropout: Dropout probability on both residual branches.

    Shapes:
        x (G, Lq, D), memory (G, Lk, D) -> (G, Lq, D).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        *,
        attention_dropout: float = 0.0,
        relu_dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ) -> None:
        super().__init__(width, heads, feedforward, relu_dropout, norm_first=True, activation="relu", lags=0)
        self.dropout_rate = attention_dropout
        self.residual_dropout = nn.Dropout(residual_dropout)
        for part in (self.out, self.up, self.down):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, memory: Tensor | None, sight: Sight, maps: list[Tensor] | None = None) -> Tensor:
        """Attend and feed forward.

        Args:
            x: (G, Lq, D) queries.
            memory: (G, Lk, D), not normalised; None for ``x``.
            sight: Which memory each query attends to.
            maps: The attention map (G, H, Lq, Lk) is appended; zero for queries without memory.

        Returns:
            (G, Lq, D).
        """
        D, read = self.width, self.norm_attention(x)
        if memory is None:
            q, k, v = self.qkv(read).chunk(3, -1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(read, weight[:D], bias[:D])
            k, v = F.linear(self.norm_attention(memory), weight[D:], bias[D:]).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout_rate if self.training else 0.0
        if maps is None:
            mixed = attend(q, k, v, sight.rows, dropout)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            allowed = sight.rows(0, x.shape[1])
            if allowed is not None:
                scores = scores.masked_fill(~allowed, -math.inf)
            weights = scores.softmax(-1)
            maps.append(sight.keep(weights))
            mixed = F.dropout(weights, dropout) @ v
        x = x + self.residual_dropout(sight.keep(self.out(mixed.transpose(1, 2).flatten(2))))
        return x + self.residual_dropout(self._feed(self.norm_feedforward(x)))


class Sight:
    """Which places of a memory each query attends to, for :class:`CrossModalLayer`.

    Args:
        shape: G, Lq and Lk.
        memory_mask: (G, Lk) bool, True at elements, False in the padding; None for all.
        causal: Query i attends to the places j <= i + ``ahead`` only.
        ahead: (G) integers; None for 0.
        device: Of the masks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        memory_mask: Tensor | None,
        *,
        causal: bool = False,
        ahead: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.shape, self.memory_mask, self.causal, self.device = shape, memory_mask, causal, device
        self.ahead = torch.zeros(1, dtype=torch.long, device=device) if ahead is None else ahead
        allowed = self._allowed(0, shape[1])
        self.reached = None if allowed is None else allowed.any(-1, keepdim=True)
        """(G or 1, Lq or 1, 1) bool, True for queries with memory; None if all do."""

    def _allowed(self, start: int, stop: int) -> Tensor | None:
        """(G or 1, stop - start or 1, Lk) bool; None if everything is allowed."""
        allowed = None if self.memory_mask is None else self.memory_mask[:, None]
        if self.causal:
            query = torch.arange(start, stop, device=self.device)[:, None]
            key = torch.arange(self.shape[2], device=self.device)
            past = key <= query + self.ahead[:, None, None]
            allowed = past if allowed is None else allowed & past
        return allowed

    def rows(self, start: int, stop: int) -> Tensor | None:
        """Mask of the queries ``start`` to ``stop`` for :func:`~ercfusion.ops.attention.attend`.

        No softmax is empty: queries without memory attend to everything, and :meth:`keep` removes their result.
        """
        allowed = self._allowed(start, stop)
        if allowed is None or self.reached is None:
            return None
        reached = self.reached[:, start:stop] if self.reached.shape[1] > 1 else self.reached
        return (allowed | ~reached)[:, None]

    def keep(self, values: Tensor) -> Tensor:
        """(G, Lq, D) or (G, H, Lq, D) values, zero for queries without memory."""
        if self.reached is None:
            return values
        return torch.where(self.reached if values.ndim == 3 else self.reached[:, None], values, 0.0)


class CrossModalEncoder(nn.Module):
    r"""Cross-modal Transformer of MulT: a sequence is enriched by another, or by itself.

    Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences" (ACL 2019), section 3.2: with
    Z the query and M the memory, both scaled by :math:`\sqrt{D}` with positions added,

    .. math::
        \hat Z^l &= Z^{l-1} + \mathrm{MHA}(\mathrm{LN}(Z^{l-1}), \mathrm{LN}(M), \mathrm{LN}(M)) \\
        Z^l &= \hat Z^l + W_2 \mathrm{ReLU}(W_1 \mathrm{LN}(\hat Z^l))

    and a final normalisation. Every layer reads the same low-level M. The released code finds padding by a zero in the
    first channel; here masks do, and the content of padding never reaches a result.

    Args:
        width: D; a multiple of ``heads``.
        layers: Number of layers.
        heads: H.
        feedforward: Hidden width of the feed-forward parts; 0 for 4 D, as published.
        attention_dropout: Dropout probability on attention weights.
        relu_dropout: Dropout probability inside the feed-forward parts.
        residual_dropout: Dropout probability on residual branches.
        embedding_dropout: Dropout probability on both embedded sequences.
        causal: Query i attends to the places j <= i + ``ahead`` of the memory only.

    Shapes:
        query (G, Lq, D), memory (G, Lk, D) -> (G, Lq, D).
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        feedforward: int = 0,
        attention_dropout: float = 0.0,
        relu_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.causal = width, causal
        self.layers = nn.ModuleList(
            CrossModalLayer(
                width,
                heads,
                feedforward or 4 * width,
                attention_dropout=attention_dropout,
                relu_dropout=relu_dropout,
                residual_dropout=residual_dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(embedding_dropout)

    def forward(
        self,
        query: Tensor,
        memory: Tensor | None = None,
        query_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        *,
        query_places: Tensor | None = None,
        memory_places: Tensor | None = None,
        ahead: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Encode the query.

        Queries without any memory skip the attention; only the feed-forward parts change them.

        Args:
            query: (G, Lq, D).
            memory: (G, Lk, D), Lk at least 1; None for the query itself.
            query_mask: (G, Lq) bool, True at elements; None for all. The rest of the result is zero.
            memory_mask: (G, Lk) bool; None for all. Without a memory, the query's mask applies.
            query_places: (G, Lq) integers, the place of each element for the positions; None for 0, 1, ...
            memory_places: (G, Lk), the same for the memory.
            ahead: (G) integers; see ``causal``. None for 0. The released code has the difference of the lengths.
            maps: The attention map (G, H, Lq, Lk) of each layer is appended.

        Returns:
            (G, Lq, D).

        Raises:
            ValueError: incompatible shapes, or a mask or places of a memory without the memory.
        """
        self._check(query, memory, query_mask, memory_mask)
        x = self._embed(query, query_mask, query_places)
        source = None if memory is None else self._embed(memory, memory_mask, memory_places)
        sight = Sight(
            (len(query), query.shape[1], (query if memory is None else memory).shape[1]),
            query_mask if memory is None else memory_mask,
            causal=self.causal,
            ahead=ahead,
            device=query.device,
        )
        for layer in self.layers:
            x = layer(x, source, sight, maps)
        return _there(self.norm(x), query_mask)

    def _embed(self, x: Tensor, mask: Tensor | None, places: Tensor | None) -> Tensor:
        """Scaled values with positions; zero values in the padding, whatever is stored there."""
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)
        position = position_table(places, self.width, x.dtype)
        embedded: Tensor = self.dropout(math.sqrt(self.width) * _there(x, mask) + position)
        return embedded

    def _check(
        self, query: Tensor, memory: Tensor | None, query_mask: Tensor | None, memory_mask: Tensor | None
    ) -> None:
        if memory is None and memory_mask is not None:
            raise ValueError("memory_mask needs a memory. Give query_mask for the encoder of a single sequence.")
        if torch.compiler.is_compiling():
            return
        for name, value, mask in (("query", query, query_mask), ("memory", memory, memory_mask)):
            if value is None:
                continue
            if value.ndim != 3 or value.shape[2] != self.width or len(value) != len(query) or not value.shape[1]:
                raise ValueError(
                    f"{name} must be padded sequences ({len(query)}, L, {self.width}) with L at least 1; found "
                    f"{tuple(value.shape)}."
                )
            if mask is not None and (mask.shape != value.shape[:2] or mask.dtype != torch.bool):
                raise ValueError(
                    f"{name}_mask must be {tuple(value.shape[:2])} booleans; found {tuple(mask.shape)} of {mask.dtype}."
                )


def _there(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else torch.where(mask[..., None], values, 0.0)
