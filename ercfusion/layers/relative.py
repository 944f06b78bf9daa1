"""Attention biases for the distance and the speakers of two utterances."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing, check_speakers


class RelativeBias(nn.Module):
    """A learned number per head, distance, and same or different speaker, added to attention scores.

    Relative position biases (Raffel et al., JMLR 2020), separate for pairs of the same and of different speakers. Only
    the equality of speakers matters, so their number and order are free.

    Args:
        heads: H.
        lags: Largest distinct distance on either side; greater distances share its bias.
    """

    def __init__(self, heads: int, lags: int) -> None:
        super().__init__()
        self.lags = lags
        self.weight = nn.Parameter(torch.zeros(heads, 2 * (2 * lags + 1)))

    def pairs(self, lag: Tensor, same_speaker: Tensor) -> Tensor:
        """(H, ...) biases for the distances ``lag`` (receiver minus source) and ``same_speaker`` (...)."""
        index = lag.clamp(-self.lags, self.lags) + self.lags + (2 * self.lags + 1) * same_speaker.long()
        # An embedding, because the gradient of weight[:, index] is summed in an order that changes between runs with
        # several threads.
        return F.embedding(index, self.weight.t()).movedim(-1, 0)

    def forward(self, packing: Packing, speaker: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(B, H, stop - start, L) biases [b, h, receiver, source] within each conversation.

        Receivers are the positions ``start`` to ``stop`` of a conversation; all by default.
        """
        check_speakers(speaker, packing)
        place = torch.arange(packing.longest, device=speaker.device)
        receivers = slice(start, stop)
        lag = (place[receivers, None] - place[None, :]).expand(packing.size, -1, -1)
        numbers = packing.pad(speaker)
        return self.pairs(lag, numbers[:, receivers, None] == numbers[:, None, :]).transpose(0, 1)
