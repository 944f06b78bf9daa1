from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ercfusion.batch.inputs import InputSpec
from ercfusion.models.dagerc import DagErc
from ercfusion.ops.dag import dag_windows
from ercfusion.ops.dag_reference import dag_recursion_reference
from ercfusion.testing import WIDTHS, random_batch

RELEASED: dict[str, Any] = {"projection": 0, "input_dropout": 0.0, "layers": 3, "hidden": 24, "dropout": 0.2}


def test_released_form() -> None:
    """H^0 = ReLU(W x + b), the recurrence, all layers and the features to a two-layer classifier."""
    torch.manual_seed(0)
    model = DagErc(InputSpec(WIDTHS), **RELEASED).double().eval()
    batch = random_batch((4, 9, 1), dtype=torch.float64, speakers=3)
    state = model.state_dict()
    x = torch.cat(list(batch.features.values()), 1)
    h = F.linear(x, state["encode.linear.weight"], state["encode.linear.bias"]).relu()
    first = dag_windows(batch.speaker, batch.packing, 1)[None]
    layers = dag_recursion_reference(h, first, batch.speaker, batch.packing, model.recur.weights)[0]
    out = torch.cat([h, *layers, x], 1)
    for part in (0, 2):
        out = F.linear(out, state[f"readout.{part}.weight"], state[f"readout.{part}.bias"]).relu()
    torch.testing.assert_close(model(batch).hidden, out, rtol=1e-10, atol=1e-11)


def test_parameters_of_the_released_form() -> None:
    """On 1024 text features with four layers of 300: 13.3 million less the 7.1 million that nothing uses."""
    with torch.device("meta"):
        model = DagErc(InputSpec({"text": 1024}), projection=0, hidden=300, layers=4)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 6.2


@pytest.mark.parametrize("window", [1, 2])
def test_how_far_back_one_layer_hears(window: int) -> None:
    """Only through its predecessors, which hear their own: so everything earlier is heard, nothing later."""
    batch, changed = (random_batch((8,), dtype=torch.float64) for _ in range(2))
    changed.features["text"][3] += 1
    torch.manual_seed(0)
    model = DagErc(InputSpec(WIDTHS), layers=1, window=window).double().eval()
    heard = (model(batch).hidden != model(changed).hidden).any(1)
    assert heard.tolist() == [t >= 3 for t in range(8)]


def test_one_speaker_and_window_one_is_a_chain() -> None:
    """Every window holds the utterance before and no other: its attention cannot matter."""
    batch = random_batch((8, 5), dtype=torch.float64)
    batch.speaker.zero_()
    torch.manual_seed(0)
    model = DagErc(InputSpec(WIDTHS)).double().eval()
    before = model(batch).hidden
    with torch.no_grad():
        model.recur.query.mul_(-30.0)
    assert torch.equal(model(batch).hidden, before)
    batch.speaker[:] = torch.arange(13) % 3
    with_three = model(batch).hidden
    with torch.no_grad():
        model.recur.query.mul_(-1.0)
    assert not torch.equal(model(batch).hidden, with_three)
