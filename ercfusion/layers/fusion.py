"""Fusion of modality vectors by attention, gates or concatenation.

M modalities; a *stream* is the vectors (N, D) of one modality for the N packed utterances. ``present`` (N, M) is True
if an utterance has the modality; other values of a stream are never read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ercfusion.batch.packing import Packing
from ercfusion.layers.transformer import LONG
from ercfusion.ops.attention import attend, check_heads

VALUES = ("main", "other")


def check_streams(name: str, streams: Sequence[Tensor], widths: Sequence[int]) -> None:
    """Refuses anything but one (N, d_m) per modality, with the same N."""
    shapes = [tuple(x.shape) for x in streams]
    for shape in shapes:
        if len(shape) == 3:
            raise ValueError(f"{name} must be (N, d); found {shape}. Pack it with Packing(lengths).pack.")
        if len(shape) != 2:
            raise ValueError(f"{name} must be (N, d); found {shape}. Pass a list of one tensor per modality.")
    if [width for _, width in shapes] != list(widths):
        raise ValueError(
            f"{name} must have the widths {tuple(widths)}, found {tuple(width for _, width in shapes)}. "
            "Pass the modalities in the order of the layer's arguments."
        )
    if len({rows for rows, _ in shapes}) > 1:
        raise ValueError(f"{name} must have the same N; found {shapes}. Pass the same utterances of every modality.")


def check_present(present: Tensor | None, utterances: int, modalities: int) -> None:
    """Refuses anything but (N, M) booleans or None."""
    if present is None or (present.dtype == torch.bool and tuple(present.shape) == (utterances, modalities)):
        return
    advice = "Pack it with Packing(lengths).pack." if present.ndim == 3 else "Use a column per modality, and .bool()."
    raise ValueError(
        f"present must be (N, M) = ({utterances}, {modalities}) booleans; found {tuple(present.shape)} of "
        f"{present.dtype}. {advice}"
    )


class FusionAttention(nn.Module):
    r"""M2FNet's fusion attention: queries and values from the main stream, keys from each other stream.

    Chudasama et al. (CVPR workshops 2022). With K other streams,

    .. math::
        F_k = \mathrm{MHA}_k(Q = T,\; K = X_k,\; V = T), \qquad T' = W [F_1; \dots; F_K; T] + b

    T is the main stream (text), X_k another stream, MHA multi-head attention within a conversation, each with its own
    weights. ``values="other"`` is ordinary cross-attention, :math:`V = X_k`. An utterance without modality k is not a
    key of :math:`F_k`; without any key, :math:`F_k` is zero.

    All heads and streams share one attention call. Keys have no bias because softmax cancels it.

    Args:
        width: D; a multiple of ``heads``.
        others: K, at least 1.
        heads: Heads of each MHA.
        dropout: Dropout probability on attention weights.
        values: Source of the values, ``main`` or ``other``.
        residual: Return T + s * T' with a learned s per dimension, initially 0.1, so that training starts near the main
            stream.
        causal: Attend to the past and the utterance itself only.

    Shapes:
        main (N, D), others K of (N, D), present (N, K) or None for all -> (N, D).
    """

    def __init__(
        self,
        width: int,
        others: int,
        heads: int,
        dropout: float = 0.1,
        *,
        values: str = "main",
        residual: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        if others < 1:
            raise ValueError(f"others must be at least 1, found {others}")
        if values not in VALUES:
            raise ValueError(f"values must be 'main' or 'other', found {values!r}")
        self.heads = heads
        self.others = others
        self.values = values
        self.causal = causal
        self.dropout_rate = dropout
        from_main, from_other = (2, 1) if values == "main" else (1, 2)
        self.read_main = nn.Linear(width, from_main * others * width)
        self.read_other = nn.Parameter(torch.empty(others, width, from_other * width))
        self.value_bias = nn.Parameter(torch.zeros(others, 1, width)) if values == "other" else None
        self.out = nn.Parameter(torch.empty(others, width, width))
        self.out_bias = nn.Parameter(torch.zeros(others, 1, width))
        self.fuse = nn.Linear((others + 1) * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1)) if residual else None
        nn.init.zeros_(self.read_main.bias)
        bound = (3 / width) ** 0.5  # Xavier's, for each of the concatenated square matrices
        for weight in (self.read_main.weight, self.read_other, self.out):
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self, main: Tensor, others: Sequence[Tensor], packing: Packing, present: Tensor | None = None
    ) -> Tensor:
        """Fused vectors (N, D)."""
        if len(others) != self.others:
            raise ValueError(f"built for {self.others} other streams, got {len(others)}")
        width = self.fuse.out_features
        check_streams("main", [main], [width])
        check_streams("others", others, [width] * self.others)
        if not len(main) == len(others[0]) == packing.total:
            raise ValueError(
                f"main, others and packing must have the same N; found {len(main)}, {len(others[0])} and "
                f"{packing.total}. Give Packing the lengths of this batch."
            )
        check_present(present, packing.total, self.others)
        stacked = torch.stack(list(others))
        if present is not None:  # a masked weight of 0 times NaN would be NaN
            stacked = torch.where(present.t()[..., None], stacked, 0.0)
        queries, keys, values = self._project(main, stacked)
        if packing.longest < LONG or packing.size == 1 or main.device.type != "cpu" or torch.compiler.is_compiling():
            mixed, has_key = self._mix(queries, keys, values, packing, present)
        else:  # as in PackedTransformerLayer: long conversations are faster without padding
            lengths = list(packing.lengths)
            masks = [None] * len(lengths) if present is None else present.split(lengths)
            rows = zip(queries.split(lengths), keys.split(lengths), values.split(lengths), masks, strict=True)
            parts = [self._mix(q, k, v, Packing([len(q)], packing.device), mask) for q, k, v, mask in rows]
            mixed = torch.cat([part[0] for part in parts])
            has_key = None if parts[0][1] is None else torch.cat([part[1] for part in parts if part[1] is not None])
        attended = torch.baddbmm(self.out_bias.to(mixed.dtype), mixed.transpose(0, 1), self.out).transpose(0, 1)
        if has_key is not None:
            attended = torch.where(has_key[..., None], attended, 0.0)
        fused = self.fuse(torch.cat([attended.flatten(1), main.to(attended.dtype)], dim=1))
        return fused if self.scale is None else main + self.scale * fused

    def _project(self, main: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, K, D)."""
        of_main = self.read_main(main).unflatten(1, (-1, self.others, main.shape[1]))  # (N, 1 or 2, K, D)
        of_other = torch.bmm(others, self.read_other).transpose(0, 1)  # (N, K, D or 2 D)
        if self.value_bias is None:
            queries, values = of_main.unbind(1)
            return queries, of_other, values
        keys, values = of_other.chunk(2, dim=2)
        return of_main.squeeze(1), keys, values + self.value_bias.transpose(0, 1)

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, present: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values (N, K, D) -> mixed values (N, K, D), and (N, K) bool, True if there was a key.

        The second is None if every utterance has a key.
        """
        q, k, v = (packing.pad(x).unflatten(-1, (self.heads, -1)).flatten(2, 3).transpose(1, 2) for x in (q, k, v))
        keys = self._keys(packing, present)
        any_key = has_key = None
        if keys is not None:
            any_key = (keys.cumsum(-1) > 0 if self.causal else keys.any(-1, keepdim=True))[..., None]

        def mask(start: int, stop: int) -> Tensor | None:
            """Allowed keys of each query, (B, 1 or K H, 1 or queries, L)."""
            if keys is None or any_key is None:
                return None
            allowed, answered = keys[:, :, None, :], any_key
            if self.causal:
                query = torch.arange(start, stop, device=packing.device)[:, None]
                allowed = allowed & (torch.arange(packing.longest, device=packing.device) <= query)
                answered = any_key[:, :, start:stop]
            allowed = allowed | ~answered  # without any key, attend to all, which avoids 0 / 0; the result is not used
            return allowed if allowed.shape[1] == 1 else allowed.repeat_interleave(self.heads, dim=1)

        mixed = attend(q, k, v, mask, self.dropout_rate if self.training else 0.0)  # (B, K H, L, d)
        mixed = packing.pack(mixed.transpose(1, 2)).unflatten(1, (self.others, self.heads)).flatten(2)
        if present is not None and any_key is not None:
            has_key = packing.pack(any_key.squeeze(-1).transpose(1, 2).expand(-1, packing.longest, -1))
        return mixed, has_key

    def _keys(self, packing: Packing, present: Tensor | None) -> Tensor | None:
        """Utterances allowed as keys, (B, 1 or K, L), [b, stream, key]; None if all are."""
        if present is None:
            return packing.mask[:, None] if self.causal or min(packing.lengths) < packing.longest else None
        return packing.pad(present).transpose(1, 2)


class GatedFusion(nn.Module):
    r"""A weighted sum of the modalities; the weights come from the utterance's own vectors.

    .. math:: g = \mathrm{norm}(W [x_1; \dots; x_M] + b), \qquad y = \sum_m g_m x_m

    After Arevalo et al., "Gated Multimodal Units for Information Fusion" (ICLR workshops 2017), who have vector gates
    and two modalities. An absent modality is zero in the gate's input and has weight zero; with softmax the other
    weights sum to 1. Without any modality the result is zero.

    Args:
        width: D.
        modalities: M.
        gate: ``scalar`` (a weight per modality) or ``vector`` (a weight per modality and dimension).
        norm: ``softmax`` over the modalities, or ``sigmoid`` for each.
        main: The modality that the gate prefers initially; -1 for none.
        start: Strength of this preference: the main modality's bias minus the others'.

    Shapes:
        streams M of (N, D), present (N, M) or None for all -> (N, D).
    """

    def __init__(
        self,
        width: int,
        modalities: int,
        *,
        gate: str = "vector",
        norm: str = "softmax",
        main: int = -1,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        if gate not in ("scalar", "vector"):
            raise ValueError(f"gate must be 'scalar' or 'vector', found {gate!r}")
        if norm not in ("softmax", "sigmoid"):
            raise ValueError(f"norm must be 'softmax' or 'sigmoid', found {norm!r}")
        if not -1 <= main < modalities:
            raise ValueError(f"main must be -1 or one of {modalities} modalities, found {main}")
        self.modalities = modalities
        self.norm = norm
        self.gate = nn.Linear(modalities * width, modalities * (width if gate == "vector" else 1))
        with torch.no_grad():
            bias = self.gate.bias.view(modalities, -1)
            bias.zero_()
            if main >= 0:
                bias[main] += start / 2
                bias[[m for m in range(modalities) if m != main]] -= start / 2

    def forward(self, streams: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Fused vectors (N, D)."""
        x = self._stack(streams, present)
        return (self._weights(x, present) * x).sum(1)

    def weights(self, streams: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """The weights (N, M, 1), or (N, M, D) with vector gates; zero for absent modalities."""
        return self._weights(self._stack(streams, present), present)

    def _stack(self, streams: Sequence[Tensor], present: Tensor | None) -> Tensor:
        check_streams("streams", streams, [self.gate.in_features // self.modalities] * self.modalities)
        check_present(present, len(streams[0]), self.modalities)
        x = torch.stack(list(streams), dim=1)
        return x if present is None else torch.where(present[..., None], x, 0.0)

    def _weights(self, x: Tensor, present: Tensor | None) -> Tensor:
        score = self.gate(x.flatten(1)).unflatten(1, (self.modalities, -1))
        if present is None:
            return score.softmax(1) if self.norm == "softmax" else score.sigmoid()
        here = present[..., None]
        if self.norm == "softmax":
            # The smallest number instead of -inf avoids 0 / 0 for an utterance without any modality.
            score = score.masked_fill(~here, torch.finfo(score.dtype).min).softmax(1)
        else:
            score = score.sigmoid()
        return torch.where(here, score, 0.0)


class ConcatFusion(nn.Module):
    """A small network per modality, concatenation, and one dense layer.

    The plain fusion of Mandal & Li (2025, arXiv 2505.04642), who give no sizes. A learned vector replaces an absent
    modality.

    Args:
        widths: D_m, widths of the M streams.
        hidden: Width of each stream's network.
        out_features: Width of the dense layer.
        dropout: Dropout probability after every dense layer.

    Shapes:
        streams M of (N, D_m), present (N, M) or None for all -> (N, out_features).
    """

    def __init__(self, widths: Sequence[int], hidden: int, out_features: int, dropout: float = 0.4) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)) for width in widths
        )
        self.absent = nn.Parameter(torch.zeros(len(widths), hidden))
        self.fuse = nn.Sequential(nn.Linear(len(widths) * hidden, out_features), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, streams: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Fused vectors (N, out_features)."""
        check_streams("streams", streams, self.widths)
        check_present(present, len(streams[0]), len(self.widths))
        encoded = []
        for m, (encode, x) in enumerate(zip(self.encoders, streams, strict=True)):
            if present is None:
                encoded.append(encode(x))
            else:
                here = present[:, m, None]
                encoded.append(torch.where(here, encode(torch.where(here, x, 0.0)), self.absent[m]))
        return self.fuse(torch.cat(encoded, dim=1))


class ModalityDropout(nn.Module):
    """Hides whole modalities in training.

    Every present modality of an utterance is hidden with probability p, unless that would hide all of them. After
    Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition" (TPAMI 2016), without rescaling: a hidden
    modality is absent.

    Args:
        p: Probability per modality.
        conversations: Hide a modality in the whole conversation instead of per utterance.
        spare: Column of a modality that is never hidden; -1 for none.

    Shapes:
        present (N, M) bool, packing -> (N, M) bool.
    """

    def __init__(self, p: float, *, conversations: bool = False, spare: int = -1) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be from 0 to 1, found {p}")
        self.dropout_rate = float(p)
        self.conversations = conversations
        self.spare = spare

    def forward(self, present: Tensor, packing: Packing) -> Tensor:
        """The modalities that remain, (N, M) bool."""
        check_present(present, packing.total, present.shape[-1] if present.ndim else 0)
        if not self.training or self.dropout_rate == 0:
            return present
        units = packing.size if self.conversations else packing.total
        keep = torch.rand(units, present.shape[1], device=present.device) >= self.dropout_rate
        if self.spare >= 0:
            keep[:, self.spare] = True
        if self.conversations:
            keep = keep.index_select(0, packing.conversation)
        left = present & keep
        return torch.where(left.any(1, keepdim=True), left, present)
