"""What all losses share: full precision, unit vectors, distances, and the choice of the rows that count."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# Vectors shorter than this have no direction: they stay zero and get no gradient, instead of one of 1 / length.
_SHORTEST = 1e-6


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss outside of autocast, its half-precision arguments as float32; float64 stays float64.

    A similarity divided by a temperature of 0.07 and then exponentiated has no digits to spare: bfloat16 has eight
    bits, and float16 ends at 65504.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **settings: P.kwargs) -> R:
        device = next((entry.device.type for entry in arguments if isinstance(entry, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(_widened, arguments), **{name: _widened(value) for name, value in settings.items()})

    return wrapped


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, (N, D) -> (N, D); one shorter than 1e-6 becomes zero and gets no gradient."""
    square = vectors.square().sum(-1, keepdim=True)
    long = square > _SHORTEST**2
    return torch.where(long, vectors * torch.where(long, square, 1.0).rsqrt(), 0.0)


def distances(vectors: Tensor) -> Tensor:
    """(N, D) -> (N, N) Euclidean distances, from one matrix product.

    Around the vectors' mean, which changes no distance and saves digits. Two vectors that are closer than about the
    root of the rounding error (3e-4 of the spread in float32) are known to be that close and no better; at a distance
    of 0 the gradient is 0.
    """
    vectors = vectors - vectors.detach().sum(0) / max(len(vectors), 1)
    square = vectors.square().sum(1)
    squares = square[:, None] + square - 2 * vectors @ vectors.t()
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def rows_of(valid: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows that are ``valid`` (N bool; None keeps all) of every tensor."""
    if valid is None:
        return tensors
    rows = valid.nonzero().squeeze(1)
    return tuple(tensor.index_select(0, rows) for tensor in tensors)


def check_labels(vectors: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless there is a label for every vector."""
    if vectors.ndim != 2 or tuple(labels.shape) != (len(vectors),):
        raise ValueError(
            f"expected vectors (N, D) and labels (N), found {tuple(vectors.shape)} and {tuple(labels.shape)}"
        )


def check_above_zero(name: str, value: float) -> None:
    """Raise ValueError, which names the setting, unless it is a number above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, found {value}")


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError, which names the setting, unless it is a number of 0 or more."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0, found {value}")
