"""Exchange between the processes of distributed training, with the gradients of a single process.

Data-parallel training averages the gradients of W processes. This equals the gradient of one process only if the loss
is a mean over items and every process has equally many, not for losses over pairs or batch statistics.

Here every process collects the *outputs* of the whole batch (:class:`Shares`) and computes the loss L of the whole
batch. Let z_r be the rows of process r and w a weight used before the collection. Then dL/dw = sum_r dL/dz_r dz_r/dw.
Process r keeps only the path through its own rows, without communication in the backward pass. The average over
processes divides the sum by W, so the backward pass of the collection multiplies by W. The gradients of weights used
after the collection are equal in all processes, and so is their average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ercfusion.batch.packing import Packing

_stands_in: ContextVar[bool] = ContextVar("stands_in", default=False)


def processes() -> int:
    """Number of processes that train together; 1 without distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_world_size())
    return 1


@contextmanager
def standing_in() -> Iterator[None]:
    """Context in which rows of this process do not count in exchanges.

    A batch of fewer conversations than processes leaves some processes without any. They run the model on a stand-in to
    take part in the same exchanges.
    """
    token = _stands_in.set(True)
    try:
        yield
    finally:
        _stands_in.reset(token)


def stands_in() -> bool:
    """Whether this process has a stand-in instead of a share of the batch."""
    return _stands_in.get()


def sum_over_processes(counts: Tensor) -> Tensor:
    """Element-wise sum over all processes, in place and without gradient; ``counts`` itself with one process."""
    if processes() > 1:
        torch.distributed.all_reduce(counts)
    return counts


def longest_over_processes(packing: Packing) -> int:
    """Number of utterances of the longest conversation of the whole batch."""
    if processes() == 1:
        return packing.longest
    longest = torch.tensor(0 if stands_in() else packing.longest, device=packing.device)
    torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
    return int(longest)


class _Sum(torch.autograd.Function):
    """The sum y = sum_r x_r. Every process uses y, so dL/dx_r is the sum of the processes' gradients of y."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return sum_over_processes(value.detach().clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0].contiguous().clone())


def differentiable_sum(value: Tensor) -> Tensor:
    """Element-wise sum over all processes, with gradient; ``value`` itself with one process."""
    if processes() == 1:
        return value
    result: Tensor = _Sum.apply(value)
    return result


class Shares:
    """The distribution of the conversations of a batch over the processes.

    Args:
        packing: Packing of the conversations of this process.
        stand_in: They are a stand-in (see :func:`standing_in`).

    Attributes:
        packing: Packing of the whole batch. Conversations alternate between processes, as the sampler distributes them,
            which restores the order of a single process.
    """

    def __init__(self, packing: Packing, stand_in: bool = False) -> None:
        self.packing = packing
        self.stand_in = stand_in
        self.size = processes()
        if self.size == 1:
            return
        own = torch.tensor([] if stand_in else packing.lengths, dtype=torch.long, device=packing.device)
        count = torch.tensor([len(own)], device=packing.device)
        counts = [torch.zeros_like(count) for _ in range(self.size)]
        torch.distributed.all_gather(counts, count)
        lengths = [part.tolist() for part in _collect(own, [int(number) for number in counts])]
        self.rows = [sum(part) for part in lengths]
        dealt = sorted((place, rank) for rank, part in enumerate(lengths) for place in range(len(part)))
        self.packing = Packing([lengths[rank][place] for place, rank in dealt], packing.device)
        # Rows arrive process by process; row k of the whole batch is ``order[k]`` of them.
        firsts: dict[tuple[int, int], int] = {}
        total = 0
        for rank, part in enumerate(lengths):
            for place, length in enumerate(part):
                firsts[place, rank] = total
                total += length
        rows = [range(firsts[place, rank], firsts[place, rank] + lengths[rank][place]) for place, rank in dealt]
        self.order = torch.tensor([row for part in rows for row in part], device=packing.device)
        before = sum(self.rows[: torch.distributed.get_rank()])
        mine = torch.arange(before, before + int(own.sum()), device=packing.device)
        self.own = torch.argsort(self.order).index_select(0, mine)

    def gather(self, values: Tensor) -> Tensor:
        """Rows of the whole batch, differentiable in those of this process; ``values`` with one process.

        Shapes:
            (N, ...), the utterances of this process -> (N of the whole batch, ...).
        """
        if self.size == 1:
            return values
        if not values.is_floating_point():
            return self._gather(values)
        result: Tensor = _Gather.apply(values, self)
        return result

    def _gather(self, values: Tensor) -> Tensor:
        own = values[:0] if self.stand_in else values
        return torch.cat(_collect(own.detach(), self.rows)).index_select(0, self.order)


class _Gather(torch.autograd.Function):
    """The collection; its backward pass multiplies by W (see the module)."""

    @staticmethod
    def forward(context: Any, values: Tensor, shares: Shares) -> Tensor:
        context.shares, context.shape = shares, values.shape
        return shares._gather(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        shares: Shares = context.shares
        if shares.stand_in:
            return gradients[0].new_zeros(context.shape), None
        return shares.size * gradients[0].index_select(0, shares.own), None


def _collect(values: Tensor, numbers: Sequence[int]) -> list[Tensor]:
    """The tensors of all processes with these numbers of rows, in the order of their ranks."""
    # As bytes, because back ends differ in the types they support; padded, because gathered parts have equal size.
    row = math.prod(values.shape[1:]) * values.element_size()
    flat = torch.zeros(max(numbers) * row // values.element_size(), dtype=values.dtype, device=values.device)
    flat[: values.numel()] = values.reshape(-1)
    padded = flat.view(torch.uint8)
    parts = [torch.zeros_like(padded) for _ in numbers]
    torch.distributed.all_gather(parts, padded)
    return [
        part[: number * row].view(values.dtype).view(number, *values.shape[1:])
        for part, number in zip(parts, numbers, strict=True)
    ]
