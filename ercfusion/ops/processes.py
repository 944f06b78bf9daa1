"""What the processes of distributed training do together, so that they train as one process does.

Data-parallel training gives each of W processes a share of every batch and averages their gradients. That average is
the gradient of one process only if the loss is a mean over things of which each process has equally many. A loss over
pairs, a statistic of the batch, or shares of different size break it.

So here every process gets the *outputs* for the whole batch (:class:`Shares`) and computes the loss of the whole
batch, as one process would. Let z_r be the rows of process r, and L the loss of all rows. Process r keeps the path to
its own rows only: it needs no communication in the backward pass, and finds dL/dz_r * dz_r/dw for a weight w. The sum
of these over r is dL/dw, but their average is taken: hence the factor W in the backward pass of the collection.
Weights that are used after the collection get the whole gradient in every process, and the average changes nothing.
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
    """Number of processes that train together; 1 outside of distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_world_size())
    return 1


@contextmanager
def standing_in() -> Iterator[None]:
    """While it is open, rows of this process do not count in what processes compute together.

    A batch of fewer conversations than processes leaves some without one. They run the model on a stand-in, so that
    all processes take part in the same exchanges.
    """
    token = _stands_in.set(True)
    try:
        yield
    finally:
        _stands_in.reset(token)


def stands_in() -> bool:
    """Whether this process has a stand-in for a share of the batch (see :func:`standing_in`)."""
    return _stands_in.get()


def sum_over_processes(counts: Tensor) -> Tensor:
    """Element-wise sum over all processes, in place and without a gradient; ``counts`` itself if there is one."""
    if processes() > 1:
        torch.distributed.all_reduce(counts)
    return counts


def longest_over_processes(packing: Packing) -> int:
    """Utterances of the longest conversation of the whole batch."""
    if processes() == 1:
        return packing.longest
    longest = torch.tensor(0 if stands_in() else packing.longest, device=packing.device)
    torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
    return int(longest)


class _Sum(torch.autograd.Function):
    """The sum over processes. Each of them uses it, so that the gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return sum_over_processes(value.detach().clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0].contiguous().clone())


def differentiable_sum(value: Tensor) -> Tensor:
    """Element-wise sum over all processes, with its gradient; ``value`` itself if there is one process."""
    if processes() == 1:
        return value
    result: Tensor = _Sum.apply(value)
    return result


class Shares:
    """How the conversations of a batch are spread over the processes.

    Args:
        packing: Of the conversations of this process.
        stand_in: Whether they stand in for none (see :func:`standing_in`).

    Attributes:
        packing: Of the whole batch. Conversations alternate between processes, as the sampler deals them out, so that
            their order is that of a single process.
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
        # Rows arrive process by process; ``order`` says which of them is the k-th of the whole batch.
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
        """Rows of the whole batch, with a gradient for those of this process; ``values`` if there is one process.

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
    """The tensors of all processes, of these numbers of rows, in the order of their ranks."""
    # As bytes: back ends differ in the types that they exchange.
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
