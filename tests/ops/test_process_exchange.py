from __future__ import annotations

import pytest
import torch
from shared_batches import Threads
from torch import Tensor

from ercfusion.batch.packing import Packing
from ercfusion.ops.processes import (
    Shares,
    differentiable_sum,
    longest_over_processes,
    processes,
    standing_in,
    stands_in,
    sum_over_processes,
)


def test_one_process_changes_nothing() -> None:
    packing = Packing([2, 1])
    shares = Shares(packing)
    values = torch.randn(3, 4, requires_grad=True)
    assert shares.packing is packing
    assert shares.gather(values) is values
    assert differentiable_sum(values) is values
    assert sum_over_processes(values) is values
    assert longest_over_processes(packing) == 2
    assert processes() == 1


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.long, torch.bool])
def test_rows_come_in_the_order_of_one_process(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [3, 1, 2]  # of three conversations; a fourth process has none
    whole = torch.arange(12).view(6, 2).to(dtype)
    rows = whole.split(lengths)

    def work(rank: int) -> tuple[Tensor, Tensor, tuple[int, ...], int]:
        mine = list(range(rank, 3, size))
        stand_in = not mine
        own = torch.cat([rows[b] for b in mine]) if mine else torch.full((7, 2), 9).to(dtype)
        packing = Packing([lengths[b] for b in mine] or [7])
        shares = Shares(packing, stand_in)
        if stand_in:
            with standing_in():
                longest = longest_over_processes(packing)
        else:
            longest = longest_over_processes(packing)
        return shares.gather(own), shares.gather(own[:, 0]), shares.packing.lengths, longest

    for gathered, column, found, longest in Threads(monkeypatch, size).run(work):
        assert gathered.dtype == dtype
        assert torch.equal(gathered, whole)
        assert torch.equal(column, whole[:, 0])
        assert found == (3, 1, 2)
        assert longest == 3


def test_the_average_of_the_gradients_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=generator, dtype=torch.double)
    before = torch.randn(3, 4, generator=generator, dtype=torch.double)
    after = torch.randn(4, 4, generator=generator, dtype=torch.double)
    rows = ([0, 1, 4], [2, 3])  # conversations of 2, 2 and 1 utterances

    def loss(hidden: Tensor, second: Tensor) -> Tensor:
        return ((hidden @ second) @ hidden.t()).logsumexp(1).sum()  # of pairs

    def work(rank: int) -> list[Tensor]:
        first, second = before.clone().requires_grad_(), after.clone().requires_grad_()
        shares = Shares(Packing([[2, 1], [2]][rank]))
        loss(shares.gather(inputs[rows[rank]] @ first), second).backward()
        assert first.grad is not None
        assert second.grad is not None
        return [first.grad, second.grad]

    first, second = before.clone().requires_grad_(), after.clone().requires_grad_()
    loss(inputs @ first, second).backward()
    for expected, *found in zip((first.grad, second.grad), *Threads(monkeypatch, 2).run(work), strict=True):
        torch.testing.assert_close(torch.stack(found).mean(0), expected)


def test_a_sum_has_the_gradient_of_all_who_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(rank: int) -> tuple[float, float]:
        value = torch.tensor(float(rank + 1), requires_grad=True)
        total = differentiable_sum(value)
        (total * (rank + 2)).backward()
        assert value.grad is not None
        return float(total.detach()), float(value.grad)

    assert Threads(monkeypatch, 2).run(work) == [(3.0, 5.0), (3.0, 5.0)]


def test_standing_in_ends_with_its_block() -> None:
    assert not stands_in()
    with standing_in():
        assert stands_in()
        with standing_in():
            assert stands_in()
        assert stands_in()
    assert not stands_in()
