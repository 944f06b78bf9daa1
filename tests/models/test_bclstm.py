from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.batch.inputs import InputSpec
from ercfusion.models import architecture_limits
from ercfusion.models.bclstm import BcLstm, ContextLSTM
from ercfusion.testing import WIDTHS, random_batch, take, without_dropout


def make(**options: Any) -> BcLstm:
    torch.manual_seed(0)
    model = BcLstm(InputSpec(WIDTHS), hidden=6, dense=5, **options)
    assert isinstance(without_dropout(model), BcLstm)
    return model


def level(model: ContextLSTM, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """One level by its parts, one conversation at a time."""
    rows = []
    for part in x.split(lengths):
        context = model.lstm.lstm(part)[0]
        read = torch.cat([context, part], 1) if model.residual else context
        rows.append(model.dense[1](read).relu())
    return torch.cat(rows)


@pytest.mark.parametrize("residual", [False, True])
def test_flat(residual: bool) -> None:
    model = make(residual=residual)
    batch = random_batch()
    x = torch.cat(list(batch.features.values()), dim=1)
    encoded = model(batch)
    torch.testing.assert_close(encoded.hidden, level(model.fuse, x, batch.packing.lengths))
    assert not encoded.modalities


@pytest.mark.parametrize("detach", [False, True])
def test_hierarchical(detach: bool) -> None:
    model = make(hierarchy="hierarchical", detach=detach)
    batch = random_batch()
    encoded = model(batch)
    lengths = batch.packing.lengths
    expected = {name: level(model.unimodal[name], value, lengths) for name, value in batch.features.items()}
    assert list(encoded.modalities) == list(WIDTHS)
    for name, value in expected.items():
        torch.testing.assert_close(encoded.modalities[name], value)
    torch.testing.assert_close(encoded.hidden, level(model.fuse, torch.cat(list(expected.values()), 1), lengths))


def test_a_detached_hierarchy_is_trained_level_by_level() -> None:
    model = make(hierarchy="hierarchical", detach=True)
    encoded = model(random_batch())
    encoded.hidden.sum().backward()
    assert all(parameter.grad is None for parameter in model.unimodal.parameters())
    assert all(parameter.grad is not None for parameter in model.fuse.parameters())
    before = {name: parameter.grad.clone() for name, parameter in model.fuse.named_parameters()}
    sum(value.sum() for value in encoded.modalities.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in model.unimodal.parameters())
    for name, parameter in model.fuse.named_parameters():
        assert torch.equal(parameter.grad, before[name])


def test_without_detach_the_levels_are_trained_together() -> None:
    model = make(hierarchy="hierarchical")
    model(random_batch()).hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in model.unimodal.parameters())


def test_the_second_half_reads_backwards() -> None:
    """A change of the last utterance reaches the first one, and only through the backward direction."""
    batch = random_batch((6,))
    changed = random_batch((6,))
    changed.features["text"][-1] += 1
    for bidirectional in (True, False):
        model = make(bidirectional=bidirectional)
        moved = (model(batch).hidden != model(changed).hidden).any(1)
        assert moved[-1]
        assert bool(moved[0]) is bidirectional


def test_absent_modalities() -> None:
    """As zeros without a projection; with one, as the learned vector."""
    batch = random_batch((4,))
    drop = torch.zeros_like(batch.available)
    drop[2, 1] = True
    zeroed = random_batch((4,))
    zeroed.features["audio"][2] = 0
    plain = make()
    assert torch.equal(plain(batch.hide(drop)).hidden, plain(zeroed).hidden)
    projected = make(projection=4)
    before = projected(batch.hide(drop)).hidden
    torch.nn.init.normal_(projected.project.absent["audio"])
    assert not torch.equal(projected(batch.hide(drop)).hidden, before)


@pytest.mark.parametrize("hierarchy", ["flat", "hierarchical"])
def test_an_lstm_that_reads_padding(hierarchy: str) -> None:
    """As released: shorter conversations are followed by zeros, and the score depends on the batch."""
    model = make(hierarchy=hierarchy, mask_padding=False)
    batch = random_batch((3, 6))
    seen: list[tuple[Tensor, Tensor]] = []
    for part in model.modules():
        if isinstance(part, ContextLSTM):
            part.lstm.register_forward_hook(
                lambda layer, given, out: seen.append((out, layer.lstm(given[1].pad(given[0]))[0]))
            )
    together = model(batch).hidden
    assert len(seen) == (1 if hierarchy == "flat" else 4)
    for out, padded in seen:
        torch.testing.assert_close(out, batch.packing.pack(padded))
    alone = model(take(batch, [0])).hidden
    assert not torch.allclose(alone, together[:3])
    torch.testing.assert_close(make(hierarchy=hierarchy)(take(batch, [0])).hidden, alone)
    assert architecture_limits("bclstm", {"mask_padding": False}).batch_dependence
    assert not architecture_limits("bclstm").batch_dependence
