from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from ercfusion.batch.inputs import InputSpec
from ercfusion.models.concat import Concat
from ercfusion.testing import WIDTHS, random_batch


def test_by_its_formula() -> None:
    torch.manual_seed(0)
    model = Concat(InputSpec(WIDTHS), hidden=8).double().eval()
    for vector in model.absent.values():
        torch.nn.init.normal_(vector)
    batch = random_batch((3, 5), absent=0.4, dtype=torch.float64)
    encoded = model(batch)
    state = model.state_dict()
    for row in range(batch.num_utterances):
        parts = []
        for column, name in enumerate(WIDTHS):
            if batch.available[row, column]:
                weight, bias = (state[f"encoders.{name}.1.{part}"] for part in ("weight", "bias"))
                parts.append(F.gelu(weight @ batch.features[name][row] + bias))
            else:
                parts.append(state[f"absent.{name}"])
            torch.testing.assert_close(encoded.modalities[name][row], parts[-1])
        fused = F.gelu(state["fuse.0.weight"] @ torch.cat(parts) + state["fuse.0.bias"])
        torch.testing.assert_close(encoded.hidden[row], fused)


def test_dropout_on_the_input_and_after_it() -> None:
    torch.manual_seed(0)
    batch = random_batch()
    quiet = Concat(InputSpec(WIDTHS), dropout=0.0, input_dropout=0.0)
    assert torch.equal(quiet(batch).hidden, quiet(batch).hidden)
    for options in ({"dropout": 0.5, "input_dropout": 0.0}, {"dropout": 0.0, "input_dropout": 0.5}):
        model = Concat(InputSpec(WIDTHS), **options)
        assert not torch.equal(model(batch).hidden, model(batch).hidden)


def test_without_activation_it_is_affine() -> None:
    torch.manual_seed(0)
    first, second = (random_batch((3, 5), seed=seed, dtype=torch.float64) for seed in (1, 2))
    mixed = {name: 0.3 * first.features[name] + 0.7 * second.features[name] for name in WIDTHS}
    for activation, affine in (("none", True), ("relu", False), ("gelu", False)):
        model = Concat(InputSpec(WIDTHS), activation=activation).double().eval()
        expected = 0.3 * model(first).hidden + 0.7 * model(second).hidden
        assert torch.allclose(model(replace(first, features=mixed)).hidden, expected) is affine
