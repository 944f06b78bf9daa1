from __future__ import annotations

import pytest
import torch

from ercfusion.layers import PackedLSTM
from ercfusion.ops import Packing


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("lengths", [(3, 1, 6, 2), (4, 4), (5,), (1,)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_a_run_over_each_conversation(bidirectional: bool, layers: int, lengths: tuple[int, ...]) -> None:
    packing = Packing(lengths)
    layer = PackedLSTM(4, 3, layers, bidirectional=bidirectional).double()
    x = torch.randn(packing.total, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(packing.total, layer.out_features, dtype=torch.float64)
    out = layer(x, packing)
    expected = torch.cat([layer.lstm(part)[0] for part in x.split(lengths)])
    assert out.shape == (packing.total, 6 if bidirectional else 3) == weight.shape
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *layer.parameters()]
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def test_the_cell_by_its_formula() -> None:
    layer = PackedLSTM(2, 3, bidirectional=False).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    h = c = torch.zeros(3, dtype=torch.float64)
    rows = []
    lstm = layer.lstm
    for row in x:
        gates = lstm.weight_ih_l0 @ row + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        i, f, g, o = gates.split(3)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        rows.append(h)
    torch.testing.assert_close(layer(x, Packing((4,))), torch.stack(rows), rtol=1e-10, atol=1e-12)


def test_dropout_is_between_layers_only() -> None:
    x, packing = torch.randn(6, 4), Packing((4, 2))
    single = PackedLSTM(4, 3, dropout=0.9)
    assert torch.equal(single(x, packing), single(x, packing))
    double = PackedLSTM(4, 3, layers=2, dropout=0.9)
    assert not torch.equal(double(x, packing), double(x, packing))
