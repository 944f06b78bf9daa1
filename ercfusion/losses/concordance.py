"""Concordance correlation, for regression: of a batch, or of a whole training set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ercfusion.losses.earlier import EarlierBatches


def concordance(prediction: Tensor, target: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Concordance correlation of each column, :math:`2 s_{xy} / (s_x^2 + s_y^2 + (m_x - m_y)^2)`.

    Lin (1989), with biased variances; the covariance form is finite for a constant prediction.

    Shapes:
        prediction, target (N, K) -> (K).
    """
    mean_p, mean_t = prediction.mean(0), target.mean(0)
    covariance = ((prediction - mean_p) * (target - mean_t)).mean(0)
    spread = prediction.var(0, correction=0) + target.var(0, correction=0) + (mean_p - mean_t).square()
    return 2 * covariance / (spread + epsilon)


class SetConcordance(EarlierBatches):
    """Concordance of a whole training set, from the latest prediction of each utterance.

    The value is :func:`concordance` over all utterances seen so far: those of the batch with their present predictions,
    the others with the prediction of their latest batch, without gradient. In the first epoch the set grows; afterwards
    a stored prediction is at most one epoch old, unless an epoch uses a part of the set. If the batch is the set, value
    and gradient are those of :func:`concordance`.

    The gradient is multiplied by (utterances seen) / (utterances of the batch). Its mean over the batches of an epoch
    then has the size of the gradient over the set, as with losses of single utterances.

    The predictions are buffers, so a resumed training continues with them. In eval mode nothing is stored. With
    ``training.complete_pass`` there is one set of predictions per pass.

    Args:
        size: Utterances S of the training set.
        width: Dimensions K.
    """

    prediction: Tensor
    target: Tensor
    seen: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("prediction", torch.zeros(size, width))
        self.register_buffer("target", torch.zeros(size, width))
        self.register_buffer("seen", torch.zeros(size, dtype=torch.bool))

    def forward(self, prediction: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """Concordance of each dimension.

        Args:
            prediction, target: Of the labelled utterances of a batch.
            rows: Their positions in the set, all different.

        Shapes:
            (N, K), (N, K), (N) -> (K).
        """
        others = self.seen.clone()
        others[rows] = False
        stored = self.prediction[others].to(prediction.dtype)
        joint = concordance(
            torch.cat([stored, prediction]), torch.cat([self.target[others].to(prediction.dtype), target])
        )
        if self.training:
            with torch.no_grad():
                self.prediction[rows] = prediction.detach().to(self.prediction.dtype)
                self.target[rows] = target.to(self.target.dtype)
                self.seen[rows] = True
        share = (len(stored) + len(prediction)) / max(len(prediction), 1)
        return joint.detach() + share * (joint - joint.detach())


class SetRows:
    """Positions of a batch's utterances in the training set.

    Args:
        ids: Conversation ids of the set, all different.
        lengths: Utterances of each conversation.
    """

    def __init__(self, ids: Sequence[str], lengths: Sequence[int]) -> None:
        self.size = sum(lengths)
        starts = itertools.accumulate(lengths, initial=0)
        self._first = dict(zip(ids, starts, strict=False))

    def of(self, ids: Sequence[str], lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
        """(N) positions of the utterances of a batch of these conversations."""
        firsts = [self._first[name] for name in ids]
        rows = [first + place for first, length in zip(firsts, lengths, strict=True) for place in range(length)]
        return torch.tensor(rows, dtype=torch.long, device=device)
