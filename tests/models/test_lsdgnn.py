from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.inputs import InputSpec
from ercfusion.models.lsdgnn import BiaffineExchange, Lsdgnn, difference, difference_released
from ercfusion.ops import Packing
from ercfusion.ops.dag import dag_windows
from ercfusion.ops.dag_reference import dag_recursion_reference
from ercfusion.ops.processes import Shares
from ercfusion.testing import WIDTHS, random_batch

RELEASED: dict[str, Any] = {
    "projection": 0,
    "input_dropout": 0.0,
    "residual": False,
    "scale": False,
    "difference": "released",
    "hidden": 16,
}


def exchange_loop(layer: BiaffineExchange, short: Tensor, long: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Utterance by utterance, layer by layer."""
    outputs = []
    for asking, weight, other in ((short, layer.short_long, long), (long, layer.long_short, short)):
        rows, start = [], 0
        for length in lengths:
            for t in range(start, start + length):
                stop = t + 1 if layer.causal else start + length
                shares = [
                    (other[start:stop, n] @ (asking[t, n] @ weight) * layer.scale).softmax(0)
                    for n in range(short.shape[1])
                ]
                rows.append(torch.stack([share @ other[start:stop, n] for n, share in enumerate(shares)]))
            start += length
        outputs.append(torch.stack(rows))
    return outputs


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(4, 1, 6), (5,)])
def test_exchange(lengths: tuple[int, ...], causal: bool) -> None:
    torch.manual_seed(0)
    layer = BiaffineExchange(6, causal=causal).double()
    inputs = [torch.randn(sum(lengths), 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    measured = []
    for outputs in (layer(*inputs, Packing(lengths)), exchange_loop(layer, *inputs, lengths)):
        total = sum((value * value.detach().cos()).sum() for value in outputs)
        assert isinstance(total, Tensor)
        measured.append([*outputs, *torch.autograd.grad(total, [*inputs, *layer.parameters()])])
    for found, expected in zip(*measured, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_scale() -> None:
    torch.manual_seed(0)
    scaled, plain = BiaffineExchange(16), BiaffineExchange(16, scale=False)
    plain.load_state_dict({name: value / 4 for name, value in scaled.state_dict().items()})
    short, long = torch.randn(2, 5, 2, 16)
    for found, expected in zip(plain(short, long, Packing((5,))), scaled(short, long, Packing((5,))), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("residual", [False, True])
def test_forward_by_its_parts(residual: bool) -> None:
    torch.manual_seed(0)
    model = Lsdgnn(InputSpec(WIDTHS), **{**RELEASED, "residual": residual}).double().eval()
    batch = random_batch((4, 9, 1), dtype=torch.float64, speakers=3)
    state, lengths = model.state_dict(), batch.packing.lengths
    x = torch.cat(list(batch.features.values()), 1)
    h = F.linear(x, state["encode.linear.weight"], state["encode.linear.bias"]).relu()
    first = torch.stack([dag_windows(batch.speaker, batch.packing, window) for window in (1, 5)])
    stacks = dag_recursion_reference(h, first, batch.speaker, batch.packing, model.recur.weights).transpose(1, 2)
    found = exchange_loop(model.exchange, *stacks, lengths)
    if residual:
        found = [own + looked_up for own, looked_up in zip(stacks, found, strict=True)]
    out = torch.cat([h, h, *(found[s][:, n] for n in range(2) for s in range(2)), x], 1)
    for part in (0, 2):
        out = F.linear(out, state[f"readout.{part}.weight"], state[f"readout.{part}.bias"]).relu()
    encoded = model(batch)
    torch.testing.assert_close(encoded.hidden, out, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(
        encoded.losses["difference"](Shares(batch.packing)), difference_released(*stacks, batch.packing)
    )


def test_dropout_leaves_the_last_exchange_alone() -> None:
    torch.manual_seed(0)
    batch = random_batch((6, 3))
    model = Lsdgnn(InputSpec(WIDTHS), layers=2, hidden=8, input_dropout=0.0, residual=False)
    model.dropout.p, model.readout[-1].p = 0.99, 0.0  # type: ignore[assignment]
    read: list[Tensor] = []
    model.readout.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model(batch)
    model.eval()(batch)
    trained, evaluated = (value[:, 16:48].unflatten(1, (2, 16)) for value in read)
    torch.testing.assert_close(trained[:, 1], evaluated[:, 1])
    assert (trained[:, 0] == 0).float().mean() > 0.9


def test_difference() -> None:
    """Opposite vectors are 2 apart, equal ones give the bound; size and order are moot."""
    torch.manual_seed(0)
    vectors = torch.randn(7, 3, 4, dtype=torch.float64)
    assert float(difference(vectors, -2 * vectors)) == pytest.approx(3 / 2.1)
    equal = vectors.clone().requires_grad_()
    bound = difference(equal, vectors)
    assert float(bound.detach()) == pytest.approx(30, rel=1e-3)
    (gradient,) = torch.autograd.grad(bound, equal)
    assert gradient.isfinite().all()
    apart = torch.randn(7, 3, 4, dtype=torch.float64)
    by_hand = 0.0
    for layer in range(3):
        distances = [
            float((a / a.norm() - b / b.norm()).norm()) for a, b in zip(vectors[:, layer], apart[:, layer], strict=True)
        ]
        by_hand += 1 / (sum(distances) / 7 + 0.1)
    assert float(difference(vectors, apart)) == pytest.approx(by_hand)
    assert difference(vectors.half(), apart.half()).dtype == torch.float32


def test_difference_of_the_released_code() -> None:
    torch.manual_seed(0)
    lengths = (2, 4, 1)
    short, long = torch.randn(2, 7, 2, 3, dtype=torch.float64)
    by_hand = 0.0
    for layer in range(2):
        rows = []
        for stack in (short, long):
            padded = torch.zeros(3, 4, 3, dtype=torch.float64)
            for b, part in enumerate(stack[:, layer].split(lengths)):
                padded[b, : len(part)] = part
            flat = padded.flatten(1)
            flat = flat - flat.mean(0)
            rows.append(flat / flat.norm(dim=1, keepdim=True))
        by_hand += 1 / float((rows[0] - rows[1]).norm(dim=1).mean())
    assert float(difference_released(short, long, Packing(lengths))) == pytest.approx(by_hand, rel=1e-5)


def test_difference_of_one_conversation() -> None:
    """Infinite in the released code; ours is defined, and both have a gradient."""
    torch.manual_seed(0)
    short, long = torch.randn(2, 5, 2, 3).requires_grad_()
    assert float(difference_released(short, long, Packing((5,))).detach()) == 0.0
    assert 0 < float(difference(short, long).detach()) < 20


def test_training_on_the_difference_moves_the_stacks_apart() -> None:
    torch.manual_seed(0)
    batch = random_batch((6, 9))
    model = Lsdgnn(InputSpec(WIDTHS), hidden=8, input_dropout=0.0)
    optimizer = torch.optim.SGD(model.recur.parameters(), lr=0.3)
    values = []
    for _ in range(5):
        loss = model(batch).losses["difference"](Shares(batch.packing))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.95 * values[0]


def test_equal_windows_and_weights_are_one_stack_twice() -> None:
    torch.manual_seed(0)
    model = Lsdgnn(InputSpec(WIDTHS), hidden=8, short=2, long=2).double().eval()
    with torch.no_grad():
        for parameter in model.recur.parameters():
            parameter[1] = parameter[0]
    batch = random_batch((6, 3), dtype=torch.float64)
    assert float(model(batch).losses["difference"](Shares(batch.packing)).detach()) == pytest.approx(20, rel=1e-3)
    with torch.no_grad():
        model.recur.windows = (1, 2)
    assert float(model(batch).losses["difference"](Shares(batch.packing)).detach()) < 19
