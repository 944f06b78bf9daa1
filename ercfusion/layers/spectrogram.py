"""Spectrogram networks: from sequences of frames to one vector per utterance.

Utterances of different length are padded in one tensor. The padding never affects a result: every convolution sees
zeros there, as at the edge of a single utterance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import SequenceValues
from ercfusion.ops.processes import differentiable_sum, stands_in, sum_over_processes

# Multiples of ``channels`` in the four stages of ResNet-18; every stage after the first halves both axes.
_WIDTHS = (1, 2, 4, 8)
_BLOCKS = 2


def pad_sequences(stored: SequenceValues) -> tuple[Tensor, Tensor]:
    """Pad packed sequences.

    Shapes:
        values (sum of T_i, D) with offsets (N + 1) -> (N, T, D), zero in the padding, and the mask (N, T); T is the
        longest length, at least 1.
    """
    steps = stored.offsets.diff()
    longest = max(1, int(steps.max())) if len(steps) else 1
    mask = torch.arange(longest, device=steps.device) < steps[:, None]
    padded = stored.values.new_zeros(len(steps), longest, stored.values.shape[1])
    padded[mask] = stored.values
    return padded, mask


def random_crop(stored: SequenceValues, frames: int) -> SequenceValues:
    """Crop sequences of more than ``frames`` steps to ``frames``, at a random position.

    Draws one random number per utterance from torch's global generator, whatever the lengths.

    Shapes:
        values (sum of T_i, D) with offsets (N + 1) -> (sum of min(T_i, frames), D) with offsets (N + 1).
    """
    steps = stored.offsets.diff()
    sizes = steps.clamp(max=frames)
    draws = torch.rand(len(steps)).to(steps.device)
    first = stored.offsets[:-1] + (draws * (steps - sizes + 1)).long().clamp(max=steps - sizes)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(steps), device=steps.device), sizes)
    rows = torch.arange(int(offsets[-1]), device=steps.device) - offsets[owner] + first[owner]
    return SequenceValues(stored.values[rows], offsets, None if stored.positions is None else stored.positions[rows])


class SpecAugment(nn.Module):
    """Masks time stretches and bands of a spectrogram in training (Park et al., Interspeech 2019), and adds noise.

    Masked cells become 0, the mean after standardisation. Widths are uniform up to the limit, positions uniform, from
    torch's global generator.

    Args:
        time_masks, time_width: Stretches per utterance, and their largest width in frames, at most a fifth of the
            utterance each.
        band_masks, band_width: Number of stretches of bands, and their largest width.
        noise: Standard deviation of normal noise.

    Shapes:
        (N, T, D), mask (N, T) -> (N, T, D), zero if the mask is False.
    """

    def __init__(
        self,
        time_masks: int = 2,
        time_width: int = 20,
        band_masks: int = 2,
        band_width: int = 8,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        self.time_masks, self.time_width = time_masks, time_width
        self.band_masks, self.band_width = band_masks, band_width
        self.noise = noise

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Augmented values (N, T, D)."""
        if not self.training:
            return torch.where(mask[:, :, None], values, 0.0)
        if self.noise > 0:
            values = values + self.noise * torch.randn_like(values)
        steps = mask.sum(1)
        keep = mask[:, :, None].expand_as(values)
        for _ in range(self.time_masks):
            limit = torch.minimum(steps // 5, steps.new_tensor(self.time_width))
            keep = keep & ~_stretch(values.shape[1], steps, limit)[:, :, None]
        bands = steps.new_full((len(steps),), values.shape[2])
        for _ in range(self.band_masks):
            limit = bands.clamp(max=self.band_width)
            keep = keep & ~_stretch(values.shape[2], bands, limit)[:, None, :]
        return torch.where(keep, values, 0.0)


def _stretch(size: int, length: Tensor, limit: Tensor) -> Tensor:
    """(N, size) bool: a stretch of 0 to ``limit`` (N) cells within the first ``length`` (N)."""
    draws = torch.rand(2, len(length)).to(length.device)
    width = (draws[0] * (limit + 1)).long().clamp(max=limit)
    start = (draws[1] * (length - width + 1)).long()
    place = torch.arange(size, device=length.device)
    return (place >= start[:, None]) & (place < (start + width)[:, None])


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of padded spectrograms with the statistics of real frames.

    Statistics are those of a channel over all bands of the frames in the mask, of the whole batch in distributed
    training; in eval mode running averages. Without padding it equals :class:`torch.nn.BatchNorm2d`. If a channel has
    fewer than two values in training, the running averages are used and not updated.

    Args:
        channels: C.
        momentum: Share of a new batch in the running averages.
        epsilon: Added to variances.

    Shapes:
        (N, C, T, D), mask (N, T) -> (N, C, T, D), zero if the mask is False.
    """

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Buffer(torch.zeros(channels))
        self.running_variance = nn.Buffer(torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalised values (N, C, T, D)."""
        here = mask[:, None, :, None]
        mean: Tensor = self.running_mean
        variance: Tensor = self.running_variance
        if self.training:
            counted = here & (not stands_in())
            count = sum_over_processes((mask & (not stands_in())).sum() * x.shape[3])
            some = count > 1  # the variance of one value is undefined
            # In full precision under autocast, because sums over a batch of spectrograms lose digits.
            wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            present = torch.where(counted, wide, 0.0)
            own_mean = differentiable_sum(present.sum((0, 2, 3))) / count.clamp(min=1)
            deviation = torch.where(counted, wide - own_mean[:, None, None], 0.0)
            own_variance = differentiable_sum(deviation.square().sum((0, 2, 3))) / count.clamp(min=1)
            with torch.no_grad():
                share = torch.where(some, self.momentum, 0.0)
                spread = own_variance * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(own_mean.to(self.running_mean), share.to(self.running_mean))
                self.running_variance.lerp_(spread.to(self.running_variance), share.to(self.running_variance))
            mean = torch.where(some, own_mean, mean)
            variance = torch.where(some, own_variance, variance)
        scale = self.weight * (variance + self.epsilon).rsqrt()
        shift = self.bias - mean * scale
        return torch.where(here, x * scale[:, None, None] + shift[:, None, None], 0.0)


class _Block(nn.Module):
    """Two convolutions and a shortcut (He et al., CVPR 2016, figure 5 left)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.first_norm = MaskedBatchNorm(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second_norm = MaskedBatchNorm(outside)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut_norm = MaskedBatchNorm(outside)
        self.stride = stride

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask[:, :: self.stride]
        y = self.first_norm(self.first(x), mask).relu()
        y = self.second_norm(self.second(y), mask)
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x), mask)
        return (x + y).relu(), mask


class SpectrogramNet(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) on one-channel spectrograms of any length, without pooling and classifier.

    One step of the result covers 32 frames. Results do not depend on padding or on the batch.

    Args:
        channels: Channels of the first stage, doubled by every later one; 64 in ResNet-18.

    Shapes:
        (N, T, D), mask (N, T) -> (N, T', 8 channels), the mean over bands, and the mask (N, T'), with T' = T / 32
        rounded up.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, found {channels}")
        self.width = _WIDTHS[-1] * channels
        self.stem = nn.Conv2d(1, channels, 7, 2, padding=3, bias=False)
        self.stem_norm = MaskedBatchNorm(channels)
        blocks, inside = [], channels
        for stage, factor in enumerate(_WIDTHS):
            for number in range(_BLOCKS):
                blocks.append(_Block(inside, factor * channels, 2 if stage and not number else 1))
                inside = factor * channels
        self.blocks = nn.ModuleList(blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, T', 8 channels) and their mask (N, T')."""
        if values.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # torch 2.13 on a CPU: a bfloat16 convolution of stride 2 on an input of one column has gradients that are
            # not finite.
            with torch.autocast("cpu", enabled=False):
                return self._features(values.float(), mask)
        return self._features(values, mask)

    def _features(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.where(mask[:, :, None], values, 0.0)[:, None]
        mask = mask[:, ::2]
        x = self.stem_norm(self.stem(x), mask).relu()
        # After ReLU no value is below the zeros of the padding, so they do not change the maximum.
        x, mask = F.max_pool2d(x, 3, 2, padding=1), mask[:, ::2]
        x = torch.where(mask[:, None, :, None], x, 0.0)
        for block in self.blocks:
            x, mask = block(x, mask)
        return x.mean(3).transpose(1, 2), mask


def pool_frames(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean and maximum over the frames in the mask; zero without frames.

    Shapes:
        (N, T, D), mask (N, T) -> (N, 2 D), the mean first.
    """
    here = mask[:, :, None]
    mean = torch.where(here, frames, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    highest = frames.masked_fill(~here, -torch.inf).amax(1)
    return torch.cat([mean, torch.where(mask.any(1, keepdim=True), highest, 0.0)], dim=1)
