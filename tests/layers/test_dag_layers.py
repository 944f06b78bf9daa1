from __future__ import annotations

import pytest
import torch

from ercfusion.layers.dag import DagStack
from ercfusion.ops import Packing
from ercfusion.ops.dag import dag_windows
from ercfusion.ops.dag_reference import dag_recursion_reference


@pytest.mark.parametrize("attention", ["dagerc", "gat"])
def test_stack(attention: str) -> None:
    torch.manual_seed(0)
    layer = DagStack(6, 3, (1, 2), attention).double()
    packing = Packing((7, 1, 5))
    speaker, h = torch.randint(3, (13,)), torch.randn(13, 6, dtype=torch.float64)
    first = torch.stack([dag_windows(speaker, packing, window) for window in (1, 2)])
    found = layer(h, speaker, packing)
    torch.testing.assert_close(
        found,
        dag_recursion_reference(h, first, speaker, packing, layer.weights, attention),  # type: ignore[arg-type]
        rtol=1e-11,
        atol=1e-12,
    )
    assert not torch.equal(found[0], found[1])
    state = layer.start()
    steps = torch.stack([state.step(h[t], int(speaker[t])) for t in range(7)], 2)
    torch.testing.assert_close(steps, found[:, :, :7], rtol=1e-11, atol=1e-12)


def test_stacks_are_independent() -> None:
    """A stack gives what it gives alone; its gradient reaches its own weights only."""
    torch.manual_seed(0)
    both, alone = DagStack(6, 2, (1, 3)).double(), DagStack(6, 2, (3,)).double()
    alone.load_state_dict({name: value[1:] for name, value in both.state_dict().items()})
    packing = Packing((9, 4))
    speaker, h = torch.randint(2, (13,)), torch.randn(13, 6, dtype=torch.float64)
    found = both(h, speaker, packing)
    torch.testing.assert_close(found[1:], alone(h, speaker, packing), rtol=1e-12, atol=1e-13)
    found[1].sum().backward()
    for name, parameter in both.named_parameters():
        assert parameter.grad is not None
        assert not parameter.grad[0].any(), name
        assert parameter.grad[1].any(), name


def test_initial_values() -> None:
    torch.manual_seed(0)
    layer = DagStack(50, 2, (1,))
    for name, parameter in layer.named_parameters():
        bound = 0.1 if name == "query" else 50**-0.5
        assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_refusals() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1, found 0"):
        DagStack(4, 0)
    for windows in ((), (1, 0)):
        with pytest.raises(ValueError, match="windows must be at least 1"):
            DagStack(4, 1, windows)
    with pytest.raises(ValueError, match="attention must be one of dagerc, gat; found 'none'"):
        DagStack(4, 1, (1,), "none")
