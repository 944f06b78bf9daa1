from __future__ import annotations

import math

import pytest
import torch

from ercfusion.layers import ModalityProjection, Standardize
from ercfusion.testing import WIDTHS, fill_absent, make_task, random_batch, random_store


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_statistics_come_from_the_available_utterances() -> None:
    batch = random_batch(absent=0.4)  # NaN is stored in the absent places
    standardize = Standardize(WIDTHS)
    standardize.fit(batch)
    result = standardize(batch)
    for name, width in WIDTHS.items():
        rows = batch.features[name][batch.present[:, batch.column(name)]].double()
        assert 2 < len(rows) < batch.num_utterances
        mean, scale = rows.numpy().mean(0), 1 / rows.numpy().std(0)
        torch.testing.assert_close(standardize.get_buffer(f"mean_{name}"), torch.from_numpy(mean).float())
        torch.testing.assert_close(standardize.get_buffer(f"scale_{name}"), torch.from_numpy(scale).float())
        kept = result.features[name][batch.present[:, batch.column(name)]]
        torch.testing.assert_close(kept.mean(0), torch.zeros(width), atol=1e-5, rtol=0)
        torch.testing.assert_close(kept.std(0, correction=0), torch.ones(width), atol=1e-5, rtol=0)


def test_nothing_fitted_changes_nothing() -> None:
    batch = random_batch()
    result = Standardize(WIDTHS)(batch)
    for name in WIDTHS:
        assert torch.equal(result.features[name], batch.features[name])


def test_a_modality_without_any_utterance_is_left_as_it_is() -> None:
    batch = random_batch(steps={"audio": 3})
    drop = torch.zeros_like(batch.available)
    drop[:, :2] = True  # text, and the sequences of audio
    standardize = Standardize(WIDTHS)
    standardize.fit(batch.hide(drop))
    for name in ("text", "audio"):
        assert (standardize.get_buffer(f"mean_{name}") == 0).all()
        assert (standardize.get_buffer(f"scale_{name}") == 1).all()
    assert standardize.get_buffer("mean_visual").abs().max() > 0


def test_dropped_modalities_do_not_count() -> None:
    batch = random_batch()
    drop = torch.zeros_like(batch.available)
    drop[3:, 1] = True
    standardize = Standardize(WIDTHS)
    standardize.fit(fill_absent(batch.hide(drop), math.inf))
    torch.testing.assert_close(standardize.get_buffer("mean_audio"), batch.features["audio"][:3].mean(0))


def test_constant_dimensions_are_centred_only() -> None:
    batch = random_batch(widths={"text": 3})
    batch.features["text"][:, 1] = 1e6
    standardize = Standardize({"text": 3})
    standardize.fit(batch)
    assert standardize.get_buffer("scale_text")[1] == 1
    assert (standardize(batch).features["text"][:, 1] == 0).all()
    shifted = standardize.apply_to("text", torch.tensor([[0.0, 1e6 + 2, 0.0]]))
    assert shifted[0, 1] == 2


def test_sequence_features_use_the_statistics_of_their_steps() -> None:
    batch = random_batch(steps={"audio": 5}, absent=0.3)
    stored = batch.sequences["audio"]
    assert 0 in stored.offsets.diff()
    assert len(set(stored.offsets.diff().tolist())) > 2
    standardize = Standardize(WIDTHS)
    standardize.fit(batch)
    torch.testing.assert_close(standardize.get_buffer("mean_audio"), stored.values.mean(0))
    result = standardize(batch)
    torch.testing.assert_close(result.sequences["audio"].values.std(0, correction=0), torch.ones(WIDTHS["audio"]))
    # The utterance's mean is standardised in the same way, so that it still is the mean of its steps.
    first = result.sequences["audio"].values[: stored.offsets[1]].mean(0)
    torch.testing.assert_close(result.features["audio"][0], first, atol=1e-5, rtol=1e-5)


def test_statistics_travel_with_the_weights() -> None:
    fitted, fresh = Standardize(WIDTHS), Standardize(WIDTHS)
    fitted.fit(random_store(tasks=[make_task()]).batch(range(3)))
    fresh.load_state_dict(fitted.state_dict())
    batch = random_batch(seed=1)
    for name in WIDTHS:
        assert torch.equal(fitted(batch).features[name], fresh(batch).features[name])
    assert not list(fitted.parameters())


def test_projection() -> None:
    batch = random_batch(absent=0.4)
    layer = ModalityProjection(WIDTHS, 6)
    for vector in layer.absent.values():
        torch.nn.init.normal_(vector)
    projected = layer(batch)
    assert list(projected) == list(WIDTHS)
    for name in WIDTHS:
        present = batch.present[:, batch.column(name)]
        linear = layer.project[name]
        torch.testing.assert_close(projected[name][present], linear(batch.features[name][present]))
        assert torch.equal(projected[name][~present], layer.absent[name].expand(int((~present).sum()), 6))


def test_merged_modalities() -> None:
    batch = random_batch(absent=0.4)
    layer = ModalityProjection(WIDTHS, 6)
    assert layer.widths == dict.fromkeys(WIDTHS, 6)
    assert layer.merged_features == 6
    one, two, three = layer(batch).values()
    torch.testing.assert_close(layer.merge(batch), one + two + three)
    mixer = layer.mixer(0.0)
    assert isinstance(mixer, torch.nn.Sequential)
    expected = mixer[2](torch.nn.functional.gelu(one + two + three))
    torch.testing.assert_close(mixer(layer.merge(batch)), expected)


def test_without_a_common_width_features_stay_as_they_are() -> None:
    batch = random_batch(absent=0.4)
    layer = ModalityProjection(WIDTHS, 0)
    assert not layer.state_dict()
    assert layer.widths == dict(WIDTHS)
    assert layer.merged_features == sum(WIDTHS.values())
    values = [batch.values(name) for name in WIDTHS]
    assert all(map(torch.equal, layer(batch).values(), values))
    assert torch.equal(layer.mixer(0.5)(layer.merge(batch)), torch.cat(values, 1))


def test_projection_trains_the_absent_vector_where_a_modality_is_absent() -> None:
    batch = random_batch(absent=0.4)
    layer = ModalityProjection(WIDTHS, 6)
    torch.stack(list(layer(batch).values())).sum().backward()
    for name in WIDTHS:
        column = batch.column(name)
        count = int((~batch.present[:, column]).sum())
        assert torch.equal(layer.absent[name].grad, torch.full((6,), float(count)))
        assert all(parameter.grad.isfinite().all() for parameter in layer.project[name].parameters())
        assert layer.project[name].bias.grad[0] == batch.num_utterances - count
