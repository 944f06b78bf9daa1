"""Spectrogram layers against plain loops over single utterances, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import SequenceValues
from ercfusion.layers import (
    MaskedBatchNorm,
    SpecAugment,
    SpectrogramNet,
    pad_sequences,
    pool_frames,
    random_crop,
)

LENGTHS = [5, 70, 1, 33, 32]


def sequences(lengths: list[int], width: int = 6, seed: int = 0) -> SequenceValues:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), width, generator=generator, dtype=torch.float64)
    return SequenceValues(values, torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]))


def each(stored: SequenceValues) -> list[Tensor]:
    return list(stored.values.split(stored.offsets.diff().tolist()))


# Padding, pooling, cropping


def test_padding_and_pooling_by_loops() -> None:
    stored = sequences([3, 0, 5, 1])
    stored.values.requires_grad_()
    padded, mask = pad_sequences(stored)
    assert padded.shape == (4, 5, 6)
    assert mask.sum(1).tolist() == [3, 0, 5, 1]
    assert not padded[~mask].any()
    found = pool_frames(padded, mask)
    expected = torch.stack(
        [torch.cat([one.mean(0), one.amax(0)]) if len(one) else torch.zeros(12).double() for one in each(stored)]
    )
    torch.testing.assert_close(found, expected)
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (one,) = torch.autograd.grad((found * weights).sum(), stored.values, retain_graph=True)
    (other,) = torch.autograd.grad((expected * weights).sum(), stored.values)
    torch.testing.assert_close(one, other)


def test_nothing_at_all() -> None:
    for lengths in ([], [0, 0]):
        padded, mask = pad_sequences(SequenceValues(torch.zeros(0, 4), torch.zeros(len(lengths) + 1).long()))
        assert padded.shape == (len(lengths), 1, 4)
        assert pool_frames(padded, mask).tolist() == [[0.0] * 8] * len(lengths)


def test_random_crops_are_stretches_of_the_whole() -> None:
    stored = sequences([3, 0, 9, 4, 20], width=1)
    torch.manual_seed(0)
    firsts = []
    for _ in range(200):
        cropped = random_crop(stored, 4)
        assert cropped.offsets.diff().tolist() == [3, 0, 4, 4, 4]
        for whole, part in zip(each(stored), each(cropped), strict=True):
            starts = [s for s in range(len(whole) - len(part) + 1) if torch.equal(whole[s : s + len(part)], part)]
            assert starts
            firsts.append(starts[0])
    assert set(firsts[2::5]) == set(range(6))  # the first and the last place included
    assert set(firsts[4::5]) == set(range(17))
    torch.manual_seed(3)
    one = random_crop(stored, 4).values
    torch.manual_seed(3)
    assert torch.equal(random_crop(stored, 4).values, one)
    assert random_crop(stored, 4).positions is None
    torch.manual_seed(3)
    cropped = random_crop(replace(stored, positions=torch.arange(36)), 4)
    assert torch.equal(stored.values[cropped.places], one)


# Augmentation


def test_augmentation_hides_what_it_says() -> None:
    values = torch.ones(40, 50, 16)
    steps = torch.arange(11, 51)
    mask = torch.arange(50) < steps[:, None]
    torch.manual_seed(0)
    layer = SpecAugment(time_masks=1, time_width=6, band_masks=1, band_width=3, noise=0.0)
    widths: set[tuple[int, int]] = set()
    for _ in range(20):
        hidden = layer(values, mask) == 0
        assert hidden[~mask].all()
        for row, number in enumerate(steps.tolist()):
            own = hidden[row, :number]
            times, bands = own.all(1), own.all(0)
            assert torch.equal(own, times[:, None] | bands)  # one stretch of each, and nothing else
            assert times.sum() <= min(6, number // 5)
            assert bands.sum() <= 3
            for stretch in (times, bands):
                places = stretch.nonzero().flatten().tolist()
                assert places == list(range(places[0], places[-1] + 1) if places else ())
            widths.add((int(times.sum()), int(bands.sum())))
    assert {time for time, _ in widths} == set(range(7))
    assert {band for _, band in widths} == set(range(4))
    assert torch.equal(layer.eval()(values, mask), mask[:, :, None] * values)


def test_noise_has_its_deviation_and_stays_within() -> None:
    torch.manual_seed(0)
    mask = torch.arange(60) < torch.tensor([60, 20])[:, None]
    layer = SpecAugment(0, 0, 0, 0, noise=0.3)
    found = layer(torch.zeros(2, 60, 64), mask)
    assert found[mask].std().item() == pytest.approx(0.3, rel=0.03)
    assert not found[~mask].any()
    assert not layer.eval()(torch.zeros(2, 60, 64), mask).any()


# Normalisation


def test_normalisation_of_whole_pictures_is_torchs() -> None:
    torch.manual_seed(0)
    own, torchs = MaskedBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    mask = torch.ones(4, 7, dtype=torch.bool)
    for _ in range(3):
        x = torch.randn(4, 3, 7, 5, dtype=torch.float64, requires_grad=True)
        one, other = own(x, mask), torchs(x)
        torch.testing.assert_close(one, other)
        weights = torch.randn_like(one)
        gradients = [
            torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
            for y, layer in ((one, own), (other, torchs))
        ]
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own.running_mean, torchs.running_mean)
    torch.testing.assert_close(own.running_variance, torchs.running_var)
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(own.eval()(x, mask[:2]), torchs.eval()(x))


def test_statistics_are_of_real_frames_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 2, 0])[:, None]
    layer = MaskedBatchNorm(2).double()
    found = layer(x, mask)
    real = x.transpose(1, 2)[mask]  # (8, C, D)
    mean, variance = real.mean((0, 2)), real.var((0, 2), correction=0)
    expected = (real - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    torch.testing.assert_close(found.transpose(1, 2)[mask], expected)
    assert not found.transpose(1, 2)[~mask].any()
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    other = torch.where(mask[:, None, :, None], x, 1e6)
    torch.testing.assert_close(MaskedBatchNorm(2).double()(other, mask), found)


def test_without_a_frame_the_running_averages_are_used_and_kept() -> None:
    layer = MaskedBatchNorm(2)
    layer.running_mean.fill_(3.0)
    x = torch.randn(2, 2, 4, 3, requires_grad=True)
    found = layer(x, torch.zeros(2, 4, dtype=torch.bool))
    assert not found.any()
    found.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert layer.running_mean.tolist() == [3.0, 3.0]
    assert layer.running_variance.tolist() == [1.0, 1.0]


# The network


def plain_network(net: SpectrogramNet, one: Tensor) -> Tensor:
    """The network on a single utterance (T, D) -> (T', width), from torch's functions alone."""

    def norm(layer: MaskedBatchNorm, x: Tensor) -> Tensor:
        means, variances = layer.running_mean, layer.running_variance
        return F.batch_norm(x, means, variances, layer.weight, layer.bias, False, 0.0, layer.epsilon)

    x = norm(net.stem_norm, F.conv2d(one[None, None], net.stem.weight, stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for number, block in enumerate(net.blocks):
        stride = 2 if number in (2, 4, 6) else 1
        y = norm(block.first_norm, F.conv2d(x, block.first.weight, stride=stride, padding=1)).relu()
        y = norm(block.second_norm, F.conv2d(y, block.second.weight, padding=1))
        if block.shortcut is not None:
            x = norm(block.shortcut_norm, F.conv2d(x, block.shortcut.weight, stride=stride))
        x = (x + y).relu()
    return x[0].mean(2).t()


def lively(channels: int) -> SpectrogramNet:
    """A network in eval mode whose normalisations shift and scale, so that a leak through padding would show."""
    torch.manual_seed(0)
    net = SpectrogramNet(channels).double().eval()
    for module in net.modules():
        if isinstance(module, MaskedBatchNorm):
            nn.init.normal_(module.bias, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_variance, 0.5, 2.0)
    return net


def test_every_utterance_has_the_result_that_it_has_alone() -> None:
    net = lively(2)
    stored = sequences(LENGTHS, width=20)
    stored.values.requires_grad_()
    padded, mask = pad_sequences(stored)
    found, held = net(torch.where(mask[:, :, None], padded, torch.nan), mask)
    assert found.shape == (5, 3, 16)
    assert held.sum(1).tolist() == [-(-length // 32) for length in LENGTHS]
    assert not found[~held].any()
    expected = [plain_network(net, one) for one in each(stored)]
    torch.testing.assert_close(found[held], torch.cat(expected))
    weights = torch.randn(int(held.sum()), 16, dtype=torch.float64)
    inputs = [stored.values, *net.parameters()]
    gradients = torch.autograd.grad((found[held] * weights).sum(), inputs)
    for one, other in zip(gradients, torch.autograd.grad((torch.cat(expected) * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_in_training_what_is_hidden_has_no_effect() -> None:
    torch.manual_seed(0)
    stored = sequences(LENGTHS, width=16)
    padded, mask = pad_sequences(stored)
    wide = torch.full((6, 90, 16), torch.nan, dtype=torch.float64)
    wide[:5, : padded.shape[1]] = torch.where(mask[:, :, None], padded, torch.nan)
    longer = torch.zeros(6, 90, dtype=torch.bool)
    longer[:5, : mask.shape[1]] = mask
    results = []
    for values, held in ((padded, mask), (wide, longer)):
        torch.manual_seed(1)
        net = SpectrogramNet(2).double()
        found, left = net(values, held)
        found[left].square().sum().backward()
        gradients = [parameter.grad for parameter in net.parameters()]
        results.append([found[left], *gradients, *net.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_size_of_the_published_network() -> None:
    # ResNet-18 has 11.69 million parameters; without its classifier, and with one channel instead of three:
    assert sum(p.numel() for p in SpectrogramNet(64).parameters()) == 11_689_512 - 513_000 - 2 * 64 * 49
    with pytest.raises(ValueError, match="channels must be at least 1"):
        SpectrogramNet(0)
