"""Encoders trained for their vectors."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch, SequenceValues
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.absent import absent_vectors, put_absent
from ercfusion.layers.spectrogram import SpecAugment, SpectrogramNet, pad_sequences, pool_frames, random_crop
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import CountOrNone, NonNegative, Share, Space, Width, WidthOrNone

# Frames (with padding) encoded together in eval mode: 64 MiB for a stem of 16 channels and 64 bands.
_FRAMES = 1 << 16


class UtteranceEncoder(Architecture):
    """One encoder per modality, to train feature extractors (after M2FNet, Chudasama et al., CVPR workshops 2022).

    - *Paper*: ResNet-18 on log-mel spectrograms, networks on faces and scenes with a maximum over time; each with a
      projection to 300 numbers and a triplet loss.
    - *Here*: the same step on the features of a corpus (``docs/metric-learning.md``).

    Spectrograms (modalities in ``spectrogram``, given as sequences) pass through
    :class:`ercfusion.layers.SpectrogramNet`, in training after a random crop and masks. Other modalities are sequences
    of vectors, possibly of length 1, with a dense layer per frame. Mean and maximum over time and a projection (linear,
    ReLU, linear) follow.

    The representation is the unscaled projection, as variance and covariance terms need. The classifier reads it at
    length sqrt(embedding): only the direction, as in feature packs.

    Args:
        inputs: Modalities, widths and levels.
        embedding: Width of a modality's vector; 300 in the paper.
        spectrogram: Spectrogram modalities, joined by ``+``; ignored if missing or single vectors.
        channels: Channels of the first convolution stage; 64 in ResNet-18.
        hidden: Width of the dense layer of other modalities.
        dropout: Dropout probability before the projection.
        frames: Frames of the random crop in training; 0 for none.
        time_masks: Masked stretches of time in training.
        time_width: Longest masked stretch in frames, at most a fifth of the utterance.
        band_masks: Masked stretches of bands in training.
        band_width: Widest masked stretch in bands.
        noise: Standard deviation of noise in training, in units of standardised bands.

    Shapes:
        batch -> hidden (N, M * embedding); one representation (N, embedding) per modality.
    """

    capabilities = Capabilities(contextual=False, causal=True, skips=True)

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
        spectrograms = [name for name in spectrogram.split("+") if inputs.levels.get(name) == "sequence"]
        self.spectrograms = nn.ModuleDict({name: SpectrogramNet(channels) for name in spectrograms})
        self.dense = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
                for name, width in inputs.widths.items()
                if name not in spectrograms
            }
        )
        pooled = {name: 2 * (8 * channels if name in spectrograms else hidden) for name in inputs.widths}
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Dropout(dropout), nn.Linear(width, embedding), nn.ReLU(), nn.Linear(embedding, embedding)
                )
                for name, width in pooled.items()
            }
        )
        self.absent = absent_vectors(dict.fromkeys(inputs.widths, embedding), inputs.policy)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode each modality."""
        encoded: dict[str, Tensor] = {}
        scaled = []
        for name in self.inputs.modalities:
            present = batch.present[:, batch.column(name)]
            if self.inputs.levels[name] == "sequence":
                stored = batch.sequence(name)
                # An empty sequence counts as absent.
                present = present & (stored.offsets.diff() > 0)
                pooled = self._pooled(name, stored, present)
            else:
                pooled = pool_frames(self.dense[name](batch.values(name))[:, None], present[:, None])
            vectors = self.project[name](pooled)
            encoded[name] = put_absent(vectors, present, self.absent, name)
            # The norm needs float32 under autocast. Numbers of about 1 suit the classifier.
            unit = F.normalize(vectors.float() if vectors.dtype == torch.bfloat16 else vectors, dim=1)
            scaled.append(put_absent(unit * vectors.shape[1] ** 0.5, present, self.absent, name))
        return Encoded(torch.cat(scaled, dim=1), modalities=encoded)

    def _pooled(self, name: str, stored: SequenceValues, present: Tensor) -> Tensor:
        """(N, D') mean and maximum over the frames; absent utterances enter no statistic."""
        is_spectrogram = name in self.spectrograms
        if is_spectrogram and self.training and self.frames:
            stored = random_crop(stored, self.frames)
        values, mask = pad_sequences(stored)
        mask = mask & present[:, None]
        if not is_spectrogram:
            return pool_frames(self.dense[name](values), mask)
        values = self.augment(values, mask)
        if self.training:
            return pool_frames(*self.spectrograms[name](values, mask))
        # Whole splits and long recordings in parts: in eval mode rows are independent.
        rows = max(1, _FRAMES // values.shape[1])
        parts = zip(values.split(rows), mask.split(rows), strict=True)
        return torch.cat([pool_frames(*self.spectrograms[name](*part)) for part in parts])
