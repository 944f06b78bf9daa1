"""Shared parts of the losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

# Shorter vectors become zero: their gradient would be 1 / length.
_SHORTEST = 1e-6


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss without autocast, half-precision arguments as float32.

    Exponentials of similarities divided by 0.07 need it: bfloat16 has eight bits, float16 ends at 65504.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **settings: P.kwargs) -> R:
        device = next((value.device.type for value in arguments if isinstance(value, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(_widened, arguments), **{name: _widened(value) for name, value in settings.items()})

    return wrapped


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def unit(vectors: Tensor) -> Tensor:
    """Unit vectors (N, D); a vector shorter than 1e-6 becomes zero, without gradient."""
    square = vectors.square().sum(-1, keepdim=True)
    long = square > _SHORTEST**2
    return torch.where(long, vectors * torch.where(long, square, 1.0).rsqrt(), 0.0)


def distances(vectors: Tensor) -> Tensor:
    """Euclidean distances (N, N) of vectors (N, D), from one matrix product.

    Centring saves digits. Distances below about 3e-4 of the spread (float32) are lost in rounding; at 0 the gradient is
    0.
    """
    vectors = vectors - vectors.detach().sum(0) / max(len(vectors), 1)
    square = vectors.square().sum(1)
    squares = square[:, None] + square - 2 * vectors @ vectors.t()
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def rows_of(valid: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The ``valid`` (N) rows of every tensor; all rows for None."""
    if valid is None:
        return tensors
    rows = valid.nonzero().squeeze(1)
    return tuple(tensor.index_select(0, rows) for tensor in tensors)


def check_labels(vectors: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless each vector has a label."""
    if vectors.ndim != 2 or tuple(labels.shape) != (len(vectors),):
        raise ValueError(
            f"expected vectors (N, D) and labels (N), found {tuple(vectors.shape)} and {tuple(labels.shape)}. "
            "Give one label per vector."
        )


def check_above_zero(name: str, value: float) -> None:
    """Raise ValueError unless the setting is finite and above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, found {value}. Choose a positive number.")


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless the setting is finite and at least 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0, found {value}. Choose another number.")
