"""Mamba's block on packed conversations, in one or both directions.

N utterances of the whole batch, B conversations, L utterances of the longest. The width is d, with E = expand * d
inner channels, S states per channel, W taps of the convolution, R rank of the step sizes. In the equations, B and C are
Mamba's input and output vectors (S per utterance), and D its skip weights (E), as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing, check_rows
from ercfusion.ops.conv import causal_conv
from ercfusion.ops.scan import selective_scan

Combination = Literal["add", "concat", "gate"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)


class MambaState(NamedTuple):
    """State of a Mamba block for B conversations.

    Args:
        conv: (B, W - 1, E), the last inputs of the convolution, oldest first.
        ssm: (B, E, S), the state of the recurrence, float32 or float64.
    """

    conv: Tensor
    ssm: Tensor


class _Weights(NamedTuple):
    """Weights between the two outer projections; each may have a leading axis of 2 for the directions."""

    conv: Tensor  # (E, W)
    conv_bias: Tensor | None  # (E)
    x_proj: Tensor  # (R + 2 S, E)
    dt_proj: Tensor  # (E, R)
    dt_bias: Tensor  # (E)
    A_log: Tensor  # (E, S)
    D: Tensor  # (E)


class Mamba(nn.Module):
    r"""Mamba's block: a linear recurrence over utterances with input-dependent parameters.

    Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), sections 3.2 to 3.4:

    .. math::
        [x; z] = W_{in} v, \quad u = \mathrm{silu}(\mathrm{conv}(x)), \quad [\delta; B; C] = W_x u, \\
        \Delta = \mathrm{softplus}(W_\Delta \delta + b_\Delta), \quad
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \quad
        o_t = W_{out} ((C_t \cdot h_t + D u_t) \, \mathrm{silu}(z_t))

    with :math:`A = -\exp(A_{log})`. Published weights load with ``load_state_dict``: names, shapes and initial
    distributions are those of the authors' module. A conversation's result does not depend on the others.

    A_log, D and the bias of the steps stay in float32 in half precision, and the recurrence is in float32 (or float64).
    ``A_log`` and ``D`` carry ``_no_weight_decay``, the bias ``_no_reinit``.

    Args:
        d_model: d, the width of input and output.
        d_state: S, states of the recurrence per inner channel (not the number of speakers).
        d_conv: W, utterances seen by the causal convolution, including the current one.
        expand: E, the number of inner channels, as a multiple of d.
        dt_rank: R, rank of the map to the step sizes; ``auto`` is d / 16, rounded up.
        dt_min, dt_max: Range of the initial step sizes, uniform on a logarithmic scale.
        dt_init: Initial weight of the steps: ``random`` (uniform) or ``constant``.
        dt_scale: Scale of this weight.
        dt_init_floor: Lower bound of the initial step sizes.
        conv_bias: Add a bias to the convolution.
        bias: Add biases to the two outer projections.

    Raises:
        ValueError: an option out of its range.

    Shapes:
        x (N, d) with the packing of the N utterances -> (N, d). Padded x (B, L, d) with lengths (B), or None if all are
        L -> (B, L, d), zero in the padding.

    Warning:
        Without a packing, all rows of x (N, d) are read as ONE conversation.

    Example:
        >>> layer = Mamba(16)
        >>> layer(torch.randn(5, 16), Packing([3, 2])).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        E = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        if not isinstance(rank, int):
            raise ValueError(f"dt_rank must be a number or 'auto', found {dt_rank!r}")
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand * d_model": E, "dt_rank": rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init must be 'random' or 'constant', found {dt_init!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"step sizes need 0 < dt_min <= dt_max, found {dt_min} and {dt_max}")
        self.d_model, self.d_inner, self.d_state, self.d_conv, self.dt_rank = d_model, E, d_state, d_conv, rank
        self.in_proj = nn.Linear(d_model, 2 * E, bias=bias)
        # Only for the published parameter names; its own forward pass would cross conversations.
        self.conv1d = nn.Conv1d(E, E, d_conv, groups=E, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(E, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, E)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = nn.Linear(E, d_model, bias=bias)
        with torch.no_grad():
            spread = rank**-0.5 * dt_scale
            if dt_init == "random":
                self.dt_proj.weight.uniform_(-spread, spread)
            else:
                self.dt_proj.weight.fill_(spread)
            low, high = math.log(dt_min), math.log(dt_max)
            step = (torch.rand(E) * (high - low) + low).exp().clamp(min=dt_init_floor)
            self.dt_proj.bias.copy_(step + (-torch.expm1(-step)).log())  # the inverse of softplus
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]

    @property
    def inner(self) -> _Weights:
        """The parameters between the two outer projections."""
        return _Weights(
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
        )

    def forward(
        self,
        x: Tensor,
        packing: Packing | Tensor | None = None,
        *,
        lengths: Sequence[int] | Tensor | None = None,
        reverse: bool = False,
    ) -> Tensor:
        """(N, d) -> (N, d), or (B, L, d) -> (B, L, d).

        Args:
            x: Packed (N, d), or padded (B, L, d).
            packing: Packing of packed x, or its offsets (B + 1). None: all N rows are ONE conversation.
            lengths: (B) lengths of padded x. None: all L.
            reverse: Read every conversation from its last utterance to its first.

        Raises:
            ValueError: x of another rank, width or number of utterances; lengths with packed x, or a packing with
                padded x.
        """
        if x.ndim == 3:
            return _padded(self, self.d_model, x, packing, lengths, reverse=reverse)
        _check_packed(x, packing, lengths, self.d_model)
        inside, gate = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(_mix(inside, gate, self.inner, packing, reverse))

    def start(self, size: int) -> MambaState:
        """The initial state of ``size`` conversations."""
        weight, exact = self.in_proj.weight, _exact(self.in_proj.weight.dtype)
        return MambaState(
            weight.new_zeros(size, self.d_conv - 1, self.d_inner),
            weight.new_zeros(size, self.d_inner, self.d_state, dtype=exact),
        )

    def step(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Read the next utterance of each of B conversations, with the results of :meth:`forward`.

        Args:
            x: (B, d).
            state: The state returned by the previous step; None for the first. It is not changed.

        Returns:
            (B, d), and the new state.
        """
        check_rows(x, None, self.d_model)
        state = self.start(len(x)) if state is None else state
        inside, gate = self.in_proj(x).chunk(2, dim=-1)
        weights, exact = self.inner, _exact(inside.dtype)
        window = torch.cat([state.conv.to(inside.dtype), inside.unsqueeze(1)], dim=1)
        u = (window.to(exact) * weights.conv.t()).sum(1)
        u = F.silu(u if weights.conv_bias is None else u + weights.conv_bias).to(inside.dtype)
        delta, B, C = F.linear(u, weights.x_proj).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(F.linear(delta, weights.dt_proj).to(exact) + weights.dt_bias).unsqueeze(-1)
        ssm = (delta * -weights.A_log.to(exact).exp()).exp() * state.ssm
        ssm = ssm + delta * B.to(exact).unsqueeze(1) * u.to(exact).unsqueeze(-1)
        y = (ssm * C.to(exact).unsqueeze(1)).sum(-1) + weights.D * u.to(exact)
        y = (y * F.silu(gate.to(exact))).to(inside.dtype)
        return self.out_proj(y), MambaState(window[:, 1:], ssm)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Cast and move, but keep A_log, D and the bias of the steps out of half precision."""
        before = [parameter.detach() for parameter in (self.A_log, self.D, self.dt_proj.bias)]
        super()._apply(fn, recurse)
        for parameter, value in zip((self.A_log, self.D, self.dt_proj.bias), before, strict=True):
            if _exact(parameter.dtype) != parameter.dtype:
                exact = value if _exact(value.dtype) == value.dtype else value.float()
                parameter.data = exact.to(parameter.device)
        return self


class BidirectionalMamba(nn.Module):
    """Mamba's block in both directions, with one convolution and one scan.

    Two blocks of Gu & Dao (2023; equations in :class:`Mamba`), each of which begins at its own end of every
    conversation, and a combination of their outputs; the combinations are ours.

    Args:
        d_model: d, the width of input and output.
        tied: Share the weights of the two directions.
        combine: ``add``: the sum; ``concat``: a linear layer on both; ``gate``: g * forwards + (1 - g) * backwards, g
            in (0, 1) per channel computed from both.
        options: Options of both blocks, described in :class:`Mamba`: ``d_state`` (16), ``d_conv`` (4), ``expand`` (2),
            ``dt_rank``, ``dt_min``, ``dt_max``, ``dt_init``, ``dt_scale``, ``dt_init_floor``, ``conv_bias``, ``bias``.

    Raises:
        ValueError: an unknown ``combine``, or an option refused by :class:`Mamba`.

    Shapes:
        x (N, d) with the packing of the N utterances -> (N, d). x (B, L, d) with lengths (B) -> (B, L, d).

    Warning:
        Without a packing, all rows of x (N, d) are read as ONE conversation.

    Example:
        >>> layer = BidirectionalMamba(16, d_state=8)
        >>> layer(torch.randn(5, 16), Packing([3, 2])).shape
        torch.Size([5, 16])
    """

    def __init__(self, d_model: int, *, tied: bool = False, combine: str = "add", **options: Any) -> None:
        super().__init__()
        if combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}; found {combine!r}")
        self.tied, self.combine = tied, combine
        self.forwards = Mamba(d_model, **options)
        self.backwards = None if tied else Mamba(d_model, **options)
        self.both = None if combine == "add" else nn.Linear(2 * d_model, d_model)

    def forward(
        self, x: Tensor, packing: Packing | Tensor | None = None, *, lengths: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """(N, d) -> (N, d), or (B, L, d) -> (B, L, d).

        Args:
            x: Packed (N, d), or padded (B, L, d).
            packing: Packing of packed x, or its offsets (B + 1). None: all N rows are ONE conversation.
            lengths: (B) lengths of padded x. None: all L.

        Raises:
            ValueError: as in :meth:`Mamba.forward`.
        """
        if x.ndim == 3:
            return _padded(self, self.forwards.d_model, x, packing, lengths)
        _check_packed(x, packing, lengths, self.forwards.d_model)
        first, second = self.forwards, self.forwards if self.backwards is None else self.backwards
        if self.backwards is None:
            inside, gate = first.in_proj(x).chunk(2, dim=-1)
            weights = first.inner
        else:
            parts = F.linear(x, *_cat(first.in_proj, second.in_proj)).chunk(4, dim=-1)
            inside, gate = torch.stack(parts[::2]), torch.stack(parts[1::2])
            pairs = zip(first.inner, second.inner, strict=True)
            weights = _Weights(*(None if one is None else torch.stack([one, other]) for one, other in pairs))  # type: ignore[arg-type, list-item]
        y = _mix(inside, gate, weights, packing, "both")
        if self.both is None:  # One product computes both projections and their sum.
            weight = torch.cat([first.out_proj.weight, second.out_proj.weight], dim=1)
            bias = None if first.out_proj.bias is None else first.out_proj.bias + second.out_proj.bias
            return F.linear(torch.cat([y[0], y[1]], dim=-1), weight, bias)
        ahead, back = first.out_proj(y[0]), second.out_proj(y[1])
        mixed = self.both(torch.cat([ahead, back], dim=-1))
        return mixed if self.combine == "concat" else torch.lerp(back, ahead, mixed.sigmoid())


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _cat(one: nn.Linear, other: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one layer with the outputs of both, concatenated."""
    bias = None if one.bias is None else torch.cat([one.bias, other.bias])
    return torch.cat([one.weight, other.weight]), bias


def _mix(inside: Tensor, gate: Tensor, weights: _Weights, packing: Packing | Tensor | None, reverse: Any) -> Tensor:
    """Convolution, projections and scan: (N, E) and (N, E) -> (N, E), or (2, N, E) for both directions."""
    packing = Packing([gate.shape[-2]], gate.device) if packing is None else packing
    u = causal_conv(inside, weights.conv, weights.conv_bias, packing, reverse=reverse, activation="silu")
    R, S = weights.dt_proj.shape[-1], weights.A_log.shape[-1]
    delta, B, C = (u @ weights.x_proj.mT).split([R, S, S], dim=-1)
    exact = _exact(u.dtype)
    A = -weights.A_log.to(exact).exp()
    D, bias = weights.D.to(exact), weights.dt_bias.to(exact)
    # An explicit axis for the one group: otherwise (2, 2, S) could mean two directions or two groups.
    B, C = B.unsqueeze(-2), C.unsqueeze(-2)
    y = selective_scan(u, delta @ weights.dt_proj.mT, A, B, C, D, gate, bias, True, offsets=packing, reverse=reverse)
    assert isinstance(y, Tensor)
    return y


def _check_packed(x: Tensor, packing: Packing | Tensor | None, lengths: object, d: int) -> None:
    if lengths is not None:
        raise ValueError("lengths belong to a padded batch (B, L, d); a packed one takes a packing")
    check_rows(x, packing if isinstance(packing, Packing) else None, d, padded=True)


def _padded(
    block: nn.Module,
    d: int,
    x: Tensor,
    packing: object,
    lengths: Sequence[int] | Tensor | None,
    **arguments: bool,
) -> Tensor:
    """Run ``block`` on the utterances of padded x (B, L, d)."""
    B, L, width = x.shape
    if width != d:
        raise ValueError(f"x must be padded utterances (B, L, {d}); found {tuple(x.shape)}.")
    if packing is not None:
        raise ValueError("a packing belongs to packed x (N, d); a padded batch takes lengths")
    numbers = lengths.tolist() if isinstance(lengths, Tensor) else lengths
    sizes = [L] * B if numbers is None else [int(length) for length in numbers]
    if len(sizes) != B or min(sizes) < 1 or max(sizes) > L:
        raise ValueError(f"lengths must be {B} numbers from 1 to {L} for x of shape {tuple(x.shape)}; found {sizes}")
    rows = torch.tensor([b * L + t for b, n in enumerate(sizes) for t in range(n)]).to(x.device)
    y = block(x.flatten(0, 1).index_select(0, rows), Packing(sizes, x.device), **arguments)
    return y.new_zeros(B * L, y.shape[1]).index_copy(0, rows, y).unflatten(0, (B, L))
