"""A classifier whose weights are vectors of label texts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TEMPERATURE = 0.07
_LEAST = 0.01


class LabelSimilarity(nn.Module):
    """Logits from similarities to vectors of label names or definitions: z_c = cos(h W, e_c) / t + b.

    The vectors e_c are fixed, so vectors of further labels give scores of labels without training data. The projection
    W and the temperature t (from 0.07, at least 0.01, as in CLIP) are learned, and for independent labels the common
    offset b; none of them belongs to a label. Our reading of TinyEmo (Gutierrez, 2024) and of emotion
    definition modelling (Singh et al., ACII 2021), which tune a language model or an encoder as well.

    Args:
        width: Width of the input vectors.
        labels: C, number of labels.
        dimension: D, width of the label vectors.
        offset: Learn b. Exclusive labels do not need it.

    Shapes:
        hidden (N, width) -> logits (N, C).
    """

    def __init__(self, width: int, labels: int, dimension: int, *, offset: bool) -> None:
        super().__init__()
        self.project = nn.Linear(width, dimension, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(_TEMPERATURE)))
        self.offset = nn.Parameter(torch.zeros(())) if offset else None
        self.vectors = nn.Buffer(torch.zeros(labels, dimension))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C) logits of the stored labels."""
        return self.logits(hidden, self.vectors)

    def logits(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """(N, L) logits of L labels from their vectors (L, D)."""
        similarity = F.normalize(self.project(hidden), dim=-1) @ F.normalize(vectors.to(hidden), dim=-1).T
        logits = similarity / self.log_temperature.exp().clamp(min=_LEAST)
        return logits if self.offset is None else logits + self.offset
