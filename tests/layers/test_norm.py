from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from shared_batches import Threads
from torch import Tensor

from ercfusion.layers import MaskedBatchNorm, SharedBatchNorm
from ercfusion.models.vectors import PresentBatchNorm
from ercfusion.ops.processes import standing_in


def test_one_process_has_torchs_own() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = SharedBatchNorm(3), torch.nn.BatchNorm1d(3)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for _ in range(2):
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(ours.running_var, theirs.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_rows_use_the_running_statistics(rows: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 3)
    everyone = torch.ones(rows, dtype=torch.bool)
    for norm, last in ((SharedBatchNorm(3), ()), (PresentBatchNorm(3), (everyone,))):
        norm(x, *([torch.ones(9, dtype=torch.bool)] if last else []))
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        own = x[:rows].clone().requires_grad_()
        found = norm(own, *last)
        found.sum().backward()
        assert torch.equal(found, norm.eval()(own, *last))
        assert own.grad is not None
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_one_value_of_a_channel_uses_the_running_averages() -> None:
    torch.manual_seed(0)
    norm = MaskedBatchNorm(2)
    norm(torch.randn(3, 2, 4, 1), torch.ones(3, 4, dtype=torch.bool))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x, mask = torch.randn(1, 2, 3, 1), torch.tensor([[True, False, False]])
    found = norm(x, mask)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(found, norm.eval()(x, mask))


@pytest.mark.parametrize("rows", [(4, 3), (6, 1), (2, 0), (1, 0)])
def test_processes_share_their_statistics(rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, gradients and running averages are those of torch on all rows; a stand-in counts in none of them."""
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(max(number, 2), 3, generator=generator, dtype=torch.double) for number in rows]
    weights = [torch.randn(max(number, 2), 3, generator=generator, dtype=torch.double) for number in rows]
    norms = [SharedBatchNorm(3).double() for _ in rows]

    def work(rank: int) -> tuple[Tensor, Tensor]:
        x = parts[rank][: rows[rank] or 2].clone().requires_grad_()
        with nullcontext() if rows[rank] else standing_in():
            y = norms[rank](x)
        counted = 1.0 if rows[rank] else 0.0
        (counted * y * weights[rank][: len(x)]).sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad

    found = Threads(monkeypatch, 2).run(work)
    real = [rank for rank, number in enumerate(rows) if number]
    x = torch.cat([parts[rank][: rows[rank]] for rank in real]).requires_grad_()
    norm = torch.nn.BatchNorm1d(3).double()
    y = norm(x) if len(x) > 1 else norm.eval()(x)  # of one row nothing is learnt
    (y * torch.cat([weights[rank][: rows[rank]] for rank in real])).sum().backward()
    torch.testing.assert_close(torch.cat([found[rank][0] for rank in real]), y.detach())
    torch.testing.assert_close(torch.cat([found[rank][1] for rank in real]), x.grad)
    for other in norms:
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value)


def test_rows_that_are_absent_count_in_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    present = torch.tensor([True, False, False, True, True, True])
    one = PresentBatchNorm(2).double()
    expected = one(x, present)
    norms = [PresentBatchNorm(2).double() for _ in range(3)]
    # The middle one has no row that is present.
    found = Threads(monkeypatch, 3).run(
        lambda rank: norms[rank](x[2 * rank : 2 * rank + 2], present[2 * rank : 2 * rank + 2])
    )
    torch.testing.assert_close(torch.cat(found), expected)
    torch.testing.assert_close(norms[1].running_var, one.running_var)


def test_spectrograms_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 2, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 4])[:, None]
    one = MaskedBatchNorm(2).double()
    expected = one(x, mask)
    norms = [MaskedBatchNorm(2).double() for _ in range(3)]

    def work(rank: int) -> Tensor:
        if rank == 2:
            with standing_in():
                return norms[2](9 * x, mask)
        return norms[rank](x[2 * rank : 2 * rank + 2], mask[2 * rank : 2 * rank + 2])

    found = Threads(monkeypatch, 3).run(work)
    torch.testing.assert_close(torch.cat(found[:2]), expected)
    for norm in norms:
        torch.testing.assert_close(norm.running_variance, one.running_variance)
