"""MPLMM's prompts as in its authors' program, for comparison: one sample after another.

Guo, Jin & Zhao, "Multimodal Prompt Learning with Missing Modalities for Sentiment Analysis and Emotion Recognition"
(ACL 2024), in our own code. A loop over the samples projects and completes each of them, and appends it to the batch
so far; a second loop does the same with the type tokens. Sequences have a fixed length.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.layers.prompts import MissingPrompts, MixerGenerator, PaddedSteps


class Later(nn.Linear):
    """A projection that leaves its input as it is: the loop projects each sample."""

    def forward(self, values: Tensor) -> Tensor:
        """Unchanged."""
        return values


class LiteralPrompts(MissingPrompts):
    """The same parameters, applied to each sample on its own.

    Attributes:
        projections: One per modality, modules of the model; none if ``projected`` has the projected steps.
    """

    generate: MixerGenerator
    projections: tuple[Later, ...] = ()

    def complete(
        self, streams: Sequence[PaddedSteps], projected: Sequence[Tensor], present: Tensor
    ) -> list[PaddedSteps]:
        """Complete the samples one by one."""
        M = len(streams)
        batch: list[Tensor | None] = [None] * M
        for i in range(len(present)):
            sample = [stream.values[i : i + 1].transpose(1, 2) for stream in streams]  # (1, D_m, L)
            there = [m for m in range(M) if present[i, m].item()]
            for m in range(M):
                if m in there:
                    steps = projected[m][i : i + 1]
                    if self.projections:
                        kernel = self.projections[m].weight[..., None]
                        steps = F.conv1d(steps.transpose(1, 2), kernel).transpose(1, 2)
                else:
                    known = [self.generate.prompts[m].T, *(self._channels(s, m, sample[s])[0] for s in there)]
                    weight, bias = self._mixer(m, there)
                    joined = torch.cat(known, dim=1).unsqueeze(0).transpose(1, 2)  # (1, prompts + |S| L, D)
                    steps = F.gelu(F.conv1d(joined, weight[..., None], bias))
                signal = self.signal[int(m in there), m]
                steps = steps + (signal if self.per_step else signal.mean(0))
                before = batch[m]
                batch[m] = steps if before is None else torch.cat([before, steps], dim=0)
        return [
            PaddedSteps(values, torch.ones(values.shape[:2], dtype=torch.bool))
            for values in batch
            if values is not None
        ]

    def tokens(self, present: Tensor) -> Tensor:
        """Look up the matrix of each sample's pattern, and multiply."""
        matrices = self._matrices(present.shape[1])
        streams = []
        for types in self.type_tokens:
            tokens: Tensor | None = None
            for row in present.long().tolist():
                own = torch.matmul(types, matrices[tuple(row)]).unsqueeze(0)
                tokens = own if tokens is None else torch.cat([tokens, own], dim=0)
            assert tokens is not None
            streams.append(tokens)
        return torch.stack(streams)

    def read(self, m: int, x: Tensor, present: Tensor) -> Tensor:
        """The tokens of each turn of padded conversations (B, L, W), read by its vector."""
        matrices, rows = self._matrices(present.shape[-1]), []
        for vector, status in zip(x.flatten(0, 1), present.flatten(0, 1).long().tolist(), strict=True):
            tokens = torch.matmul(self.type_tokens[m], matrices[tuple(status)])
            rows.append(vector + torch.matmul(tokens, vector).div(len(vector) ** 0.5).softmax(0) @ tokens)
        return torch.stack(rows).view_as(x)

    def _matrices(self, modalities: int) -> dict[tuple[int, ...], Tensor]:
        """The matrix of each pattern."""
        matrices: dict[tuple[int, ...], Tensor] = {}
        for status in itertools.product((0, 1), repeat=modalities):
            parts = [self.signal[q, k].T @ self.type_maps[k] for k, q in enumerate(status)]
            matrices[status] = torch.stack(parts).sum(0)
        return matrices

    def _channels(self, source: int, target: int, steps: Tensor) -> Tensor:
        """Convolution over the channels from one modality to another, with kernel size 1."""
        layer, D = self.generate.sources[source], self.generate.width
        place = D * (target - (target > source))
        weight, bias = layer.weight[place : place + D], layer.bias[place : place + D]  # type: ignore[index]
        return F.gelu(F.conv1d(steps, weight[..., None], bias))

    def _mixer(self, target: int, there: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution over time for these present modalities."""
        number = self.generate.sets.index(tuple(s - (s > target) for s in there))
        first, last = self.generate.first[number : number + 2]
        return self.generate.weight[target, :, first:last], self.generate.bias[target, number]
