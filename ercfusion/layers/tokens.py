"""Transformer layers over tokens: of features, and of labels (class tokens)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.packing import Packing, check_rows
from ercfusion.layers.transformer import LONG, TransformerBlock
from ercfusion.ops.attention import attend

Exchange = Literal["all", "turn", "none"]
"""Class tokens to which a class token attends: all, those of its turn, or itself. Feature tokens attend to class tokens
only under ``all``."""


@dataclass(frozen=True)
class Tokens:
    """Places of the tokens of B conversations with N turns: C class tokens per turn, and T feature tokens in all.

    Args:
        turns: Packing of the N turns.
        speaker: (N) number of each turn's speaker.
        labels: C.
        features: Packing of the T feature tokens by conversation.
        owner: (T) turn of each feature token, from 0 to N - 1; the conversations are in order.
        present: (T) bool, False for tokens of absent modalities, to which no other token attends.
    """

    turns: Packing
    speaker: Tensor
    labels: int
    features: Packing
    owner: Tensor
    present: Tensor

    def split(self) -> Iterator[Tokens]:
        """The tokens of each conversation."""
        device, row, first = self.turns.device, 0, 0
        for turns, features in zip(self.turns.lengths, self.features.lengths, strict=True):
            part = slice(first, first + features)
            yield Tokens(
                Packing([turns], device),
                self.speaker[row : row + turns],
                self.labels,
                Packing([features], device),
                self.owner[part] - row,
                self.present[part],
            )
            row, first = row + turns, first + features

    # The joint sequence of a conversation: class tokens by turn, then feature tokens.

    @cached_property
    def joint(self) -> Packing:
        """Packing of all N C + T tokens by conversation."""
        both = zip(self.turns.lengths, self.features.lengths, strict=True)
        return Packing([turns * self.labels + features for turns, features in both], self.turns.device)

    @cached_property
    def order(self) -> Tensor:
        """(N C + T) rows of all class tokens followed by all feature tokens, in the joint order."""
        classes = self.turns.conversation.repeat_interleave(self.labels)
        return torch.argsort(torch.cat([classes, self.features.conversation]), stable=True)

    @cached_property
    def joint_owner(self) -> Tensor:
        """(N C + T) turn of each token in the joint order."""
        turns = torch.arange(self.turns.total, device=self.turns.device)
        return torch.cat([turns.repeat_interleave(self.labels), self.owner])[self.order]

    @cached_property
    def joint_class(self) -> Tensor:
        """(N C + T) bool in the joint order, True for class tokens."""
        return self.order < self.turns.total * self.labels

    @cached_property
    def joint_present(self) -> Tensor:
        """(N C + T) bool in the joint order."""
        return torch.cat([self.present.new_ones(self.turns.total * self.labels), self.present])[self.order]


class TokenTransformerLayer(TransformerBlock):
    r"""A Transformer encoder layer over the tokens of each conversation.

    Vaswani et al., "Attention Is All You Need" (2017). A token attends to itself and to the present tokens of its
    conversation that ``exchange``, ``window`` and ``causal`` allow. In a conversation with n turns and t feature tokens
    there are (n C + t)^2 scores with ``exchange=all``; otherwise t^2 of the feature tokens and n C (t + C) of the class
    tokens.

    Args:
        width: D; a multiple of ``heads``.
        heads: H.
        feedforward: Hidden width of the feed-forward part.
        dropout: Dropout probability on attention weights, in the feed-forward part and on both residual branches.
        norm_first: Layer normalisation before each part (pre-norm) instead of after.
        activation: ``relu`` or ``gelu``.
        exchange: See :data:`Exchange`.
        window: Largest distance in turns; 0 for any.
        causal: Never attend to later turns.
        lags: Distances in turns of a :class:`~ercfusion.layers.relative.RelativeBias`; 0 for no bias.

    Shapes:
        classes (N C, D), features (T, D), tokens -> (N C, D), (T, D).
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
        window: int = 0,
        causal: bool = False,
        lags: int = 0,
    ) -> None:
        super().__init__(width, heads, feedforward, dropout, norm_first=norm_first, activation=activation, lags=lags)
        self.exchange, self.window, self.causal = exchange, window, causal

    def forward(
        self,
        classes: Tensor,
        features: Tensor,
        tokens: Tokens,
        *,
        last: bool = False,
        maps: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both kinds of tokens after the layer.

        Args:
            classes: (N C, D), the C class tokens of each turn in order.
            features: (T, D).
            tokens: Their places.
            last: The feature tokens are not needed any more; they are returned unchanged if ``exchange`` is not
                ``all``, which saves time.
            maps: The attention map (B, H, L, L) over the joint sequences of L tokens is appended, zero in the padding.
        """
        check_rows(features, tokens.features, self.width, name="features")
        check_rows(classes, None, self.width, name="classes")
        if len(classes) != tokens.turns.total * tokens.labels:
            raise ValueError(
                f"classes must have {tokens.labels} rows for each of the {tokens.turns.total} turns; found "
                f"{len(classes)}."
            )
        separate = self.exchange != "all" and maps is None
        x = torch.cat([classes, features])
        read = self.norm_attention(x) if self.norm_first else x
        if not separate:
            mixed = self._joint(read, tokens, maps)
            last = False
        else:
            mixed = self._separate(read, tokens, last)
        if last:
            x = classes
        if self.norm_first:
            x = x + self.dropout(self.out(mixed))
            x = x + self.dropout(self._feed(self.norm_feedforward(x)))
        else:
            x = self.norm_attention(x + self.dropout(self.out(mixed)))
            x = self.norm_feedforward(x + self.dropout(self._feed(x)))
        return x[: len(classes)], features if last else x[len(classes) :]

    def _heads(self, padded: Tensor) -> Tensor:
        """(B, L, k D) -> (k, B, H, L, d)."""
        return padded.unflatten(-1, (-1, self.heads, self.width // self.heads)).permute(2, 0, 3, 1, 4)

    def _shift(self, allowed: Tensor | None, lag: Tensor, same: Tensor, dtype: torch.dtype) -> Tensor | None:
        """(B, H or 1, Q, K) mask, or biases with -inf, from masks, distances and equal speakers (B, Q, K)."""
        if self.bias is None:
            return None if allowed is None else allowed[:, None]
        bias = self.bias.pairs(lag, same).transpose(0, 1).to(dtype)
        return bias if allowed is None else bias.masked_fill(~allowed[:, None], -math.inf)

    def _limited(self, present: Tensor | None, lag: Tensor) -> Tensor | None:
        """``present`` (B, 1, K) restricted by window and time, (B, Q, K); None if all keys are allowed."""
        allowed = present
        if self.window:
            near = lag.abs() <= self.window
            allowed = near if allowed is None else allowed & near
        if self.causal:
            past = lag >= 0
            allowed = past if allowed is None else allowed & past
        return allowed

    # All tokens in one sequence

    def _joint(self, x: Tensor, tokens: Tokens, maps: list[Tensor] | None) -> Tensor:
        """(N C + T, D) normalised tokens -> mixed values, in the same order."""
        qkv = self.qkv(x)[tokens.order]
        packing = tokens.joint
        if maps is None and _one_by_one(qkv, packing):
            parts = zip(qkv.split(list(packing.lengths)), tokens.split(), strict=True)
            mixed = torch.cat([self._mix(part, own, None) for part, own in parts])
        else:
            mixed = self._mix(qkv, tokens, maps)
        return torch.zeros_like(mixed).index_copy(0, tokens.order, mixed)

    def _mix(self, qkv: Tensor, tokens: Tokens, maps: list[Tensor] | None) -> Tensor:
        packing = tokens.joint
        q, k, v = self._heads(packing.pad(qkv)).unbind()
        turn, speaker = (
            packing.pad(tokens.turns.position[tokens.joint_owner]),
            packing.pad(tokens.speaker[tokens.joint_owner]),
        )
        is_class = packing.pad(tokens.joint_class)
        absent = torch.compiler.is_compiling() or not bool(tokens.present.all())
        present = packing.pad(tokens.joint_present) if absent or min(packing.lengths) < packing.longest else None

        def mask(start: int, stop: int) -> Tensor | None:
            rows = slice(start, stop)
            lag = turn[:, rows, None] - turn[:, None]
            allowed = self._limited(None if present is None else present[:, None], lag)
            if self.exchange != "all":
                feature = ~is_class[:, None]
                if self.exchange == "turn":
                    feature = feature | (is_class[:, rows, None] & (lag == 0))
                allowed = feature if allowed is None else allowed & feature
            if allowed is not None:
                place = torch.arange(packing.longest, device=qkv.device)
                allowed = allowed | (place[rows, None] == place)
            return self._shift(allowed, lag, speaker[:, rows, None] == speaker[:, None], q.dtype)

        dropout = self.dropout_rate if self.training else 0.0
        if maps is None:
            mixed = attend(q, k, v, mask, dropout)
        else:
            weights = _weights(q @ k.transpose(-1, -2), mask(0, packing.longest), q.shape[-1])
            maps.append(weights * packing.mask[:, None, :, None])
            mixed = F.dropout(weights, dropout) @ v
        return packing.pack(mixed.transpose(1, 2).flatten(2))

    # Feature tokens first, then class tokens

    def _separate(self, x: Tensor, tokens: Tokens, last: bool) -> Tensor:
        """(N C + T, D) normalised tokens -> mixed values, only those of class tokens if ``last``."""
        count, D = tokens.turns.total * tokens.labels, self.width
        if last:
            classes = self.qkv(x[:count])
            features = F.linear(x[count:], self.qkv.weight[D:], self.qkv.bias[D:])
        else:
            classes, features = self.qkv(x).split([count, len(x) - count])
        if _one_by_one(features, tokens.features):
            sizes = [length * tokens.labels for length in tokens.turns.lengths]
            parts = list(
                zip(classes.split(sizes), features.split(list(tokens.features.lengths)), tokens.split(), strict=True)
            )
            mixed = [self._mix_classes(*part) for part in parts]
            if not last:
                mixed += [self._mix_features(own, part) for _, own, part in parts]
        else:
            mixed = [self._mix_classes(classes, features, tokens)]
            if not last:
                mixed.append(self._mix_features(features, tokens))
        return torch.cat(mixed)

    def _mix_features(self, qkv: Tensor, tokens: Tokens) -> Tensor:
        """(T, 3 D) of feature tokens -> (T, D)."""
        packing = tokens.features
        q, k, v = self._heads(packing.pad(qkv)).unbind()
        turn, speaker, present = self._keys(tokens)

        def mask(start: int, stop: int) -> Tensor | None:
            rows = slice(start, stop)
            lag = turn[:, rows, None] - turn[:, None]
            allowed = self._limited(present, lag)
            if allowed is not None:
                place = torch.arange(packing.longest, device=qkv.device)
                allowed = allowed | (place[rows, None] == place)
            return self._shift(allowed, lag, speaker[:, rows, None] == speaker[:, None], q.dtype)

        mixed = attend(q, k, v, mask, self.dropout_rate if self.training else 0.0)
        return packing.pack(mixed.transpose(1, 2).flatten(2))

    def _mix_classes(self, classes: Tensor, features: Tensor, tokens: Tokens) -> Tensor:
        """(N C, 3 D) of class tokens and (T, 2 D or 3 D) of feature tokens -> (N C, D)."""
        turns, C = tokens.turns, tokens.labels
        q, k, v = self._heads(turns.pad(classes.view(turns.total, -1)).unflatten(-1, (C, -1)).flatten(1, 2)).unbind()
        keys, values = self._heads(tokens.features.pad(features))[-2:].unbind()
        turn, speaker, present = self._keys(tokens)
        lag = turns.pad(turns.position)[:, :, None] - turn[:, None]
        same = turns.pad(tokens.speaker)[:, :, None] == speaker[:, None]
        shift = self._shift(self._limited(present, lag), lag, same, q.dtype)
        # Scaled once, before both products.
        q = q / math.sqrt(q.shape[-1])
        scores = (q @ keys.transpose(-1, -2)).unflatten(2, (-1, C))  # (B, H, L, C, K)
        if shift is not None:
            shift = shift[:, :, :, None]
            scores = scores.masked_fill(~shift, -math.inf) if shift.dtype == torch.bool else scores + shift
        q, k, v = (part.unflatten(2, (-1, C)) for part in (q, k, v))  # (B, H, L, C, d)
        own = q @ k.transpose(-1, -2)
        if self.exchange == "none":
            own = own.masked_fill(~torch.eye(C, dtype=torch.bool, device=q.device), -math.inf)
        if self.bias is not None:
            zero = torch.zeros((), dtype=torch.long, device=q.device)
            own = own + self.bias.pairs(zero, zero == 0).to(q.dtype)[:, None, None, None]
        weights = torch.cat([scores, own], -1).softmax(-1)
        weights = F.dropout(weights, self.dropout_rate, self.training)
        outer, inner = weights.split([scores.shape[-1], C], -1)
        mixed = (outer.flatten(2, 3) @ values).unflatten(2, (-1, C)) + inner @ v
        return turns.pack(mixed.permute(0, 2, 3, 1, 4).flatten(3)).flatten(0, 1)

    def _keys(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor | None]:
        """Turns and speakers of the padded feature tokens (B, K), and which are present (B, 1, K); None if all are."""
        packing = tokens.features
        complete = not torch.compiler.is_compiling() and min(packing.lengths) == packing.longest
        present = None if complete and bool(tokens.present.all()) else packing.pad(tokens.present)[:, None]
        turn = tokens.turns.position[tokens.owner]
        return packing.pad(turn), packing.pad(tokens.speaker[tokens.owner]), present


def _one_by_one(values: Tensor, packing: Packing) -> bool:
    """Whether each conversation is computed separately, without padding: long ones on a CPU."""
    short = packing.longest < LONG or packing.size == 1
    return not short and values.device.type == "cpu" and not torch.compiler.is_compiling()


def _weights(scores: Tensor, shift: Tensor | None, width: int) -> Tensor:
    scores = scores / math.sqrt(width)
    if shift is not None:
        scores = scores.masked_fill(~shift, -math.inf) if shift.dtype == torch.bool else scores + shift
    return scores.softmax(-1)
