"""Values of earlier batches, which some losses read."""

from __future__ import annotations

from torch import nn


class EarlierBatches(nn.Module):
    """Base of modules whose buffers are values of earlier training batches.

    They have no parameters and no modules inside. In a run with ``training.complete_pass`` each of the two passes over
    the batches has buffers of its own: a loss never reads what these modules stored in the other pass. Buffers that the
    model also reads when it predicts, such as running averages, are not of this class: both passes change them.
    """

    def exchange(self, other: EarlierBatches) -> None:
        """Exchange all buffers with those of ``other``, a copy of this module."""
        self._buffers, other._buffers = other._buffers, self._buffers
