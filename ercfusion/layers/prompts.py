"""Prompts for absent modalities: generation, signals and types (Guo, Jin & Zhao, ACL 2024).

N utterances, M modalities; each utterance has T steps of width D per modality.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_MIXED = 12
"""Largest number of modalities of :class:`MixerGenerator`, whose parameters double with each."""


class PaddedSteps(NamedTuple):
    """Padded steps of one modality.

    Args:
        values: (N, T, D), zero in the padding.
        mask: (N, T) bool, True at steps.
    """

    values: Tensor
    mask: Tensor


class Generated(NamedTuple):
    """Generated steps of one modality for some utterances.

    Args:
        values: (G, T, D).
        rows: (G) numbers of the utterances; None for all N.
    """

    values: Tensor
    rows: Tensor | None


class PromptGenerator(nn.Module):
    """Base of the generators of an absent modality: prompts P_m and projections from every other modality.

    Args:
        widths: Dimensions of each modality's steps.
        width: D, width of the results.
        prompts: Number of prompt vectors per modality.

    Attributes:
        prompts: (M, prompts, D), P_m.
    """

    def __init__(self, widths: Sequence[int], width: int, prompts: int) -> None:
        super().__init__()
        self.width = width
        self.prompts = nn.Parameter(0.1 * torch.randn(len(widths), prompts, width))
        targets = len(widths) - 1
        # One dense layer per source for all targets: D rows of its weight belong to one pair.
        self.sources = nn.ModuleList(nn.Linear(size, targets * width) for size in widths if targets)

    def project(self, source: int, targets: Sequence[int], values: Tensor) -> list[Tensor]:
        """GELU(C_sm x_s + c_sm): (..., D_s) steps of the source -> (..., D) for each target m, in rising order."""
        layer = self.sources[source]
        assert isinstance(layer, nn.Linear)
        places = [target - (target > source) for target in targets]
        if len(places) * self.width == layer.out_features:
            return list(F.gelu(layer(values)).split(self.width, dim=-1))
        rows = [slice(self.width * place, self.width * (place + 1)) for place in places]
        return [F.gelu(F.linear(values, layer.weight[own], layer.bias[own])) for own in rows]


class MixerGenerator(PromptGenerator):
    r"""Generates absent modalities with dense layers over the steps, as published, for sequences of equal length L.

    .. math:: \hat x_m = \mathrm{GELU}(A_{mS} [P_m; \{\mathrm{GELU}(C_{sm} x_s)\}_{s \in S}] + b_{mS})

    with a matrix :math:`A_{mS}` for each absent m and set S of present modalities. The released code has these layers
    for one and two absent modalities of three; an empty S is our addition. Utterances with the same S are computed
    together.

    Args:
        widths: Dimensions of each modality's steps; at most :data:`MOST_MIXED` modalities.
        width: D.
        prompts: Number of prompt vectors per modality.
        steps: L.

    Attributes:
        weight: (M, L, K), the columns of all A_mS.
        bias: (M, 2^(M-1), L), the b_mS.

    Shapes:
        streams M of (N, L, D_m), present (N, M) bool -> M of (G, L, D), G of the N utterances without the modality.

    Raises:
        ValueError: too many modalities.
    """

    def __init__(self, widths: Sequence[int], width: int, prompts: int, steps: int) -> None:
        super().__init__(widths, width, prompts)
        M = len(widths)
        if M > MOST_MIXED:
            raise ValueError(f"a mixer has at most {MOST_MIXED} modalities, found {M}. Choose generator=attention.")
        self.sets = [
            chosen for size in range(M) for chosen in itertools.combinations(range(M - 1), size)
        ]  # numbers of the other modalities
        sizes = [prompts + len(chosen) * steps for chosen in self.sets]
        self.first = [0, *itertools.accumulate(sizes)]
        bounds = torch.tensor(sizes).rsqrt()  # torch's own range, for each matrix
        columns = bounds.repeat_interleave(torch.tensor(sizes))
        self.weight = nn.Parameter((2 * torch.rand(M, steps, len(columns)) - 1) * columns)
        self.bias = nn.Parameter((2 * torch.rand(M, len(sizes), steps) - 1) * bounds[:, None])

    def forward(self, streams: Sequence[PaddedSteps], present: Tensor) -> list[Generated]:
        """The generated steps of each modality."""
        M, prompts = len(streams), self.prompts.shape[1]
        code = (present.long() << torch.arange(M, device=present.device)).sum(1)
        groups = code.argsort(stable=True).split(code.bincount(minlength=2**M).tolist())
        rows: list[list[Tensor]] = [[] for _ in streams]
        parts: list[list[Tensor]] = [[] for _ in streams]
        for pattern, group in enumerate(groups):
            own = [s for s in range(M) if pattern >> s & 1]
            # Patterns with one absent modality are computed without utterances too: every parameter gets a gradient.
            if not len(group) and len(own) != M - 1:
                continue
            absent = [m for m in range(M) if m not in own]
            # Steps first, (L, G, D): so a layer over the steps is one product.
            known = [
                self.project(s, absent, streams[s].values.index_select(0, group).transpose(0, 1)) for s in own if absent
            ]
            for place, m in enumerate(absent):
                number = self.sets.index(tuple(s - (s > m) for s in own))
                weight = self.weight[m, :, self.first[number] : self.first[number + 1]]
                mixed = (weight[:, :prompts] @ self.prompts[m] + self.bias[m, number][:, None])[:, None]
                if own:
                    read = torch.cat([each[place] for each in known])
                    mixed = mixed + (weight[:, prompts:] @ read.flatten(1)).unflatten(1, read.shape[1:])
                parts[m].append(mixed.expand(-1, len(group), -1))
                rows[m].append(group)
        return [
            Generated(F.gelu(torch.cat(made, dim=1)).transpose(0, 1), torch.cat(each))
            for made, each in zip(parts, rows, strict=True)
        ]


class AttentionGenerator(PromptGenerator):
    r"""Generates absent modalities by attention, for sequences of any length.

    .. math::
        \hat x_m = \mathrm{GELU}(A_m\, \mathrm{softmax}(Q_m K_m^\top / \sqrt{D})\, K_m + b_m), \quad
        K_m = [P_m; \{\mathrm{GELU}(C_{sm} x_s)\}_{s \in S}]

    Our variant of :class:`MixerGenerator`, whose matrices have a fixed length: learned queries Q_m read the prompts and
    the steps of the present modalities S. With no present modality they read the prompts.

    Args:
        widths: Dimensions of each modality's steps.
        width: D.
        prompts: Number of prompt vectors per modality.
        steps: Number of queries, the steps of a generated modality.

    Shapes:
        streams M of (N, T_m, D_m), present (N, M) bool -> M of (N, steps, D), also for present modalities.
    """

    def __init__(self, widths: Sequence[int], width: int, prompts: int, steps: int) -> None:
        super().__init__(widths, width, prompts)
        self.queries = nn.Parameter(torch.randn(len(widths), steps, width))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in widths)

    def forward(self, streams: Sequence[PaddedSteps], present: Tensor) -> list[Generated]:
        """The generated steps of each modality."""
        masks = [stream.mask & present[:, s, None] for s, stream in enumerate(streams)]
        read = torch.ones(len(present), self.prompts.shape[1], dtype=torch.bool, device=present.device)
        results = []
        for m, out in enumerate(self.out):
            others = [s for s in range(len(streams)) if s != m]
            own = self.prompts[m].expand(len(present), -1, -1)
            keys = torch.cat([own, *(self.project(s, [m], streams[s].values)[0] for s in others)], dim=1)
            mask = torch.cat([read, *(masks[s] for s in others)], dim=1)
            scores = self.queries[m] @ keys.transpose(1, 2) / math.sqrt(self.width)
            weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
            results.append(Generated(F.gelu(out(weights @ keys)), None))
        return results


class MissingPrompts(nn.Module):
    r"""The three prompts of MPLMM: generative, missing-signal and missing-type.

    With status :math:`q_m` (absent or present) of each modality of an utterance:

    - *Generative*: an absent modality is replaced by :math:`\hat x_m` of a generator.
    - *Missing-signal*: :math:`S_m^{q_m}` is added to the steps.
    - *Missing-type*: the tokens of stream m are :math:`T_m \sum_k S_k^{q_k} M_k`.

    Published with one signal per step of a sequence of fixed length. For other lengths the mean of ``slots`` signals is
    added to every step (our reading).

    Args:
        widths: Dimensions of each modality's steps, by name.
        width: D, width of the completed steps.
        stream_width: W, width of the type tokens.
        length: Number of prompt vectors per modality and prompt.
        generator: Class of the generator.
        steps: PaddedSteps of a generated modality.
        slots: Signals per modality and status.
        per_step: Add signal t to step t; sequences have ``slots`` steps then. False adds the mean.
        type_init: Initial T and M: ``normal``, or ``zero`` as in a released version. The gradient of each contains the
            other as a factor, so at zero neither ever changes.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        width: int,
        stream_width: int,
        *,
        length: int,
        generator: type[MixerGenerator] | type[AttentionGenerator],
        steps: int,
        slots: int,
        per_step: bool = False,
        type_init: Literal["normal", "zero"] = "normal",
    ) -> None:
        super().__init__()
        M = len(widths)
        self.per_step = per_step
        self.generate = generator(list(widths.values()), width, length, steps)
        self.signal = nn.Parameter(0.02 * torch.randn(2, M, slots, width))  # absent, present
        scale = 0.0 if type_init == "zero" else 1.0
        self.type_tokens = nn.Parameter(scale * width**-0.5 * torch.randn(M, length, width))
        self.type_maps = nn.Parameter(scale * torch.randn(M, slots, stream_width))

    def complete(
        self, streams: Sequence[PaddedSteps], projected: Sequence[Tensor], present: Tensor
    ) -> list[PaddedSteps]:
        """Projected steps with absent modalities generated, and their signals.

        Args:
            streams: M of (N, T_m, D_m).
            projected: M of (N, T_m, D), the same steps at the common width.
            present: (N, M) bool.

        Returns:
            M of (N, T, D); T is the larger of T_m and the generated steps.
        """
        absent, there = self.signal if self.per_step else self.signal.mean(2, keepdim=True)
        completed = []
        for m, (generated, rows) in enumerate(self.generate(streams, present)):
            steps, made = streams[m].mask.shape[1], generated.shape[1]
            own = F.pad(projected[m], (0, 0, 0, max(0, made - steps))) + there[m]
            replaced = F.pad(generated, (0, 0, 0, max(0, steps - made))) + absent[m]
            mask = torch.where(
                present[:, m, None],
                F.pad(streams[m].mask, (0, max(0, made - steps))),
                torch.arange(max(steps, made), device=present.device) < made,
            )
            if rows is None:
                values = torch.where(present[:, m, None, None], own, replaced)
            else:
                values = own.index_copy(0, rows, replaced)
            completed.append(PaddedSteps(values, mask))
        return completed

    def tokens(self, present: Tensor) -> Tensor:
        """Type tokens of all streams for each utterance: present (N, M) bool -> (M, N, length, W)."""
        table = torch.einsum("mld,pdw->mplw", self.type_tokens, self._coupled())
        return (_statuses(present, table) @ table.flatten(2)).unflatten(-1, table.shape[2:])

    def read(self, m: int, x: Tensor, present: Tensor) -> Tensor:
        r"""Vectors with the type tokens of their utterance, :math:`x + \mathrm{softmax}(x K^\top / \sqrt{W}) K`.

        Our reading, for one vector per utterance: a sequence could not contain the tokens of every turn. The tokens K
        are never formed: scores and sums are taken over the terms of all modalities and statuses.

        Args:
            m: Number of the stream.
            x: (..., W).
            present: (..., M) bool.
        """
        table = self.type_tokens[m] @ self._coupled()
        chosen, rows = _statuses(present, table)[..., None], table.flatten(0, 1)
        scores = (x @ rows.T).unflatten(-1, table.shape[:2])
        weights = ((scores * chosen).sum(-2) / math.sqrt(x.shape[-1])).softmax(-1)
        return x + (chosen * weights[..., None, :]).flatten(-2) @ rows

    def _coupled(self) -> Tensor:
        """(2 M, D, W): S_k M_k for both statuses and each modality k; T_m times their sum is a token matrix."""
        return torch.einsum("qksd,ksw->qkdw", self.signal, self.type_maps).flatten(0, 1)


def _statuses(present: Tensor, like: Tensor) -> Tensor:
    """(..., M) -> (..., 2 M) zeros and ones: which of the terms of :meth:`MissingPrompts._coupled` are added."""
    return torch.cat([~present, present], dim=-1).to(like.dtype)
