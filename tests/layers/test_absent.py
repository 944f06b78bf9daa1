"""Absent modalities: fills, and layers over the present utterances only."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ercfusion.batch.packing import Packing
from ercfusion.layers import ModalityProjection, PackedLSTM, Standardize
from ercfusion.layers.absent import FillAbsent, over_present
from ercfusion.testing import WIDTHS, random_batch, random_store
from ercfusion.testing.batches import fill_absent


def fitted():
    standardize = Standardize(WIDTHS).double()
    store = random_store((9, 8), absent=0.2, seed=3)
    standardize.fit(store.batch(range(len(store))))
    return standardize


def filled(policy, batch, standardize):
    fill = FillAbsent(WIDTHS, policy).double()
    for number, vector in enumerate(fill.vectors.values()):
        nn.init.constant_(vector, 5.0 + number)
    return fill(standardize(batch), standardize.apply_to), fill


@pytest.mark.parametrize("policy", ["zero", "mean", "learned"])
def test_absent_values_are_filled_and_count_as_present(policy):
    standardize = fitted()
    batch = random_batch(absent=0.4, dtype=torch.float64)
    result, fill = filled(policy, batch, standardize)
    assert result.present.all()
    for column, name in enumerate(batch.modalities):
        here = batch.present[:, column]
        mean, scale = standardize.get_buffer(f"mean_{name}"), standardize.get_buffer(f"scale_{name}")
        expected = {"zero": -mean * scale, "mean": torch.zeros_like(mean)}.get(policy)
        if expected is None:
            expected = fill.vectors[name]
        assert not here.all()
        torch.testing.assert_close(result.features[name][~here], expected.expand(int((~here).sum()), -1))
        torch.testing.assert_close(result.features[name][here], (batch.features[name][here] - mean) * scale)


def test_zero_is_the_value_zero_and_equals_the_mean_without_statistics():
    standardize = fitted()
    batch = random_batch(absent=0.4, dtype=torch.float64)
    stored = fill_absent(batch, 0.0)
    as_value = standardize(replace(stored, available=torch.ones_like(stored.available)))
    zero, _ = filled("zero", batch, standardize)
    mean, _ = filled("mean", batch, standardize)
    for name in WIDTHS:
        torch.testing.assert_close(zero.features[name], as_value.features[name])
    assert not torch.allclose(zero.features["visual"], mean.features["visual"])
    fresh = Standardize(WIDTHS).double()
    first, second = filled("zero", batch, fresh)[0], filled("mean", batch, fresh)[0]
    assert all(torch.equal(first.features[name], second.features[name]) for name in WIDTHS)


def test_an_absent_or_empty_sequence_is_one_step():
    batch = random_batch(absent=0.4, steps={"audio": 4}, dtype=torch.float64)
    stored = batch.sequences["audio"]
    counts = stored.offsets.diff()
    here = batch.present[:, 1] & (counts > 0)
    assert (batch.present[:, 1] & (counts == 0)).any()
    result, fill = filled("learned", batch, Standardize(WIDTHS).double())
    new = result.sequences["audio"]
    assert new.offsets.diff().tolist() == torch.where(here, counts, 1).tolist()
    for n in range(batch.num_utterances):
        own = new.values[new.offsets[n] : new.offsets[n + 1]]
        expected = stored.values[stored.offsets[n] : stored.offsets[n + 1]] if here[n] else fill.vectors["audio"][None]
        torch.testing.assert_close(own, expected)


def test_steps_keep_their_places_and_the_fill_is_the_first():
    batch = random_batch((4,), steps={"audio": 4}, seed=1)
    counts = batch.sequences["audio"].offsets.diff()
    assert counts[0] == 4
    assert counts[-1] == 0
    hidden = torch.arange(int(counts.sum())) == 0
    batch = batch.hide(torch.zeros_like(batch.available), {"audio": hidden})
    filled_batch = FillAbsent(WIDTHS, "mean")(batch, lambda name, values: values)
    stored, new = batch.sequences["audio"], filled_batch.sequences["audio"]
    assert new.positions.tolist()[:3] == stored.positions.tolist()[:3] == [1, 2, 3]
    assert new.positions.tolist()[-1] == 0
    assert len(new.positions) == len(new.values) == len(stored.values) + int((stored.offsets.diff() == 0).sum())


@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", ["zero", "mean", "learned"])
def test_stored_values_reach_neither_values_nor_gradients(policy, content):
    batch = fill_absent(random_batch(absent=0.4, steps={"audio": 4}, dtype=torch.float64), content)
    steps = batch.sequences["audio"].values.requires_grad_()
    features = {name: value.requires_grad_() for name, value in batch.features.items()}
    result, fill = filled(policy, replace(batch, features=features), fitted())
    total = sum(value.square().sum() for value in result.features.values())
    (total + result.sequences["audio"].values.square().sum()).backward()
    for value in (*features.values(), steps, *fill.vectors.values()):
        assert value.grad.isfinite().all()
    for column, name in enumerate(WIDTHS):
        assert not features[name].grad[~batch.present[:, column]].any()
        assert features[name].grad[batch.present[:, column]].any()


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="policy must be one of zero, mean, learned; found 'skip'"):
        FillAbsent(WIDTHS, "skip")


def test_projection_leaves_absent_modalities_out_of_the_sum():
    torch.manual_seed(0)
    layer = ModalityProjection(WIDTHS, 6, "skip")
    assert not layer.absent
    batch = random_batch(absent=0.4)
    merged = layer.merge(batch)
    for n in range(batch.num_utterances):
        own = [
            layer.project[name](batch.features[name][n])
            for column, name in enumerate(WIDTHS)
            if batch.present[n, column]
        ]
        torch.testing.assert_close(merged[n], torch.stack(own).sum(0) if own else torch.zeros(6))


def test_layer_over_present_utterances_equals_it_without_the_others():
    torch.manual_seed(0)
    layer, packing = PackedLSTM(3, 4), Packing([4, 2, 3])
    present = torch.tensor([True, False, True, True, False, False, True, True, False])
    x = torch.randn(9, 3)
    result = over_present(layer, torch.where(present[:, None], x, math.nan), present, packing)
    torch.testing.assert_close(result[[0, 2, 3]], layer(x[[0, 2, 3]], Packing([3])))
    torch.testing.assert_close(result[[6, 7]], layer(x[[6, 7]], Packing([2])))
    assert not result[~present].any()


def test_layer_over_no_utterance_is_zero_with_gradients():
    layer = PackedLSTM(3, 4)
    result = over_present(layer, torch.randn(3, 3), torch.zeros(3, dtype=torch.bool), Packing([2, 1]))
    assert not result.any()
    result.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())
