"""Attention biases that tell how far apart two utterances are, and whether one person said both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing


class RelativeBias(nn.Module):
    """A learned number for every head, distance, and same or other speaker, added to attention scores.

    Relative position biases (Raffel et al., JMLR 2020), kept apart for pairs of the same and of different speakers.
    Attention without it cannot tell the nearest utterance from the farthest, nor the next speaker's from one's own.
    Speakers enter by sameness only, so any number of them will do and their order does not matter.

    Args:
        heads: H.
        lags: Distances told apart on either side; greater ones share the last bias.
    """

    def __init__(self, heads: int, lags: int) -> None:
        super().__init__()
        self.lags = lags
        self.weight = nn.Parameter(torch.zeros(heads, 2 * (2 * lags + 1)))

    def pairs(self, lag: Tensor, same_speaker: Tensor) -> Tensor:
        """(H, ...) biases of pairs with the distances ``lag`` (receiver minus source) and ``same_speaker`` (...)."""
        index = lag.clamp(-self.lags, self.lags) + self.lags + (2 * self.lags + 1) * same_speaker.long()
        # An embedding, not weight[:, index]: the gradient of plain indexing is summed in an order that changes from run
        # to run where torch has several threads.
        return F.embedding(index, self.weight.t()).movedim(-1, 0)

    def forward(self, packing: Packing, speaker: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(B, H, stop - start, L) biases [b, h, receiver, source] within each conversation.

        Receivers are the places ``start`` to ``stop`` of a conversation; all of them by default.
        """
        place = torch.arange(packing.longest, device=speaker.device)
        receivers = slice(start, stop)
        lag = (place[receivers, None] - place[None, :]).expand(packing.size, -1, -1)
        numbers = packing.pad(speaker)
        return self.pairs(lag, numbers[:, receivers, None] == numbers[:, None, :]).transpose(0, 1)
