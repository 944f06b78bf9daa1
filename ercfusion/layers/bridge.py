"""A few learned tokens that read every modality of an utterance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.ops.attention import check_heads


class TokenAttention(nn.Module):
    r"""Multi-head attention of K tokens to the T steps of a sequence, and to a learned null step.

    .. math:: y_k = W_o \, \mathrm{concat}_h \sum_{t=0}^{T} \mathrm{softmax}_t(q_{kh}^\top k_{th} / \sqrt{d})\, v_{th}

    Step 0 is the null step: a token reads less of the sequence by attending to it. Without it, one step would get all
    of the attention. Keys have no bias because softmax cancels it.

    Args:
        width: D; a multiple of ``heads``.
        heads: H.
        dropout: Dropout probability on attention weights.

    Shapes:
        tokens (N, K, D), steps (N, T, D), there (N, T) bool or None for all -> (N, K, D). Steps not ``there`` must be
        finite.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.dropout_rate = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.null = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, tokens: Tensor, steps: Tensor, there: Tensor | None = None) -> Tensor:
        """What the tokens read, (N, K, D)."""
        steps = torch.cat([self.null.to(steps.dtype).expand(len(steps), 1, -1), steps], dim=1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(tokens), self.key(steps), self.value(steps))
        )
        mask = None if there is None else F.pad(there, (1, 0), value=True)[:, None, None, :]
        dropout = self.dropout_rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class BridgeLayer(nn.Module):
    """One layer of :class:`BridgeTokenFusion`."""

    def __init__(
        self, width: int, modalities: int, heads: int, feedforward: int, dropout: float, *, token_attention: bool
    ) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width) if token_attention else None
        self.among_tokens = TokenAttention(width, heads, dropout) if token_attention else None
        self.norm_read = nn.LayerNorm(width)
        self.read = nn.ModuleList(TokenAttention(width, heads, dropout) for _ in range(modalities))
        self.norm_feedforward = nn.LayerNorm(width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, streams: Sequence[Tensor], there: Sequence[Tensor | None], present: Tensor | None = None
    ) -> Tensor:
        """(N, K, D) -> (N, K, D)."""
        if self.among_tokens is not None and self.norm_tokens is not None:
            asking = self.norm_tokens(tokens)
            tokens = tokens + self.dropout(self.among_tokens(asking, asking))
        asking = self.norm_read(tokens)
        parts = [read(asking, steps, mask) for read, steps, mask in zip(self.read, streams, there, strict=True)]
        if present is None:
            mixed = torch.stack(parts).mean(0)
        else:
            shares = present.to(tokens) / present.sum(1, keepdim=True).clamp(min=1)
            mixed = (torch.stack(parts, dim=1) * shares[:, :, None, None]).sum(1)
        tokens = tokens + self.dropout(mixed)
        return tokens + self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm_feedforward(tokens))))))


class BridgeTokenFusion(nn.Module):
    r"""K learned tokens query every modality through cross-attention layers of their own.

    .. math::
        B \leftarrow B + \frac{1}{M} \sum_m \mathrm{Att}_m(\mathrm{norm}(B), X_m), \qquad
        B \leftarrow B + \mathrm{FFN}(\mathrm{norm}(B))

    X_m are the steps of modality m of the utterance, :math:`\mathrm{Att}_m` is :class:`TokenAttention`. With
    ``token_attention``, the tokens attend to each other before, as the queries of a Q-Former do. After Ispas et al., "A
    Multi-Task, Multi-Modal Approach for Predicting Categorical and Dimensional Emotions" (arXiv 2401.00536), whose
    equations were not available: this is our reading.

    Args:
        width: D; a multiple of ``heads``.
        modalities: M.
        tokens: K.
        layers: Number of layers, at least 1.
        heads: Heads of each attention.
        feedforward: Hidden width of the feed-forward part.
        dropout: Dropout probability on attention weights, in the feed-forward part and on the residual branches.
        token_attention: Self-attention among the tokens in every layer.

    Shapes:
        streams M of (N, T_m, D), there M of (N, T_m) bool or None for all -> (N, K, D), normalised. With present (N, M)
        bool, the mean is over the present modalities; it is zero without any.
    """

    def __init__(
        self,
        width: int,
        modalities: int,
        *,
        tokens: int = 4,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 256,
        dropout: float = 0.1,
        token_attention: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("modalities", modalities), ("tokens", tokens), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        self.width = width
        self.tokens = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.ModuleList(
            BridgeLayer(width, modalities, heads, feedforward, dropout, token_attention=token_attention)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        streams: Sequence[Tensor],
        there: Sequence[Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """The tokens after all layers, (N, K, D)."""
        for m, steps in enumerate(streams):
            if steps.ndim != 3 or steps.shape[2] != self.width or len(steps) != len(streams[0]):
                raise ValueError(
                    f"streams[{m}] must be ({len(streams[0])}, T, {self.width}); found {tuple(steps.shape)}. "
                    "Give one row per utterance and one entry per step."
                )
        masks = [None] * len(streams) if there is None else list(there)
        tokens = self.tokens.expand(len(streams[0]), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, streams, masks, present)
        return self.norm(tokens)
