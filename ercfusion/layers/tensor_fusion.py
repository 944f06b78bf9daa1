"""Fusion by products of modalities: Tensor Fusion and its low-rank form.

N utterances, M modalities of widths d_m, H outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.layers.fusion import check_present, check_streams
from ercfusion.ops.tensor_fusion import choose_grouping, element_keep, outer_rows, tensor_fusion, with_one

MOST_MODALITIES = 4
"""Largest M of a tensor: with five modalities even small vectors need millions of weights."""


def _check_widths(widths: Sequence[int], out_features: int, most: int | None = None) -> tuple[int, ...]:
    if not widths or (most is not None and len(widths) > most):
        raise ValueError(f"widths must name {f'1 to {most}' if most else 'at least 1'} modalities, found {len(widths)}")
    for name, number in (*(("widths", width) for width in widths), ("out_features", out_features)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, found {number}")
    return tuple(int(width) for width in widths)


def _check_probability(name: str, p: float) -> float:
    if not 0 <= p < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, found {p}")
    return float(p)


class _Fusion(nn.Module):
    """Common input handling of both fusions."""

    def __init__(self, widths: tuple[int, ...], out_features: int, dropout: float, absent: str) -> None:
        super().__init__()
        self.widths = widths
        self.out_features = out_features
        self.dropout = _check_probability("dropout", dropout)
        if absent not in ("zero", "learned"):
            raise ValueError(f"absent must be 'zero' or 'learned', found {absent!r}")
        self.absent = nn.ParameterList(torch.zeros(width) for width in widths) if absent == "learned" else None

    def _prepared(
        self, z: Sequence[Tensor], present: Tensor | None, dropout: float, dtype: torch.dtype
    ) -> list[Tensor]:
        check_streams("z", z, self.widths)
        check_present(present, len(z[0]), len(self.widths))
        prepared = []
        for m, vector in enumerate(z):
            if present is not None:
                instead = 0.0 if self.absent is None else self.absent[m].to(vector.dtype)
                vector = torch.where(present[:, m, None], vector, instead)
            prepared.append(F.dropout(vector, dropout, self.training).to(dtype))
        return prepared


class TensorFusion(_Fusion):
    r"""A linear layer on the outer product of several vectors, computed without forming the product.

    .. math:: y = W \, \mathrm{vec}([1; z_1] \otimes \dots \otimes [1; z_M]) + b

    Zadeh et al., "Tensor Fusion Network for Multimodal Sentiment Analysis" (EMNLP 2017), section 4.2. The tensor
    contains every modality, every pair and so on up to the product of all. Terms with an absent modality, [1; 0],
    vanish.

    By default dropout acts on the numbers of the z_m, not on the ones. ``dropout_form="element"`` is the published
    form, dropout of single elements of the tensor.

    Checkpoints of ``torch.nn.Linear`` on the flattened tensor load; the index of the last modality changes fastest.
    Computed in the dtype of the weights, also under autocast. Differentiable once.

    Args:
        widths: d_m of 1 to 4 modalities, in the order of the tensor.
        out_features: H.
        dropout: Dropout probability, in [0, 1).
        dropout_form: ``factor`` or ``element``.
        absent: Replacement of an absent z_m: ``zero``, or ``learned``, a vector initially zero.
        bias: Add b.
        naive: Form the tensor, for comparison. Can be set on an instance.

    Shapes:
        z: M times (N, d_m); present (N, M) bool, True if a modality is present, or None -> (N, H).

    Raises:
        ValueError: an argument out of its range, or z or present of another shape or type.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_features: int,
        *,
        dropout: float = 0.0,
        dropout_form: str = "factor",
        absent: str = "zero",
        bias: bool = True,
        naive: bool = False,
    ) -> None:
        super().__init__(_check_widths(widths, out_features, MOST_MODALITIES), out_features, dropout, absent)
        if dropout_form not in ("factor", "element"):
            raise ValueError(f"dropout_form must be 'factor' or 'element', found {dropout_form!r}")
        self.dropout_form = dropout_form
        self.naive = naive
        factors = [width + 1 for width in self.widths]
        self.grouping = choose_grouping(factors, out_features)
        bound = 1 / math.sqrt(math.prod(factors))
        self.weight = nn.Parameter(torch.empty(out_features, math.prod(factors)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return f"{self.widths} -> {self.out_features}, dropout={self.dropout} ({self.dropout_form})"

    def forward(self, z: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Fused vectors (N, H)."""
        elements = self.dropout if self.training and self.dropout_form == "element" else 0.0
        seed = int(torch.randint(2**62, ())) if elements else 0
        weight = self.weight
        factor_dropout = self.dropout if self.dropout_form == "factor" else 0.0
        with torch.autocast(weight.device.type, enabled=False):
            prepared = self._prepared(z, present, factor_dropout, weight.dtype)
            if self.naive:
                tensor = outer_rows([with_one(vector) for vector in prepared], prepared[0])
                if elements:
                    places = range(len(tensor)), range(tensor.shape[1])
                    tensor = tensor * element_keep(seed, *places, elements, tensor.device) / (1 - elements)
                return F.linear(tensor, weight, self.bias)
            fused = tensor_fusion(prepared, weight, self.grouping, element_dropout=elements, seed=seed)
            return fused if self.bias is None else fused + self.bias


def low_rank_fusion_reference(z: Sequence[Tensor], factors: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Low-rank fusion as loops over utterances, outputs and ranks: the specification of :class:`LowRankFusion`.

    Args:
        z: (N, d_m) per modality.
        factors: (R, H, d_m + 1) per modality; index 0 is the constant.
        weight: (R).
        bias: (H).
    """
    outputs = []
    for n in range(len(z[0])):
        for o in range(len(bias)):
            total = bias[o]
            for r in range(len(weight)):
                product = weight[r]
                for vector, factor in zip(z, factors, strict=True):
                    product = product * (factor[r, o, 0] + factor[r, o, 1:] @ vector[n])
                total = total + product
            outputs.append(total)
    return torch.stack(outputs).view(len(z[0]), len(bias))


class LowRankFusion(_Fusion):
    r"""Tensor fusion with a weight of low rank: products of one linear map per modality.

    .. math:: y_o = \sum_{r=1}^R w_r \prod_m F_m[r, o] \cdot [1; z_m] + b_o

    Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors" (ACL 2018), section 3.2, with the
    weights w of the released code, which the paper omits. Products are in at least single precision, because M factors
    leave the range of half precision. An absent modality is [1; 0].

    The output is not normalised, and products of M vectors vary strongly in size: put a ``LayerNorm`` after this layer
    (``post_norm`` of the model ``lmf``).

    F and w are initially normal with Glorot's variances 2 / (d_m + 1 + H) and 2 / (1 + R); b is zero.
    ``initial="released"`` has the released code's variance of F, 2 / ((d_m + 1 + R) H).

    Args:
        widths: d_m of one or more modalities.
        out_features: H.
        rank: R.
        dropout: Dropout probability on the z_m, in [0, 1).
        absent: Replacement of an absent z_m: ``zero``, or ``learned``, a vector initially zero.
        initial: Initial values of the factors: ``glorot`` or ``released``.

    Shapes:
        z: M times (N, d_m); present (N, M) bool, True if a modality is present, or None -> (N, H).

    Raises:
        ValueError: an argument out of its range, or z or present of another shape or type.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_features: int,
        rank: int,
        *,
        dropout: float = 0.0,
        absent: str = "zero",
        initial: str = "glorot",
    ) -> None:
        super().__init__(_check_widths(widths, out_features), out_features, dropout, absent)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, found {rank}")
        if initial not in ("glorot", "released"):
            raise ValueError(f"initial must be one of glorot, released; found {initial!r}")
        self.rank = rank
        self.factors = nn.ParameterList(torch.empty(rank, out_features, width + 1) for width in self.widths)
        for factor in self.factors:
            fans = factor.shape[2] + out_features
            if initial == "released":
                fans = (factor.shape[2] + rank) * out_features
            nn.init.normal_(factor, std=math.sqrt(2 / fans))
        self.weight = nn.Parameter(torch.empty(rank).normal_(std=math.sqrt(2 / (1 + rank))))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return f"{self.widths} -> {self.out_features}, rank={self.rank}, dropout={self.dropout}"

    def forward(self, z: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Fused vectors (N, H)."""
        product: Tensor | None = None
        at_least = torch.promote_types(self.weight.dtype, torch.float32)
        for vector, factor in zip(
            self._prepared(z, present, self.dropout, self.weight.dtype), self.factors, strict=True
        ):
            flat = factor.flatten(0, 1)
            mapped = F.linear(vector, flat[:, 1:], flat[:, 0]).to(at_least)
            product = mapped if product is None else product * mapped
        assert product is not None
        with torch.autocast(product.device.type, enabled=False):
            summed = torch.matmul(self.weight.to(at_least), product.unflatten(1, (self.rank, -1)))
            return (summed + self.bias).to(self.weight.dtype)
