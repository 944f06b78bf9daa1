from __future__ import annotations

import torch

from ercfusion.layers import RelativeBias
from ercfusion.ops import Packing


def test_gradient_is_the_same_every_time_on_several_threads() -> None:
    """Sums over many pairs must not depend on which thread comes first: a resumed run has to repeat them."""
    torch.manual_seed(0)
    packing = Packing([40] * 16)
    speaker = torch.randint(0, 3, (packing.total,))
    weights = torch.randn(16, 4, 40, 40)
    bias = RelativeBias(4, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(10):
            bias.zero_grad()
            (bias(packing, speaker) * weights).sum().backward()
            assert bias.weight.grad is not None
            gradients.append(bias.weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_biases_by_hand() -> None:
    """Rows are receivers; distances beyond the lags share the outermost bias at either end; block 2: same speaker."""
    bias = RelativeBias(1, 2)
    with torch.no_grad():
        bias.weight.copy_(torch.arange(10.0))  # other speaker: lag -2 is 0, ..., lag 2 is 4; same speaker: 5 to 9
    packing, speaker = Packing([5, 2]), torch.tensor([0, 1, 0, 0, 1, 0, 1])
    found = bias(packing, speaker)
    assert found[0, 0].tolist() == [
        [7.0, 1.0, 5.0, 5.0, 0.0],
        [3.0, 7.0, 1.0, 0.0, 5.0],
        [9.0, 3.0, 7.0, 6.0, 0.0],
        [9.0, 4.0, 8.0, 7.0, 1.0],
        [4.0, 9.0, 4.0, 3.0, 7.0],
    ]
    assert found[1, 0, :2, :2].tolist() == [[7.0, 1.0], [3.0, 7.0]]
    assert bias.pairs(torch.tensor([-9, 9]), torch.tensor([False, True])).tolist() == [[0.0, 9.0]]
