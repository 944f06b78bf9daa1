"""Encoders that are trained for their vectors: one a modality, each utterance by itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch, SequenceValues
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.spectrogram import SpecAugment, SpectrogramNet, pad_sequences, pool_frames, random_crop
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import CountOrNone, NonNegative, Share, Space, Width, WidthOrNone

# Frames, padding included, that are encoded together in eval mode: 64 MiB for a stem of 16 channels and 64 bands.
_FRAMES = 1 << 16


class UtteranceEncoder(Architecture):
    """One encoder a modality, for extractors of features (after M2FNet, Chudasama et al., CVPR workshops 2022).

    M2FNet learns its audio and visual features before it fuses them: a ResNet-18 on log-mel spectrograms, networks on
    faces and scenes with a maximum over time, each ended by a projection to 300 numbers, trained with a triplet loss.
    This is that step for the features that a corpus has; ``docs/metric-learning.md`` says how the vectors become a
    feature pack.

    *A spectrogram* (the modalities that ``spectrogram`` names, where they come as sequences) goes through
    :class:`ercfusion.layers.SpectrogramNet`. In training long ones are cut at a random place, and stretches of time and
    bands are hidden. *Anything else* is a sequence of vectors, a single one counting as a sequence of length 1: a dense
    layer on every frame. Both end in mean and maximum over time and the projection (linear, ReLU, linear).

    A modality's representation is the projection as it is, which variance and covariance terms need. A classifier reads
    it at the length sqrt(embedding), so that it sees the directions alone, as feature packs hold them.

    Args:
        inputs: Modalities, widths and levels.
        embedding: Width of a modality's vector; 300 in the paper.
        spectrogram: Modalities that are spectrograms, joined by ``+``; those that the data lacks, or has as single
            vectors, are passed over.
        channels: Channels of the first stage of the convolution network; 64 in ResNet-18.
        hidden: Width of the dense layer on the frames of other modalities.
        dropout: Dropout probability before the projection.
        frames: In training, longer spectrograms are cut to this many frames at a random place; 0 cuts none.
        time_masks: Stretches of time hidden in training (see :class:`ercfusion.layers.SpecAugment`).
        time_width: Largest width of a hidden stretch in frames; never more than a fifth of the utterance.
        band_masks: Stretches of bands hidden in training.
        band_width: Largest width of a hidden stretch in bands.
        noise: Standard deviation of the noise added in training, in units of the standardised bands.

    Shapes:
        batch -> hidden (N, M embedding), the modalities' vectors side by side; one representation (N, embedding) a
        modality.
    """

    capabilities = Capabilities(contextual=False, causal=True)

    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.embedding": {"choices": [64, 128, 300]},
        "model.channels": {"choices": [8, 16, 32]},
        "model.hidden": {"choices": [64, 128, 256]},
        "model.dropout": {"low": 0.0, "high": 0.7, "step": 0.05},
        "model.noise": {"low": 0.0, "high": 0.5, "step": 0.05},
        "training.batch_size": {"choices": [16, 32, 64]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        embedding: Width = 128,
        spectrogram: str = "audio",
        channels: Width = 8,
        hidden: Width = 128,
        dropout: Share = 0.3,
        frames: WidthOrNone = 128,
        time_masks: CountOrNone = 2,
        time_width: WidthOrNone = 20,
        band_masks: CountOrNone = 2,
        band_width: WidthOrNone = 8,
        noise: NonNegative = 0.1,
    ) -> None:
        super().__init__(inputs)
        self.frames = frames
        self.hidden_size = embedding * len(inputs.widths)
        self.augment = SpecAugment(time_masks, time_width, band_masks, band_width, noise)
        pictures = [name for name in spectrogram.split("+") if inputs.levels.get(name) == "sequence"]
        self.spectrograms = nn.ModuleDict({name: SpectrogramNet(channels) for name in pictures})
        self.dense = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
                for name, width in inputs.widths.items()
                if name not in pictures
            }
        )
        pooled = {name: 2 * (8 * channels if name in pictures else hidden) for name in inputs.widths}
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Dropout(dropout), nn.Linear(width, embedding), nn.ReLU(), nn.Linear(embedding, embedding)
                )
                for name, width in pooled.items()
            }
        )
        self.absent = nn.ParameterDict({name: nn.Parameter(torch.zeros(embedding)) for name in inputs.widths})

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        encoded: dict[str, Tensor] = {}
        read = []
        for name in self.inputs.modalities:
            here = batch.present[:, batch.column(name)]
            if self.inputs.levels[name] == "sequence":
                stored = batch.sequence(name)
                # A sequence without a step is no observation, whatever the mask says.
                here = here & (stored.offsets.diff() > 0)
                pooled = self._pooled(name, stored, here)
            else:
                pooled = pool_frames(self.dense[name](batch.values(name))[:, None], here[:, None])
            vectors = self.project[name](pooled)
            encoded[name] = torch.where(here[:, None], vectors, self.absent[name])
            # In float32 under autocast, as it is a norm; numbers of about 1, which a classifier learns best from.
            unit = F.normalize(vectors.float() if vectors.dtype == torch.bfloat16 else vectors, dim=1)
            read.append(torch.where(here[:, None], unit * vectors.shape[1] ** 0.5, self.absent[name]))
        return Encoded(torch.cat(read, dim=1), modalities=encoded)

    def _pooled(self, name: str, stored: SequenceValues, here: Tensor) -> Tensor:
        """(N, D') mean and maximum over the frames of a sequence; absent utterances count in no statistic."""
        picture = name in self.spectrograms
        if picture and self.training and self.frames:
            stored = random_crop(stored, self.frames)
        values, mask = pad_sequences(stored)
        mask = mask & here[:, None]
        if not picture:
            return pool_frames(self.dense[name](values), mask)
        values = self.augment(values, mask)
        if self.training:
            return pool_frames(*self.spectrograms[name](values, mask))
        # A whole split at a time, or long recordings: parts, which in eval mode know nothing of each other.
        rows = max(1, _FRAMES // values.shape[1])
        parts = zip(values.split(rows), mask.split(rows), strict=True)
        return torch.cat([pool_frames(*self.spectrograms[name](*part)) for part in parts])
