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
